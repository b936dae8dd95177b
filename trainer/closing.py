"""What a training came to, from its run directory: the last thing that a person sees of it."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence

from trainer.diagnosis.judge import Diagnosis
from trainer.run_dir import RunDir
from trainer.terminal import duration

_FIGURES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "val_loss": "val loss",
    "val_accuracy": "val accuracy",
}
_INDENT = 11
_WIDTH = 80


def closing_table(run: RunDir, history: Sequence[Mapping[str, float]], diagnosis: Diagnosis) -> str:
    """Return it for people, within 80 columns but for long names of runs.

    Args:
        run: Of which the commands to go on with are said.
        history: Its rows, one an epoch.
        diagnosis: Of the run.
    """
    lines = ["", *_what_was_done(history), *_best_and_last(history)]
    lines.append(_line("gradients", _health(run, diagnosis)))
    lines.append(_line("next", f"trainer report {run.path}"))
    lines.append(_line("", f"trainer evaluate {run.path}"))
    if run.tensorboard.exists():
        lines.append(_line("", f"tensorboard --logdir {run.tensorboard}"))
    return "\n".join(lines)


def _what_was_done(history: Sequence[Mapping[str, float]]) -> list[str]:
    if not history:
        return [_line("trained", "no epoch to its end")]
    last = history[-1]
    seconds = math.fsum(row["seconds"] for row in history)
    rate = statistics.median(row["images_per_second"] for row in history)
    epochs = f"{len(history)} epoch{'s' if len(history) != 1 else ''}"
    text = f"{epochs}, {last['step']:,.0f} steps in {duration(seconds)} of training"
    speed = f"{rate:,.0f} img/s"
    # Of a resumed run the last process had the least, perhaps, and an older one did not tell.
    told = [row["memory_mib"] for row in history if row.get("memory_mib", math.nan) > 0]
    speed += f", {max(told):,.0f} MiB of memory at most" if told else ""
    return [_line("trained", text), _line("speed", speed)]


def _best_and_last(history: Sequence[Mapping[str, float]]) -> list[str]:
    if not history:
        return []
    last = history[-1]
    keys = [key for key in _FIGURES if key in last]
    of_accuracy, of_loss = keys[-1], keys[-2]
    best = max(
        history,
        key=lambda row: (
            _or_least(row.get(of_accuracy, math.nan)),
            _or_least(-row.get(of_loss, math.nan)),
        ),
    )
    lines = [_line("", "  ".join(f"{_FIGURES[key]:>8}" for key in keys))]
    for name, row in {"best": best, "last": last}.items():
        values = "  ".join(f"{row[key]:>{max(8, len(_FIGURES[key]))}.4f}" for key in keys)
        by = " by accuracy" if name == "best" else ""
        lines.append(_line(name, f"{values}  epoch {row['epoch'] + 1:.0f}{by}"))
    return lines


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _health(run: RunDir, diagnosis: Diagnosis) -> str:
    if diagnosis.exit_code == 2:
        return f"not judged: {diagnosis.unheard or 'no rule could run'}"
    grave = [each for each in diagnosis.findings if each.severity != "note"]
    if not grave:
        return "healthy"
    rules = ", ".join(dict.fromkeys(f"{each.rule} ({each.severity})" for each in grave))
    lines = textwrap.wrap(rules, _WIDTH - _INDENT, break_on_hyphens=False)
    return f"\n{' ' * _INDENT}".join([*lines, f"what to do: trainer diagnose {run.path}"])


def _line(name: str, text: str) -> str:
    return f"{name:<{_INDENT}}{text}".rstrip()
