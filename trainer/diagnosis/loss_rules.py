"""What the loss does: divergence, plateau, oscillation, overfitting, evaluation that lags."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.registry import rule
from trainer.diagnosis.remedies import scaled_rate

_FEWEST_STEPS = 100


@rule("diverging", rank=15)
def diverging(evidence: Evidence) -> list[Finding]:
    """A loss that rises and stays up.

    Formula: median loss of the last fifth of the windows over the smallest median loss of
    a window. Of a loss that can be negative, the rise over the size of the smallest one.
    Threshold: 1.5 (a rise of 0.5), and a rise of at least 0.1 * ln(classes), or of 0.3 of the
    first loss where those are not known.
    Source: trainproof, end over minimum 1.5; TheDeepChecker, twice the minimum.
    Wrong when: the task gets harder on the way (curriculum, larger crops).
    """
    losses, windows = _losses(evidence)
    late = float(np.median(losses[-max(1, len(losses) // 5) :]))
    best = float(losses.min())
    rise = 0.3 * abs(losses[0])
    if evidence.data is not None:
        rise = 0.1 * math.log(evidence.num_classes)
    if late - best <= max(0.5 * abs(best), rise):
        return []
    start = windows[int(losses.argmin())]
    return [
        Finding(
            "diverging",
            "error",
            f"the loss has risen from {best:.3g} to {late:.3g}",
            (),
            (int(evidence.gradients.window_steps[start, 1]), evidence.steps_of(windows)[1]),
            {"end_over_best": late / best if best > 0 else math.inf},
            {"end_over_best": 1.5},
            int(np.sum(losses > best + 0.5 * abs(best))),
            len(losses),
            (
                scaled_rate(evidence, 0.1),
                Remedy("starts with small steps", {"schedule.warmup_epochs": 1}),
                Remedy("bounds the whole gradient", {"optimizer.global_clipnorm": 1.0}),
            ),
        )
    ]


@rule("plateau", rank=60)
def plateau(evidence: Evidence) -> list[Finding]:
    """A loss that hardly falls, from the start or from some step on.

    Formula: from the start: fall from the median loss of the first window, or from
    ln(classes), or from the loss of the best constant answer, where that is known and less,
    to the smallest one, over the size of the former; and the training accuracy of the best
    epoch over chance. The best constant answer is charged with the regularizers of the model
    as it starts. Where the data are not known, the
    smallest loss over that of the first five steps, or over that of the best constant answer
    if that is known. Later: median loss of the last quarter of the windows over that of the
    second one, while it is over half of the first window's and the schedule has not brought
    the learning rate below a tenth.
    Threshold: a fall below 0.05, and an accuracy below 1.5 times chance, or a loss above 0.8
    of that of the first steps, or above 0.9 of that of a constant; over at least 100 steps:
    an error. Later: above 0.98, over at least 20 windows: a warning.
    Source: trainproof and TheDeepChecker, an improvement below 5 %.
    Wrong when: the training goes on from a trained model and nothing tells, or the classes
    overlap so much that half of the first loss is the best there is. A regularizer that is
    most of the loss and falls hides that nothing is learned.
    """
    losses, windows = _losses(evidence)
    start, best = float(losses[0]), float(losses.min())
    if evidence.data is None and _has_learned(evidence, best):
        return []
    if evidence.loss_of_knowing_nothing is not None:
        start = min(start, evidence.loss_of_knowing_nothing)
    if evidence.history and "accuracy" in evidence.history[-1]:
        accuracy = max(row.get("accuracy", 0.0) for row in evidence.history)
        if accuracy >= 1.5 / evidence.num_classes:
            return _late_plateau(evidence, losses, windows)
        # Logits that started too large make a fall to knowing nothing look like learning.
        start = min(start, math.log(evidence.num_classes))
    fall = (start - best) / abs(start) if start else 0.0
    if fall >= 0.05:
        return _late_plateau(evidence, losses, windows)
    if not len(evidence.active_windows):
        raise CannotJudge("the learning rate has not come to a tenth of its peak")
    if evidence.config is not None and not evidence.history:
        raise CannotJudge("no epoch has ended yet")
    is_first = start == losses[0]
    name = "best_over_first" if is_first else "best_over_constant"
    constant = "" if is_first else f", and that of a constant answer is {start:.4g}"
    return [
        Finding(
            "plateau",
            "error",
            f"nothing is learned: the loss is {losses[0]:.4g} in the first window and at best "
            f"{losses.min():.4g}{constant}",
            (),
            evidence.steps_of(windows),
            {name: 1.0 - fall},
            {name: 0.95},
            len(losses),
            len(losses),
            (scaled_rate(evidence, 0.1), scaled_rate(evidence, 10.0)),
        )
    ]


def learns_nothing(evidence: Evidence) -> bool:
    """Whether `plateau` is an error: what else is wrong is then graver than it looks."""
    try:
        return any(finding.severity == "error" for finding in plateau(evidence))
    except CannotJudge:
        return False


def _late_plateau(evidence: Evidence, losses: np.ndarray, windows: np.ndarray) -> list[Finding]:
    is_active = np.isin(windows, evidence.active_windows)
    quarter = len(losses) // 4
    if len(losses) < 20 or not is_active[quarter:].all():
        return []
    before, later = (float(np.median(losses[i : i + quarter])) for i in (quarter, 3 * quarter))
    if later <= 0.98 * before or later <= 0.5 * losses[0]:
        return []
    return [
        Finding(
            "plateau",
            "warning",
            f"the loss stands still: {before:.4g} in the second quarter of the windows, "
            f"{later:.4g} in the last one",
            (),
            evidence.steps_of(windows[quarter:]),
            {"later_over_before": later / before},
            {"later_over_before": 0.98},
            len(losses) - quarter,
            len(losses),
            (
                scaled_rate(evidence, 0.3),
                Remedy("ends with small steps", {"schedule.kind": "cosine"}),
            ),
        )
    ]


@rule("oscillation", rank=61)
def oscillation(evidence: Evidence) -> list[Finding]:
    """A loss that swings up and down.

    Formula: share of the windows whose median loss is above, or below, that of both
    neighbours by more than a fifth of the median loss of all windows.
    Threshold: 0.2, over at least 8 windows.
    Source: AUTOTRAINER counts an epoch as oscillating by the local maximum and minimum of
    its accuracy, and fires from a fifth of the epochs on.
    Wrong when: windows are so short that they show the noise of single batches, or the
    loss is so near 0 that noise is most of it.
    """
    losses, windows = _losses(evidence)
    if len(losses) < 8:
        raise CannotJudge(f"{len(losses)} windows have a finite loss, and 8 are needed")
    rises = np.diff(losses)
    turns = (rises[:-1] * rises[1:] < 0) & (
        np.minimum(np.abs(rises[:-1]), np.abs(rises[1:])) > 0.2 * np.median(losses)
    )
    share = float(np.mean(turns))
    if share < 0.2 or np.median(losses) < 0.05:
        return []
    return [
        Finding(
            "oscillation",
            "warning",
            f"the loss swings: {share:.0%} of the windows are a fifth above or below both of "
            "their neighbours",
            (),
            evidence.steps_of(windows[1:-1][turns]),
            {"swinging_share": share},
            {"swinging_share": 0.2},
            int(turns.sum()),
            len(losses),
            (scaled_rate(evidence, 0.3), Remedy("forgets sooner", {"optimizer.momentum": 0.9})),
        )
    ]


def _has_learned(evidence: Evidence, best: float) -> bool:
    """Whether a loss is low, though it does not fall from window to window."""
    nothing = evidence.loss_of_knowing_nothing
    if nothing is not None:
        return best < nothing - 0.1 * abs(nothing)
    steps = evidence.gradients.steps
    if steps["step"][0] != 0:
        return False
    first = float(np.median(steps["loss"][:5]))
    return best < first - 0.2 * abs(first)


@rule("overfitting", rank=70)
def overfitting(evidence: Evidence) -> list[Finding]:
    """Validation that gets worse while training gets better.

    Formula: median validation loss of the last three epochs over the best one, if that came
    before them; training less validation accuracy, the same way; the rise of the loss since
    the best median of three epochs, over the deviation of an epoch, from the second
    differences of the losses, which a trend hardly changes.
    Threshold: 1.2, 0.1 and 3.
    Source: trainproof, 1.2 after four epochs; SageMaker Debugger, a gap of a tenth; Gasser,
    Sroka and Jennen-Steinmetz 1986 for the differences, with their median.
    Wrong when: augmentation or label smoothing make the training set the harder one, which
    hides it; it sets in within a few epochs of a steep fall, and is named some epochs later;
    the loss swings over several epochs, which differences of single ones do not see.
    """
    rows = _validated(evidence, at_least=5)
    losses = np.array([row["val_loss"] for row in rows])
    late = float(np.median(losses[-3:]))
    gap = float(np.median([row["accuracy"] - row["val_accuracy"] for row in rows[-3:]]))
    if late <= 1.2 * losses.min() or gap <= 0.1 or not rows[-1]["loss"] < rows[0]["loss"]:
        return []
    # One that has just been reached is no rise.
    if losses.argmin() >= len(losses) - 3:
        return []
    # A large rate moves the validation loss from epoch to epoch, and the best one was luck.
    rise = late - float(np.median(sliding_window_view(losses, 3), axis=1).min())
    noise = _deviation_of_an_epoch(losses)
    if rise <= 3 * noise:
        return []
    best = rows[int(losses.argmin())]
    return [
        Finding(
            "overfitting",
            "warning",
            f"the validation loss was {losses.min():.3g} in epoch {best['epoch'] + 1:.0f} and is "
            f"{late:.3g} now; training is {gap:.1%} ahead in accuracy",
            (),
            (int(best.get("step", 0)), int(rows[-1].get("step", 0))),
            {
                "end_over_best": late / max(float(losses.min()), 1e-9),
                "gap": gap,
                "rise_over_noise": rise / max(noise, 1e-9),
            },
            {"end_over_best": 1.2, "gap": 0.1, "rise_over_noise": 3.0},
            int(np.sum(losses > 1.2 * losses.min())),
            len(losses),
            (
                Remedy(
                    "pulls the kernels to zero", {"model.block.kernel_regularizer": {"l2": 5e-4}}
                ),
                Remedy("shows other images", {"data.augment": ["horizontal_flip", "random_shift"]}),
                Remedy("drops channels", {"model.block.spatial_dropout": 0.1}),
            ),
        )
    ]


@rule("evaluation_mode", rank=65)
def evaluation_mode(evidence: Evidence) -> list[Finding]:
    """A model that does worse when it is evaluated than overfitting explains.

    Formula: validation accuracy over training accuracy, and validation loss over training
    loss, medians over the last three epochs, of a model with batch normalization.
    Threshold: below 0.5 and above 2, with a training accuracy below 0.9: moving statistics
    that lag behind, or batches too small to estimate them. Of a model that has not learned
    much yet accuracies tell nothing: a loss above 4 times that of training, and above 2
    ln(classes), which is twice that of a guess, stands for the share.
    Source: TheDeepChecker, 50 % between the two modes; Ioffe 2017 for small batches.
    Wrong when: training and validation images are not of one kind.
    """
    if evidence.config is None:
        raise CannotJudge("the kind of normalization is not known without a config")
    if evidence.config.model.block.normalization.kind != "batch":
        return []
    rows = _validated(evidence, at_least=2)[-3:]
    accuracy = float(np.median([row["val_accuracy"] / max(row["accuracy"], 1e-9) for row in rows]))
    loss = float(np.median([row["val_loss"] / max(row["loss"], 1e-9) for row in rows]))
    evaluated = float(np.median([row["val_loss"] for row in rows]))
    guess = math.inf if evidence.data is None else math.log(evidence.num_classes)
    is_worse_than_a_guess = loss > 4 and evaluated > 2 * guess
    if (accuracy >= 0.5 or loss <= 2) and not is_worse_than_a_guess:
        return []
    if np.median([row["accuracy"] for row in rows]) >= 0.9:
        return []
    return [
        Finding(
            "evaluation_mode",
            "warning",
            f"evaluated, the model reaches {accuracy:.0%} of its training accuracy at {loss:.1f} "
            "times the loss: its moving statistics are not those of the batches",
            (),
            (int(rows[0].get("step", 0)), int(rows[-1].get("step", 0))),
            {"accuracy_share": accuracy, "loss_ratio": loss},
            {"accuracy_share": 0.5, "loss_ratio": 2.0},
            len(rows),
            len(rows),
            (
                Remedy(
                    "lets the moving statistics follow",
                    {"model.block.normalization": {"batch": {"momentum": 0.9}}},
                ),
                Remedy("needs no batch", {"model.block.normalization": "group"}),
                Remedy("estimates them from more images", {"fit.batch_size": 128}),
            ),
        )
    ]


def _losses(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Return the median loss of each window that has one, and the windows."""
    log = evidence.gradients
    if not log.header.has_loss:
        raise CannotJudge("the train step does not tell its loss")
    if len(log.steps) < _FEWEST_STEPS or len(log.window_steps) < 3:
        raise CannotJudge(
            f"fewer than {_FEWEST_STEPS} steps or three windows were recorded "
            f"({len(log.steps)} and {len(log.window_steps)})"
        )
    windows = np.arange(len(log.window_steps))
    losses = evidence.of_windows("loss", windows)
    # An epoch may leave a window of few steps at its end: the loss of some batches, and no trend.
    sizes = np.diff(np.searchsorted(log.steps["step"], log.window_steps + np.array([0, 1])))[:, 0]
    known = np.isfinite(losses) & (2 * sizes >= sizes.max())
    if known.sum() < 3:
        raise CannotJudge("fewer than three windows have a finite loss")
    return losses[known], windows[known]


def _deviation_of_an_epoch(losses: np.ndarray) -> float:
    """Return the standard deviation of single epochs about the curve of their losses (epochs,).

    The second difference of independent values has six times their variance; 1.4826 times the
    median size is the deviation of a normal variable.
    """
    return float(1.4826 * np.median(np.abs(np.diff(losses, 2))) / math.sqrt(6))


def _validated(evidence: Evidence, at_least: int) -> list[dict[str, float]]:
    wanted = ("val_loss", "val_accuracy", "loss", "accuracy")
    rows = [
        row for row in evidence.history if all(math.isfinite(row.get(k, math.nan)) for k in wanted)
    ]
    if len(rows) < at_least:
        raise CannotJudge(f"{len(rows)} epochs were validated, and {at_least} are needed")
    return rows
