"""What a run keeps of its data: facts for people, and by what it knows them again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from trainer.config import Config
from trainer.data.facts import Duplicates, SplitFacts, image_digests
from trainer.data.splits import TrainingData
from trainer.errors import RunDirectoryError
from trainer.run_dir import RunDir, read_json, write_atomically, write_json

# What of `data.json` must not change, and what people call it.
_FIXED = {
    "class_names": "the classes",
    "image_shape": "the size of the images",
    "num_train": "the number of training images",
    "num_validation": "the number of validation images",
    "epoch_steps": "the steps of an epoch, by fit.batch_size",
}


def keep_data_facts(
    run: RunDir, config: Config, data: TrainingData, epoch_steps: int, is_resumed: bool
) -> None:
    """Write `data.json` and `train_digests.npy`.

    Args:
        run: Whose directory exists.
        config: Of the run.
        data: What it trains on.
        epoch_steps: Steps of an epoch.
        is_resumed: Whether the run has begun with data that these must be equal to.

    Raises:
        RunDirectoryError: If they are others, before anything is written: the checkpoint
            counts steps of these images, in this order, and its validation images may not be
            trained on. Or if a file cannot be written.
    """
    train, validation = data.train, data.validation
    digests = image_digests(train.images)
    in_validation = None if validation is None else image_digests(validation.images)
    sorted_digests = np.sort(digests)
    facts = {
        "source": config.data.source,
        "origin": str(train.origin),
        "synthetic": train.synthetic,
        "class_names": list(train.class_names),
        "image_shape": list(train.image_shape),
        "num_train": train.num_images,
        "num_validation": 0 if validation is None else validation.num_images,
        "epoch_steps": epoch_steps,
        "label_noise": config.data.label_noise,
        "num_wrong_labels": data.num_wrong_labels,
        "splits": {
            "train": asdict(SplitFacts.of(train)),
            "validation": None if validation is None else asdict(SplitFacts.of(validation)),
        },
        "duplicates": asdict(Duplicates.of(digests, train.labels, in_validation)),
    }
    changed = _changes(run, facts, sorted_digests) if is_resumed else []
    if changed:
        raise RunDirectoryError(
            f"{run.path}: a run goes on only with the data and the batches that it began with. "
            "Changed since: "
            f"{', '.join(changed)}. Put them back, or train anew from {run.config}"
        )
    write_atomically(run.train_digests, lambda path: np.save(path, sorted_digests))
    write_json(run.data, facts)


def _changes(run: RunDir, facts: dict[str, Any], sorted_digests: np.ndarray) -> list[str]:
    """What is not as it was; what was not kept, or is damaged, does not count."""
    before: dict[str, Any] = {}
    with suppress(RunDirectoryError):
        before = read_json(run.data)
    changed = [
        f"{name} ({before[key]}, now {facts[key]})"
        for key, name in _FIXED.items()
        if key in before and before[key] != facts[key]
    ]
    per_class = before.get("splits", {}).get("train", {}).get("images_per_class")
    if not changed and per_class not in (None, list(facts["splits"]["train"]["images_per_class"])):
        changed.append("the labels")
    with suppress(OSError, ValueError, EOFError):
        if not changed and not np.array_equal(np.load(run.train_digests), sorted_digests):
            changed.append("the training images")
    return changed
