"""`search.html`: what a search came to, to look at.

It is made of the trials' folders alone, while the search runs, after its end or after a kill.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from trainer.config import dump_config
from trainer.config.search_schema import SearchConfig
from trainer.errors import MissingDependencyError, RunDirectoryError
from trainer.pages import (
    Figure,
    Html,
    Section,
    copyable,
    element,
    facts,
    legend,
    render_page,
)
from trainer.run_dir import read_json
from trainer.search.directory import SearchDir
from trainer.search.display import short_names, short_values
from trainer.search.importance import TooFewTrials, importances
from trainer.search.page_figures import (
    curve_style,
    importance_figure,
    learning_curves,
)
from trainer.search.page_parallel import parallel_coordinates
from trainer.search.page_tables import failures_table, space_table, trials_table
from trainer.search.trials import TrialRecord, trials_folder

if TYPE_CHECKING:
    from trainer.search.results import Results

_STATES = {
    "done": ("trained to its end", "trained to their end"),
    "pruned": ("stopped early", "stopped early"),
    "failed": ("failed", "failed"),
    "unfinished": ("has not ended", "have not ended"),
}
"""What became of one trial, and of several."""


def search_page(results: Results, best_yaml: str | None, *, is_over: bool) -> str:
    """Return the page of a search.

    Args:
        results: Of the search.
        best_yaml: Text of `best.yaml`, None if no trial has a score of its own.
        is_over: Whether no trial will follow; only then is the importance of the parameters
            worked out, which takes seconds.

    Raises:
        MissingDependencyError: If plotly is not there.
    """
    search = _search_of(results)
    sections = [
        Section("Values and scores", _values_section(results)),
        Section("Importance", _importance_section(results, is_over)),
        Section("Learning curves", _curves_section(results)),
        Section("Failures", [failures_table(results.trials)]),
        Section("Trials", _trials_section(results)),
        Section("Space", [space_table(search, results.best)]),
        Section("Run it", _commands_section(results, best_yaml)),
    ]
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    standing = "" if is_over else " while the search was running"
    return render_page(
        f"Search {results.config.name}",
        verdict(results),
        sections,
        summary=_summary(results),
        footer=f"Written {written}{standing}, from {trials_folder(results.path)}.",
    )


def verdict(results: Results) -> str:
    """Return what a search came to, in one sentence."""
    search = _search_of(results)
    if not results.trials:
        return "No trial has begun yet."
    best, counts = results.best, f"{_counted(results)}."
    if best is None or best.outcome is None:
        ended = any(t.outcome for t in results.trials)
        return f"No trial has a score of its own{' yet' if not ended else ''}: {counts}"
    values = ", ".join(f"{k} {v}" for k, v in short_values(best, results.config).items())
    stopped = " before it was stopped early" if best.outcome.state == "pruned" else ""
    return (
        f"Trial {best.number} is the best: {search.objective} {best.outcome.score:.4g}{stopped}, "
        f"with {values}; {counts}"
    )


def _counted(results: Results) -> str:
    """Say how many trials ended of what."""
    by_state: dict[str, Counter[str]] = {state: Counter() for state in _STATES}
    for trial in results.trials:
        by_state[_state(trial)][trial.outcome.cause if trial.outcome else ""] += 1
    parts = []
    for state, causes in by_state.items():
        if not causes:
            continue
        text = f"{causes.total()} {_STATES[state][causes.total() > 1]}"
        if state in ("pruned", "failed"):
            told = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
            text += f" ({told})"
        parts.append(text)
    *first, last = parts
    listed = f"{', '.join(first)} and {last}" if first else last
    count = len(results.trials)
    return f"of {count} trial{'s' if count != 1 else ''}, {listed}"


def _summary(results: Results) -> Html:
    search = _search_of(results)
    ended = [t.outcome for t in results.trials if t.outcome]
    best = results.best
    score = "none" if best is None or best.outcome is None else f"{best.outcome.score:.4g}"
    return facts(
        {
            f"best {search.objective}": score,
            "trials ended": f"{len(ended)} of {len(results.trials)}",
            "epochs trained": sum(
                max(0, len(t.history) - t.point.parent_epochs) for t in results.trials
            ),
            "time in trials": _duration(sum(each.seconds for each in ended)),
            "algorithm": search.algorithm,
        }
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _values_section(results: Results) -> list[str | Html | Figure]:
    search = _search_of(results)
    ended = [t for t in results.trials if t.outcome]
    if not ended:
        return ["No trial has ended yet."]
    states = {t.outcome.state for t in ended if t.outcome}
    entries = [("thick", "var(--soft)", "the best")] if results.best else []
    entries += [("solid", "var(--soft)", "trained to its end")] if "done" in states else []
    entries += [("dash", "var(--soft)", "stopped early")] if "pruned" in states else []
    entries += [("dot", "var(--bad)", "failed: no score of its own")] if "failed" in states else []
    lead = element(
        "p",
        f"Each line is a trial, from its values to its {search.objective} "
        f"({'higher' if search.is_maximized else 'lower'} is better). ",
        element(
            "span",
            "Drag over an axis to keep the trials that pass there, with Shift over another one "
            "too; a double click brings all back.",
            class_="mouse",
        ),
    )
    return [
        lead,
        legend(entries, scale=("worst", "best by rank")),
        parallel_coordinates(search, ended, results.best),
    ]


def _importance_section(results: Results, is_over: bool) -> list[str | Html | Figure]:
    if not is_over:
        return ["This is worked out when the search stops."]
    search = _search_of(results)
    try:
        found = importances(search, results.trials)
    except (TooFewTrials, MissingDependencyError) as error:
        return [f"The importance of the parameters is not known: {error}."]
    names = short_names(list(search.space))
    told = [names[each.key] for each in found.parameters if each.is_told_from_chance]
    first = (
        f"Told from chance by {found.trials} trials: {', '.join(told)}."
        if told
        else f"{found.trials} trials tell no parameter's part from chance."
    )
    doubt = (
        " That is next to nothing, so take the order as no more than a hint."
        if found.explained < 0.2
        else ""
    )
    explained = max(found.explained, 0)
    return [
        first,
        importance_figure(search, found),
        Html(
            element(
                "p",
                "A random forest learns the rank of the score from the values. A dot says in how "
                "much of the differences between trials a parameter has a part, alone or with "
                "others: by how much worse the forest predicts trials that it has not seen once "
                "that parameter's values are shuffled. A line holds 90% of the answers when the "
                "trials are drawn anew; a hollow dot is not told from chance. "
                f"The forest predicts {explained:.0%} of the differences.{doubt}",
                class_="soft",
            )
        ),
    ]


def _curves_section(results: Results) -> list[str | Html | Figure]:
    search = _search_of(results)
    begun = [t for t in results.trials if t.history]
    if not begun:
        return ["No epoch has ended yet."]
    entries = [("thick", "var(--ink)", "the best")] if results.best else []
    for state, (meaning, _) in _STATES.items():
        of_state = [trial for trial in begun if _state(trial) == state]
        if of_state:
            colour, dash = curve_style(of_state[0])
            entries.append((dash if dash != "dashdot" else "dash", colour, meaning))
    return [legend(entries, scale=None), learning_curves(search, begun, results.best)]


def _trials_section(results: Results) -> list[str | Html | Figure]:
    if not results.trials:
        return ["No trial has begun yet."]
    return [
        "A number leads to the trial's folder, which is a run directory. A click on a column's "
        "name sorts by it.",
        trials_table(_search_of(results), results.trials, results.best),
    ]


def _commands_section(results: Results, best_yaml: str | None) -> list[str | Html | Figure]:
    blocks: list[str | Html | Figure] = []
    if best_yaml is not None:
        best = SearchDir(results.path).best
        command = f"trainer train {shlex.quote(str(best))}"
        blocks += [copyable(command, "Train the best again"), copyable(best_yaml, "best.yaml")]
    command = _command(results)
    if command:
        blocks.append(copyable(command, "The command of this search"))
    blocks.append(copyable(dump_config(results.config), "The config of this search, in full"))
    return blocks


def _command(results: Results) -> str:
    """Return how the search was started, as its first trial has noted it."""
    for trial in results.trials:
        with suppress(RunDirectoryError, KeyError, TypeError):
            _, *arguments = read_json(trial.run.environment)["command"]
            return shlex.join(["trainer", *map(str, arguments)])
    return ""


def _state(trial: TrialRecord) -> str:
    return trial.outcome.state if trial.outcome else "unfinished"


def _search_of(results: Results) -> SearchConfig:
    search = results.config.search
    assert search is not None
    return search
