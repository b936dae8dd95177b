"""The `model` section: stem, stages, block and head of a convolutional classifier."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from trainer.config.values import (
    Bool,
    Float,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    name_or_options,
)

Activation = Literal[
    "relu", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid"
]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)

# The arguments that each of Keras' initializers takes besides the axes of einsum
# kernels and `seed`, which is always derived from the run's own; and `dirac`, which
# is ours. A test holds this table against Keras.
INITIALIZERS: dict[str, frozenset[str]] = {
    "constant": frozenset({"value"}),
    "dirac": frozenset(),
    "glorot_normal": frozenset(),
    "glorot_uniform": frozenset(),
    "he_normal": frozenset(),
    "he_uniform": frozenset(),
    "identity": frozenset({"gain"}),
    "lecun_normal": frozenset(),
    "lecun_uniform": frozenset(),
    "ones": frozenset(),
    "orthogonal": frozenset({"gain"}),
    "random_normal": frozenset({"mean", "stddev"}),
    "random_uniform": frozenset({"minval", "maxval"}),
    "truncated_normal": frozenset({"mean", "stddev"}),
    "variance_scaling": frozenset({"scale", "mode", "distribution"}),
    "zeros": frozenset(),
}
# Of these arguments, those that are words and not numbers.
_WORDS = {
    "mode": ("fan_in", "fan_out", "fan_avg"),
    "distribution": ("truncated_normal", "untruncated_normal", "uniform"),
}
# Kernels of convolutions have four axes, biases one and that of the head two.
_UNFIT_INITIALIZERS = {
    "kernel_initializer": ("identity",),
    "bias_initializer": ("dirac", "identity", "orthogonal"),
}


class InitializerSpec(Section):
    """A Keras initializer by name, with the arguments it takes.

    Written `he_normal`, or `{random_normal: {stddev: 0.01}}`. Beside those of Keras
    there is `dirac`: the first filters of a convolution pass its input channels on
    unchanged, the others start random (`lecun_normal`).
    """

    kind: str
    arguments: dict[str, Float | str] = {}

    @model_validator(mode="before")
    @classmethod
    def _collect_arguments(cls, value: Any) -> Any:
        value = name_or_options(value)
        if not isinstance(value, dict) or "arguments" in value:
            return value
        arguments = dict(value)
        kind = {"kind": arguments.pop("kind")} if "kind" in arguments else {}
        return {**kind, "arguments": arguments}

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in INITIALIZERS:
            raise ValueError(f"must be one of {', '.join(sorted(INITIALIZERS))}")
        return kind

    @model_validator(mode="after")
    def _takes_the_arguments(self) -> InitializerSpec:
        unknown = sorted(set(self.arguments) - INITIALIZERS[self.kind])
        if unknown:
            allowed = ", ".join(sorted(INITIALIZERS[self.kind])) or "no arguments"
            raise ValueError(f"{self.kind} takes {allowed}, not {', '.join(unknown)}")
        for name, value in self.arguments.items():
            words = _WORDS.get(name)
            if words and value not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}. Received: {value!r}")
            if not words and isinstance(value, str):
                raise ValueError(f"{name} must be a number. Received: {value!r}")
        return self

    @model_serializer
    def _flatten_arguments(self) -> dict[str, float | str]:
        return {"kind": self.kind, **self.arguments}


class Regularizer(Section):
    """Added to the loss: `l1 * sum(|w|) + l2 * sum(w^2)` over the kernel, as in Keras."""

    l1: NonNegativeFloat = 0.0
    l2: NonNegativeFloat = 0.0


class BatchNormalizationSpec(Section):
    """Normalize each channel over the batch and the positions."""

    kind: Literal["batch"] = "batch"
    momentum: Fraction = 0.99
    """Of the moving mean and variance that evaluation uses."""
    epsilon: PositiveFloat = 1e-3
    scale: Bool = True
    """Learn a factor for each channel (gamma); false leaves it at one."""
    synchronized: Bool = False
    """Take the statistics over the batch of all replicas instead of each one's own."""


class LayerNormalizationSpec(Section):
    """Normalize each image over all channels and positions (one scale per channel)."""

    kind: Literal["layer"] = "layer"
    epsilon: PositiveFloat = 1e-3


class GroupNormalizationSpec(Section):
    """Normalize each image over the positions and the channels of a group."""

    kind: Literal["group"] = "group"
    groups: PositiveInt = 8
    """The number of groups; it must divide the filters of every stage."""
    epsilon: PositiveFloat = 1e-3


