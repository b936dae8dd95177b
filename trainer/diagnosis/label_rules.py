"""Whether what is learned from the labels holds for images that were not trained on."""

from __future__ import annotations

import math

import numpy as np

from trainer.diagnosis.data_rules import facts_of_split
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.normalization_rules import FEWEST_IMAGES, images_normalized_together
from trainer.diagnosis.registry import rule

_FEWEST_EPOCHS = 5
_FEWEST_IMAGES = 100


@rule("memorizing", rank=7)
def memorizing(evidence: Evidence) -> list[Finding]:
    """Training images that are learned by heart, and nothing else.

    Formula: skill = (accuracy - chance) / (1 - chance), where chance is the share of the
    largest class; of training, and the validation accuracy itself, both medians over the
    last three epochs.
    Threshold: a training skill above 0.2, and a validation accuracy of no more than chance
    and two standard errors, over at least five epochs and 100 validation images.
    Source: Zhang et al. 2017: networks fit random labels, and only images that were not
    trained on tell. The bounds are the project's own.
    Wrong when: training and validation images are not of one kind. Batch normalization whose
    moving statistics are not those of the batches looks alike: where they cannot be, because
    of the momentum or of batches below 8 images, this rule does not judge.
    """
    train, validation = (facts_of_split(evidence, name) for name in ("train", "validation"))
    num_images = validation["num_images"] if validation else 0
    rows = [row for row in evidence.history if {"accuracy", "val_accuracy"} <= row.keys()]
    if num_images < _FEWEST_IMAGES or len(rows) < _FEWEST_EPOCHS:
        raise CannotJudge(
            f"{num_images} validation images and {len(rows)} epochs, and {_FEWEST_IMAGES} and "
            f"{_FEWEST_EPOCHS} are needed"
        )
    _require_trustworthy_statistics(evidence, int(rows[-1].get("step", 0)))
    chance = max(validation["images_per_class"]) / num_images
    training_chance = max(train["images_per_class"]) / train["num_images"]
    accuracy, validated = (
        float(np.median([row[key] for row in rows[-3:]])) for key in ("accuracy", "val_accuracy")
    )
    skill = (accuracy - training_chance) / max(1 - training_chance, 1e-9)
    bound = chance + 2 * math.sqrt(chance * (1 - chance) / num_images)
    if skill <= 0.2 or validated > bound:
        return []
    return [
        Finding(
            "memorizing",
            "error",
            f"the training images are learned by heart: {accuracy:.1%} of them are right, and "
            f"{validated:.1%} of the validation images, where chance is {chance:.1%}. Do the "
            "labels belong to the images?",
            steps=(0, int(rows[-1].get("step", 0))),
            numbers={"training_skill": skill, "val_accuracy": validated},
            thresholds={"training_skill": 0.2, "val_accuracy": bound},
            windows_fired=0,
            windows_seen=0,
            remedies=(Remedy("leaves the labels as they are", {"data.label_noise": 0.0}),),
        )
    ]


def _require_trustworthy_statistics(evidence: Evidence, steps: int) -> None:
    """Raise `CannotJudge` where batch normalization alone can ruin an evaluation."""
    images = images_normalized_together(evidence)
    if images is None:
        return
    if images < FEWEST_IMAGES:
        raise CannotJudge(f"batch normalization over {images} images can look like it")
    assert evidence.config is not None
    normalization = evidence.config.model.block.normalization
    remains = normalization.momentum**steps if normalization.kind == "batch" else 0.0
    if remains > 0.1:
        raise CannotJudge(f"moving statistics that are {remains:.0%} their start can look like it")
