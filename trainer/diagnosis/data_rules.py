"""What the images and labels are like: range, scale, balance, duplicates, contradictions.

These rules read what was measured when the run loaded its data, and no gradient. That says
what the training has to cope with and not how it does, so that only data of which nothing
can be learned are an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy, Severity
from trainer.diagnosis.loss_rules import learns_nothing
from trainer.diagnosis.registry import rule
from trainer.pixels import PixelScaling

_NORMALIZE = Remedy("gives each channel mean 0 and deviation 1", {"data.normalize": "per_channel"})


@rule("data_range", rank=2)
def data_range(evidence: Evidence) -> list[Finding]:
    """Images that show nothing, or next to nothing.

    Formula: brightest less darkest level of the training images, the largest of any
    channel; channels of one level only; share of the images that have one colour only.
    Threshold: an error from 0 levels, or from 99 % images of one colour; a warning below 16
    of 255 levels, for a channel of one level, and from 5 % images of one colour.
    Source: TheDeepChecker and SageMaker Debugger (CheckInputImages) look at the inputs; the
    numbers are the project's own. Images of 0..1 that became uint8 have two levels.
    Wrong when: images are masks of a few levels, or an empty picture is a class of its own.
    """
    train = facts_of_split(evidence, "train")
    lowest, highest = np.array(train["pixel_min"]), np.array(train["pixel_max"])
    ranges = highest - lowest
    constant = train["constant_images"] / train["num_images"]
    flat = np.flatnonzero(ranges == 0)
    widest = int(ranges.max())
    numbers = {"levels": float(widest), "constant_share": constant}
    if widest == 0 or constant >= 0.99:
        what = (
            f"every pixel of the training images is {lowest.tolist()}"
            if widest == 0
            else f"{constant:.1%} of the training images have one colour only"
        )
        thresholds = {"levels": 0.0, "constant_share": 0.99}
        return [_finding("data_range", "error", f"{what}: they show nothing", numbers, thresholds)]
    problems = []
    if widest < 16:
        problems.append(
            f"the training images use levels {lowest.min()} to {highest.max()} of 0 to 255: were "
            "they scaled before they became 8-bit?"
        )
    if len(flat):
        problems.append(
            f"channel {', '.join(map(str, flat))} of {len(ranges)} has one level in all of them"
        )
    if constant >= 0.05:
        problems.append(f"{constant:.1%} of the training images have one colour only")
    if not problems:
        return []
    return [
        _finding(
            "data_range",
            "warning",
            "; ".join(problems),
            numbers,
            {"levels": 16.0, "constant_share": 0.05},
            # A channel or an image without content has none after scaling either.
            _NORMALIZE if widest < 16 else None,
        )
    ]


@rule("input_scale", rank=3)
def input_scale(evidence: Evidence) -> list[Finding]:
    """Inputs that are far from the size that initializations are made for.

    Formula: root of mean^2 + deviation^2 over the training images, of each channel of what
    enters the first layer: after `data.normalize`, before augmentation. The largest of any
    channel is held against the upper bound, the largest deviation against the lower one.
    Threshold: above 10, below 0.01; an error if also nothing is learned (`plateau`). `unit`
    makes about 0.5, `per_channel` 1 and `none` 140.
    A note where the stem whitens, or a normalization follows it, which undoes a scale: what
    is left of it is the size of that convolution's gradient.
    Source: LeCun et al. 1998 (Efficient BackProp, 4.3), mean 0 and deviation 1; UMLAUT and
    TheDeepChecker ask for inputs within -1 .. 1; the two bounds are the project's own.
    Wrong when: the first layer was trained, or its learning rate chosen, for such inputs.
    """
    if evidence.config is None:
        raise CannotJudge("what enters the first layer is not known without a config")
    train = facts_of_split(evidence, "train")
    means, stds = np.array(train["pixel_mean"]), np.array(train["pixel_std"])
    scaling = PixelScaling.of_moments(means, stds, evidence.config.data.normalize)
    entering = means * scaling.scale + scaling.offset
    deviations = stds * np.abs(scaling.scale)
    size, spread = float(np.hypot(entering, deviations).max()), float(deviations.max())
    # Images without any contrast are for `data_range` to judge.
    is_small = 0 < spread < 0.01
    if size <= 10 and not is_small:
        return []
    what = (
        f"what enters the first layer is too large: mean {_of(entering)}, deviation "
        f"{_of(deviations)}"
        if not is_small
        else f"what enters the first layer hardly differs: its deviation is {_of(deviations)}"
    )
    return [
        _finding(
            "input_scale",
            _severity_of_scale(evidence),
            what,
            {"size": size, "deviation": spread},
            {"size": 10.0} if not is_small else {"deviation": 0.01},
            _NORMALIZE,
        )
    ]


def _severity_of_scale(evidence: Evidence) -> Severity:
    if _is_rescaled(evidence):
        return "note"
    return "error" if learns_nothing(evidence) else "warning"


def _is_rescaled(evidence: Evidence) -> bool:
    """Whether the stem whitens, or a normalization follows it at once."""
    assert evidence.config is not None
    model = evidence.config.model
    return model.stem.kind == "whitening" or (
        model.block.normalization.kind != "none" and not model.block.preactivation
    )


@rule("data_balance", rank=6)
def data_balance(evidence: Evidence) -> list[Finding]:
    """Classes of which there are far more training images than of others.

    Formula: images of the largest class over those of the smallest one.
    Threshold: a warning above 10; an error if a class has none.
    Source: SageMaker Debugger, ClassImbalance, 10.
    Wrong when: the images to come are as unevenly divided and only the accuracy over all of
    them counts.
    """
    counts = np.array(facts_of_split(evidence, "train")["images_per_class"])
    smallest, largest = int(counts.min()), int(counts.max())
    if largest <= 10 * smallest:
        return []
    names = list(evidence.data["class_names"]) if evidence.data else []
    rare = ", ".join(names[index] for index in np.flatnonzero(counts == smallest)[:4])
    common = names[int(counts.argmax())]
    if smallest == 0:
        text = f"there is no training image of {rare}"
        return [_finding("data_balance", "error", text, {"smallest": 0.0}, {"smallest": 0.0})]
    return [
        _finding(
            "data_balance",
            "warning",
            f"classes are unbalanced: {largest:,} training images of {common}, {smallest:,} of "
            f"{rare}",
            {"largest_over_smallest": largest / smallest},
            {"largest_over_smallest": 10.0},
        )
    ]


@rule("data_labels", rank=4)
def data_labels(evidence: Evidence) -> list[Finding]:
    """Equal images with different labels, which no model can learn.

    Formula: share of the training images that equal, in every pixel, one with another label.
    Threshold: a warning above 1 %, else a note.
    Source: Northcutt et al. 2021 find 3 % wrong labels in common test sets; the bound is the
    project's own. Such images bound the training accuracy below 1.
    Wrong when: an image has several right labels. Wrong labels of images that are there once
    stay unseen.
    """
    duplicates = _facts(evidence, "duplicates")
    count = duplicates["contradictory"]
    share = count / facts_of_split(evidence, "train")["num_images"]
    if not count:
        return []
    return [
        _finding(
            "data_labels",
            "warning" if share > 0.01 else "note",
            f"labels contradict each other: {count:,} training images ({share:.2%}) equal one "
            "with another label",
            {"contradictory_share": share},
            {"contradictory_share": 0.01},
        )
    ]


@rule("data_duplicates", rank=5)
def data_duplicates(evidence: Evidence) -> list[Finding]:
    """Images that are there more than once.

    Formula: share of the validation images that equal a training image in every pixel; share
    of the training images that repeat another one.
    Threshold: the first, a warning above 1 %, else a note; the second, a note above 10 %.
    Source: Barz and Denzler 2020 find 3.3 % of CIFAR-10's test images in the training set, by
    eye; the bounds are the project's own.
    Wrong when: images are repeated on purpose to balance classes. Copies that were cropped,
    resized or compressed anew stay unseen. Images of the test set are looked for by
    `trainer evaluate`.
    """
    duplicates = _facts(evidence, "duplicates")
    findings = []
    seen = duplicates["validation_in_train"]
    if seen:
        share = seen / facts_of_split(evidence, "validation")["num_images"]
        findings.append(
            _finding(
                "data_duplicates",
                "warning" if share > 0.01 else "note",
                f"{seen:,} validation images ({share:.2%}) are training images too: validation "
                "flatters the model",
                {"seen_share": share},
                {"seen_share": 0.01},
            )
        )
    repeated = duplicates["within_train"] / facts_of_split(evidence, "train")["num_images"]
    if repeated > 0.1:
        findings.append(
            _finding(
                "data_duplicates",
                "note",
                f"{duplicates['within_train']:,} training images ({repeated:.1%}) repeat another "
                "one: there are fewer than it seems",
                {"repeated_share": repeated},
                {"repeated_share": 0.1},
            )
        )
    return findings


def _facts(evidence: Evidence, name: str) -> dict[str, Any]:
    """Return a section of `data.json`.

    Raises:
        CannotJudge: If the run has none.
    """
    if evidence.data is None:
        raise CannotJudge(evidence.missing.get("data", "nothing is known of the data"))
    if name not in evidence.data:
        raise CannotJudge("the run was made before data were measured (data.json)")
    found: dict[str, Any] = evidence.data[name]
    return found


def facts_of_split(evidence: Evidence, name: str) -> dict[str, Any]:
    """Return what was measured of a split; nothing if there is none of that name.

    Raises:
        CannotJudge: If nothing was measured.
    """
    found: dict[str, Any] | None = _facts(evidence, "splits")[name]
    return found or {}


def _of(values: np.ndarray) -> str:
    return "/".join(f"{value:.3g}" for value in values)


def _finding(
    rule_id: str,
    severity: Severity,
    message: str,
    numbers: dict[str, float],
    thresholds: dict[str, float],
    remedy: Remedy | None = None,
) -> Finding:
    """A finding that no window of the log tells."""
    return Finding(
        rule_id,
        severity,
        message,
        numbers=numbers,
        thresholds=thresholds,
        windows_fired=0,
        windows_seen=0,
        remedies=() if remedy is None else (remedy,),
    )
