"""What an x-ray says of the ten first steps, and of the batch size."""

from __future__ import annotations

import math

import numpy as np

from trainer.diagnosis.evidence import nan_median
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy, Severity
from trainer.diagnosis.xray_evidence import XRay

_IDLE = 100.0


def overflow(xray: XRay) -> list[Finding]:
    """Loss scaling that never finds a scale.

    Formula: share of the ten steps that were skipped because a float16 gradient overflowed.
    Threshold: all of them, an error. The search for the first scale is a few steps long.
    Source: Micikevicius et al. 2018, section 3.2; Keras' LossScaleOptimizer begins at 2^15.
    Wrong when: gradients are merely large: each skipped step halves the scale.
    """
    skipped = xray.steps.skipped
    if not skipped.all():
        return []
    return [
        Finding(
            "overflow",
            "error",
            f"all of the first {len(skipped)} steps were skipped: float16 gradients overflow",
            (),
            _all_steps(xray),
            {"skipped_share": 1.0},
            {"skipped_share": 1.0},
            remedies=(
                Remedy("has the range of float32", {"runtime.precision": "mixed_bfloat16"}),
                Remedy("has range and digits", {"runtime.precision": "float32"}),
            ),
        )
    ]


def nonfinite_steps(xray: XRay) -> list[Finding]:
    """A first step that is in order, and a later one whose loss is NaN or infinite.

    Formula: the first of the ten steps whose loss or gradient is not finite and that loss
    scaling did not skip.
    Threshold: one step.
    Source: every debugger has it; Lightning and big_vision stop on it.
    Wrong when: never; but where the passes explode already before the first step, it is these
    that are to be mended.
    """
    steps = xray.steps
    is_bad = ~np.isfinite(steps.loss) | (~np.isfinite(steps.raw_norm) & ~steps.skipped)
    if not is_bad.any() or not np.isfinite(xray.gradient_rms).all():
        return []
    step = int(np.argmax(is_bad))
    rate = float(steps.learning_rate[step])
    peak = xray.config.optimizer.learning_rate
    return [
        Finding(
            "nonfinite",
            "error",
            f"the loss or the gradient is not finite at step {step}, at a learning rate of "
            f"{rate:.3g}",
            (),
            (step, step),
            {"learning_rate": rate},
            remedies=(
                Remedy(
                    "takes smaller steps", {"optimizer.learning_rate": float(f"{peak / 10:.2g}")}
                ),
                Remedy("bounds the whole gradient", {"optimizer.global_clipnorm": 1.0}),
            ),
        )
    ]


def clipping(xray: XRay) -> list[Finding]:
    """A bound that leaves hardly anything of the gradient, or that never acts.

    Formula: median over the steps of the whole gradient's norm after clipping over before.
    Threshold: a warning below 0.1, an error below 0.01; a note where the steps are of a usual
    size all the same: their update ratio, at the peak learning rate, is above 1e-4. A note
    where the bound is over a hundred times the largest norm.
    Source: the project's own; Pascanu et al. 2013 clip what is rare.
    Wrong when: the gradient is large in the first steps alone.
    """
    if not xray.clipping:
        raise CannotJudge("no bound is set")
    [(name, bound)] = xray.clipping.items()
    raw = xray.steps.raw_norm
    known = np.isfinite(raw) & (raw > 0) & np.isfinite(xray.steps.clipped_norm)
    if not known.any():
        raise CannotJudge("no step has a finite gradient")
    left = float(np.median(xray.steps.clipped_norm[known] / raw[known]))
    if bound > _IDLE * raw[known].max() and name != "clipvalue":
        return [
            Finding(
                "clipping",
                "note",
                f"{name}: {bound:g} is over {_IDLE:.0f} times the largest norm, "
                f"{raw[known].max():.3g}: it could be left out",
                (),
                _all_steps(xray),
                {"largest_norm": float(raw[known].max())},
                {"largest_norm": bound / _IDLE},
                remedies=(Remedy("says what happens", {f"optimizer.{name}": None}),),
            )
        ]
    if left >= 0.1:
        return []
    severity: Severity = "error" if left < 0.01 else "warning"
    ratios = _ratios_at_peak(xray)
    if len(ratios) and np.median(ratios) > 1e-4:
        # What is clipped at every step is no smaller than it is meant to be, only rescaled.
        severity = "note"
    usual = float(f"{np.percentile(raw[known], 90):.2g}")
    return [
        Finding(
            "clipping",
            severity,
            f"{name}: {bound:g} leaves {left:.2%} of the gradient, whose norm is "
            f"{np.median(raw[known]):.3g}: it is the learning rate that you set with it",
            (),
            _all_steps(xray),
            {"left": left},
            {"left": 0.01 if left < 0.01 else 0.1},
            remedies=()
            if severity == "note"
            else (
                Remedy(
                    "clips one step in ten",
                    {f"optimizer.{name}": None, "optimizer.global_clipnorm": usual},
                ),
            ),
        )
    ]


