"""Comparisons of runs that were made by hand, for the tests of `trainer compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from html_pages import ReadPage
from made_runs import make_run
from tiny import write_tiny_config

from trainer.compare import Comparison, write_comparison
from trainer.compare.groups import grouped
from trainer.compare.results import Results
from trainer.report.reading import RunFiles

PLAIN, RESIDUAL = "model.block.kind=plain", "model.block.kind=residual"

Make = Callable[..., Path]


def maker(folder: Path) -> Make:
    """Return what makes a run by its name."""
    write_tiny_config(folder)
    return lambda name, *overrides, **more: make_run(folder / name, *overrides, **more)


def compared(*runs: Path) -> tuple[Comparison, ReadPage]:
    written = write_comparison(runs, runs[0].parent / "comparison.html")
    return written, ReadPage(written.path.read_text(encoding="utf-8"))


def results_of(*runs: Path) -> Results:
    return Results(grouped([RunFiles.read(run) for run in runs]))


def traces_of(figure: dict[str, Any], axis_title: str, width: str = "wide") -> list[Any]:
    """Return the traces of the plot whose vertical axis has this title."""
    layout = figure["wide"]["layout"]
    axes = [
        key.replace("axis", "")
        for key, axis in layout.items()
        if key.startswith("yaxis") and axis.get("title", {}).get("text") == axis_title
    ]
    return [trace for trace in figure[width]["data"] if trace["yaxis"] in axes]


def figure_with(page: ReadPage, axis_title: str) -> dict[str, Any]:
    (found,) = [figure for figure in page.figures if traces_of(figure, axis_title)]
    return found


def seeds(make: Make, kind: str, accuracies: list[float], **more: Any) -> list[Path]:
    """Make a run a seed."""
    return [
        make(f"{kind}{seed}", f"model.block.kind={kind}", f"seed={seed}",
             val_accuracy=[0.1, value], **more)
        for seed, value in enumerate(accuracies)
    ]  # fmt: skip
