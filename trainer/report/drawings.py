"""The pictures of a report as files, drawn by matplotlib, an optional dependency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainer.errors import MissingDependencyError
from trainer.report.columns import (
    Columns,
    Picture,
    activation_picture,
    gradient_picture,
    ratio_picture,
)
from trainer.report.curves import is_for_log
from trainer.report.profile import chosen_windows, window_name
from trainer.report.reading import RunFiles
from trainer.run_dir import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ending = Literal["png", "svg"]

_ZERO, _NONFINITE = "#a9b1ba", "#c04a00"
_TRAINING, _VALIDATION, _INK = "#0063a6", "#9b3f86", "#1b1f24"
_MOST_LABELS = 40
_DOTS_PER_INCH = 160


def draw_files(files: RunFiles, folder: Path, ending: Ending) -> list[Path]:
    """Draw the pictures that a run has, each into a file of its own.

    Args:
        files: Of the run.
        folder: Made if missing; files of the same names are replaced.
        ending: Of the files.

    Returns:
        The files: `loss`, `gradient_picture`, `profile` and `confusion`, without those that
        the run has nothing for.

    Raises:
        MissingDependencyError: If matplotlib is not there.
        RunDirectoryError: If a file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"pictures as files need matplotlib ({error}). Run: scripts/setup_env.sh report"
        ) from None
    drawings: Mapping[str, Callable[[RunFiles, Figure], bool]] = {
        "loss": _loss,
        "gradient_picture": _gradient_picture,
        "profile": _profile,
        "confusion": _confusion,
    }
    written = []
    # Text of an SVG stays text, and the same run has the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "trainer", "font.size": 9}):
        for name, draw in drawings.items():
            figure = Figure(layout="constrained", dpi=_DOTS_PER_INCH)
            if not draw(files, figure):
                continue
            path = folder / f"{name}.{ending}"
            write_atomically(path, _saving(figure, ending))
            written.append(path)
    return written


def _saving(figure: Figure, ending: Ending) -> Callable[[Path], None]:
    metadata = {"Date": None} if ending == "svg" else None
    return lambda path: figure.savefig(path, format=ending, metadata=metadata)


def _loss(files: RunFiles, figure: Figure) -> bool:
    if not files.history:
        return False
    figure.set_size_inches(7, 5.5)
    epochs = np.arange(1, len(files.history) + 1)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 1])
    for place, name in zip(axes[:2], ("loss", "accuracy"), strict=True):
        place.plot(epochs, files.column(name), "o-", color=_TRAINING, ms=3, label="training")
        held_out = np.array(files.column(f"val_{name}"))
        if not np.isnan(held_out).all():
            place.plot(epochs, held_out, "D--", color=_VALIDATION, ms=3, label="validation")
        place.set_ylabel(name)
    losses = np.array([*files.column("loss"), *files.column("val_loss")])
    losses = losses[np.isfinite(losses)]
    if losses.size and is_for_log(losses.min(), losses.max()):
        axes[0].set_yscale("log")
    axes[0].legend(frameon=False)
    axes[2].plot(epochs, files.column("learning_rate"), "o-", color=_INK, ms=2)
    axes[2].set_ylabel("learning rate")
    axes[2].set_xlabel("epoch")
    axes[2].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _plainly(axes)
    return True


def _plainly(axes: Any) -> None:
    for place in np.ravel(axes):
        place.grid(color="#d5dae0", linewidth=0.6)
        place.spines[:].set_visible(False)


def _gradient_picture(files: RunFiles, figure: Figure) -> bool:
    log = files.log
    if log is None:
        return False
    columns = Columns.of(log)
    kernels = log.kernels if len(log.kernels) else np.arange(len(log.header.variables))
    names = [log.header.paths[index].removesuffix("/kernel") for index in kernels]
    panels = [
        ("gradient norm", gradient_picture(log, columns).rows(kernels), names),
        ("update ratio", ratio_picture(log, columns).rows(kernels), names),
    ]
    if log.header.activations:
        layers = list(log.header.activations)
        panels.append(("activation spread", activation_picture(log, columns), layers))
    figure.set_size_inches(4.2 * len(panels), float(np.clip(0.17 * len(kernels) + 1.5, 3.5, 9)))
    axes = np.ravel(figure.subplots(1, len(panels), sharex=True))
    for index, (place, (title, picture, rows)) in enumerate(zip(axes, panels, strict=True)):
        _heatmap(figure, place, picture, columns)
        place.set_title(title, fontweight="bold")
        place.set_xlabel("step")
        stride = -(-len(rows) // _MOST_LABELS)
        shown = range(0, len(rows), stride) if index != 1 else range(0)
        place.set_yticks([row + 0.5 for row in shown], [rows[row] for row in shown], fontsize=6.5)
    return True


def _heatmap(figure: Figure, place: Axes, picture: Picture, columns: Columns) -> None:
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
    for flags, colour in ((picture.is_zero, _ZERO), (picture.is_nonfinite, _NONFINITE)):
        if flags.any():
            shown = np.ma.masked_where(~flags, flags.astype(float))
            place.pcolormesh(
                columns.edges, rows, shown, cmap=ListedColormap([colour]), rasterized=True
            )
    place.invert_yaxis()
    place.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=place, label="log10 (grey: zero, orange: not finite)", shrink=0.9)


def _profile(files: RunFiles, figure: Figure) -> bool:
    log = files.log
    if log is None:
        return False
    kernels = log.kernels if len(log.kernels) else np.arange(len(log.header.variables))
    figure.set_size_inches(7, 5.5)
    axes = figure.subplots(2, 1, sharex=True)
    colours = {"first": _VALIDATION, "middle": _TRAINING, "last": _INK}
    lines = {"dot": ":", "dash": "--", "solid": "-"}
    for place, stat, name in zip(
        axes,
        ("raw_norm/median", "update_ratio/median"),
        ("gradient norm", "update ratio"),
        strict=True,
    ):
        for window, (dash, _, _, which) in chosen_windows(log):
            values = log.stat(stat)[window, kernels].astype(np.float64)
            # What is zero or not finite has no place on a logarithmic scale.
            seen = np.where(np.isfinite(values) & (values > 0), values, np.nan)
            label = f"{which}: {window_name(log, window)}"
            place.plot(seen, lines[dash], marker="o", ms=3, color=colours[which], label=label)
        place.set_yscale("log")
        place.set_ylabel(name)
    axes[0].legend(frameon=False)
    axes[1].set_xlabel("kernel, from the first layer to the last")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    _plainly(axes)
    return True


def _confusion(files: RunFiles, figure: Figure) -> bool:
    try:
        names = [str(each["name"]) for each in files.evaluation["classes"]]
        counts = np.array(files.evaluation["confusion"], np.int64)
        if counts.shape != (len(names), len(names)):
            return False
    except (KeyError, TypeError, ValueError):
        return False
    side = float(np.clip(0.5 * len(names) + 1.5, 4, 12))
    figure.set_size_inches(side, side)
    place = figure.subplots()
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
