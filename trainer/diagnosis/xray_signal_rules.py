"""What an x-ray says of the two passes at the start: forward, backward, and the first loss."""

from __future__ import annotations

import math

import numpy as np

from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.xray_evidence import FAR, Profile, XRay

_RESIDUAL = Remedy("gives the signal a way around each block", {"model.block.kind": "residual"})
_NORMALIZED = Remedy(
    "keeps the signal's size from layer to layer", {"model.block.normalization": "batch"}
)
_RECTIFIED = Remedy(
    "has slope 1 for half of its inputs",
    {"model.block.activation": "relu", "model.block.kernel_initializer": "he_normal"},
)
_HE = Remedy(
    "starts with the size that ReLUs keep", {"model.block.kernel_initializer": "he_normal"}
)
_BOUNDED = Remedy("bounds the whole gradient", {"optimizer.global_clipnorm": 1.0})
_GLOROT = Remedy(
    "starts with the size that keeps both passes",
    {"model.block.kernel_initializer": "glorot_normal"},
)


def nonfinite(xray: XRay) -> list[Finding]:
    """Outputs or gradients that are NaN or infinite before the first step.

    Formula: the first block in the order of computation with an output that is not finite;
    else, the first in the order of the backward pass with such a dL/da (in float16: at every
    loss scale down to 1).
    Threshold: one value.
    Source: every debugger has it; Lightning and big_vision stop on it.
    Wrong when: a loss is infinite on purpose.
    """
    outputs = ~np.isfinite(xray.output_std).all(axis=0)
    gradients = ~np.isfinite(xray.gradient_rms).all(axis=0)
    if not (outputs | gradients).any():
        return []
    order = slice(None) if outputs.any() else slice(None, None, -1)
    layers = tuple(np.array(xray.blocks)[outputs if outputs.any() else gradients][order])
    wider = (
        Remedy("has the range of float32", {"runtime.precision": "mixed_bfloat16"}),
        Remedy("has range and digits", {"runtime.precision": "float32"}),
    )
    return [
        Finding(
            "nonfinite",
            "error",
            f"the {'forward' if outputs.any() else 'backward'} pass is not finite before the "
            f"first step: first in {layers[0]}",
            layers,
            (0, 0),
            {"blocks": float(len(layers))},
            {"blocks": 0.0},
            remedies=(
                *(wider if xray.config.runtime.precision == "mixed_float16" else ()),
                Remedy("scales the pixels", {"data.normalize": "per_channel"}),
                _NORMALIZED,
                _HE,
            ),
        )
    ]


def stuck(xray: XRay) -> list[Finding]:
    """Kernels without a gradient that ten steps leave where they are.

    Formula: the norm of a kernel's raw gradient is exactly 0 in all micro-batches, and that
    of its update in all steps.
    Threshold: one kernel.
    Source: SageMaker Debugger, UnchangedTensor; constant initializations (Goodfellow et al.
    2016, section 8.4) do it.
    Wrong when: a part wakes later, as behind a scale of zero for longer than ten steps.
    """
    still = (xray.kernel_gradient_norms == 0).all(axis=0)
    still &= (xray.steps.update_norms == 0).all(axis=0)
    if not still.any():
        return []
    names = tuple(np.array(xray.kernels)[still])
    zeros = bool((xray.steps.weight_norms[0] == 0).any())
    return [
        Finding(
            "stuck",
            "error",
            f"{len(names)} of {len(still)} kernels have a gradient of exactly zero and never move"
            f"{': some kernels start at zero' if zeros else ''}",
            names,
            _all_steps(xray),
            {"kernels": float(len(names))},
            {"kernels": 0.0},
            remedies=(
                Remedy("breaks the symmetry", {"model.block.kernel_initializer": "he_normal"}),
                _RESIDUAL,
            ),
        )
    ]