def regularizer(xray: XRay) -> list[Finding]:
    """L2 that pulls harder than the data.

    Formula: 2 * l2 * norm of the kernel (the gradient of its L2 term) over its raw norm,
    which has both parts; median over the steps and over the kernels of the blocks.
    Threshold: 0.7: the two parts are about at right angles behind a normalization, and equal
    there.
    Source: TheDeepChecker compares the two gradients; Ioffe and Szegedy 2015 and van Laarhoven
    2017 for the right angle.
    Wrong when: gradients of the data have vanished: that is then said first.
    """
    l2 = xray.config.model.block.kernel_regularizer.l2
    if not l2:
        raise CannotJudge("model.block.kernel_regularizer has no l2")
    # The head has a regularizer of its own.
    weights, raw = xray.steps.weight_norms[:, :-1], xray.steps.kernel_raw_norms[:, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = float(nan_median(2 * l2 * weights / raw))
    if not share > 0.7:
        return []
    return [
        Finding(
            "regularizer",
            "error",
            f"L2 pulls harder than the data: it is {share:.0%} of the gradient of the kernels",
            (),
            _all_steps(xray),
            {"regularizer_share": share},
            {"regularizer_share": 0.7},
            remedies=(
                Remedy(
                    "pulls a tenth as hard",
                    {"model.block.kernel_regularizer": {"l2": float(f"{l2 / 10:.2g}")}},
                ),
            ),
        )
    ]


def update_ratio(xray: XRay) -> list[Finding]:
    """Steps that are too large or too small for the weights.

    Formula: norm of the update over norm of the weight, median over the kernels. Too large:
    the largest of the steps. Too small: the median of the steps, each divided by the share
    of the peak learning rate that it was taken with, for a warm-up begins with small ones.
    Threshold: above 0.5; below 1e-5. 1e-3 is usual.
    Source: Karpathy 2015 (cs231n), about 1e-3; torchmortem, 1e-5 and 1e-1; 0.5 here, for
    Muon on kernels of fixed norm takes 0.1 on purpose.
    Wrong when: weights start at zero, or a pre-trained model is only to be touched.
    """
    ratios = nan_median(xray.steps.update_ratios, axis=1)
    at_peak = _ratios_at_peak(xray)
    if not len(at_peak):
        raise CannotJudge("no step was taken with finite weights")
    peak = xray.config.optimizer.learning_rate
    largest, usual = float(ratios[np.isfinite(ratios)].max()), float(np.median(at_peak))
    if largest > 0.5:
        value, word, bound, factor = largest, "large", 0.5, 0.1
    elif usual < 1e-5:
        value, word, bound, factor = usual, "small", 1e-5, 10.0
    else:
        return []
    return [
        Finding(
            f"{word}_updates",
            "error",
            f"steps are too {word}: one changes the kernels by {value:.1e} of their norm"
            f"{' at the peak learning rate' if word == 'small' else ''}",
            (),
            _all_steps(xray),
            {"update_ratio": value},
            {"update_ratio": bound},
            remedies=(
                Remedy(
                    f"takes {'smaller' if word == 'large' else 'larger'} steps",
                    {"optimizer.learning_rate": float(f"{peak * factor:.2g}")},
                ),
            ),
        )
    ]


def diverging(xray: XRay) -> list[Finding]:
    """A loss that rises from the first step on.

    Formula: median loss of the last three of ten steps over that of the first.
    Threshold: a warning from 2 on, an error from 5 on, and a rise of ln(classes) or more.
    Source: TheDeepChecker and Lightning's SpikeDetection, twice the loss before; a loss far
    above ln(classes) is worse than knowing nothing.
    Wrong when: a step size that training would survive throws the weights far at first, as
    Adam without a warm-up does.
    """
    loss = xray.steps.loss[np.isfinite(xray.steps.loss)]
    if len(loss) < 4:
        raise CannotJudge("fewer than four steps have a finite loss")
    late, first = float(np.median(loss[-3:])), float(loss[0])
    if late < 2 * first or late - first < xray.chance:
        return []
    rate = xray.config.optimizer.learning_rate
    return [
        Finding(
            "diverging",
            "error" if late >= 5 * first else "warning",
            f"the loss rises from {first:.3g} to {late:.3g} in {len(loss)} steps",
            (),
            _all_steps(xray),
            {"end_over_first": late / first},
            {"end_over_first": 5.0 if late >= 5 * first else 2.0},
            remedies=(
                Remedy(
                    "takes smaller steps", {"optimizer.learning_rate": float(f"{rate / 10:.2g}")}
                ),
                Remedy("starts with small steps", {"schedule.warmup_epochs": 1}),
                Remedy("bounds the whole gradient", {"optimizer.global_clipnorm": 1.0}),
            ),
        )
    ]


def noise_scale(xray: XRay) -> list[Finding]:
    """A batch that is small beside the noise of its gradient.

    Formula: `xray_evidence.gradient_noise_scale` over the config's batch size.
    Threshold: a note above 10.
    Source: McCandlish et al. 2018.
    Wrong when: batch normalization makes the gradient depend on the batch; and from a few
    micro-batches it is an order of magnitude, often none at all.
    """
    scale, batch_size = xray.noise_scale, xray.config.fit.batch_size
    if math.isnan(scale):
        raise CannotJudge("the gradient is zero or not finite")
    if scale > xray.largest_noise_scale:
        raise CannotJudge("the gradient drowns in the noise of the few batches looked at")
    if scale <= 10 * batch_size:
        return []
    larger = 2 ** math.floor(math.log2(10 * batch_size))
    return [
        Finding(
            "noise_scale",
            "note",
            f"the gradient's noise is as large as the gradient for {scale:.0f} images, and a batch "
            f"has {batch_size}: larger batches would make the training faster almost in proportion",
            (),
            (0, 0),
            {"noise_scale": scale},
            {"noise_scale": 10.0 * batch_size},
            remedies=(Remedy("averages more of the noise", {"fit.batch_size": larger}),),
        )
    ]


def _ratios_at_peak(xray: XRay) -> np.ndarray:
    """Median update ratio of each step that was taken, as the peak learning rate would have it."""
    steps = xray.steps
    ratios = nan_median(steps.update_ratios, axis=1)
    taken = ~steps.skipped & (steps.learning_rate > 0) & np.isfinite(ratios)
    return ratios[taken] * (xray.config.optimizer.learning_rate / steps.learning_rate[taken])


def _all_steps(xray: XRay) -> tuple[int, int]:
    return 0, len(xray.steps.loss) - 1
