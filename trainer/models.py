"""Build a Keras model from its spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from trainer.config.model_schema import BlockSpec, InitializerSpec, ModelSpec, Regularizer
from trainer.layers import PlainBlock, ResidualBlock, build_activation
from trainer.normalization import build_normalization


@dataclass(frozen=True)
class PixelScaling:
    """What the model does to pixels of 0..255 first: `pixels * scale + offset`.

    Attributes:
        scale: One factor per channel.
        offset: One summand per channel.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def identity(cls, channels: int) -> PixelScaling:
        """Return the scaling that leaves pixels as they are."""
        return cls((1.0,) * channels, (0.0,) * channels)

    @classmethod
    def of(cls, images: np.ndarray, normalize: str) -> PixelScaling:
        """Return the scaling that `data.normalize` asks for.

        Args:
            images: Training images, shape (num_images, height, width, channels), uint8.
            normalize: `per_channel` (zero mean and unit deviation over `images`), `unit`
                (0..1) or `none`.
        """
        channels = images.shape[-1]
        if normalize == "none":
            return cls.identity(channels)
        if normalize == "unit":
            return cls((1 / 255,) * channels, (0.0,) * channels)
        # Exact integer counts of each level: no float copy of the whole set is made.
        levels = np.arange(256, dtype=np.float64)
        scale, offset = [], []
        for channel in range(channels):
            counts = np.bincount(images[..., channel].ravel(), minlength=256)
            mean = float(counts @ levels / counts.sum())
            variance = float(counts @ (levels - mean) ** 2 / counts.sum())
            deviation = max(variance**0.5, 1.0)
            scale.append(1 / deviation)
            offset.append(-mean / deviation)
        return cls(tuple(scale), tuple(offset))


def build_model(
    spec: ModelSpec,
    image_shape: tuple[int, int, int],
    num_classes: int,
    scaling: PixelScaling,
    name: str = "classifier",
) -> keras.Model:
    """Build the classifier of a spec.

    Call it inside the strategy's scope and after the precision policy and the
    seed are set: the weights are drawn here.

    Args:
        spec: The `model` section.
        image_shape: (height, width, channels).
        num_classes: Width of the last layer.
        scaling: Applied to the pixels inside the model.
        name: Name of the model.

    Returns:
        A functional model from images (batch, height, width, channels), any numeric
        dtype with values 0..255, to logits (batch, num_classes), float32.
    """
    inputs = keras.Input(image_shape, name="image")
    x = keras.layers.Rescaling(list(scaling.scale), list(scaling.offset), name="pixels")(inputs)
    x = _stem(spec, x)
    num_blocks = sum(stage.blocks for stage in spec.stages)
    index = 0
    for stage_index, stage in enumerate(spec.stages):
        for block_index in range(stage.blocks):
            block = _build_block(
                spec.block,
                filters=stage.filters,
                strides=stage.strides if block_index == 0 else 1,
                # The deeper, the likelier dropped (Huang et al. 2016, section 3).
                depth=(index + 1) / num_blocks,
                name=f"stage{stage_index}_block{block_index}",
            )
            x = block(x)
            index += 1
    logits = _head(spec, x, num_classes)
    return keras.Model(inputs, logits, name=name)


def _initializer(spec: InitializerSpec) -> keras.initializers.Initializer:
    # Not through `get`, which wants the value of a Constant that has a default.
    return getattr(keras.initializers, spec.kind)(**spec.arguments)


def _regularizer(spec: Regularizer) -> keras.regularizers.Regularizer | None:
    if not spec.l1 and not spec.l2:
        return None
    return keras.regularizers.L1L2(l1=spec.l1, l2=spec.l2)


def _stem(spec: ModelSpec, x: Any) -> Any:
    block = spec.block
    x = keras.layers.Conv2D(
        spec.stem.filters,
        spec.stem.kernel_size,
        strides=spec.stem.strides,
        padding="same",
        use_bias=block.normalization.kind == "none",
        kernel_initializer=_initializer(block.kernel_initializer),
        bias_initializer=_initializer(block.bias_initializer),
        kernel_regularizer=_regularizer(block.kernel_regularizer),
        name="stem_conv",
    )(x)
    if not block.preactivation:
        x = _normalize_and_activate(block, x, "stem")
    if spec.stem.pool_size > 1:
        x = keras.layers.MaxPooling2D(spec.stem.pool_size, padding="same", name="stem_pool")(x)
    return x


def _normalize_and_activate(block: BlockSpec, x: Any, prefix: str) -> Any:
    norm = build_normalization(block.normalization.model_dump(), f"{prefix}_norm")
    if norm is not None:
        x = norm(x)
    return build_activation(block.activation, f"{prefix}_act")(x)


def _build_block(
    spec: BlockSpec, *, filters: int, strides: int, depth: float, name: str
) -> PlainBlock:
    common: dict[str, Any] = {
        "strides": strides,
        "kernel_size": spec.kernel_size,
        "layout": spec.layout,
        "bottleneck_ratio": spec.bottleneck_ratio,
        "preactivation": spec.preactivation,
        "activation": spec.activation,
        "normalization": spec.normalization.model_dump(),
        "zero_init_last": spec.zero_init_last,
        "kernel_initializer": _initializer(spec.kernel_initializer),
        "kernel_regularizer": _regularizer(spec.kernel_regularizer),
        "bias_initializer": _initializer(spec.bias_initializer),
        "dropout": spec.dropout,
        "spatial_dropout": spec.spatial_dropout,
        "name": name,
    }
    if spec.kind == "plain":
        return PlainBlock(filters, **common)
    return ResidualBlock(
        filters,
        shortcut=spec.shortcut,
        stochastic_depth=spec.stochastic_depth * depth,
        **common,
    )


def _head(spec: ModelSpec, x: Any, num_classes: int) -> Any:
    if spec.block.preactivation:
        x = _normalize_and_activate(spec.block, x, "head")
    match spec.head.pooling:
        case "average":
            x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
        case "max":
            x = keras.layers.GlobalMaxPooling2D(name="head_pool")(x)
        case "flatten":
            x = keras.layers.Flatten(name="head_flatten")(x)
    if spec.head.dropout:
        x = keras.layers.Dropout(spec.head.dropout, name="head_dropout")(x)
    return keras.layers.Dense(
        num_classes,
        kernel_initializer=_initializer(spec.head.kernel_initializer),
        kernel_regularizer=_regularizer(spec.head.kernel_regularizer),
        # The loss needs the range and the digits of float32 whatever the policy.
        dtype="float32",
        name="head_logits",
    )(x)
