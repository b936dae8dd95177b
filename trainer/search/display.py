"""What a person sees of a search: a table that lives on a terminal, elsewhere a line a trial."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainer.config import Config
from trainer.search.pruning import is_scored
from trainer.search.trials import TrialRecord, read_trials
from trainer.terminal import say

_SECONDS = 1.0


@contextmanager
def shown(path: Path, config: Config) -> Iterator[Callable[[str], None]]:
    """Show the trials of a search as long as the block runs.

    Yields:
        A function that prints a line, above the table where there is one.
    """
    # Its stream is taken now: a trial's own lines go elsewhere.
    console = Console(stderr=True)
    console = Console(file=console.file, force_terminal=console.is_terminal)
    stop = threading.Event()
    ended = {t.path for t in read_trials(path) if t.outcome is not None}

    def lines() -> None:
        for trial in read_trials(path):
            if trial.outcome is not None and trial.path not in ended:
                ended.add(trial.path)
                console.file.write(f"{one_line(trial, config)}\n")
                console.file.flush()

    def watch() -> None:
        if not console.is_terminal:
            while not stop.wait(_SECONDS):
                lines()
            return
        with Live(console=console, auto_refresh=False, redirect_stderr=False) as live:
            while True:
                is_over = stop.wait(_SECONDS)
                trials = read_trials(path)
                # Values may take two lines each.
                rows = len(trials) if is_over else max((console.height - 2) // 2, 3)
                live.update(table(trials[-rows:], config), refresh=True)
                if is_over:
                    return

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        stop.set()
        thread.join()
        if not console.is_terminal:
            lines()


def one_line(trial: TrialRecord, config: Config) -> str:
    """Return an ended trial in a line."""
    outcome, search = trial.outcome, config.search
    assert outcome is not None and search is not None
    score = f"{outcome.score:.4f}" if is_scored(search, trial) else "     -"
    return (
        f"trial {trial.number:>3}  {score}  {outcome.state:<6}  {outcome.health:<9}  "
        f"{_values_in_words(trial, config)}  ({outcome.reason})"
    )


def table(trials: Sequence[TrialRecord], config: Config) -> Table:
    """Return trials as a table; the objective of a running one is that of its last epoch."""
    search = config.search
    assert search is not None
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "epoch", search.objective):
        drawn.add_column(name, justify="right", no_wrap=True)
    for name in ("gradients", "ended"):
        drawn.add_column(name, no_wrap=True)
    drawn.add_column("values", overflow="fold")
    for trial in trials:
        last = trial.history[-1] if trial.history else {}
        score = last.get(search.objective, math.nan)
        health, ended = "", f"worker {trial.worker}"
        if trial.outcome is not None:
            health, ended = trial.outcome.health, trial.outcome.cause
            score = trial.outcome.score if is_scored(search, trial) else math.nan
        drawn.add_row(
            str(trial.number),
            f"{len(trial.history)}/{trial.point.epochs}",
            "" if math.isnan(score) else f"{score:.4f}",
            health,
            ended,
            _values_in_words(trial, config),
        )
    return drawn


def _values_in_words(trial: TrialRecord, config: Config) -> str:
    return ", ".join(f"{name}={value}" for name, value in short_values(trial, config).items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last words of each dotted key, as few as tell it from all others."""
    names = {}
    for key in keys:
        words = key.split(".")
        suffixes = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        names[key] = next(
            (s for s in suffixes if sum(f".{other}".endswith(f".{s}") for other in keys) == 1), key
        )
    return names


def short_values(trial: TrialRecord, config: Config) -> dict[str, str]:
    """Return a trial's values by their short names, for people."""
    assert config.search is not None
    names = short_names(list(config.search.space))
    return {names[key]: in_words(value) for key, value in trial.point.values.items()}


def in_words(value: Any) -> str:
    """Return a value as people read it; what YAML has a word for, as YAML writes it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | tuple | dict):
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1e9).strip()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def say_causes(causes: dict[str, int]) -> None:
    """Say how many trials ended of what."""
    if causes:
        say("trials ended: " + ", ".join(f"{count} {cause}" for cause, count in causes.items()))
