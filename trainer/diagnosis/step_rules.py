"""What the optimizer makes of the gradients: size of steps, clipping, regularizers, noise."""

from __future__ import annotations

from math import prod

import numpy as np

from trainer.diagnosis.evidence import Evidence, nan_median
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy, Severity
from trainer.diagnosis.registry import rule
from trainer.diagnosis.remedies import scaled_rate
from trainer.diagnosis.signal_rules import PERSISTENT
from trainer.recorded_steps import is_shorter


@rule("large_updates", rank=3)
def large_updates(evidence: Evidence) -> list[Finding]:
    """Steps that are too large for the weights.

    Formula: norm of the update over norm of the weight, median over the kernels, of the
    largest of a window; in any window, the first ones too, for large steps soon make the
    weights so large that they look small. Norm of the weight over that in the first window,
    or over the root of its outputs where that is more, which is what an initialization for
    them comes to; median over the kernels: what steps that only ever grow the weights add up to.
    Threshold: 0.5, where 1e-3 is usual; 10.
    Source: Karpathy 2015 (cs231n), about 1e-3; torchmortem, 1e-1, and ten times the norm; 0.5
    here, for Muon on kernels of fixed norm takes 0.1 on purpose.
    Wrong when: weights start next to zero, or a model of one kernel has large targets to reach.
    """
    every = np.arange(len(evidence.gradients.window_steps))
    largest = nan_median(evidence.kernels("update_ratio/max", every), axis=1)
    fired = largest > 0.5
    if fired.any():
        return [_off_size(evidence, "large", largest, fired, every, 0.5)]
    norms = evidence.kernels("weight_norm/median", every)
    variables = evidence.gradients.header.variables
    # A kernel that starts next to zero has to grow.
    usual = np.array([variables[index].shape[-1] ** 0.5 for index in evidence.kernel_indices])
    growth = nan_median(norms / np.fmax(norms[0], usual), axis=1)
    grown = growth > 10
    if not grown.any():
        return []
    return [
        Finding(
            "large_updates",
            "error",
            f"steps are too large: the kernels have grown to {np.max(growth[grown]):.3g} times "
            "their norm",
            (),
            evidence.steps_of(every[grown]),
            {"growth": float(np.max(growth[grown]))},
            {"growth": 10.0},
            int(grown.sum()),
            len(every),
            (scaled_rate(evidence, 0.1),),
        )
    ]


