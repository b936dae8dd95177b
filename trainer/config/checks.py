"""Rules that span sections of the config, for values that are right one by one.

A check yields a key path and a message for each problem that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from trainer.config.model_schema import ModelSpec
from trainer.config.schema import Config, Cutout, RandomShift, StepSchedule, TriangularSchedule
from trainer.config.yaml_nodes import KeyPath

Problems: TypeAlias = Iterator[tuple[KeyPath, str]]

# Both built-in sources have the same number of classes and the same image size.
_NUM_CLASSES = 10
_IMAGE_SIZE = (32, 32)
_CIFAR10_TRAIN_IMAGES = 50_000


def _num_images(config: Config) -> int | None:
    """Images of the data set's training part, if the config alone tells."""
    sizes = {"cifar10": _CIFAR10_TRAIN_IMAGES, "shapes": config.data.train_size}
    return sizes.get(config.data.source)


def _num_train_images(config: Config) -> int | None:
    """Images that remain for training beside validation, if the config alone tells."""
    images = _num_images(config)
    return None if images is None else images - round(images * config.data.validation_split)


def _image_size(config: Config) -> tuple[int, int] | None:
    """Height and width in pixels, if the config alone tells."""
    if config.data.source in ("cifar10", "shapes"):
        return _IMAGE_SIZE
    return config.data.image_size


def _num_devices(config: Config) -> int:
    """How many devices the config asks for by number; `auto` counts as one."""
    devices = config.runtime.devices
    return max(config.runtime.logical_cpus, devices if isinstance(devices, int) else 1)


def uses_up(model: ModelSpec, side: int) -> bool:
    """Whether down-sampling leaves nothing of so many pixels."""
    return model.total_strides > side or model.output_side(side) < 1


def strides_fit_the_image(config: Config) -> Problems:
    """Down-sampling ends at one pixel."""
    size, strides = _image_size(config), config.model.total_strides
    if size and uses_up(config.model, min(size)):
        yield (
            ("model", "stages"),
            (
                "stem and stages together must not down-sample by more than the image has pixels. "
                f"Received: strides of {strides} in all, an image of {size[0]}x{size[1]} pixels"
            ),
        )


def augmentations_fit_the_image(config: Config) -> Problems:
    """Shifts leave something to see, and squares lie within the image."""
    size = _image_size(config)
    if size is None:
        return
    image = f"an image of {size[0]}x{size[1]} pixels"
    for index, augmentation in enumerate(config.data.augment):
        if isinstance(augmentation, RandomShift) and augmentation.pixels >= min(size):
            yield (
                ("data", "augment", index, "pixels"),
                (
                    "must be less than the side of the image. "
                    f"Received: pixels={augmentation.pixels}, {image}"
                ),
            )
        if isinstance(augmentation, Cutout) and augmentation.size > min(size):
            yield (
                ("data", "augment", index, "size"),
                (
                    "must not be more than the side of the image. "
                    f"Received: size={augmentation.size}, {image}"
                ),
            )


def early_crops_fit_the_image(config: Config) -> Problems:
    """Early crops are smaller than the image, and down-sampling leaves something of them."""
    crops, size = config.data.early_crops, _image_size(config)
    if crops is None:
        return
    # What the whole image has too few pixels for is another check's problem.
    is_too_small = uses_up(config.model, crops.size)
    if size is not None and crops.size >= min(size):
        yield (
            ("data", "early_crops", "size"),
            (
                "must be less than the side of the image. "
                f"Received: size={crops.size}, an image of {size[0]}x{size[1]} pixels"
            ),
        )
    elif is_too_small and not (size and uses_up(config.model, min(size))):
        yield (
            ("data", "early_crops", "size"),
            (
                "stem and stages together must not down-sample by more than a crop has pixels. "
                f"Received: size={crops.size}, strides of {config.model.total_strides} in all"
            ),
        )


def early_crops_end_before_the_run(config: Config) -> Problems:
    """The last epoch at least sees whole images."""
    crops, epochs = config.data.early_crops, config.fit.epochs
    if crops is not None and crops.epochs >= epochs:
        yield (
            ("data", "early_crops", "epochs"),
            (
                "must be less than fit.epochs, because at least the last epoch sees whole images. "
                f"Received: epochs={crops.epochs}, fit.epochs={epochs}"
            ),
        )


def early_crops_fit_the_head(config: Config) -> Problems:
    """The head makes as many features of a crop as of a whole image."""
    if config.data.early_crops is not None and config.model.head.pooling == "flatten":
        yield (
            ("model", "head", "pooling"),
            (
                "must be average or max with data.early_crops, because flatten makes fewer "
                "features of a crop than of a whole image. Received: flatten"
            ),
        )


def shapes_hold_every_class(config: Config) -> Problems:
    """Each drawn part has an image of each class."""
    if config.data.source != "shapes":
        return
    for key in ("train_size", "test_size"):
        size = getattr(config.data, key)
        if size < _NUM_CLASSES:
            yield (
                ("data", key),
                (f"must be at least {_NUM_CLASSES}, one image of each class. Received: {size}"),
            )


