"""Write the comparison of several runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.compare.curves import curves_figure, ratio_figure
from trainer.compare.groups import ABSENT, Group, grouped
from trainer.compare.page import comparison_page
from trainer.compare.profiles import profiles_figure
from trainer.compare.results import Interval, Results
from trainer.compare.tables import epochs_text
from trainer.compare.verdict import health, interval_text, missing, verdict
from trainer.errors import RunDirectoryError
from trainer.pages.drawing import Drawing, Ending, drawing_of, write_pictures
from trainer.report.reading import RunFiles
from trainer.run_dir import write_text

FILE_NAME = "comparison.html"
FEWEST, MOST = 2, 8


@dataclass(frozen=True)
class Comparison:
    """A comparison that was written.

    Attributes:
        results: What it shows.
        path: Its file.
        verdict: Its first sentence.
        pictures: Files of single pictures, where they were asked for.
    """

    results: Results
    path: Path
    verdict: str
    pictures: tuple[Path, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it for programs; a key that a config lacks is not there."""
        groups = [group for group in self.results.groups if group.values is not None]
        return {
            "comparison": str(self.path),
            "bytes": self.path.stat().st_size,
            "verdict": self.verdict,
            "differences": {
                key: {
                    group.label: value
                    for group, value in zip(groups, row, strict=True)
                    if value is not ABSENT
                }
                for key, row in self.results.differences.items()
            },
            "groups": [self._group(index) for index in range(len(self.results.groups))],
            "better": {
                key: None if decision.better is None else self.results.groups[decision.better].label
                for key, decision in self.results.decisions.items()
            },
            "why_not_marked": {
                key: decision.reason
                for key, decision in self.results.decisions.items()
                if decision.reason
            },
            "missing": missing(self.results),
            "pictures": [str(path) for path in self.pictures],
        }

    def _group(self, index: int) -> dict[str, Any]:
        group = self.results.groups[index]
        return {
            "label": group.label,
            "means": {
                key: _interval_json(decision.intervals[index])
                for key, decision in self.results.decisions.items()
            },
            "runs": [
                {
                    "label": label,
                    "path": str(run.path),
                    "state": run.state,
                    "seed": seed,
                    "epochs": len(run.history),
                    **{each.key: each.of(run) for each in self.results.quantities},
                    "health": health([run]),
                    "findings": [finding.rule for finding in run.diagnosis.findings],
                }
                for label, run, seed in zip(group.labels, group.runs, group.seeds, strict=True)
            ],
        }

    def as_text(self, width: int | None = None) -> str:
        """Return a table of all runs, and what they come to, for people.

        Args:
            width: Columns there are; a wider table is turned, with runs side by side.
        """
        rows: list[tuple[str, ...]] = [("run", "state", "epochs", *self._titles(), "findings")]
        for index, group in enumerate(self.results.groups):
            for label, run in zip(group.labels, group.runs, strict=True):
                values = [(each, each.of(run)) for each in self.results.quantities]
                cells = [each.text(v) if math.isfinite(v) else "-" for each, v in values]
                rows.append((label, run.state, epochs_text(run), *cells, health([run])))
            if len(group.runs) > 1:
                means = [self._mean_text(each.key, index) for each in self.results.quantities]
                rows.append((f"{group.label}, mean", "", "", *means, health(group.runs)))
        if any(decision.better is not None for decision in self.results.decisions.values()):
            note = "* better: its 95 % interval over the seeds lies beyond all others"
        else:
            titles: dict[str, list[str]] = {}
            for each in self.results.decisions.values():
                if each.quantity.better:
                    titles.setdefault(each.reason, []).append(each.quantity.title)
            reasons = [f"{', '.join(names)}: {reason}" for reason, names in titles.items()]
            note = f"nothing is marked as better ({'; '.join(reasons)})"
        lines = _aligned(rows)
        if width is not None:
            if max(map(len, lines)) > width:
                lines = _turned(rows, width)
            note, told = (textwrap.fill(text, width) for text in (note, self.verdict))
            return "\n".join([*lines, note, told]).replace("\u00a0", " ")
        return "\n".join([*lines, note, self.verdict]).replace("\u00a0", " ")

    def _titles(self) -> list[str]:
        return [each.title.removesuffix(" accuracy") for each in self.results.quantities]

    def _mean_text(self, key: str, index: int) -> str:
        decision = self.results.decisions[key]
        interval = decision.intervals[index]
        if interval is None:
            return "-"
        return interval_text(decision.quantity, interval) + "*" * (decision.better == index)


def _interval_json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {**interval.__dict__}


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _turned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A table with a column a row, in as many parts as the width asks for."""
    names, *columns = rows
    lines: list[str] = []
    while columns:
        count = len(columns)
        while True:
            part = _aligned(list(zip(names, *columns[:count], strict=True)))
            if count == 1 or max(map(len, part)) <= width:
                break
            count -= 1
        lines += [*part, ""]
        columns = columns[count:]
    return lines


def write_comparison(
    paths: Sequence[Path | str],
    output: Path | None = None,
    *,
    png: Path | None = None,
    svg: Path | None = None,
) -> Comparison:
    """Write the comparison of run directories, or of folders that are just gradient logs.

    Args:
        paths: Two to eight of them; killed and damaged runs do too.
        output: The file to write; `comparison.html` in the working directory if missing.
        png: Folder to write each picture into, as PNG: `curves`, `profiles` and `ratio`,
            without those that no run has anything for.
        svg: The same as SVG.

    Raises:
        RunDirectoryError: If there are too few or too many, one is there twice, one is no run,
            or the file cannot be written.
        MissingDependencyError: If plotly is not there, or matplotlib for single pictures.
    """
    if not FEWEST <= len(paths) <= MOST:
        raise RunDirectoryError(
            f"compare takes {FEWEST} to {MOST} runs. Received: {len(paths)}"
            + (f" ({paths[0]})" if len(paths) == 1 else "")
        )
    places = [Path(path).resolve() for path in paths]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise RunDirectoryError(
                f"{paths[index]}: each run can be compared once, and this one is there twice. "
                "Leave one of them out"
            )
    results = Results(grouped([RunFiles.read(path) for path in paths]))
    target = Path(FILE_NAME) if output is None else output
    asked: tuple[tuple[Path | None, Ending], ...] = ((png, "png"), (svg, "svg"))
    pictures = [
        each
        for folder, ending in asked
        if folder is not None
        for each in write_pictures(_drawings(results.groups), folder, ending)
    ]
    write_text(target, comparison_page(results, target.parent))
    return Comparison(results, target, verdict(results), tuple(pictures))


def _drawings(groups: Sequence[Group]) -> dict[str, Drawing]:
    return {
        "curves": drawing_of(curves_figure(groups)),
        "profiles": drawing_of(profiles_figure(groups)),
        "ratio": drawing_of(ratio_figure(groups)),
    }