def dead(xray: XRay) -> list[Finding]:
    """Blocks whose output is the same for every image.

    Formula: the deviation between images of every unit is exactly 0 in all micro-batches.
    Threshold: one block.
    Source: the project's own; what a dead ReLU is for one unit (SageMaker Debugger).
    Wrong when: kernels of zeros do it, which is for `stuck` to say, or a sum of a
    vanished signal and a constant rounds to the constant: then `initialization` says it too.
    """
    alike = (xray.image_std == 0).all(axis=0)
    if not alike.any() or (xray.steps.weight_norms[0] == 0).any():
        return []
    names = tuple(np.array(xray.blocks)[alike])
    return [
        Finding(
            "dead",
            "error",
            f"from {names[0]} on nothing of an image is left: the outputs of {len(names)} of "
            f"{len(alike)} blocks are equal for all images",
            names,
            (0, 0),
            {"blocks": float(len(names))},
            {"blocks": 0.0},
            remedies=(
                Remedy("starts with open ReLUs", {"model.block.bias_initializer": "zeros"}),
                _NORMALIZED,
                Remedy(
                    "lets something through below zero", {"model.block.activation": "leaky_relu"}
                ),
            ),
        )
    ]


def saturated(xray: XRay) -> list[Finding]:
    """Bounded activations that start where their slope is nearly zero.

    Formula: share of a block's outputs at which the slope of its sigmoid, tanh or other
    bounded function is below 0.01, mean over the micro-batches.
    Threshold: 0.5.
    Source: Glorot and Bengio 2010, section 3; TheDeepChecker and SageMaker Debugger, half of
    the units.
    Wrong when: the layer is a gate that should be open or shut.
    """
    shares = xray.saturated.mean(axis=0)
    if np.isnan(shares).all():
        raise CannotJudge("no activation of this model has bounds")
    chosen = np.flatnonzero(np.nan_to_num(shares) > 0.5)
    if not len(chosen):
        return []
    chosen = chosen[np.argsort(-shares[chosen], kind="stable")]
    names = tuple(xray.blocks[index] for index in chosen)
    return [
        Finding(
            "saturated",
            "error",
            f"{len(names)} of {len(shares)} blocks start saturated: {shares[chosen[0]]:.0%} of the "
            f"outputs of {names[0]} lie where the activation is flat",
            names,
            (0, 0),
            {"saturated_share": float(shares[chosen[0]])},
            {"saturated_share": 0.5},
            remedies=(
                Remedy("opens no gate for good", {"model.block.bias_initializer": "zeros"}),
                _NORMALIZED,
                _GLOROT,
                _RECTIFIED,
            ),
        )
    ]


def vanishing(xray: XRay) -> list[Finding]:
    """A gradient that fades on its way to the first block.

    Formula: r = root mean square of dL/da at the stem's output over that at the last block's,
    medians over the micro-batches.
    Threshold: r < 1e-3. The depth at which the least-squares line of log10 passes a
    thousandth is in the message.
    Source: AUTOTRAINER (Zhang et al. 2021), 1e-3 between the first and the last layer; Glorot
    and Bengio 2010 and He et al. 2015 for dL/da.
    Wrong when: an optimizer like Adam scales the small gradients up again, and what is left
    of them is more than noise.
    """
    profile = xray.backward
    if not profile.ratio < 1 / FAR:
        return []
    return [
        Finding(
            "vanishing",
            "error",
            f"gradients vanish on the way back: {profile.blocks[-1]} gets {profile.ratio:.1e} of "
            f"what {profile.blocks[0]} gets{_where(profile, 'below a thousandth')}",
            _beyond(profile),
            (0, 0),
            {"ratio": profile.ratio},
            {"ratio": 1 / FAR},
            remedies=(_RESIDUAL, _NORMALIZED, _RECTIFIED),
        )
    ]


def exploding(xray: XRay) -> list[Finding]:
    """A gradient that grows on its way to the first block.

    Formula: r as in `vanishing`.
    Threshold: r > 1e3.
    Source: AUTOTRAINER has 70 for the gradients of kernels; dL/da grows more, and 20 is
    usual for healthy residual networks of 56 layers. Plain stacks with batch normalization
    explode by 1.2 a layer (Yang et al. 2019, A Mean Field Theory of Batch Normalization).
    Wrong when: outputs shrink as fast as their gradients grow and nothing bounds the steps: the
    kernels then have alike gradients, and it is `initialization` that tells.
    """
    profile = xray.backward
    if not profile.ratio > FAR:
        return []
    return [
        Finding(
            "exploding",
            "error",
            f"gradients explode on the way back: {profile.blocks[-1]} gets {profile.ratio:.3g} "
            f"times what {profile.blocks[0]} gets{_where(profile, 'over a thousandfold')}",
            _beyond(profile),
            (0, 0),
            {"ratio": profile.ratio},
            {"ratio": FAR},
            remedies=(
                _RESIDUAL,
                _NORMALIZED,
                _HE,
                *(() if xray.clipping else (_BOUNDED,)),
                Remedy("starts with small steps", {"schedule.warmup_epochs": 1}),
            ),
        )
    ]