def validation_holds_every_class(config: Config) -> Problems:
    """Training and validation both have an image of each class."""
    images, split = _num_images(config), config.data.validation_split
    # Fewer images than classes are another check's problem.
    if images is None or images < _NUM_CLASSES or split == 0:
        return
    per_class = images // _NUM_CLASSES
    validation = round(split * per_class)
    if not 0 < validation < per_class:
        empty = "validation" if validation == 0 else "training"
        yield (
            ("data", "validation_split"),
            (
                f"must leave images of each class for {empty}; 0 turns validation off. "
                f"Received: {split} of {per_class} images a class, which is {validation}"
            ),
        )


def batch_fits_the_data(config: Config) -> Problems:
    """One epoch has at least one full batch."""
    images, batch_size = _num_train_images(config), config.fit.batch_size
    if images is not None and batch_size > images:
        yield (
            ("fit", "batch_size"),
            (
                "must not be more than the training images that validation leaves. "
                f"Received: {batch_size} of {images} images"
            ),
        )


def residual_stages_shrink_one_way(config: Config) -> Problems:
    """Branch and shortcut of a block end at one size, whichever the image's is."""
    if config.model.block.kind != "residual":
        return
    for index, stage in enumerate(config.model.stages):
        if stage.strides > 1 and stage.pool_size > 1:
            yield (
                ("model", "stages", index, "pool_size"),
                (
                    "must be 1 in a residual stage with strides: pooling and strides round sizes "
                    "differently, one after the other and the other way round. Received: "
                    f"{stage.pool_size}, strides={stage.strides}"
                ),
            )


def batch_divides_over_devices(config: Config) -> Problems:
    """Each device gets the same number of images."""
    devices, batch_size = _num_devices(config), config.fit.batch_size
    if batch_size % devices:
        yield (
            ("fit", "batch_size"),
            (
                f"must be a multiple of the number of devices. Received: {batch_size} over "
                f"{devices} devices"
            ),
        )


def warmup_fits_the_run(config: Config) -> Problems:
    """The learning rate reaches its peak."""
    schedule, epochs = config.schedule, config.fit.epochs
    if isinstance(schedule, TriangularSchedule):
        return
    if schedule.warmup_epochs > epochs:
        yield (
            ("schedule", "warmup_epochs"),
            (
                "must not be longer than the run. "
                f"Received: warmup_epochs={schedule.warmup_epochs:g}, fit.epochs={epochs}"
            ),
        )
    images = _num_train_images(config)
    if schedule.warmup_steps is None or images is None:
        return
    total_steps = epochs * (images // config.fit.batch_size)
    # A run without a single step is another check's problem.
    if schedule.warmup_steps > total_steps > 0:
        yield (
            ("schedule", "warmup_steps"),
            (
                "must not be longer than the run. "
                f"Received: warmup_steps={schedule.warmup_steps}, a run of {total_steps} steps"
            ),
        )


def boundaries_fit_the_run(config: Config) -> Problems:
    """Every boundary of a step schedule takes effect."""
    if not isinstance(config.schedule, StepSchedule):
        return
    for index, boundary in enumerate(config.schedule.boundary_epochs):
        if boundary >= config.fit.epochs:
            yield (
                ("schedule", "boundary_epochs", index),
                (
                    "must lie before the end of the run, or it never takes effect. "
                    f"Received: {boundary:g}, fit.epochs={config.fit.epochs}"
                ),
            )


def jit_fits_the_devices(config: Config) -> Problems:
    """XLA compiles for one device, or for several GPUs without loss scaling."""
    runtime = config.runtime
    if runtime.jit != "on":
        return
    if runtime.logical_cpus > 1:
        yield (
            ("runtime", "jit"),
            (
                "must be off or auto on several CPU devices, where XLA fails. "
                f"Received: on, logical_cpus={runtime.logical_cpus}"
            ),
        )
    elif _num_devices(config) > 1 and runtime.precision == "mixed_float16":
        yield (
            ("runtime", "jit"),
            (
                "must be off or auto with mixed_float16 on several devices, where Keras crashes in "
                "merge_call (Keras issue 21366). mixed_bfloat16 is free of this. "
                f"Received: on, devices={runtime.devices}"
            ),
        )


def window_holds_an_execution(config: Config) -> Problems:
    """The host sees the window buffer only between two executions."""
    window, steps = config.gradients.window_steps, config.runtime.steps_per_execution
    if config.gradients.record and window < steps:
        yield (
            ("gradients", "window_steps"),
            (
                "must be at least runtime.steps_per_execution, because the host reads the window "
                f"between two executions. Received: window_steps={window}, "
                f"steps_per_execution={steps}"
            ),
        )


CHECKS: tuple[Callable[[Config], Problems], ...] = (
    strides_fit_the_image,
    augmentations_fit_the_image,
    early_crops_fit_the_image,
    early_crops_end_before_the_run,
    early_crops_fit_the_head,
    shapes_hold_every_class,
    validation_holds_every_class,
    batch_fits_the_data,
    residual_stages_shrink_one_way,
    batch_divides_over_devices,
    warmup_fits_the_run,
    boundaries_fit_the_run,
    jit_fits_the_devices,
    window_holds_an_execution,
)
