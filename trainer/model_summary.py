"""Describe a model before anything is trained: layers, shapes, parameters, multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import keras

from trainer.config.schema import DataConfig
from trainer.data.own_source import ENDING
from trainer.data.sources import load_split
from trainer.errors import DataError
from trainer.layers import PlainBlock, Shape


@dataclass(frozen=True)
class LayerSummary:
    """One line of `trainer model`.

    Attributes:
        path: Place of the layer, such as `stage1_block0/conv1`.
        kind: Class name.
        output_shape: Without the batch, such as (16, 16, 32).
        parameters: Values that are trained.
        frozen: Values that would be, if their layer or its stage were not frozen.
        multiply_adds: Multiply-adds of convolutions and dense layers for one image.
    """

    path: str
    kind: str
    output_shape: Shape
    parameters: int
    frozen: int
    multiply_adds: int


def summarize(model: keras.Model) -> list[LayerSummary]:
    """Return one line per layer in order of computation, the insides of blocks included."""
    return [
        LayerSummary(
            path=path,
            kind=type(layer).__name__,
            output_shape=tuple(output_shape[1:]),
            parameters=_num_values(layer) if layer.trainable else 0,
            frozen=0 if layer.trainable else _num_values(layer),
            multiply_adds=_multiply_adds(layer, output_shape),
        )
        for path, layer, output_shape in _walk(model)
    ]


def _walk(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer, Shape]]:
    for layer in model.layers:
        if isinstance(layer, PlainBlock):
            for inner, _, output_shape in layer.walk(layer.input.shape):
                yield f"{layer.name}/{inner.name}", inner, output_shape
        else:
            yield layer.name, layer, tuple(layer.output.shape)


def _num_values(layer: keras.layers.Layer) -> int:
    # Keras' own list, which a frozen layer keeps; moving statistics are in another one.
    return sum(prod(weight.shape) for weight in layer._trainable_variables)


def _multiply_adds(layer: keras.layers.Layer, output_shape: Shape) -> int:
    """Each output value of a convolution or a dense layer is one sum over its kernel."""
    if not isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
        return 0
    positions = prod(int(size or 1) for size in output_shape[1:-1])
    return int(prod(layer.kernel.shape)) * positions


def expected_shape(data: DataConfig) -> tuple[tuple[int, int, int], int]:
    """Return the image shape and the number of classes, without reading any image if it can be.

    Raises:
        DataError: If only the data could tell.
    """
    if data.source in ("cifar10", "shapes"):
        return (32, 32, 3), 10
    if data.source.endswith(ENDING):
        split = load_split(data, "train", seed=0)
        return split.image_shape, split.num_classes
    folder = Path(data.path or "") / "train"
    if data.source == "directory" and data.image_size and folder.is_dir():
        num_classes = sum(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir())
        return (*data.image_size, 3), num_classes
    raise DataError(
        "the number of classes must be known to describe a model, and it is that of the "
        f"folders in {folder}, which does not exist. Received: data.path={data.path}"
    )


def format_layers(layers: Sequence[LayerSummary]) -> str:
    """Return a table for people, within 80 columns."""
    path_width = max(len(layer.path) for layer in layers)
    # What the other four columns and the gaps between them leave.
    kind_width = 80 - path_width - len(f" {'':>11} {'':>9} {'':>9} ")

    def line(path: str, kind: str, shape: str, parameters: str, cost: str) -> str:
        left = f"{path:{path_width}} {kind[:kind_width]:{kind_width}}"
        return f"{left} {shape:>11} {parameters:>9} {cost:>9}".rstrip()

    lines = [line("layer", "kind", "output", "params", "mult-adds")]
    for layer in layers:
        lines.append(
            line(
                layer.path,
                layer.kind.replace("FusedBatchNormalization", "BatchNormalization"),
                "x".join(str(size) for size in layer.output_shape),
                _parameters_cell(layer),
                f"{layer.multiply_adds / 1e6:.2f}M" if layer.multiply_adds else "",
            )
        )
    parameters = sum(layer.parameters for layer in layers)
    frozen = sum(layer.frozen for layer in layers)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    more = f" and {frozen:,} frozen (in brackets)" if frozen else ""
    lines.append(
        f"{parameters:,} parameters{more}, {multiply_adds / 1e6:,.1f} million multiply-adds"
    )
    return "\n".join(lines)


def _parameters_cell(layer: LayerSummary) -> str:
    if layer.frozen:
        return f"({layer.frozen:,})"
    return f"{layer.parameters:,}" if layer.parameters else ""
