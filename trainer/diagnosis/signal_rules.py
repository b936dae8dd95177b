"""Whether the signal reaches the first layer: non-finite, vanishing, exploding gradients."""

from __future__ import annotations

import numpy as np

from trainer.diagnosis.evidence import Evidence, nan_median
from trainer.diagnosis.finding import Finding, Remedy
from trainer.diagnosis.registry import rule

PERSISTENT = 0.6
"""Share of the windows in which a condition must hold: one odd window is no illness."""

_STEADIER = (
    Remedy("bounds the whole gradient", {"optimizer.global_clipnorm": 1.0}),
    Remedy("starts with small steps", {"schedule.warmup_epochs": 1}),
    Remedy("keeps the signal's size from layer to layer", {"model.block.normalization": "batch"}),
)


@rule("nonfinite", rank=0)
def nonfinite(evidence: Evidence) -> list[Finding]:
    """A loss or a gradient that is NaN or infinite.

    Formula: any step whose own loss or whose raw norm is not finite and that loss scaling
    did not skip. The forward pass went first if outputs of layers, or the loss, were not
    finite at that step; else the backward pass.
    Threshold: one step.
    Source: every debugger has it; Lightning and big_vision stop on it.
    Wrong when: a loss is infinite on purpose.
    """
    log = evidence.gradients
    steps = log.steps
    is_bad_loss = ~np.isfinite(steps["loss"]) & log.header.has_loss
    is_bad = is_bad_loss | (~np.isfinite(steps["raw_norm"]) & (steps["skipped"] != 1))
    if not is_bad.any():
        return []
    first, count = int(np.argmax(is_bad)), int(is_bad.sum())
    step = int(steps["step"][first])
    window = int(np.searchsorted(log.window_steps[:, 1], step))
    counts = log.stat("raw_nonfinite_count")[window]
    variables = tuple(np.array(log.header.paths)[counts > 0])
    outputs = log.activation("nonfinite_count/max")[window] > 0
    layers = tuple(np.array(log.header.activations)[outputs])
    forward = bool(layers) or bool(is_bad_loss[first])
    where = f"; first in {(layers or variables)[0]}" if layers or variables else ""
    return [
        Finding(
            "nonfinite",
            "error",
            f"{count:,} of {len(steps):,} steps are not finite, the first is step {step}: the "
            f"{'forward' if forward else 'backward'} pass went first{where}",
            layers or variables,
            (step, int(steps["step"][-1])),
            {"steps": count, "learning_rate": float(steps["learning_rate"][first])},
            {"steps": 0},
            int(np.sum(log.window_steps[:, 1] >= step)),
            len(log.window_steps),
            (_lower_rate(evidence, 0.1), *_STEADIER),
        )
    ]


