"""What passes forward: dead and saturated outputs, and the start."""

from __future__ import annotations

import math

import numpy as np

from trainer.diagnosis.evidence import Evidence, nan_median
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.registry import rule
from trainer.diagnosis.remedies import scaled_rate
from trainer.diagnosis.signal_rules import PERSISTENT


@rule("dead", rank=9)
def dead(evidence: Evidence) -> list[Finding]:
    """Layers whose outputs are zero for nearly every image, or most of whose units are.

    Formula: share of exact zeros among a layer's outputs, median over a window; share of a
    layer's units that are zero for every image of the probe set.
    Threshold: 0.95 of the outputs, or 0.5 of the units, in 60 % of the windows; an error
    from 0.999 or 0.95 on in any layer, for next to nothing passes through it.
    Source: SageMaker Debugger and DLCheck call a layer dead from 50 to 95 % dead units;
    half of the outputs is what a ReLU makes zero.
    Wrong when: a layer is meant to be sparse. Without a probe set, units that die one by
    one in a layer that is alive stay unseen. Kernels of zeros make zeros too; that is for
    `stuck` to say.
    """
    windows, zeros = _activations(evidence, "zero_fraction/median")
    if (evidence.kernels("weight_norm/max", windows) == 0).any():
        return []
    units = _activations(evidence, "dead_fraction")[1]
    fired = (zeros > 0.95) | (units > 0.5)
    counts = fired.sum(axis=0)
    chosen = np.flatnonzero(counts >= PERSISTENT * len(windows))
    if not len(chosen):
        return []
    shares = nan_median(zeros[:, chosen], axis=0)
    unit_shares = np.nan_to_num(nan_median(units[:, chosen], axis=0))
    order = np.lexsort((-unit_shares, -shares))
    names = tuple(evidence.gradients.header.activations[chosen[i]] for i in order)
    worst, worst_units = float(shares[order[0]]), float(unit_shares[order[0]])
    is_error = ((shares >= 0.999) | (unit_shares >= 0.95)).any()
    in_units = f", and {worst_units:.0%} of its units for all probe images" if worst_units else ""
    return [
        Finding(
            "dead",
            "error" if is_error else "warning",
            f"{len(names)} of {zeros.shape[1]} recorded layers are dead: {worst:.1%} of the "
            f"outputs of {names[0]} are zero{in_units}",
            names,
            evidence.steps_of(windows),
            {"zero_fraction": worst, "dead_units": float(unit_shares.max())},
            {"zero_fraction": 0.95, "dead_units": 0.5},
            int(counts[chosen].max()),
            len(windows),
            (
                Remedy(
                    "lets something through below zero", {"model.block.activation": "leaky_relu"}
                ),
                Remedy(
                    "centres what enters the activation", {"model.block.normalization": "batch"}
                ),
                Remedy(
                    "starts with the size that ReLUs keep",
                    {
                        "model.block.kernel_initializer": "he_normal",
                        "model.block.bias_initializer": "zeros",
                    },
                ),
                scaled_rate(evidence, 0.1),
            ),
        )
    ]


@rule("saturated", rank=6)
def saturated(evidence: Evidence) -> list[Finding]:
    """Bounded activations where their slope is nearly zero.

    Formula: share of a layer's outputs at which the slope of its sigmoid, tanh or other
    bounded function is below 0.01; of the gates of an LSTM or a GRU likewise; of the
    softmaxes of attention whose largest value is above 0.9999. The largest of these in a
    layer, median over a window.
    Threshold: 0.5 in 60 % of the windows.
    Source: Glorot and Bengio 2010, section 3; TheDeepChecker and SageMaker Debugger, half of
    the units.
    Wrong when: the layer is a gate that should be open or shut, or most of what attention
    could look at is masked.
    """
    windows, shares = _activations(evidence, "saturated_fraction/median")
    if np.isnan(shares).all():
        return []
    fired = shares > 0.5
    counts = fired.sum(axis=0)
    chosen = np.flatnonzero(counts >= PERSISTENT * len(windows))
    if not len(chosen):
        return []
    medians = nan_median(shares[:, chosen], axis=0)
    order = np.argsort(-medians, kind="stable")
    names = tuple(evidence.gradients.header.activations[chosen[i]] for i in order)
    return [
        Finding(
            "saturated",
            "error",
            f"{len(names)} recorded layers are saturated: {medians.max():.0%} of the values in "
            f"{names[0]} lie where its activation is flat",
            names,
            evidence.steps_of(windows),
            {"saturated_fraction": float(medians.max())},
            {"saturated_fraction": 0.5},
            int(counts[chosen].max()),
            len(windows),
            (
                Remedy(
                    "brings the inputs to where the slope is",
                    {"model.block.normalization": "batch"},
                ),
                Remedy("starts smaller", {"model.block.kernel_initializer": "glorot_normal"}),
                Remedy(
                    "has no upper bound",
                    {
                        "model.block.activation": "relu",
                        "model.block.kernel_initializer": "he_normal",
                    },
                ),
            ),
        )
    ]


