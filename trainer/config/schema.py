"""The whole config, typed and frozen. Defaults live here and nowhere else.

`trainer config schema` writes this file as a JSON schema; the docstring under a
field becomes its description there.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from trainer.config.model_schema import ModelSpec
from trainer.config.search_schema import SearchConfig
from trainer.config.values import (
    Bool,
    Float,
    Fraction,
    Int,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    name_or_options,
)


class HorizontalFlip(Section):
    """Mirror an image with probability one half, or every other epoch."""

    kind: Literal["horizontal_flip"] = "horizontal_flip"
    mode: Literal["random", "alternating"] = "random"
    """Alternating: half of the images, chosen once, are mirrored in even epochs and the
    other half in odd ones, so that two epochs show every image both ways (Jordan 2024)."""


class RandomShift(Section):
    """Move an image by up to `pixels` along each axis."""

    kind: Literal["random_shift"] = "random_shift"
    pixels: PositiveInt = 4
    padding: Literal["zero", "reflect"] = "zero"
    """What fills the uncovered border."""


class Cutout(Section):
    """Cover one square at a random place with the mean colour (DeVries and Taylor 2017)."""

    kind: Literal["cutout"] = "cutout"
    size: PositiveInt = 8
    """Side of the square in pixels; the part outside of the image is lost."""


class Mixup(Section):
    """Blend images and labels pairwise (Zhang et al. 2018)."""

    kind: Literal["mixup"] = "mixup"
    alpha: PositiveFloat = 0.2
    """Of the Beta(alpha, alpha) distribution of the blending weight, drawn once a batch."""


Augmentation: TypeAlias = Annotated[
    Annotated[HorizontalFlip | RandomShift | Cutout | Mixup, Field(discriminator="kind")],
    BeforeValidator(name_or_options),
]


class EarlyCrops(Section):
    """Train the first epochs on small random crops, which cost less (progressive resizing)."""

    size: PositiveInt
    """Side of a crop in pixels; one place is drawn for all images of a batch, behind
    the augmentations."""
    epochs: PositiveInt
    """How many epochs; those that follow, validation and evaluation see whole images."""


class DataConfig(Section):
    """Where images come from and how a training batch is made of them."""

    source: str = "cifar10"
    """cifar10, shapes (embedded, synthetic), directory, or a Python file with a function
    `load(data, part, seed)`; its relative path is taken from the working directory."""
    path: str | None = None
    """A local copy; for cifar10 also $CIFAR10_DIR, else Keras' cache and download. A
    relative path is taken from the working directory."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width in pixels that images of a directory are resized to."""
    train_size: PositiveInt = 6000
    """Images drawn for training, source shapes only."""
    test_size: PositiveInt = 2000
    """Images drawn for testing, source shapes only."""
    validation_split: Fraction = 0.1
    """Share of each class of the training set that is set aside for validation; 0 is none."""
    normalize: Literal["per_channel", "unit", "none"] = "per_channel"
    """Inside the model: subtract the training set's mean colour and divide by its standard
    deviation; divide by 255; or leave 0..255 as it is."""
    label_noise: Share = 0.0
    """Share of the training labels that are replaced by a class drawn uniformly from all,
    the right one included (Zhang et al. 2017); the seed decides which and by what. They are
    replaced once, after the validation images are set aside: validation and test labels stay
    as they are."""
    augment: tuple[Augmentation, ...] = ()
    """Applied to training batches in this order."""
    early_crops: EarlyCrops | None = None
    """Crops instead of whole images in the first epochs."""

    @model_validator(mode="after")
    def _fits_the_source(self) -> DataConfig:
        if self.source == "directory" and self.image_size is None:
            raise ValueError(
                "source: directory needs image_size: [height, width], because every image of a "
                "batch must have one size"
            )
        if self.source == "directory" and self.path is None:
            raise ValueError("source: directory needs path, the folder that holds train/ and test/")
        if self.source in ("cifar10", "shapes") and self.image_size not in (None, (32, 32)):
            raise ValueError(
                f"{self.source} has images of 32x32 pixels and is never resized. "
                f"Received: image_size={list(self.image_size or ())}"
            )
        if self.source == "shapes" and self.path is not None:
            raise ValueError("source: shapes is drawn in memory and has no path")
        return self


