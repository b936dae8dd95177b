"""Whether the signal reaches the first layer: non-finite, vanishing, exploding gradients."""

from __future__ import annotations

import numpy as np

from trainer.diagnosis.evidence import Evidence, nan_median
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.registry import rule
from trainer.diagnosis.remedies import scaled_rate

_VANISHED = 1e-3
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
    did not skip. The forward pass went first if the loss, or outputs of layers, were not
    finite at that step; else the backward pass. Places are known by windows: they are named
    where that step is the only one of its window that is not finite. They are the layers,
    first one first, or the variables, last one first, for there the backward pass begins.
    Threshold: one step.
    Source: every debugger has it; Lightning and big_vision stop on it.
    Wrong when: a loss is infinite on purpose. Outputs that are not finite, below a loss that
    is, in a window with more such steps, are taken for the backward pass.
    """
    log = evidence.gradients
    steps = log.steps
    is_bad_loss = ~np.isfinite(steps["loss"]) & log.header.has_loss
    is_bad = is_bad_loss | (~np.isfinite(steps["raw_norm"]) & (steps["skipped"] != 1))
    if not is_bad.any():
        return []
    first, count = int(np.argmax(is_bad)), int(is_bad.sum())
    step = int(steps["step"][first])
    layers, variables = _bad_places(evidence, step)
    went = ""
    if is_bad_loss[first] or layers:
        went, variables = ": the forward pass went first", ()
    elif log.header.has_loss:
        went = ": the backward pass went first"
    places = layers or variables
    where = f"; first in {places[0]}" if places else ""
    return [
        Finding(
            "nonfinite",
            "error",
            f"{count:,} of {len(steps):,} steps are not finite, the first is step {step}"
            f"{went}{where}",
            places,
            (step, int(steps["step"][-1])),
            {"steps": count, "learning_rate": float(steps["learning_rate"][first])},
            {"steps": 0},
            int(np.sum(log.window_steps[:, 1] >= step)),
            len(log.window_steps),
            (scaled_rate(evidence, 0.1), *_STEADIER),
        )
    ]


def _bad_places(evidence: Evidence, step: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the layers and the variables that are not finite at a step, the origin first.

    Nothing where its window has more such steps: a step later the weights are lost, and with
    them everything else.
    """
    log = evidence.gradients
    window = int(np.searchsorted(log.window_steps[:, 1], step))
    start, end = log.window_steps[window]
    steps = log.steps[(log.steps["step"] >= start) & (log.steps["step"] <= end)]
    # Steps that loss scaling skipped count here: they are in the window's table too.
    is_lost = ~np.isfinite(steps["raw_norm"]) | (~np.isfinite(steps["loss"]) & log.header.has_loss)
    if is_lost.sum() > 1:
        return (), ()
    outputs = log.activation("nonfinite_count/max")[window] > 0
    layers = tuple(str(name) for name in np.array(log.header.activations)[outputs])
    norms = log.stat("raw_norm/max")[window]
    order = log.header.order or tuple(range(len(norms)))
    return layers, evidence.paths_of(i for i in reversed(order) if not np.isfinite(norms[i]))


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
                scaled_rate(evidence, 0.1),
            ),
        )
    ]