@rule("initialization", rank=40)
def initialization(evidence: Evidence) -> list[Finding]:
    """A start from which the signal has lost its size, or the loss is far off.

    Formula: deviation of the last recorded layer's outputs over that of the first, at the
    first step; loss of the first step less ln(classes).
    Threshold: outside of 1e-2 .. 1e2; above 2.0.
    Source: He et al. 2015 and Glorot and Bengio 2010 keep the ratio near 1; a classifier
    that knows nothing has the loss ln(classes) (Karpathy 2019); UMLAUT checks it.
    Wrong when: regularizers are a large part of the loss, the model is pre-trained, or the
    last block is meant to start at zero.
    """
    log = evidence.gradients
    if log.window_steps[0, 0] != 0:
        raise CannotJudge("the log does not begin at the first step")
    return [*_size_at_start(evidence), *_loss_at_start(evidence)]


def _size_at_start(evidence: Evidence) -> list[Finding]:
    stds = evidence.gradients.activation("std/median")[0].astype(np.float64)
    known = np.flatnonzero(np.isfinite(stds) & (stds > 0) & ~evidence.is_output)
    if len(known) < 2:
        return []
    ratio = float(stds[known[-1]] / stds[known[0]])
    if 1e-2 <= ratio <= 1e2:
        return []
    names = evidence.gradients.header.activations
    return [
        Finding(
            "initialization",
            "warning",
            f"the signal {'grows' if ratio > 1 else 'shrinks'} by {ratio:.1e} from "
            f"{names[known[0]]} to {names[known[-1]]} in the first window",
            (names[known[-1]],),
            evidence.steps_of(np.array([0])),
            {"std_ratio": ratio},
            {"std_ratio": 1e2 if ratio > 1 else 1e-2},
            remedies=(
                Remedy(
                    "keeps the size from layer to layer", {"model.block.normalization": "batch"}
                ),
                Remedy("keeps it through ReLUs", {"model.block.kernel_initializer": "he_normal"}),
            ),
        )
    ]


def _loss_at_start(evidence: Evidence) -> list[Finding]:
    log = evidence.gradients
    if evidence.data is None or not log.header.has_loss:
        return []
    loss, chance = float(log.steps["loss"][0]), math.log(evidence.num_classes)
    if not loss - chance > 2.0:
        return []
    return [
        Finding(
            "initialization",
            "warning",
            f"the first loss is {loss:.3g}, and that of knowing nothing is {chance:.3g}: "
            "the logits start too large, or regularizers outweigh the data",
            ("head_logits",),
            (0, 0),
            {"first_loss": loss},
            {"first_loss": chance + 2.0},
            remedies=(
                Remedy(
                    "starts with small logits", {"model.head.kernel_initializer": "glorot_uniform"}
                ),
                Remedy("scales the pixels", {"data.normalize": "per_channel"}),
            ),
        )
    ]


def _activations(evidence: Evidence, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows that have activations, and a statistic of them in float64.

    It is NaN where an activation makes what the model returns: a softmax or a sigmoid
    that is sure of its answer is what the training is for.
    """
    log = evidence.gradients
    if not log.header.activations or not log.header.activations_every_steps:
        raise CannotJudge("no activations were recorded (gradients.activations_every_steps: 0)")
    values = log.activation(name)[evidence.windows].astype(np.float64)
    known = ~np.isnan(log.activation("std/median")[evidence.windows]).all(axis=1)
    if not known.any():
        raise CannotJudge("no window has activations")
    values[:, evidence.is_output] = np.nan
    return evidence.windows[known], values[known]