class NoNormalizationSpec(Section):
    """No normalization: convolutions have a bias instead."""

    kind: Literal["none"] = "none"


Normalization: TypeAlias = Annotated[
    Annotated[
        BatchNormalizationSpec
        | LayerNormalizationSpec
        | GroupNormalizationSpec
        | NoNormalizationSpec,
        Field(discriminator="kind"),
    ],
    BeforeValidator(name_or_options),
]


class ConvolutionStem(Section):
    """A trained convolution from image channels to filters, normalized and activated."""

    kind: Literal["convolution"] = "convolution"
    filters: PositiveInt = 16
    kernel_size: PositiveInt = 3
    strides: PositiveInt = 1
    pool_size: PositiveInt = 1
    """Max-pooling after the stem; 1 is none."""
    trainable: Bool = True
    """False freezes the stem, as it does a stage."""

    @property
    def normalized_filters(self) -> int | None:
        """Channels that a normalization follows."""
        return self.filters

    def output_side(self, side: int) -> int:
        """Return the side of the output, in positions, of an image's side in pixels."""
        return ceil(ceil(side / self.strides) / self.pool_size)


class WhiteningStem(Section):
    """A frozen convolution that decorrelates the pixels of a patch, then the activation.

    Its filters are the principal components of the training images' patches, each
    scaled to unit variance, and the same once more with the opposite sign: 2 *
    kernel_size^2 * channels filters, no padding, nothing to train but a bias if it is
    asked for (Jordan 2024).
    """

    kind: Literal["whitening"]
    kernel_size: PositiveInt = 2
    """Side of a patch in pixels."""
    epsilon: PositiveFloat = 5e-4
    """Added to the variance of each component, so that components of noise stay small."""
    bias: bool = False
    """Train a bias before the activation, zero at first. The gradient has to be taken back
    through the first block for it, which a stem without it is spared."""

    @property
    def normalized_filters(self) -> int | None:
        """No normalization follows: the outputs have unit variance."""
        return None

    def output_side(self, side: int) -> int:
        """Return the side of the output, in positions, of an image's side in pixels."""
        return max(side - self.kernel_size + 1, 0)


def _stem_kind(value: Any) -> Any:
    """A stem without a kind is a convolution."""
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "convolution", **value}
    return value


Stem: TypeAlias = Annotated[
    Annotated[ConvolutionStem | WhiteningStem, Field(discriminator="kind")],
    BeforeValidator(_stem_kind),
]


class StageSpec(Section):
    """Blocks at one resolution; the first block of a stage carries its strides."""

    filters: PositiveInt
    """Output channels of each block."""
    blocks: PositiveInt
    strides: PositiveInt = 1
    pool_size: PositiveInt = 1
    """Max-pooling behind the first block's spatial convolution, another way to
    down-sample; a remainder at the border is dropped. 1 is none."""
    trainable: Bool = True
    """False freezes the stage: its variables stay as they start and have no regularizer,
    and its batch normalization uses the moving statistics in training too, as a frozen
    layer of Keras does; dropout still drops."""