class _Optimizer(Section):
    learning_rate: PositiveFloat
    """The peak of the schedule."""
    clipnorm: PositiveFloat | None = None
    """Largest L2 norm of each variable's gradient, taken after the sum over replicas."""
    global_clipnorm: PositiveFloat | None = None
    """Largest L2 norm of all gradients as one vector, taken after the sum over replicas."""
    clipvalue: PositiveFloat | None = None
    """Largest magnitude of each gradient component, taken after the sum over replicas."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled: each step subtracts learning_rate * weight_decay * weight from every kernel."""
    ema_momentum: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the weights with this momentum and end with it."""

    @model_validator(mode="after")
    def _one_clipping(self) -> _Optimizer:
        given = [
            key
            for key in ("clipnorm", "global_clipnorm", "clipvalue")
            if getattr(self, key) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"only one kind of clipping can be set. Received: {', '.join(given)}")
        return self


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.1
    momentum: Fraction = 0.9
    nesterov: Bool = False


class _AdamLike(_Optimizer):
    learning_rate: PositiveFloat = 1e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-7


class Adam(_AdamLike):
    """Adam (Kingma and Ba 2015)."""

    kind: Literal["adam"] = "adam"


class AdamW(_AdamLike):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: NonNegativeFloat = 4e-3


class RmsProp(_Optimizer):
    """RMSprop (Hinton 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    learning_rate: PositiveFloat = 1e-3
    rho: Fraction = 0.9
    momentum: Fraction = 0.0
    epsilon: PositiveFloat = 1e-7
    centered: Bool = False


class Lion(_Optimizer):
    """Lion (Chen et al. 2023): the sign of a momentum."""

    kind: Literal["lion"] = "lion"
    learning_rate: PositiveFloat = 1e-4
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.99


class Muon(_Optimizer):
    """Muon (Jordan 2024): orthogonalized momentum for kernels, AdamW for everything else."""

    kind: Literal["muon"] = "muon"
    learning_rate: PositiveFloat = 2e-3
    """The update's root mean square is 0.2 times this, as with AdamW (Liu et al. 2025)."""
    momentum: Fraction = 0.95
    nesterov: Bool = True
    adam_learning_rate_ratio: PositiveFloat = 1.0
    """Learning rate of the AdamW part over that of the Muon part."""
    adam_bias_learning_rate_ratio: PositiveFloat | None = None
    """The same for biases and the offsets of normalizations, which can take a larger one
    (Jordan 2024); null is adam_learning_rate_ratio."""
    newton_schulz_steps: PositiveInt = 5
    """Iterations of the orthogonalization; fewer are cheaper and less exact."""
    kernel_norm: Literal["free", "fixed"] = "free"
    """Fixed: before each step a kernel of f filters is scaled to the norm sqrt(f), which a
    normalization behind it undoes; learning_rate is then the norm of the update over that
    of the kernel, and weight decay of it is without effect (Jordan 2024)."""


Optimizer: TypeAlias = Annotated[
    Sgd | Adam | AdamW | RmsProp | Lion | Muon, Field(discriminator="kind")
]


class _WarmUp(Section):
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the learning rate rises linearly from zero; fractions are fine."""
    warmup_steps: NonNegativeInt | None = None
    """The same in steps; only one of the two can be set."""

    @model_validator(mode="after")
    def _one_unit(self) -> _WarmUp:
        if self.warmup_steps is not None and self.warmup_epochs > 0:
            raise ValueError("set warmup_epochs or warmup_steps, not both")
        return self


class ConstantSchedule(_WarmUp):
    """One learning rate throughout."""

    kind: Literal["constant"] = "constant"


class StepSchedule(_WarmUp):
    """Multiply the learning rate by `factor` at each boundary."""

    kind: Literal["step"] = "step"
    boundary_epochs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    factor: Annotated[Float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _boundaries_rise(self) -> StepSchedule:
        if list(self.boundary_epochs) != sorted(set(self.boundary_epochs)):
            raise ValueError(
                f"boundary_epochs must rise. Received: boundary_epochs={list(self.boundary_epochs)}"
            )
        return self


class CosineSchedule(_WarmUp):
    """Half a cosine from the peak down to `final_fraction` of it (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    final_fraction: Share = 0.0


class TriangularSchedule(Section):
    """Linear from `start_fraction` of the peak up to it and down to `final_fraction`."""

    kind: Literal["triangular"] = "triangular"
    start_fraction: Share = 0.2
    peak_at: Annotated[Float, Field(gt=0, lt=1)] = 0.25
    """Where the peak is, as a share of all steps."""
    final_fraction: Share = 0.0


Schedule: TypeAlias = Annotated[
    ConstantSchedule | StepSchedule | CosineSchedule | TriangularSchedule,
    Field(discriminator="kind"),
]


class FitConfig(Section):
    """How long to train and on what loss."""

    epochs: PositiveInt = 40
    batch_size: PositiveInt = 128
    """Images a step, over all replicas together."""
    label_smoothing: Fraction = 0.0
    checkpoint_every_epochs: PositiveInt = 1
    tensorboard: bool = False
    """Write TensorBoard's event files, too, into `tensorboard` of the run directory."""


class EvaluationConfig(Section):
    """How a trained model is asked about an image."""

    views: Literal["single", "mirror", "mirror_shift"] = "single"
    """Average the logits of several views of each image. Mirror: itself and its mirror
    image. Mirror_shift: these two, and with half of the weight the same moved by one pixel
    up and left, and down and right (six views in all, Jordan 2024)."""


class GradientsConfig(Section):
    """What is recorded inside the training step, and when it is written."""

    record: Bool = True
    every_steps: PositiveInt = 1
    """Record the norms of every n-th step."""
    moments_every_steps: PositiveInt = 10
    """Record mean, standard deviation, largest magnitude and zero fraction of every n-th
    recorded step; a step with a non-finite gradient is always recorded in full."""
    activations_every_steps: NonNegativeInt = 10
    """Record mean, standard deviation, largest magnitude, zeros, saturated and non-finite
    values of each block's output at every n-th recorded step; 0 is never. A step with a
    non-finite loss or gradient is always recorded, unless it is 0."""
    probe_images: NonNegativeInt = 64
    """Training images that pass once a window to find units that are zero for all of them;
    0 is none."""
    window_steps: PositiveInt = 50
    """Recorded steps between two visits of the host, and one window of the log."""
    live: Bool = True
    """Diagnose the training after each window, and say what appears and what is gone."""
    on_error: Literal["warn", "stop", "recover"] = "warn"
    """What to do at a finding of severity error: say so; stop, with exit code 3 if a loss or a
    gradient is not finite and else 1; or, if smaller steps can mend it, go back to the last
    healthy checkpoint with a lower learning rate."""
    most_recoveries: PositiveInt = 3
    """How often a run goes back; the next time it stops."""
    recovery_factor: Annotated[Float, Field(gt=0, lt=1)] = 0.3
    """What the learning rate is multiplied by each time."""


class RuntimeConfig(Section):
    """What to run on. `auto` decides by the machine and says what and why."""

    devices: Literal["auto", "cpu", "gpu"] | PositiveInt = "auto"
    """auto: all GPUs, else the CPU; gpu: all GPUs, or an error; a number: that many GPUs."""
    logical_cpus: PositiveInt = 1
    """Split the CPU into this many devices, to rehearse training on several replicas."""
    strategy: Literal["auto", "none", "mirrored"] = "auto"
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    jit: Literal["auto", "on", "off"] = "auto"
    """XLA compilation of the training step."""
    deterministic: Bool = False
    """Bit-identical repetition on one machine, at some cost in speed on a GPU."""
    steps_per_execution: PositiveInt = 1
    """Training steps in one call of the compiled function; it must divide the steps of an epoch."""


class Config(Section):
    """One training run, from data to served model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)] = "run"
    """The first part of the run directory's name."""
    seed: Annotated[Int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig = DataConfig()
    model: ModelSpec
    optimizer: Optimizer = Adam()
    schedule: Schedule = ConstantSchedule()
    fit: FitConfig = FitConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gradients: GradientsConfig = GradientsConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    search: SearchConfig | None = None
    """Only `tune` reads it."""


# Sections whose keys depend on `kind`: a file that extends another and names a
# different kind starts them afresh instead of inheriting keys of the old kind. The
# value is the kind of a section that is written without one.
SECTIONS_BY_KIND = {"optimizer": None, "schedule": None, "model.stem": "convolution"}

# The same for sections whose kind can also be written as a name or `{name: {...}}`;
# `*` stands for any item of a list.
SECTIONS_BY_NAME = frozenset(
    {
        "data.augment.*",
        "model.block.normalization",
        "model.block.kernel_initializer",
        "model.block.bias_initializer",
        "model.head.kernel_initializer",
    }
)
