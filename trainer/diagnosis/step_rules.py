"""What the optimizer makes of the gradients: update ratio, clipping, what never moves."""

from __future__ import annotations

import numpy as np

from trainer.diagnosis.evidence import Evidence, nan_median
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy, Severity
from trainer.diagnosis.registry import rule
from trainer.diagnosis.signal_rules import PERSISTENT


@rule("stuck", rank=10)
def stuck(evidence: Evidence) -> list[Finding]:
    """Variables that never move.

    Formula: largest norm of the update over all windows is 0, while the learning rate is
    not; the loss does not depend on the variable, or its gradient is exactly 0. Steps of a
    gradient that are lost in rounding are for `vanishing` and `update_ratio` to say.
    Threshold: 0, over at least 10 steps. An error if any kernel is among them.
    Source: SageMaker Debugger, UnchangedTensor; constant initializations (Goodfellow et al.
    2016, section 8.4) do it.
    Wrong when: a part of the model is not to be trained; freeze it then
    (`trainable: false`), and it is not looked at.
    """
    log, windows = evidence.gradients, evidence.windows
    if not np.max(log.steps["learning_rate"]) > 0:
        raise CannotJudge("the learning rate is 0")
    variables = log.header.variables
    still = (log.stat("update_norm/max")[windows] == 0).all(axis=0)
    still &= ~(log.stat("raw_norm/max")[windows] > 0).any(axis=0)
    found = np.flatnonzero(still)
    if not len(found):
        return []
    is_cut = [not variables[index].connected for index in found]
    kernels = [index for index in found if variables[index].is_kernel]
    paths = tuple(variables[index].path for index in [*kernels, *(set(found) - set(kernels))])
    why = (
        "the loss does not depend on them"
        if all(is_cut)
        else "their gradient is exactly zero"
        if not any(is_cut)
        else f"the loss does not depend on {sum(is_cut)} of them, the others' gradient is zero"
    )
    return [
        Finding(
            "stuck",
            "error" if kernels else "warning",
            f"{len(found)} of {len(variables)} variables never move: {why}",
            paths,
            evidence.steps_of(windows),
            {"variables": float(len(found))},
            {"variables": 0.0},
            len(windows),
            len(windows),
            (
                Remedy("breaks the symmetry", {"model.block.kernel_initializer": "he_normal"}),
                Remedy("gives the signal a way around", {"model.block.kind": "residual"}),
            ),
        )
    ]


