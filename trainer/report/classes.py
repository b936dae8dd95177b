"""How each class is told from the others, as `evaluate` found on the test set."""

from __future__ import annotations

import shlex
from typing import Any

from trainer.errors import RunDirectoryError
from trainer.mistakes import Mistakes
from trainer.pages import Cell, Figure, Html, copyable, element, plot_text, table
from trainer.report.mistake_images import mistake_images
from trainer.report.reading import RunFiles
from trainer.run_dir import RunDir

_MOST_CLASSES_WITH_NUMBERS = 20


def classes_section(files: RunFiles) -> list[str | Html | Figure]:
    """Return the confusion matrix and the figures of each class, or how to get them."""
    if not files.is_run:
        return ["This is no run directory: nothing was evaluated."]
    if not files.evaluation:
        command = f"trainer evaluate {shlex.quote(str(files.path))}"
        blocks: list[str | Html | Figure] = [
            files.missing.get("evaluation", "The run was not evaluated on the test set.")
        ]
        return [*blocks, copyable(command, "Evaluate it, then write the report again")]
    try:
        return [*_blocks(files.evaluation), *_mistakes(files)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return [f"evaluation.json is damaged ({type(error).__name__}: {error})."]


def _blocks(evaluation: Any) -> list[str | Html | Figure]:
    classes, loss = evaluation["classes"], evaluation["loss"]
    columns = ["class", "images", "precision", "recall", "f1"]
    rows = [
        [
            each["name"],
            Cell(f"{each['num_images']:,}", each["num_images"]),
            *(Cell(f"{each[name]:.4f}", each[name]) for name in columns[2:]),
        ]
        for each in classes
    ]
    what = "synthetic test images" if evaluation.get("synthetic") else "test images"
    return [
        f"{evaluation['num_images']:,} {what}: accuracy {evaluation['accuracy']:.4f}, "
        # JSON has no NaN: of a model whose weights are not finite.
        f"loss {'not finite' if loss is None else f'{loss:.4f}'}.",
        _confusion([each["name"] for each in classes], evaluation["confusion"]),
        table(
            columns,
            rows,
            label="Figures of each class",
            numbers=columns[1:],
            is_sortable=True,
        ),
    ]


def _mistakes(files: RunFiles) -> list[str | Html | Figure]:
    try:
        mistakes = Mistakes.read(RunDir(files.path).mistakes)
    except RunDirectoryError as error:
        return [
            f"The most confident mistakes are not shown: {error}. `trainer evaluate` keeps them."
        ]
    if not len(mistakes):
        return ["No image of the test set was taken for another class."]
    names = [each["name"] for each in files.evaluation["classes"]]
    return [
        element("h3", "The most confident mistakes"),
        "What the network saw in them, how sure it was, and what they are.",
        mistake_images(mistakes, names),
    ]


def _confusion(names: list[str], counts: list[list[int]]) -> Figure:
    labels = [plot_text(name) for name in names]
    shares = [[each / max(sum(row), 1) for each in row] for row in counts]
    has_numbers = len(names) <= _MOST_CLASSES_WITH_NUMBERS
    side = min(max(28 * len(names) + 120, 300), 640)
    trace = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": [[round(each, 4) for each in row] for row in shares],
        "customdata": counts,
        "colorscale": "scale",
        "zmin": 0,
        "zmax": 1,
        "xgap": 1,
        "ygap": 1,
        "showscale": False,
        "hovertemplate": "%{y} taken for %{x}: %{customdata} images, %{z:.1%}<extra></extra>",
    }
    if has_numbers:
        trace |= {"text": counts, "texttemplate": "%{text}"}
    axis = {"type": "category", "showgrid": False}
    return Figure(
        label="Confusion matrix: true classes from top to bottom, predicted ones across",
        data=[trace],
        layout={
            "xaxis": {**axis, "title": {"text": "predicted", "standoff": 10}, "tickangle": -45},
            "yaxis": {**axis, "title": {"text": "true", "standoff": 12}, "autorange": "reversed"},
        },
        height=side,
        caption="Colour is the share of the true class; the numbers are images.",
    )
