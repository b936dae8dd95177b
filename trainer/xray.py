"""Look at a model before its training is paid for: a few batches, and ten real steps.

The pieces are those of the training: the same data, model, loss, optimizer and schedule.
Two things differ, to be done in seconds: batches can be smaller, and the graph is left as it
was traced, for to optimize that of a deep network takes longer than all its steps here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.activation_hook import activation_layers
from trainer.activation_stats import saturation_of
from trainer.bounded_values import Saturation
from trainer.config import Config
from trainer.config.schema import RuntimeConfig
from trainer.data.pipeline import steps_per_epoch, training_batches
from trainer.data.sources import Split
from trainer.diagnosis.xray_evidence import FirstSteps, XRay
from trainer.gradient_hook import clipping_of
from trainer.gradient_log import VariableInfo
from trainer.gradient_stats import clipped_norms
from trainer.model_summary import summarize
from trainer.runtime import find_gpus, set_up
from trainer.terminal import say
from trainer.train import build_compiled

MICRO_BATCHES = 4
NUM_STEPS = 10
_SMALLEST_BATCH = 16
# Multiply-adds of a forward pass: about a fifth of a second a step on two cores.
_COST_OF_BATCH = 2e9

Differentiate = Callable[..., tuple[Any, Any, list[Any], list[Any], list[Any]]]


def take_xray(config: Config, split: Split) -> XRay:
    """Measure a model at its start; TensorFlow and Keras are set up as for its training.

    Args:
        config: The resolved config.
        split: The images that it would train on.

    Raises:
        TrainerError: As the training would.
    """
    runtime = set_up(_on_one_device(config.runtime), config.seed)
    say(f"xray of {config.name}: {runtime.precision} on {runtime.devices[0]}")
    epoch_steps = steps_per_epoch(split.num_images, config.fit.batch_size)
    with _unoptimized_graphs():
        model = build_compiled(config, split, runtime, epoch_steps)
        batch_size = _batch_size(config, model)
        if batch_size < config.fit.batch_size:
            # These are not the training's batches anyway, and a sample is shuffled in no time.
            split = _sample(config, split, batch_size)
        stream = training_batches(
            split.images,
            split.labels,
            split.num_classes,
            batch_size=batch_size,
            seed=config.seed,
            augment=config.data.augment,
            early_crops=config.data.early_crops,
        )
        batches = list(islice(stream, NUM_STEPS))
        layers = [*activation_layers(model), model.get_layer("head_logits")]
        differentiate = _differentiation(model, layers)
        kernels = [
            index
            for index, variable in enumerate(model.trainable_variables)
            if VariableInfo(variable.path, tuple(variable.shape)).is_kernel
        ]
        # Looking moves batch statistics and the seeds of dropout; the steps start afresh.
        state = [variable.numpy() for variable in model.non_trainable_variables]
        looks = _look(model, differentiate, layers, kernels, batches[:MICRO_BATCHES], batch_size)
        for variable, value in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(value)
        steps = _take_steps(model, differentiate, kernels, batches)
    return XRay(
        config=config,
        batch_size=batch_size,
        num_classes=split.num_classes,
        blocks=tuple(layer.name for layer in layers),
        kernels=tuple(model.trainable_variables[index].path for index in kernels),
        clipping=clipping_of(model.optimizer),
        steps=steps,
        **looks,
    )


def _on_one_device(runtime: RuntimeConfig) -> RuntimeConfig:
    """The config's precision on one device, a GPU if there is one and it is wanted."""
    has_gpu = runtime.devices != "cpu" and bool(find_gpus())
    return runtime.model_copy(
        update={
            "devices": 1 if has_gpu else "cpu",
            "logical_cpus": 1,
            "strategy": "none",
            "jit": "off",
        }
    )


