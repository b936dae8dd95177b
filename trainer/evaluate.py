"""Evaluate a finished run on the test set, which nothing else ever reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np

import trainer.layers  # noqa: F401  (registers the layers that the model file names)
from trainer.config import Config, load_config
from trainer.data.facts import count_seen, image_digests
from trainer.data.sources import Split, load_split
from trainer.errors import DataError, RunDirectoryError
from trainer.mistakes import Mistakes
from trainer.run_dir import RunDir, read_json, write_json
from trainer.views import Views, logits_over_views


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class.

    Attributes:
        name: Of the class.
        num_images: Of this class in the test set.
        precision: Share of the images predicted as this class that are of it; 0 if none is.
        recall: Share of the images of this class that are predicted as it.
        f1: Harmonic mean of the two.
    """

    name: str
    num_images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of the whole test set.

    Attributes:
        num_images: Every image counts, also those of an incomplete last batch.
        loss: Mean cross-entropy in nats, without regularizers and label smoothing.
        accuracy: Share of the images whose most probable class is right.
        views: Whose logits are averaged for each image, as `evaluation.views` says.
        single_view_accuracy: The accuracy on the images as they are.
        classes: One entry a class.
        confusion: Images by true class (rows) and predicted class (columns).
        source: Of the data.
        synthetic: Whether the images are drawn, not photographed.
        num_not_finite: Images whose logits hold a NaN or an infinity: a prediction of theirs
            is no more than the first class that has one.
        seen_in_training: Images that equal one of the training images in every pixel; None
            where the run does not say what it was trained on.
    """

    num_images: int
    loss: float
    accuracy: float
    views: Views
    single_view_accuracy: float
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    source: str
    synthetic: bool
    num_not_finite: int = 0
    seen_in_training: int | None = None


def load_run_model(run: RunDir) -> keras.Model:
    """Load `model.keras` of a run, for prediction only.

    Raises:
        RunDirectoryError: If the run has no model, or the file is damaged.
    """
    if not run.model.is_file():
        state = run.read_status()["state"]
        raise RunDirectoryError(
            f"{run.model}: the run has no trained model, it is {state}. "
            + (
                f"Train it again: trainer train {run.config}"
                if state == "done"
                else f"Go on with it: trainer train --resume {run.path}"
            )
        )
    try:
        return keras.models.load_model(run.model, compile=False)
    # Keras and the libraries under it raise nearly anything on a damaged file.
    except Exception as error:
        raise RunDirectoryError(f"{run.model}: the model cannot be loaded ({error})") from error


def evaluate(run: RunDir) -> Evaluation:
    """Evaluate a run's model on its test set; write `evaluation.json` and `mistakes.npz`.

    Raises:
        RunDirectoryError: If the run lacks a model.
        DataError: If the test data are missing or of other classes than the run's.
    """
    config = load_config(run.config)
    model = load_run_model(run)
    split = load_split(config.data, "test", config.seed)
    names = read_json(run.data)["class_names"]
    if list(split.class_names) != names:
        raise DataError(
            "the test set must have the classes that the run was trained on. "
            f"Received: {', '.join(split.class_names)}; trained on {', '.join(names)}"
        )
    shape = read_json(run.data).get("image_shape")
    if list(split.image_shape) != shape:
        raise DataError(
            "the test images must have the shape that the run was trained on. "
            f"Received: {list(split.image_shape)}; trained on {shape}"
        )
    logits, single = predict_logits(
        model, split.images, config.fit.batch_size, config.evaluation.views
    )
    evaluation = replace(
        measure(logits, split, config, single),
        seen_in_training=_count_seen_in_training(run, split),
    )
    Mistakes.among(softmax(logits), split.images, split.labels).write(run.mistakes)
    write_json(run.evaluation, asdict(evaluation))
    return evaluation


def _count_seen_in_training(run: RunDir, split: Split) -> int | None:
    """None for a run of a version that kept no digests."""
    if not run.train_digests.is_file():
        return None
    try:
        train = np.load(run.train_digests)
    except (OSError, ValueError, EOFError) as error:
        raise RunDirectoryError(
            f"{run.train_digests}: this artifact is damaged ({error}). Delete it to evaluate the "
            "run without looking for test images among its training images"
        ) from error
    return count_seen(image_digests(split.images), train)


def predict_logits(
    model: keras.Model, images: np.ndarray, batch_size: int, views: Views
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of all images, in order: averaged over views, and as the images are.

    Args:
        model: From images of 0..255 to logits.
        images: Shape (num_images, height, width, channels), uint8.
        batch_size: Images at a time; the last batch may be smaller.
        views: Over which the logits of an image are averaged.

    Returns:
        Both of shape (num_images, num_classes), float32.
    """

    def logits_of(batch: np.ndarray) -> np.ndarray:
        return model.predict(batch, batch_size=batch_size, verbose=0)

    return logits_over_views(logits_of, images, views)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, shape (num_images, num_classes), float32."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def measure(
    logits: np.ndarray, split: Split, config: Config, single_view_logits: np.ndarray | None = None
) -> Evaluation:
    """Turn logits of a split into figures.

    Args:
        logits: Shape (num_images, num_classes), averaged over the config's views.
        split: The images that the logits are of.
        config: Of the run.
        single_view_logits: Of the images as they are, if `logits` are of more views.
    """
    if single_view_logits is None:
        single_view_logits = logits
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    log_probabilities = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    predicted = logits.argmax(axis=1)
    num_classes = split.num_classes
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (split.labels, predicted), 1)
    hits = confusion.diagonal()
    recall = _share(hits, confusion.sum(axis=1))
    precision = _share(hits, confusion.sum(axis=0))
    f1 = _share(2 * precision * recall, precision + recall)
    return Evaluation(
        num_images=split.num_images,
        loss=float(-log_probabilities[np.arange(split.num_images), split.labels].mean()),
        accuracy=float(np.mean(predicted == split.labels)),
        views=config.evaluation.views,
        single_view_accuracy=float(np.mean(single_view_logits.argmax(axis=1) == split.labels)),
        classes=tuple(
            ClassFigures(
                name, int(confusion[i].sum()), float(precision[i]), float(recall[i]), float(f1[i])
            )
            for i, name in enumerate(split.class_names)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        source=config.data.source,
        synthetic=split.synthetic,
        num_not_finite=int((~np.isfinite(logits).all(axis=1)).sum()),
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _views_line(evaluation: Evaluation) -> list[str]:
    if evaluation.views == "single":
        return []
    single = evaluation.single_view_accuracy
    return [f"averaged over {evaluation.views} views; of single images: accuracy {single:.4f}"]


def _not_finite_lines(evaluation: Evaluation) -> list[str]:
    count = evaluation.num_not_finite
    if not count:
        return []
    return [
        f"warning: the logits of {count:,} of them are not finite: their predictions mean nothing"
    ]


def _seen_lines(evaluation: Evaluation) -> list[str]:
    count = evaluation.seen_in_training
    if not count:
        return []
    return [
        f"warning: {count:,} of them ({count / evaluation.num_images:.2%}) equal a training image: "
        "they measure memory"
    ]


def format_evaluation(evaluation: Evaluation) -> str:
    """Return the figures as text for people, within 80 columns for ten classes."""
    what = "SYNTHETIC test images" if evaluation.synthetic else "test images"
    lines = [
        f"{evaluation.num_images:,} {what} of {evaluation.source}: "
        f"accuracy {evaluation.accuracy:.4f}, loss {evaluation.loss:.4f}",
        *_views_line(evaluation),
        *_not_finite_lines(evaluation),
        *_seen_lines(evaluation),
        "",
        f"{'class':12} {'images':>7} {'precision':>9} {'recall':>7} {'f1':>7}",
    ]
    lines += [
        f"{c.name[:12]:12} {c.num_images:7,} {c.precision:9.4f} {c.recall:7.4f} {c.f1:7.4f}"
        for c in evaluation.classes
    ]
    if len(evaluation.classes) <= 12:
        lines += ["", "rows: true class, columns: predicted class"]
        header: list[Any] = [c.name[:5] for c in evaluation.classes]
        lines.append(" " * 12 + "".join(f"{name:>6}" for name in header))
        lines += [
            f"{c.name[:12]:12}" + "".join(f"{count:6}" for count in row)
            for c, row in zip(evaluation.classes, evaluation.confusion, strict=True)
        ]
    return "\n".join(lines)
