"""Build a Keras model from its spec."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from trainer.activations import build_activation
from trainer.bias import Bias
from trainer.config.model_schema import (
    BlockSpec,
    ConvolutionStem,
    InitializerSpec,
    ModelSpec,
    Regularizer,
    WhiteningStem,
)
from trainer.convolution import Conv2D
from trainer.initializers import Dirac
from trainer.layers import PlainBlock, ResidualBlock
from trainer.normalization import build_normalization
from trainer.pixels import PixelScaling
from trainer.regularizers import L1L2


def build_model(
    spec: ModelSpec,
    image_shape: tuple[int | None, int | None, int],
    num_classes: int,
    scaling: PixelScaling,
    name: str = "classifier",
    stem_kernel: np.ndarray | None = None,
) -> keras.Model:
    """Build the classifier of a spec.

    Call it inside the strategy's scope and after the precision policy and the
    seed are set: the weights are drawn here.

    Args:
        spec: The `model` section.
        image_shape: (height, width, channels); height and width are None for images of
            any size, which every head but `pooling: flatten` takes.
        num_classes: Width of the last layer.
        scaling: Applied to the pixels inside the model.
        name: Name of the model.
        stem_kernel: Of a whitening stem, from `pixels.whitening_kernel`; without it the
            stem is random, which is enough to look at shapes.

    Returns:
        A functional model from images (batch, height, width, channels), any numeric
        dtype with values 0..255, to logits (batch, num_classes), float32.
    """
    inputs = keras.Input(image_shape, name="image")
    x = keras.layers.Rescaling(list(scaling.scale), list(scaling.offset), name="pixels")(inputs)
    x = _stem(spec, x, stem_kernel)
    num_blocks = sum(stage.blocks for stage in spec.stages)
    index = 0
    for stage_index, stage in enumerate(spec.stages):
        for block_index in range(stage.blocks):
            block = _build_block(
                spec.block,
                filters=stage.filters,
                strides=stage.strides if block_index == 0 else 1,
                pool_size=stage.pool_size if block_index == 0 else 1,
                # The deeper, the likelier dropped (Huang et al. 2016, section 3).
                depth=(index + 1) / num_blocks,
                trainable=stage.trainable,
                name=f"stage{stage_index}_block{block_index}",
            )
            x = block(x)
            index += 1
    logits = _head(spec, x, num_classes)
    return keras.Model(inputs, logits, name=name)


def _initializer(spec: InitializerSpec) -> keras.initializers.Initializer:
    if spec.kind == "dirac":
        return Dirac()
    # Not through `get`, which wants the value of a Constant that has a default.
    return getattr(keras.initializers, spec.kind)(**spec.arguments)


def _regularizer(spec: Regularizer) -> keras.regularizers.Regularizer | None:
    if not spec.l1 and not spec.l2:
        return None
    return L1L2(l1=spec.l1, l2=spec.l2)


def _stem(spec: ModelSpec, x: Any, kernel: np.ndarray | None) -> Any:
    if isinstance(spec.stem, WhiteningStem):
        return _whitening_stem(spec.stem, spec.block, x, kernel)
    return _convolution_stem(spec.stem, spec.block, x)


def _whitening_stem(
    stem: WhiteningStem, block: BlockSpec, x: Any, kernel: np.ndarray | None
) -> Any:
    size = stem.kernel_size
    convolution = Conv2D(
        2 * size * size * x.shape[-1],
        size,
        padding="valid",
        use_bias=False,
        trainable=False,
        name="stem_conv",
    )
    x = convolution(x)
    if kernel is not None:
        convolution.kernel.assign(kernel)
    if stem.bias:
        x = Bias(name="stem_bias")(x)
    return build_activation(block.activation, "stem_act")(x)


def _convolution_stem(stem: ConvolutionStem, block: BlockSpec, x: Any) -> Any:
    x = Conv2D(
        stem.filters,
        stem.kernel_size,
        strides=stem.strides,
        padding="same",
        use_bias=block.normalization.kind == "none",
        kernel_initializer=_initializer(block.kernel_initializer),
        bias_initializer=_initializer(block.bias_initializer),
        kernel_regularizer=_regularizer(block.kernel_regularizer),
        trainable=stem.trainable,
        name="stem_conv",
    )(x)
    if not block.preactivation:
        x = _normalize_and_activate(block, x, "stem", stem.trainable)
    if stem.pool_size > 1:
        x = keras.layers.MaxPooling2D(stem.pool_size, padding="same", name="stem_pool")(x)
    return x


def _normalize_and_activate(block: BlockSpec, x: Any, prefix: str, trainable: bool = True) -> Any:
    norm = build_normalization(
        block.normalization.model_dump(), f"{prefix}_norm", activation=block.activation
    )
    for layer in (norm, build_activation(block.activation, f"{prefix}_act")):
        if layer is not None:
            layer.trainable = trainable
            x = layer(x)
    return x


def _build_block(
    spec: BlockSpec,
    *,
    filters: int,
    strides: int,
    pool_size: int,
    depth: float,
    trainable: bool,
    name: str,
) -> PlainBlock:
    common: dict[str, Any] = {
        "strides": strides,
        "pool_size": pool_size,
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
        "trainable": trainable,
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
