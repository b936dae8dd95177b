"""The two blocks of the experiment: a plain one, and the same with a shortcut.

Both are ordinary registered Keras layers: they can be used in any model, and a
`.keras` file that holds them loads after `import trainer.layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

import trainer.initializers
import trainer.regularizers  # noqa: F401  (both register what a file of ours may name)
from trainer.activations import FusedActivation, build_activation
from trainer.convolution import Conv2D
from trainer.normalization import build_normalization

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="trainer")
class PlainBlock(keras.layers.Layer):
    """Two or three convolutions with normalization and activation, and no shortcut.

    Args:
        filters: Output channels.
        strides: Strides of the block's spatial convolution, the first of two.
        pool_size: Max-pooling behind that convolution, without padding; 1 is none.
        kernel_size: Side of the spatial kernels.
        layout: `"basic"` (two spatial convolutions) or `"bottleneck"` (1x1 down to
            `filters // bottleneck_ratio`, one spatial, 1x1 up).
        bottleneck_ratio: See `layout`.
        preactivation: Normalize and activate before each convolution instead of after.
        activation: Name of an activation, `"prelu"` included.
        normalization: `{"kind": "batch" | "layer" | "group" | "none", **options}`.
        zero_init_last: Start the scale of the last normalization at zero.
        kernel_initializer: Keras initializer of all kernels; each gets a fresh copy.
        kernel_regularizer: Keras regularizer of all kernels.
        bias_initializer: Of the biases, which exist only without normalization.
        dropout: Rate of dropped values before the last convolution.
        spatial_dropout: Rate of dropped channels before the last convolution.
        **kwargs: Of `keras.layers.Layer`.

    Inputs and outputs are (batch, height, width, channels).
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        kernel_size: int = 3,
        layout: str = "basic",
        bottleneck_ratio: int = 4,
        preactivation: bool = False,
        activation: str = "relu",
        normalization: dict[str, Any] | None = None,
        zero_init_last: bool = False,
        pool_size: int = 1,
        kernel_initializer: Any = "he_normal",
        kernel_regularizer: Any = None,
        bias_initializer: Any = "zeros",
        dropout: float = 0.0,
        spatial_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if layout not in ("basic", "bottleneck"):
            raise ValueError(
                f"`layout` must be 'basic' or 'bottleneck'. Received: layout={layout!r}"
            )
        self.filters = filters
        self.strides = strides
        self.kernel_size = kernel_size
        self.layout = layout
        self.bottleneck_ratio = bottleneck_ratio
        self.preactivation = preactivation
        self.activation = activation
        self.normalization = dict(normalization or {"kind": "batch"})
        self.zero_init_last = zero_init_last
        self.pool_size = pool_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.dropout = dropout
        self.spatial_dropout = spatial_dropout

        self.branch = self._build_branch()
        self.last_activation = (
            None if preactivation else self._build_activation(f"act{self._num_convs}")
        )
        self._pass_on_trainable()

    def _pass_on_trainable(self) -> None:
        # Keras hands `trainable` on when it changes, not to layers that are made afterwards.
        if not self.trainable:
            for layer in self._flatten_layers(include_self=False):
                layer.trainable = False

    @property
    def _num_convs(self) -> int:
        return 2 if self.layout == "basic" else 3

    def build_convolution(
        self, filters: int, kernel_size: int, strides: int, name: str
    ) -> keras.layers.Conv2D:
        """Return one of the block's convolutions, without bias where a normalization follows."""
        return Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=self.normalization["kind"] == "none",
            # A copy: an initializer draws the same values at every call.
            kernel_initializer=self.kernel_initializer.clone(),
            bias_initializer=self.bias_initializer.clone(),
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name=name,
        )

    def build_normalization(
        self, name: str, scale_initializer: str = "ones"
    ) -> keras.layers.Layer | None:
        """Return one of the block's normalizations, or None if it has none."""
        return build_normalization(
            self.normalization, name, scale_initializer, self.dtype_policy, self.activation
        )

    def build_pooling(self, name: str) -> keras.layers.Layer | None:
        """Return the block's max-pooling, or None if it has none."""
        if self.pool_size == 1:
            return None
        return keras.layers.MaxPooling2D(self.pool_size, dtype=self.dtype_policy, name=name)

    def _build_activation(self, name: str) -> keras.layers.Layer:
        return build_activation(self.activation, name, dtype=self.dtype_policy)

    def _convolution_shapes(self) -> list[tuple[int, int, int]]:
        """(filters, kernel size, strides) of each convolution in order."""
        if self.layout == "basic":
            return [
                (self.filters, self.kernel_size, self.strides),
                (self.filters, self.kernel_size, 1),
            ]
        inner = self.filters // self.bottleneck_ratio
        return [(inner, 1, 1), (inner, self.kernel_size, self.strides), (self.filters, 1, 1)]

    def _build_branch(self) -> list[keras.layers.Layer]:
        layers: list[keras.layers.Layer | None] = []
        for index, shape in enumerate(self._convolution_shapes(), start=1):
            is_last = index == self._num_convs
            convolution = self.build_convolution(*shape, name=f"conv{index}")
            scale = "zeros" if is_last and self.zero_init_last else "ones"
            norm = self.build_normalization(f"norm{index}", scale)
            if self.preactivation:
                layers += [norm, self._build_activation(f"act{index}")]
            if is_last and self.dropout:
                layers.append(
                    keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="dropout")
                )
            if is_last and self.spatial_dropout:
                layers.append(
                    keras.layers.SpatialDropout2D(
                        self.spatial_dropout, dtype=self.dtype_policy, name="spatial_dropout"
                    )
                )
            layers.append(convolution)
            if index == self._num_convs - 1:
                layers.append(self.build_pooling("pool"))
            if not self.preactivation:
                layers.append(norm)
                if not is_last:
                    layers.append(self._build_activation(f"act{index}"))
        return [layer for layer in layers if layer is not None]

    def walk(self, input_shape: Shape) -> Iterator[tuple[keras.layers.Layer, Shape, Shape]]:
        """Yield each inner layer with its input and output shape, in order of computation."""
        shape = tuple(input_shape)
        for layer in self.branch:
            output_shape = tuple(layer.compute_output_shape(shape))
            yield layer, shape, output_shape
            shape = output_shape
        if self.last_activation is not None:
            yield self.last_activation, shape, shape

    def build(self, input_shape: Shape) -> None:
        for layer, layer_input_shape, _ in self.walk(input_shape):
            layer.build(layer_input_shape)
        self.built = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        *_, (_, _, output_shape) = self.walk(input_shape)
        return output_shape

    def run_branch(self, inputs: Any, training: bool | None) -> Any:
        """Return what the convolutions make of `inputs`, before any shortcut is added."""
        return _run(self.branch, inputs, training)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        outputs = self.run_branch(inputs, training)
        return self.activate(outputs, training)

    def activate(self, outputs: Any, training: bool | None) -> Any:
        """Apply the activation at the end of the block, if it has one."""
        return _run(
            [] if self.last_activation is None else [self.last_activation], outputs, training
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "kernel_size": self.kernel_size,
            "layout": self.layout,
            "bottleneck_ratio": self.bottleneck_ratio,
            "preactivation": self.preactivation,
            "activation": self.activation,
            "normalization": dict(self.normalization),
            "zero_init_last": self.zero_init_last,
            "pool_size": self.pool_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "dropout": self.dropout,
            "spatial_dropout": self.spatial_dropout,
        }