@rule("small_updates", rank=35)
def small_updates(evidence: Evidence) -> list[Finding]:
    """Steps that are too small for the weights.

    Formula: norm of the update over norm of the weight, median over the kernels and over a
    window in which the schedule has not brought the learning rate below a tenth, if no
    window of the first quarter has more: steps that get small later have arrived somewhere,
    or are stuck. Where the median over a window is 0, its largest: the optimizer may
    accumulate the gradients of several steps for one update.
    Threshold: below 1e-5 in 60 % of the windows; 1e-3 is usual.
    Source: Karpathy 2015 (cs231n), about 1e-3; torchmortem, 1e-5.
    Wrong when: a pre-trained model is only to be touched.
    """
    active = evidence.active_windows
    if not len(active):
        raise CannotJudge("the learning rate has not come to a tenth of its peak")
    usual = nan_median(evidence.update_ratios(active), axis=1)
    every = np.arange(len(evidence.gradients.window_steps))
    first = evidence.update_ratios(every[: len(every) // 4 + 1])
    was_larger = bool((nan_median(first, axis=1) >= 1e-5).any())
    fired = usual < 1e-5
    if fired.sum() < PERSISTENT * len(active) or was_larger:
        return []
    return [_off_size(evidence, "small", usual, fired, active, 1e-5)]


def _share(value: float) -> str:
    return f"{value:.1e}" if value else "nothing"


def _off_size(
    evidence: Evidence,
    what: str,
    ratios: np.ndarray,
    fired: np.ndarray,
    windows: np.ndarray,
    bound: float,
) -> Finding:
    value = float(np.median(ratios[fired]))
    return Finding(
        f"{what}_updates",
        "error",
        f"steps are too {what}: one changes the kernels by {_share(value)} of their norm",
        (),
        evidence.steps_of(windows[fired]),
        {"update_ratio": value},
        {"update_ratio": bound},
        int(fired.sum()),
        len(windows),
        (scaled_rate(evidence, 0.1 if what == "large" else 10.0),),
    )


@rule("clipping", rank=4)
def clipping(evidence: Evidence) -> list[Finding]:
    """A bound that always acts, or never.

    Formula: share of the steps in which the whole gradient was shorter after clipping, and
    the median of its norm after clipping over before, in those.
    Threshold: from half of the steps on, a warning if what is left is below a tenth, an error
    below a hundredth; a note if a bound acts in fewer than 0.1 % of 100 steps or more. A note
    too if the optimizer normalizes its steps (Adam, Lion, Muon, RMSprop), for a bound that
    always acts then only changes the weight of single batches. Which one it is, the config
    tells; without one, steps of a usual size do: a median update ratio of the kernels above
    1e-4.
    Source: the project's own; no peer records it. Pascanu et al. 2013 clip what is rare.
    Wrong when: without a config, steps of SGD are of a usual size although they are clipped:
    a large learning rate was set for it, and this is a note.
    """
    log = evidence.gradients
    if not log.header.clipping:
        return []
    [(name, bound)] = log.header.clipping.items()
    raw, clipped = log.steps["raw_norm"], log.steps["clipped_norm"]
    known = np.isfinite(raw) & (raw > 0)
    if not known.any():
        raise CannotJudge("no step has a finite gradient")
    acts = known & is_shorter(clipped, raw)
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
    usual = float(f"{np.percentile(raw[known], 90):.2g}")
    return [
        Finding(
            "clipping",
            _severity_of_clipping(evidence, left),
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


def _severity_of_clipping(evidence: Evidence, left: float) -> Severity:
    if evidence.config is None:
        # What is clipped at every step is no smaller than it is meant to be, only rescaled.
        is_rescaled = _has_usual_steps(evidence)
    else:
        kind = evidence.config.optimizer.kind
        is_rescaled = kind in ("adam", "adamw", "lion", "muon", "rmsprop")
    if is_rescaled:
        return "note"
    return "error" if left < 0.01 else "warning"


def _has_usual_steps(evidence: Evidence) -> bool:
    try:
        ratios = evidence.update_ratios(np.arange(len(evidence.gradients.window_steps)))
    except CannotJudge:
        return False
    return bool(nan_median(nan_median(ratios, axis=1)) > 1e-4)


@rule("regularizer", rank=2)
def regularizer(evidence: Evidence) -> list[Finding]:
    """L1 or L2 that pulls harder than the data.

    Formula: norm of the regularizer's gradient (2 * l2 * norm of the kernel, and l1 * the
    root of its size) over its raw norm, which has both parts; median over a window and over
    the kernels that have a regularizer.
    Threshold: 0.7 in the first window of the training, an error: the two parts are at right
    angles behind a normalization, and equal there. Weights that have collapsed under it
    get large gradients from the data again, so that only the start tells. In 60 % of the
    windows, but not in that one, a warning: what has learned its data by heart gets next to
    no gradient from them.
    Source: TheDeepChecker compares the two gradients; Ioffe and Szegedy 2015 and van Laarhoven
    2017 for the right angle.
    Wrong when: without normalization, near the optimum, where both parts cancel.
    """
    variables = evidence.gradients.header.variables
    chosen = [k for k in evidence.kernel_indices if variables[k].l1 or variables[k].l2]
    if not chosen:
        return []
    windows = np.union1d([0], evidence.active_windows)
    l1 = np.array([variables[k].l1 * prod(variables[k].shape) ** 0.5 for k in chosen])
    l2 = np.array([variables[k].l2 for k in chosen])
    pull = l1 + 2 * l2 * evidence.table("weight_norm/median", windows, np.array(chosen))
    norms = evidence.table("raw_norm/median", windows, np.array(chosen))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = nan_median(pull / norms, axis=1)
    fired = shares > 0.7
    from_start = bool(fired[0]) and evidence.gradients.window_steps[0, 0] == 0
    if fired.sum() < PERSISTENT * len(windows) and not from_start:
        return []
    share = float(np.median(shares[fired]))
    return [
        Finding(
            "regularizer",
            "error" if from_start else "warning",
            f"the regularizer pulls harder than the data: it is {share:.0%} of the gradient of "
            f"the {len(chosen)} kernels that have one",
            evidence.paths_of(chosen),
            evidence.steps_of(windows[fired]),
            {"regularizer_share": share},
            {"regularizer_share": 0.7},
            int(fired.sum()),
            len(windows),
            _weaker_regularizer(evidence),
        )
    ]


def _weaker_regularizer(evidence: Evidence) -> tuple[Remedy, ...]:
    if evidence.config is None:
        return (Remedy("pulls less", {"model.block.kernel_regularizer": {"l2": 1e-4}}),)
    now = evidence.config.model.block.kernel_regularizer
    weaker = {name: float(f"{getattr(now, name) / 100:.2g}") for name in ("l1", "l2")}
    return (Remedy("pulls a hundredth as hard", {"model.block.kernel_regularizer": weaker}),)


@rule("noise_scale", rank=80)
def noise_scale(evidence: Evidence) -> list[Finding]:
    """A batch far from the size at which its noise and its signal are equal.

    Formula: the simple noise scale tr(covariance) / |mean gradient|^2, in batches: with R
    replicas, q the mean square of the norms of their own gradients and Q that of the
    gradient of the whole batch, (q - Q) / (R * Q - q), of sums over all steps.
    Threshold: above 10, or below 0.1: a note.
    Source: McCandlish et al. 2018, appendix A.1.
    Wrong when: replicas see unlike data; the scale grows in training, and this is its mean.
    """
    log = evidence.gradients
    replicas = log.header.num_replicas
    if replicas < 2:
        raise CannotJudge("a step has one gradient; two replicas or `trainer xray` can tell")
    own = log.steps["replica_norm"].astype(np.float64)
    whole = log.steps["raw_norm"].astype(np.float64)
    known = np.isfinite(own) & np.isfinite(whole)
    if known.sum() < 10:
        raise CannotJudge(f"{known.sum()} steps have the gradients of replicas, and 10 are needed")
    small, large = float(np.sum(own[known] ** 2)), float(np.sum(whole[known] ** 2))
    signal = replicas * large - small
    scale = (small - large) / signal if signal > 0 else float("inf")
    if 0.1 <= scale <= 10:
        return []
    steps = log.steps["step"]
    what = "a larger batch would learn more a step" if scale > 1 else "a smaller one would do"
    return [
        Finding(
            "noise_scale",
            "note",
            f"the gradient's noise scale is {scale:.2g} batches: {what}",
            (),
            (int(steps[0]), int(steps[-1])),
            {"noise_scale": scale},
            {"noise_scale": 10.0 if scale > 1 else 0.1},
        )
    ]