def initialization(xray: XRay) -> list[Finding]:
    """A signal that loses its size on the way forward, or a first loss that is far off.

    Formula: deviation between images of the last block's outputs over that of the stem's,
    medians over the micro-batches; cross-entropy before the first step less ln(classes),
    without regularizers.
    Threshold: a warning outside of 1e-2 .. 1e2, an error outside of 1e-3 .. 1e3; a warning
    outside of -0.5 .. 2.0, an error above 10.
    Source: He et al. 2015 and Glorot and Bengio 2010 keep the ratio near 1; a classifier
    that knows nothing has the loss ln(classes) (Karpathy 2019); UMLAUT checks it.
    Wrong when: the model is pre-trained, or the last block is meant to start at zero.
    """
    return [*_size(xray), *_first_loss(xray)]


def _size(xray: XRay) -> list[Finding]:
    profile = xray.forward
    ratio = profile.ratio
    if not (ratio < 1e-2 or ratio > 1e2):
        return []
    is_far = ratio < 1 / FAR or ratio > FAR
    how, word = ("shrink", "below a thousandth") if ratio < 1 else ("grow", "over a thousandfold")
    return [
        Finding(
            "initialization",
            "error" if is_far else "warning",
            f"the differences between images {how} by {ratio:.1e} from {profile.blocks[0]} to "
            f"{profile.blocks[-1]}{_where(profile, word)}",
            _beyond(profile) or (profile.blocks[-1],),
            (0, 0),
            {"ratio": ratio},
            {"ratio": (1 / FAR if is_far else 1e-2) if ratio < 1 else (FAR if is_far else 1e2)},
            remedies=(_NORMALIZED, _HE, _RECTIFIED) if ratio < 1 else (_NORMALIZED, _HE, _GLOROT),
        )
    ]


def _first_loss(xray: XRay) -> list[Finding]:
    loss, chance = xray.cross_entropy, xray.chance
    excess = loss - chance
    if not (excess > 2.0 or excess < -0.5):
        return []
    why = (
        "the logits start too large"
        if excess > 0
        else "the model knows something before it was trained"
    )
    return [
        Finding(
            "initialization",
            "error" if excess > 10 else "warning",
            f"the first loss is {loss:.3g}, and that of knowing nothing is ln({xray.num_classes})"
            f" = {chance:.3g}: {why}",
            ("head_logits",),
            (0, 0),
            {"first_loss": loss},
            {"first_loss": chance + (10 if excess > 10 else 2 if excess > 0 else -0.5)},
            remedies=(
                Remedy("scales the pixels", {"data.normalize": "per_channel"}),
                Remedy("starts every block as the identity", {"model.block.zero_init_last": True}),
                Remedy(
                    "starts with small logits",
                    {"model.head.kernel_initializer": {"random_normal": {"stddev": 0.01}}},
                ),
            )
            if excess > 0
            else (),
        )
    ]


def _where(profile: Profile, word: str) -> str:
    """Where the signal is lost: as measured, and as the line predicts."""
    blocks = profile.far_block
    text = f"; it is {word} at {blocks}" if blocks else ""
    if math.isfinite(profile.far_at):
        text += f" (x{10**profile.slope:.2g} a block: a factor of 1,000 in {profile.far_at:.1f})"
    return text


def _beyond(profile: Profile) -> tuple[str, ...]:
    """The blocks that are out of range, the worst first."""
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(np.log10(profile.sizes / profile.sizes[0]))
    chosen = np.flatnonzero(off >= math.log10(FAR))
    return tuple(profile.blocks[index] for index in chosen[np.argsort(-off[chosen], kind="stable")])


def _all_steps(xray: XRay) -> tuple[int, int]:
    return 0, len(xray.steps.loss) - 1