@keras.saving.register_keras_serializable(package="trainer")
class ResidualBlock(PlainBlock):
    """A `PlainBlock` whose input is added to the output of its branch (He et al. 2016).

    Args:
        shortcut: Where strides or channels change the shape: `"padded"` subsamples the
            input and pads it with zero channels (no parameters); `"projection"` is a
            1x1 convolution, normalized where the branch ends with a normalization.
            Where the branch is pooled, so is the input, before either.
        stochastic_depth: Rate at which training drops the branch of an image
            (Huang et al. 2016).
        **kwargs: Of `PlainBlock`.
    """

    def __init__(
        self,
        filters: int,
        shortcut: str = "padded",
        stochastic_depth: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, **kwargs)
        if shortcut not in ("padded", "projection"):
            raise ValueError(
                f"`shortcut` must be 'padded' or 'projection'. Received: shortcut={shortcut!r}"
            )
        self.shortcut = shortcut
        self.stochastic_depth = stochastic_depth
        self.drop_branch = (
            keras.layers.Dropout(
                stochastic_depth,
                noise_shape=(None, 1, 1, 1),
                dtype=self.dtype_policy,
                name="stochastic_depth",
            )
            if stochastic_depth
            else None
        )
        self.shortcut_pool = self.build_pooling("shortcut_pool")
        self.projection: list[keras.layers.Layer] = []

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[-1]
        changes_shape = self.strides != 1 or self.pool_size != 1 or channels != self.filters
        if changes_shape and self.shortcut == "projection":
            projection: list[keras.layers.Layer | None] = [
                self.build_convolution(self.filters, 1, self.strides, "shortcut_conv")
            ]
            # It ends as the branch does, and a pre-activation branch ends with a convolution.
            if not self.preactivation:
                projection.append(self.build_normalization("shortcut_norm"))
            self.projection = [layer for layer in projection if layer is not None]
            self._pass_on_trainable()
            for layer, layer_input_shape, _ in self._walk_projection(input_shape):
                layer.build(layer_input_shape)
        elif changes_shape and channels is not None and channels > self.filters:
            raise ValueError(
                "a padded shortcut can add channels, not remove them; use shortcut='projection'. "
                f"Received: {channels} input channels, filters={self.filters}"
            )

    def _walk_projection(
        self, input_shape: Shape
    ) -> Iterator[tuple[keras.layers.Layer, Shape, Shape]]:
        shape = tuple(input_shape)
        pooling = [] if self.shortcut_pool is None else [self.shortcut_pool]
        for layer in pooling + self.projection:
            output_shape = tuple(layer.compute_output_shape(shape))
            yield layer, shape, output_shape
            shape = output_shape

    def walk(self, input_shape: Shape) -> Iterator[tuple[keras.layers.Layer, Shape, Shape]]:
        yield from self._walk_projection(input_shape)
        yield from super().walk(input_shape)

    def run_shortcut(self, inputs: Any, training: bool | None) -> Any:
        """Return `inputs` in the shape of the branch's output."""
        shortcut = inputs if self.shortcut_pool is None else self.shortcut_pool(inputs)
        if self.projection:
            return _run(self.projection, shortcut, training)
        if self.strides != 1:
            # The same as [:, ::strides, ::strides], which TensorFlow slices on one core.
            shortcut = ops.average_pool(shortcut, 1, strides=self.strides, padding="valid")
        missing = self.filters - inputs.shape[-1]
        if missing:
            before = missing // 2
            shortcut = ops.pad(shortcut, [[0, 0], [0, 0], [0, 0], [before, missing - before]])
        return shortcut

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        branch = self.run_branch(inputs, training)
        if self.drop_branch is not None:
            branch = self.drop_branch(branch, training=training)
        outputs = branch + self.run_shortcut(inputs, training)
        return self.activate(outputs, training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "shortcut": self.shortcut,
            "stochastic_depth": self.stochastic_depth,
        }


_HAVE_MODES = (
    FusedActivation,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
)


def _run(layers: Sequence[keras.layers.Layer], inputs: Any, training: bool | None) -> Any:
    for layer in layers:
        if isinstance(layer, _HAVE_MODES):
            inputs = layer(inputs, training=training)
        else:
            inputs = layer(inputs)
    return inputs