@rule("vanishing", rank=8)
def vanishing(evidence: Evidence) -> list[Finding]:
    """A gradient that fades on its way to the first layers.

    Formula: r = median raw norm over the first quarter of the kernels / raw norm of the
    last kernel, each the median over a window; the same of the offsets (biases and betas),
    whose gradient is that of the layer's output summed up, and so tells of layers whose
    inputs fade too; the smaller of both. What is told is that of the kernels, unless the
    offsets alone are below the bound. Where the quarter is exactly 0, the smallest norm
    that is not 0 stands for it: behind a dead layer everything is 0, and that is not to vanish.
    Threshold: r < 1e-3 in 60 % of the windows. An error if also the update ratio of that
    quarter (`Evidence.update_ratios`) is below 1e-5, or r below 1e-5; else a warning: an
    optimizer like Adam scales small gradients up again, and their noise with them.
    Source: AUTOTRAINER (Zhang et al. 2021), first over last below 1e-3; the quarter in
    place of the first kernel alone, which may be of another kind.
    Wrong when: the last kernel is far larger than all others together, or the first ones
    are pre-trained and near their optimum.
    """
    windows = evidence.windows
    ratios = {
        name: _first_over_last(evidence, indices, windows)
        for name, indices in _ladders(evidence).items()
    }
    stacked = np.stack(list(ratios.values()))
    known = np.isfinite(stacked)
    ratio = np.where(known, stacked, np.inf).min(axis=0)
    can_tell = known.any(axis=0)
    fired = can_tell & (ratio < _VANISHED)
    if not can_tell.any() or fired.sum() < PERSISTENT * can_tell.sum():
        return []
    worst = float(np.median(ratio[fired]))
    medians = {
        name: float(np.nan_to_num(nan_median(each[fired]), nan=np.inf))
        for name, each in ratios.items()
    }
    # Kernels are what people look at, unless the offsets alone tell it, or how bad it is.
    bound = 1e-5 if worst < 1e-5 else _VANISHED
    name = "kernels" if medians["kernels"] < bound else min(medians, key=lambda k: medians[k])
    indices = _ladders(evidence)[name]
    quarter = max(1, len(indices) // 4)
    quarter_updates = evidence.update_ratios(windows[fired])[:, :quarter]
    update = float(nan_median(quarter_updates)) if np.isfinite(quarter_updates).any() else 0.0
    profile = np.median(evidence.table("raw_norm/median", windows[fired], indices), axis=0)
    order = np.argsort(profile, kind="stable")
    paths = evidence.gradients.header.paths
    weak = [paths[indices[i]] for i in order if profile[i] < _VANISHED * profile[-1]]
    return [
        Finding(
            "vanishing",
            "error" if update < 1e-5 or worst < 1e-5 else "warning",
            f"gradients vanish: the first {quarter} {_IN_WORDS[name]} get {medians[name]:.1e} of "
            f"the norm of the last one; {len(weak)} of {len(profile)} get less than a thousandth",
            tuple(weak),
            evidence.steps_of(windows[fired]),
            {"ratio": medians[name], "update_ratio": update},
            {"ratio": _VANISHED, "update_ratio": 1e-5},
            int(fired.sum()),
            int(can_tell.sum()),
            _against_vanishing(evidence),
        )
    ]


_IN_WORDS = {"kernels": "kernels", "offsets": "offsets (biases and betas)"}


def _ladders(evidence: Evidence) -> dict[str, np.ndarray]:
    """Return what is compared from the first layer to the last: kernels, and offsets if many.

    Raises:
        CannotJudge: If there are fewer than two kernels.
    """
    ladders = {"kernels": evidence.kernel_indices}
    if len(ladders["kernels"]) < 2:
        raise CannotJudge("the model has fewer than two kernels to compare")
    # Two or three of them would be the head's and a neighbour's.
    if len(evidence.offset_indices) >= 4:
        ladders["offsets"] = evidence.offset_indices
    return ladders


def _first_over_last(evidence: Evidence, indices: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the first quarter's raw norm over that of the last, shape (windows,).

    NaN where no gradient reaches the last kernel, or the first quarter behind a dead layer:
    the network is dead then, and what killed it shows in the windows before.
    """
    norms = evidence.table("raw_norm/median", windows, indices)
    is_alive = evidence.kernels("raw_norm/median", windows)[:, -1] > 0
    first = nan_median(norms[:, : max(1, len(indices) // 4)], axis=1)
    smallest = np.where(norms > 0, norms, np.inf).min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(first > 0, first, smallest) / norms[:, -1]
        # Zeros below what fades have underflowed; below what does not, a layer has died.
        is_alive &= (first > 0) | (ratio < _VANISHED)
    return np.asarray(np.where(is_alive, ratio, np.nan))


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


@rule("exploding", rank=7)
def exploding(evidence: Evidence) -> list[Finding]:
    """A gradient that grows on its way to the first layers, or from time to time.

    Formula: r as in `vanishing`, the larger one of kernels and offsets: where inputs shrink
    with depth as fast as gradients grow towards the first layer, all kernels have alike
    gradients, and only offsets tell. These count if they do so in the first window too:
    kernels that grow to reach large targets are no illness. s = share of the steps whose
    raw norm is over ten times the median of the 50 finite steps before. With one kernel there
    is s alone.
    Threshold: r > 70 in 60 % of the windows; or s > 0.05.
    Source: AUTOTRAINER, 70; trainproof, spikes of ten times the median.
    Wrong when: the head's gradient is tiny because the training has converged.
    """
    has_ladder = len(evidence.kernel_indices) > 1
    return [*(_growth(evidence) if has_ladder else []), *_spikes(evidence)]


def _growth(evidence: Evidence) -> list[Finding]:
    windows = evidence.windows
    ratios = {
        name: _first_over_last(evidence, indices, windows)
        for name, indices in _ladders(evidence).items()
    }
    start = np.array([0])
    if "offsets" in ratios and not _first_over_last(evidence, evidence.offset_indices, start) > 70:
        del ratios["offsets"]
    stacked = np.stack(list(ratios.values()))
    known = np.isfinite(stacked)
    ratio = np.where(known, stacked, -np.inf).max(axis=0)
    can_tell = known.any(axis=0)
    fired = can_tell & (ratio > 70)
    if not can_tell.any() or fired.sum() < PERSISTENT * can_tell.sum():
        return []
    worst = float(np.median(ratio[fired]))
    quarter = max(1, len(evidence.kernel_indices) // 4)
    return [
        Finding(
            "exploding",
            "error",
            f"gradients explode: the first quarter of the layers gets {worst:.3g} times the "
            "norm of the last one",
            evidence.kernel_paths[:quarter],
            evidence.steps_of(windows[fired]),
            {"ratio": worst},
            {"ratio": 70},
            int(fired.sum()),
            int(can_tell.sum()),
            (*_STEADIER, scaled_rate(evidence, 0.1)),
        )
    ]


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
                scaled_rate(evidence, 0.3),
            ),
        )
    ]
