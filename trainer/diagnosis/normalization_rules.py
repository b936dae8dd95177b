"""Whether batch normalization has enough images to take its statistics of."""

from __future__ import annotations

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.registry import rule

FEWEST_IMAGES = 8
"""Images below which the statistics of a batch are mostly noise."""


@rule("batch_statistics", rank=12)
def batch_statistics(evidence: Evidence) -> list[Finding]:
    """Batch normalization over a few images.

    Formula: images that one normalization takes its mean and variance of: the batch, shared
    among the replicas unless the normalization is synchronized.
    Threshold: below 8.
    Source: Wu and He 2018, figure 1: the error of a ResNet-50 on ImageNet is 23.7 % with 16
    images, 24.8 % with 8, 27.3 % with 4 and 34.7 % with 2. Training looks sound all the same:
    it is the evaluation, by moving statistics that no batch had, that gets worse.
    Wrong when: the maps are so large, or the images so alike, that a few images are many
    values; the layers are frozen.
    """
    images = images_normalized_together(evidence)
    if images is None or images >= FEWEST_IMAGES:
        return []
    return [
        Finding(
            "batch_statistics",
            "warning",
            f"batch normalization takes its statistics of {images} images, which are mostly "
            "noise: evaluation, which uses their moving average, will be worse than training",
            numbers={"images": float(images)},
            thresholds={"images": float(FEWEST_IMAGES)},
            windows_fired=0,
            windows_seen=0,
            remedies=(
                Remedy("needs no batch", {"model.block.normalization": "group"}),
                Remedy("needs no batch, nor groups", {"model.block.normalization": "layer"}),
                Remedy("takes them of more images", {"fit.batch_size": 32}),
            ),
        )
    ]


def images_normalized_together(evidence: Evidence) -> int | None:
    """Return how many images batch normalization takes its statistics of; None without it.

    Raises:
        CannotJudge: If the kind of normalization is not known.
    """
    if evidence.config is None:
        raise CannotJudge("the kind of normalization is not known without a config")
    normalization = evidence.config.model.block.normalization
    if normalization.kind != "batch":
        return None
    images = evidence.config.fit.batch_size
    if evidence.log is None or normalization.synchronized:
        return images
    return images // evidence.log.header.num_replicas