@contextmanager
def _unoptimized_graphs() -> Iterator[None]:
    name = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(name, False)
    tf.config.optimizer.set_experimental_options({name: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({name: before})


def _batch_size(config: Config, model: keras.Model) -> int:
    """As many images as the budget allows, at least 16, and no more than the config's."""
    affordable = _SMALLEST_BATCH
    # The cost of crops of a size that changes is not known here.
    if config.data.early_crops is None:
        cost = sum(layer.multiply_adds for layer in summarize(model))
        affordable = max(affordable, int(_COST_OF_BATCH / max(cost, 1)))
    return min(config.fit.batch_size, affordable)


def _sample(config: Config, split: Split, batch_size: int) -> Split:
    """Images for all steps, drawn at random."""
    num_images = min(NUM_STEPS * batch_size, split.num_images)
    drawn = np.random.default_rng(config.seed).permutation(split.num_images)[:num_images]
    return replace(split, images=split.images[drawn], labels=split.labels[drawn])


def _differentiation(model: keras.Model, layers: Sequence[keras.layers.Layer]) -> Differentiate:
    """Return a traced function of images, labels and a loss scale.

    It returns the loss, its data part, the layers' outputs, and the scaled gradients with
    respect to those and to the trainable variables.
    """
    watched = keras.Model(model.inputs, [layer.output for layer in layers])

    # Traced: a pass of 56 layers takes 0.3 s of a core instead of 0.7 s, which from seven
    # passes on is more than the tracing. Autograph has nothing to convert and takes a second.
    @tf.function(autograph=False)
    def differentiate(images: Any, labels: Any, scale: Any) -> Any:
        images = tf.cast(images, tf.float32)
        with tf.GradientTape() as tape:
            # The outputs of a frozen stem depend on no variable: what is watched before
            # them has them recorded.
            tape.watch(images)
            outputs = keras.tree.flatten(watched(images, training=True))
            cross_entropy = model.loss(labels, outputs[-1])
            # As `compute_loss`, which puts each of these scalars through another sum.
            loss = tf.add_n([cross_entropy, *model.losses])
            scaled = loss * scale
        gradients = tape.gradient(
            scaled,
            [*outputs, *model.trainable_variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return loss, cross_entropy, outputs, gradients[: len(outputs)], gradients[len(outputs) :]

    return differentiate


def _look(
    model: keras.Model,
    differentiate: Differentiate,
    layers: Sequence[keras.layers.Layer],
    kernels: Sequence[int],
    batches: Sequence[Any],
    batch_size: int,
) -> dict[str, Any]:
    """Measure a few batches at equal weights."""
    saturations = [saturation_of(layer) for layer in layers]
    rows: dict[str, list[Any]] = {
        "output_std": [],
        "image_std": [],
        "saturated": [],
        "gradient_rms": [],
        "kernel_gradient_norms": [],
        "cross_entropies": [],
        "micro_norms": [],
    }
    total: list[np.ndarray] | None = None
    regularization = 0.0
    for images, labels in batches:
        loss, cross_entropy, outputs, gradients, raw, scale = _in_range(
            model, differentiate, images, labels
        )
        spreads = [_spreads(output.numpy().astype(np.float64)) for output in outputs]
        rows["output_std"].append([each[0] for each in spreads])
        rows["image_std"].append([each[1] for each in spreads])
        rows["saturated"].append(
            [_saturated(output, each) for output, each in zip(outputs, saturations, strict=True)]
        )
        # The loss is the mean of the images' losses.
        rows["gradient_rms"].append([_rms(each) * batch_size / scale for each in gradients])
        unscaled = [each.numpy().astype(np.float64) / scale for each in raw]
        norms = np.array([_norm(each) for each in unscaled])
        rows["kernel_gradient_norms"].append(norms[kernels])
        rows["micro_norms"].append(_norm(norms))
        rows["cross_entropies"].append(float(cross_entropy))
        regularization = float(loss) - float(cross_entropy)
        total = unscaled if total is None else [a + b for a, b in zip(total, unscaled, strict=True)]
    mean_norm = _norm(np.array([_norm(each) for each in total or []])) / len(batches)
    arrays = {name: np.array(values, np.float64) for name, values in rows.items()}
    return {**arrays, "regularization": regularization, "mean_norm": mean_norm}


def _in_range(
    model: keras.Model, differentiate: Differentiate, images: Any, labels: Any
) -> tuple[Any, ...]:
    """Differentiate at the largest loss scale that float16 gradients fit under."""
    scale = _loss_scale(model.optimizer)
    while True:
        results = differentiate(images, labels, tf.constant(scale, tf.float32))
        loss, *_, gradients, raw = results
        fits = all(bool(tf.reduce_all(tf.math.is_finite(each))) for each in [*gradients, *raw])
        if fits or scale <= 1 or not np.isfinite(float(loss)):
            return (*results, scale)
        scale /= 4


def _take_steps(
    model: keras.Model, differentiate: Differentiate, kernels: Sequence[int], batches: Sequence[Any]
) -> FirstSteps:
    """Train for a step a batch, as `fit` would."""
    optimizer, variables = model.optimizer, model.trainable_variables
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    clipping = clipping_of(optimizer)

    @tf.function(autograph=False)
    def apply(gradients: list[Any]) -> None:
        optimizer.apply(gradients, variables)

    rows = []
    after = [variables[index].numpy() for index in kernels]
    for images, labels in batches:
        scale = _loss_scale(optimizer)
        rate = float(keras.ops.convert_to_numpy(inner.learning_rate))
        loss, _, _, _, gradients = differentiate(images, labels, tf.constant(scale, tf.float32))
        unscaled = _unscaled(gradients, scale)
        norms = np.array([_norm(each.numpy()) for each in unscaled])
        clipped = clipped_norms(unscaled, tf.constant(norms, tf.float32), clipping).numpy()
        done = int(inner.iterations.numpy())
        apply(gradients)
        before, after = after, [variables[index].numpy() for index in kernels]
        changes = [new - old for new, old in zip(after, before, strict=True)]
        skipped = int(inner.iterations.numpy()) == done
        rows.append(
            (
                float(loss),
                rate,
                _norm(norms),
                _norm(clipped),
                skipped,
                norms[kernels],
                [_norm(change) for change in changes],
                [_norm(old) for old in before],
            )
        )
        # From here on there is nothing but NaN.
        if not np.isfinite(float(loss)) or not (skipped or np.isfinite(norms).all()):
            break
    loss, rate, raw_norm, clipped_norm, is_skipped, kernel_norms, updates, weights = zip(
        *rows, strict=True
    )
    return FirstSteps(
        loss=np.array(loss, np.float64),
        learning_rate=np.array(rate, np.float64),
        raw_norm=np.array(raw_norm, np.float64),
        clipped_norm=np.array(clipped_norm, np.float64),
        skipped=np.array(is_skipped, bool),
        kernel_raw_norms=np.array(kernel_norms, np.float64),
        update_norms=np.array(updates, np.float64),
        weight_norms=np.array(weights, np.float64),
    )


def _loss_scale(optimizer: keras.optimizers.Optimizer) -> float:
    dynamic = getattr(optimizer, "dynamic_scale", None)
    return 1.0 if dynamic is None else float(dynamic.numpy())


def _unscaled(gradients: Sequence[Any], scale: float) -> list[Any]:
    """Gradients of the loss itself, float32."""
    if scale == 1:
        return [tf.cast(each, tf.float32) for each in gradients]
    return [tf.cast(each, tf.float32) / scale for each in gradients]


def _spreads(values: np.ndarray) -> tuple[float, float]:
    """Deviation of all values, and of a unit between images (root mean square over units)."""
    with np.errstate(invalid="ignore", over="ignore"):
        between = np.square(values - values.mean(axis=0)).mean()
        return float(values.std()), float(np.sqrt(between))


def _saturated(output: Any, saturation: Saturation | None) -> float:
    if saturation is None:
        return float("nan")
    values = output.numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.mean(np.abs(values - saturation.center) > saturation.radius))


def _rms(values: Any) -> float:
    array = values.numpy().astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.square(array).mean()))


def _norm(values: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.square(values, dtype=np.float64).sum()))