@rule("update_ratio", rank=35)
def update_ratio(evidence: Evidence) -> list[Finding]:
    """Steps that are too large or too small for the weights.

    Formula: norm of the update over norm of the weight, median over the kernels. Too large:
    of the largest of a window, in any window, the first ones too, for large steps soon make
    the weights so large that they look small. Too small: of the median of a window, where
    the schedule has not brought the learning rate below a tenth, if no window of the first
    quarter has more: steps that get small later have arrived somewhere, or are stuck.
    Threshold: above 0.5 in one window, or below 1e-5 in 60 % of them. 1e-3 is usual.
    Source: Karpathy 2015 (cs231n), about 1e-3; torchmortem, 1e-5 and 1e-1; 0.5 here, for
    Muon on kernels of fixed norm takes 0.1 on purpose.
    Wrong when: weights start at zero, or a pre-trained model is only to be touched.
    """
    every = np.arange(len(evidence.gradients.window_steps))
    largest = nan_median(evidence.kernels("update_ratio/max", every), axis=1)
    active = evidence.active_windows
    usual = nan_median(evidence.kernels("update_ratio/median", active), axis=1)
    too_large, too_small = largest > 0.5, usual < 1e-5
    findings = []
    if too_large.any():
        findings.append(_off_size(evidence, "large", largest, too_large, every, 0.5))
    first = nan_median(
        evidence.kernels("update_ratio/median", every[: len(every) // 4 + 1]), axis=1
    )
    was_larger = bool((first >= 1e-5).any())
    if too_small.sum() >= PERSISTENT * len(active) and not was_larger:
        findings.append(_off_size(evidence, "small", usual, too_small, active, 1e-5))
    return findings


def _off_size(
    evidence: Evidence,
    what: str,
    ratios: np.ndarray,
    fired: np.ndarray,
    windows: np.ndarray,
    bound: float,
) -> Finding:
    value = float(np.median(ratios[fired]))
    rate = float(np.max(evidence.gradients.steps["learning_rate"]))
    why, factor = ("takes smaller steps", 0.1) if what == "large" else ("takes larger steps", 10.0)
    return Finding(
        "update_ratio",
        "error",
        f"steps are too {what}: one changes the kernels by {value:.1e} of their norm",
        (),
        evidence.steps_of(windows[fired]),
        {"update_ratio": value},
        {"update_ratio": bound},
        int(fired.sum()),
        len(windows),
        (Remedy(why, {"optimizer.learning_rate": float(f"{rate * factor:.2g}")}),),
    )


@rule("clipping", rank=18)
def clipping(evidence: Evidence) -> list[Finding]:
    """A bound that always acts, or never.

    Formula: share of the steps in which the whole gradient was shorter after clipping, and
    the median of its norm after clipping over before, in those.
    Threshold: from half of the steps on, a warning if what is left is below a tenth, an error
    below a hundredth; a note if a bound acts in fewer than 0.1 % of 100 steps or more.
    Source: the project's own; no peer records it. Pascanu et al. 2013 clip what is rare.
    Wrong when: the optimizer normalizes its steps (Adam, Lion, Muon): a bound that always
    acts then only changes the weight of single batches, and this is a note.
    """
    log = evidence.gradients
    if not log.header.clipping:
        return []
    [(name, bound)] = log.header.clipping.items()
    raw, clipped = log.steps["raw_norm"], log.steps["clipped_norm"]
    known = np.isfinite(raw) & (raw > 0)
    if not known.any():
        raise CannotJudge("no step has a finite gradient")
    acts = known & (clipped < raw)
    share = float(acts.sum() / known.sum())
    steps = (int(log.steps["step"][0]), int(log.steps["step"][-1]))
    if share < 1e-3 and known.sum() >= 100:
        return [
            Finding(
                "clipping",
                "note",
                f"{name}: {bound:g} acts in {share:.2%} of the steps: it could be left out",
                steps=steps,
                numbers={"clipped_share": share},
                thresholds={"clipped_share": 1e-3},
                remedies=(Remedy("says what happens", {f"optimizer.{name}": None}),),
            )
        ]
    left = float(np.median(clipped[acts] / raw[acts])) if acts.any() else 1.0
    if share <= 0.5 or left >= 0.1:
        return []
    kind = "" if evidence.config is None else evidence.config.optimizer.kind
    usual = float(f"{np.percentile(raw[known], 90):.2g}")
    return [
        Finding(
            "clipping",
            _severity_of_clipping(kind, left),
            f"{name}: {bound:g} acts in {share:.0%} of the steps and leaves {left:.1%} of the "
            "gradient: it is the learning rate that you set with it",
            steps=steps,
            numbers={"clipped_share": share, "left": left},
            thresholds={"clipped_share": 0.5, "left": 0.1},
            remedies=(
                Remedy(
                    "clips one step in ten",
                    {f"optimizer.{name}": None, "optimizer.global_clipnorm": usual},
                ),
            ),
        )
    ]


def _severity_of_clipping(optimizer: str, left: float) -> Severity:
    if optimizer in ("adam", "adamw", "lion", "muon"):
        return "note"
    return "error" if left < 0.01 else "warning"


@rule("regularizer", rank=25)
def regularizer(evidence: Evidence) -> list[Finding]:
    """L2 that pulls harder than the data.

    Formula: 2 * l2 * norm of the kernel (the gradient of its L2 term) over its raw norm,
    which has both parts; median over a window and over the kernels that have it.
    Threshold: 0.7 in 60 % of the windows: the two parts are about at right angles behind a
    normalization, and equal there.
    Source: TheDeepChecker compares the two gradients; Ioffe and Szegedy 2015 and van Laarhoven
    2017 for the right angle.
    Wrong when: without normalization, near the optimum, where both parts cancel.
    """
    if evidence.config is None:
        raise CannotJudge("the regularizers are not known without a config")
    block = evidence.config.model.block
    l2 = block.kernel_regularizer.l2
    if not l2:
        return []
    windows = evidence.active_windows
    # The head has a regularizer of its own.
    weights = evidence.kernels("weight_norm/median", windows)[:, :-1]
    norms = evidence.kernels("raw_norm/median", windows)[:, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = nan_median(2 * l2 * weights / norms, axis=1)
    fired = shares > 0.7
    if fired.sum() < PERSISTENT * len(windows):
        return []
    share = float(np.median(shares[fired]))
    return [
        Finding(
            "regularizer",
            "error",
            f"L2 pulls harder than the data: it is {share:.0%} of the gradient of the kernels",
            (),
            evidence.steps_of(windows[fired]),
            {"regularizer_share": share},
            {"regularizer_share": 0.7},
            int(fired.sum()),
            len(windows),
            (
                Remedy(
                    "pulls a tenth as hard",
                    {"model.block.kernel_regularizer": {"l2": float(f"{l2 / 10:.2g}")}},
                ),
            ),
        )
    ]