class BlockSpec(Section):
    """What every block of the network looks like."""

    kind: Literal["plain", "residual"] = "residual"
    """The one word that turns the experiment: a residual block is the plain one plus a shortcut."""
    layout: Literal["basic", "bottleneck"] = "basic"
    """Basic: two 3x3 convolutions; bottleneck: 1x1 down, 3x3, 1x1 up."""
    preactivation: Bool = False
    """Normalization and activation before each convolution (He et al. 2016b) instead of after."""
    shortcut: Literal["padded", "projection"] = "padded"
    """Where the shape changes: subsample and pad with zero channels (no parameters,
    option A of He et al. 2016), or a 1x1 convolution (option B)."""
    bottleneck_ratio: PositiveInt = 4
    """Output channels over inner channels of a bottleneck block."""
    kernel_size: PositiveInt = 3
    activation: Activation = "relu"
    normalization: Normalization = BatchNormalizationSpec()
    zero_init_last: Bool = False
    """Start the scale of each block's last normalization at zero, so that a residual
    block begins as the identity (Goyal et al. 2017)."""
    kernel_initializer: InitializerSpec = InitializerSpec(kind="he_normal")
    kernel_regularizer: Regularizer = Regularizer()
    bias_initializer: InitializerSpec = InitializerSpec(kind="zeros")
    """Of the convolutions' biases, which exist only without normalization."""
    dropout: Fraction = 0.0
    """Rate of dropped values between the convolutions of a block."""
    spatial_dropout: Fraction = 0.0
    """Rate of dropped channels between the convolutions of a block."""
    stochastic_depth: Fraction = 0.0
    """Rate of dropping the last block's branch, growing linearly from the first
    block's (Huang et al. 2016)."""

    @field_validator("kernel_initializer", "bias_initializer")
    @classmethod
    def _fits_the_axes(cls, value: InitializerSpec, info: ValidationInfo) -> InitializerSpec:
        if value.kind in _UNFIT_INITIALIZERS[str(info.field_name)]:
            made = "kernels" if value.kind == "dirac" else "matrices"
            raise ValueError(
                f"{value.kind} makes {made}, and a convolution's kernel has four axes, its bias one"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> BlockSpec:
        if self.kind == "plain" and self.stochastic_depth > 0:
            raise ValueError(
                "stochastic_depth drops the branch beside a shortcut, and a plain block has no "
                f"shortcut. Received: stochastic_depth={self.stochastic_depth}. "
                "Set it to 0 or set kind: residual"
            )
        if self.kind == "plain" and self.zero_init_last:
            raise ValueError(
                "zero_init_last makes a plain block output zeros for ever. "
                "Set it to false or set kind: residual"
            )
        if self.zero_init_last and self.normalization.kind == "none":
            raise ValueError("zero_init_last needs a normalization, and normalization is none")
        if self.zero_init_last and not getattr(self.normalization, "scale", True):
            raise ValueError(
                "zero_init_last starts a scale at zero, and normalization.batch.scale is false. "
                "Set one of the two to its default"
            )
        if self.zero_init_last and self.preactivation:
            raise ValueError(
                "zero_init_last needs a normalization at the end of a block, and a "
                "pre-activation block ends with a convolution"
            )
        return self


class HeadSpec(Section):
    """From the last stage to the logits."""

    pooling: Literal["average", "max", "flatten"] = "average"
    dropout: Fraction = 0.0
    kernel_initializer: InitializerSpec = InitializerSpec(kind="glorot_uniform")
    kernel_regularizer: Regularizer = Regularizer()

    @field_validator("kernel_initializer")
    @classmethod
    def _fits_a_matrix(cls, value: InitializerSpec) -> InitializerSpec:
        if value.kind == "dirac":
            raise ValueError("dirac is for convolutions, and the head's kernel is a matrix")
        return value


class ModelSpec(Section):
    """A convolutional image classifier: stem, stages of equal blocks, head."""

    stem: Stem = ConvolutionStem()
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)]
    block: BlockSpec = BlockSpec()
    head: HeadSpec = HeadSpec()

    @property
    def total_strides(self) -> int:
        """How many pixels of the image one position of the last stage spans."""
        strides = 1
        if isinstance(self.stem, ConvolutionStem):
            strides = self.stem.strides * self.stem.pool_size
        for stage in self.stages:
            strides *= stage.strides * stage.pool_size
        return strides

    def output_side(self, side: int) -> int:
        """Return the side of the last stage, in positions, of an image's side in pixels."""
        side = self.stem.output_side(side)
        for stage in self.stages:
            # Convolutions pad, pooling does not.
            side = ceil(side / stage.strides) // stage.pool_size
        return side

    @model_validator(mode="after")
    def _filters_divide(self) -> ModelSpec:
        block = self.block
        normalization = block.normalization
        for index, stage in enumerate(self.stages):
            if block.layout == "bottleneck" and stage.filters % block.bottleneck_ratio:
                raise ValueError(
                    f"block.bottleneck_ratio must divide the filters of every stage. Received: "
                    f"bottleneck_ratio={block.bottleneck_ratio}, "
                    f"stages[{index}].filters={stage.filters}"
                )
            inner = stage.filters
            if block.layout == "bottleneck":
                inner //= block.bottleneck_ratio
            if isinstance(normalization, GroupNormalizationSpec) and inner % normalization.groups:
                raise ValueError(
                    "the groups of a group normalization must divide the channels they are taken "
                    f"from. Received: groups={normalization.groups}, {inner} channels in stage "
                    f"{index}"
                )
        stem_filters = self.stem.normalized_filters
        if (
            isinstance(normalization, GroupNormalizationSpec)
            and stem_filters is not None
            and stem_filters % normalization.groups
        ):
            raise ValueError(
                "the groups of a group normalization must divide the channels they are taken "
                f"from. Received: groups={normalization.groups}, stem.filters={stem_filters}"
            )
        return self
