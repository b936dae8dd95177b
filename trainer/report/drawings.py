"""The pictures of a report as files, drawn by matplotlib, an optional dependency."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.pages.drawing import Drawing, Ending, colour, drawing_of, literal, write_pictures
from trainer.report.columns import (
    Columns,
    Picture,
    activation_picture,
    gradient_picture,
    ratio_picture,
)
from trainer.report.curves import clip_figure, loss_figure, speed_figure
from trainer.report.profile import profile_figure
from trainer.report.reading import RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MOST_LABELS = 40


def draw_files(files: RunFiles, folder: Path, ending: Ending) -> list[Path]:
    """Draw the pictures that a run has, each into a file of its own.

    Args:
        files: Of the run.
        folder: Made if missing; files of the same names are replaced.
        ending: Of the files.

    Returns:
        The files: `loss`, `gradient_picture`, `profile`, `clipping`, `confusion` and `speed`,
        without those that the run has nothing for.

    Raises:
        MissingDependencyError: If matplotlib is not there.
        RunDirectoryError: If a file cannot be written.
    """
    log = files.log
    columns = None if log is None else Columns.of(log)
    clipping = None
    if log is not None and columns is not None and log.header.clipping:
        clipping = clip_figure(log, columns, {})
    drawings: Mapping[str, Drawing] = {
        "loss": drawing_of(loss_figure(files, columns, {})),
        "gradient_picture": partial(_gradient_picture, files),
        "profile": drawing_of(None if log is None else profile_figure(log)),
        "clipping": drawing_of(clipping),
        "confusion": partial(_confusion, files),
        "speed": drawing_of(speed_figure(files)),
    }
    return write_pictures(drawings, folder, ending)


def _gradient_picture(files: RunFiles, canvas: Canvas) -> bool:
    log = files.log
    if log is None:
        return False
    columns = Columns.of(log)
    kernels = log.kernels if len(log.kernels) else np.arange(len(log.header.variables))
    names = [literal(log.header.paths[index].removesuffix("/kernel")) for index in kernels]
    panels = [
        ("gradient norm", gradient_picture(log, columns).rows(kernels), names),
        ("update ratio", ratio_picture(log, columns).rows(kernels), names),
    ]
    if log.header.activations:
        layers = list(map(literal, log.header.activations))
        panels.append(("activation spread", activation_picture(log, columns), layers))
    canvas.set_layout_engine("constrained")
    canvas.set_size_inches(4.2 * len(panels), float(np.clip(0.17 * len(kernels) + 1.5, 3.5, 9)))
    axes = np.ravel(canvas.subplots(1, len(panels), sharex=True))
    for index, (place, (title, picture, rows)) in enumerate(zip(axes, panels, strict=True)):
        _heatmap(canvas, place, picture, columns)
        place.set_title(title, fontweight="bold")
        place.set_xlabel("step")
        stride = -(-len(rows) // _MOST_LABELS)
        shown = range(0, len(rows), stride) if index != 1 else range(0)
        place.set_yticks([row + 0.5 for row in shown], [rows[row] for row in shown], fontsize=6.5)
    return True


def _heatmap(canvas: Canvas, place: Axes, picture: Picture, columns: Columns) -> None:
    from matplotlib.colors import ListedColormap

    rows = np.arange(len(picture.log10) + 1)
    low, high = picture.extent
    mesh = place.pcolormesh(
        columns.edges,
        rows,
        np.ma.masked_invalid(picture.log10),
        cmap="viridis_r",
        vmin=low,
        vmax=high,
        rasterized=True,
    )
    for flags, name in ((picture.is_zero, "zero"), (picture.is_nonfinite, "bad")):
        if flags.any():
            shown = np.ma.masked_where(~flags, flags.astype(float))
            place.pcolormesh(
                columns.edges, rows, shown, cmap=ListedColormap([colour(name)]), rasterized=True
            )
    place.invert_yaxis()
    place.spines[:].set_visible(False)
    canvas.colorbar(mesh, ax=place, label="log10 (grey: zero, orange: not finite)", shrink=0.9)


def _confusion(files: RunFiles, canvas: Canvas) -> bool:
    try:
        names = [literal(str(each["name"])) for each in files.evaluation["classes"]]
        counts = np.array(files.evaluation["confusion"], np.int64)
        if counts.shape != (len(names), len(names)):
            return False
    except (KeyError, TypeError, ValueError):
        return False
    side = float(np.clip(0.5 * len(names) + 1.5, 4, 12))
    canvas.set_layout_engine("constrained")
    canvas.set_size_inches(side, side)
    place = canvas.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    place.imshow(shares, cmap="viridis_r", vmin=0, vmax=1)
    if len(names) <= _MOST_LABELS // 2:
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if shares[row, column] > 0.5 else "black"
            place.text(column, row, str(count), ha="center", va="center", color=ink)
    places = np.arange(len(names))
    place.set_xticks(places, names, rotation=45, ha="right")
    place.set_yticks(places, names)
    place.set_xlabel("predicted")
    place.set_ylabel("true")
    return True