@rule("overflow", rank=1)
def overflow(evidence: Evidence) -> list[Finding]:
    """Loss scaling that throws away many steps.

    Formula: share of the recorded steps past the first 10 % that were skipped, because a
    float16 gradient overflowed.
    Threshold: 0.05. A scale that doubles every 2,000 steps costs one step each time.
    Source: Micikevicius et al. 2018, section 3.2; Keras' LossScaleOptimizer.
    Wrong when: the log is shorter than the search for the first scale (about 15 steps).
    """
    skipped = evidence.gradients.steps["skipped"]
    late = skipped[len(skipped) // 10 :] == 1
    share = float(np.mean(late)) if len(late) >= 50 else 0.0
    if share <= 0.05:
        return []
    steps = evidence.gradients.steps["step"]
    return [
        Finding(
            "overflow",
            "error" if share > 0.5 else "warning",
            f"{share:.0%} of the steps were skipped: float16 gradients overflow",
            steps=(int(steps[0]), int(steps[-1])),
            numbers={"skipped_share": share},
            thresholds={"skipped_share": 0.05},
            remedies=(
                Remedy("has the range of float32", {"runtime.precision": "mixed_bfloat16"}),
                Remedy("has range and digits", {"runtime.precision": "float32"}),
                _lower_rate(evidence, 0.1),
            ),
        )
    ]


@rule("vanishing", rank=20)
def vanishing(evidence: Evidence) -> list[Finding]:
    """A gradient that fades on its way to the first layers.

    Formula: r = median raw norm over the first quarter of the kernels / raw norm of the
    last kernel, each the median over a window.
    Threshold: r < 1e-3 in 60 % of the windows. An error if also the update ratio of that
    quarter is below 1e-5, or r below 1e-5; else a warning: an optimizer like Adam scales
    small gradients up again, and their noise with them.
    Source: AUTOTRAINER (Zhang et al. 2021), first over last below 1e-3; the quarter in
    place of the first kernel alone, which may be of another kind.
    Wrong when: the last kernel is far larger than all others together, or the first ones
    are pre-trained and near their optimum.
    """
    windows = evidence.windows
    norms = evidence.kernels("raw_norm/median", windows)
    quarter = max(1, norms.shape[1] // 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = nan_median(norms[:, :quarter], axis=1) / norms[:, -1]
    can_tell = np.isfinite(ratio) & (norms[:, -1] > 0)
    fired = can_tell & (ratio < 1e-3)
    if not can_tell.any() or fired.sum() < PERSISTENT * can_tell.sum():
        return []
    updates = evidence.kernels("update_ratio/median", windows)[fired][:, :quarter]
    update = float(nan_median(updates)) if np.isfinite(updates).any() else 0.0
    worst = float(np.median(ratio[fired]))
    profile = np.median(norms[fired], axis=0)
    order = np.argsort(profile, kind="stable")
    weak = [evidence.kernel_paths[i] for i in order if profile[i] < 1e-3 * profile[-1]]
    return [
        Finding(
            "vanishing",
            "error" if update < 1e-5 or worst < 1e-5 else "warning",
            f"gradients vanish: the first {quarter} kernels get {worst:.1e} of the norm of the "
            f"last one; {len(weak)} of {len(profile)} kernels get less than a thousandth",
            tuple(weak),
            evidence.steps_of(windows[fired]),
            {"ratio": worst, "update_ratio": update},
            {"ratio": 1e-3, "update_ratio": 1e-5},
            int(fired.sum()),
            int(can_tell.sum()),
            _against_vanishing(evidence),
        )
    ]


def _against_vanishing(evidence: Evidence) -> tuple[Remedy, ...]:
    remedies = [
        Remedy("gives the signal a way around each block", {"model.block.kind": "residual"}),
        Remedy(
            "keeps its size from layer to layer, both ways",
            {"model.block.normalization": "batch"},
        ),
        Remedy(
            "has slope 1 for half of its inputs",
            {"model.block.activation": "relu", "model.block.kernel_initializer": "he_normal"},
        ),
    ]
    if evidence.config is None:
        return tuple(remedies)
    block = evidence.config.model.block
    has = (
        block.kind == "residual",
        block.normalization.kind != "none",
        block.activation in ("relu", "gelu", "silu", "mish", "leaky_relu", "elu", "selu"),
    )
    return tuple(remedy for remedy, there in zip(remedies, has, strict=True) if not there)


@rule("exploding", rank=21)
def exploding(evidence: Evidence) -> list[Finding]:
    """A gradient that grows on its way to the first layers, or from time to time.

    Formula: r as in `vanishing`; s = share of the steps whose raw norm is over ten times
    the median of the 50 finite steps before.
    Threshold: r > 70 in 60 % of the windows; or s > 0.05.
    Source: AUTOTRAINER, 70; trainproof, spikes of ten times the median.
    Wrong when: the head's gradient is tiny because the training has converged. Silent where
    inputs shrink with depth as fast as gradients grow towards the first layer, so that all
    kernels have alike gradients: a plain stack without normalization, which
    `initialization` sees by its outputs.
    """
    windows = evidence.windows
    norms = evidence.kernels("raw_norm/median", windows)
    quarter = max(1, norms.shape[1] // 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = nan_median(norms[:, :quarter], axis=1) / norms[:, -1]
    can_tell = np.isfinite(ratio)
    fired = can_tell & (ratio > 70)
    findings = []
    if can_tell.any() and fired.sum() >= PERSISTENT * can_tell.sum():
        worst = float(np.median(ratio[fired]))
        findings.append(
            Finding(
                "exploding",
                "error",
                f"gradients explode: the first {quarter} kernels get {worst:.3g} times the norm "
                "of the last one",
                evidence.kernel_paths[:quarter],
                evidence.steps_of(windows[fired]),
                {"ratio": worst},
                {"ratio": 70},
                int(fired.sum()),
                int(can_tell.sum()),
                (*_STEADIER, _lower_rate(evidence, 0.1)),
            )
        )
    return findings + _spikes(evidence)


def _spikes(evidence: Evidence) -> list[Finding]:
    steps = evidence.gradients.steps
    norms = steps["raw_norm"].astype(np.float64)
    norms = norms[np.isfinite(norms)]
    if len(norms) < 100:
        return []
    before = np.lib.stride_tricks.sliding_window_view(norms, 50)[:-1]
    usual = np.median(before, axis=1)
    # Where the training has arrived and gradients are next to nothing, noise is no burst.
    share = float(np.mean(norms[50:] > np.maximum(10 * usual, usual.max())))
    if share <= 0.05:
        return []
    return [
        Finding(
            "exploding",
            "warning",
            f"gradients burst: {share:.1%} of the steps have over ten times the usual norm",
            steps=(int(steps["step"][0]), int(steps["step"][-1])),
            numbers={"burst_share": share},
            thresholds={"burst_share": 0.05},
            remedies=(
                Remedy(
                    "bounds the whole gradient at its usual norm",
                    {"optimizer.global_clipnorm": float(f"{np.median(usual):.2g}")},
                ),
                _lower_rate(evidence, 0.3),
            ),
        )
    ]


def _lower_rate(evidence: Evidence, factor: float) -> Remedy:
    rates = evidence.gradients.steps["learning_rate"]
    peak = (
        float(np.max(rates)) if evidence.config is None else evidence.config.optimizer.learning_rate
    )
    return Remedy("takes smaller steps", {"optimizer.learning_rate": float(f"{peak * factor:.2g}")})
