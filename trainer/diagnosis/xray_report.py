"""Judge an x-ray, and show it to people and to programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trainer.diagnosis.evidence import nan_median
from trainer.diagnosis.finding import SEVERITIES, CannotJudge, Finding
from trainer.diagnosis.judge import Diagnosis, format_diagnosis, with_possible_remedies
from trainer.diagnosis.xray_evidence import FAR, Profile, XRay
from trainer.diagnosis.xray_signal_rules import (
    dead,
    exploding,
    initialization,
    nonfinite,
    saturated,
    stuck,
    vanishing,
)
from trainer.diagnosis.xray_step_rules import (
    clipping,
    diverging,
    noise_scale,
    nonfinite_steps,
    overflow,
    regularizer,
    update_ratio,
)

# Causes before what they cause.
XRAY_RULES: tuple[Callable[[XRay], list[Finding]], ...] = (
    nonfinite,
    overflow,
    saturated,
    dead,
    stuck,
    vanishing,
    exploding,
    initialization,
    nonfinite_steps,
    clipping,
    regularizer,
    update_ratio,
    diverging,
    noise_scale,
)
_UNITS_OF_BAR = 3
# In blocks: no network is as deep.
_NO_TREND = 1e4


def judge_xray(xray: XRay) -> Diagnosis:
    """Ask every rule about a model's start."""
    findings: list[Finding] = []
    not_judged: dict[str, str] = {}
    for check in XRAY_RULES:
        try:
            findings += check(xray)
        except CannotJudge as reason:
            not_judged[check.__name__] = str(reason)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(
        tuple(with_possible_remedies(finding, xray.config) for finding in findings),
        not_judged,
        len(XRAY_RULES) - len(not_judged),
        {},
    )


def xray_as_json(xray: XRay) -> dict[str, Any]:
    """Return what was measured, for programs; medians over the micro-batches."""
    steps = xray.steps
    kernels = np.median(xray.kernel_gradient_norms, axis=0)
    columns = {
        "output_std": xray.output_std,
        "image_std": xray.image_std,
        "saturated": xray.saturated,
        "gradient_rms": xray.gradient_rms,
    }
    return {
        "batch_size": xray.batch_size,
        "training_batch_size": xray.config.fit.batch_size,
        "micro_batches": len(xray.micro_norms),
        "blocks": [
            {"name": name, **{key: float(np.median(v[:, i])) for key, v in columns.items()}}
            for i, name in enumerate(xray.blocks)
        ],
        "kernels": [
            {"path": path, "gradient_norm": float(norm)}
            for path, norm in zip(xray.kernels, kernels, strict=True)
        ],
        "forward": _profile_as_json(xray.forward),
        "backward": _profile_as_json(xray.backward),
        "cross_entropy": xray.cross_entropy,
        "ln_classes": xray.chance,
        "regularization": xray.regularization,
        "noise_scale": xray.noise_scale,
        "largest_noise_scale": xray.largest_noise_scale,
        "steps": [
            {
                "loss": float(steps.loss[i]),
                "learning_rate": float(steps.learning_rate[i]),
                "raw_norm": float(steps.raw_norm[i]),
                "clipped_norm": float(steps.clipped_norm[i]),
                "update_ratio": float(nan_median(steps.update_ratios[i])),
                "skipped": bool(steps.skipped[i]),
            }
            for i in range(len(steps.loss))
        ],
    }


def _profile_as_json(profile: Profile) -> dict[str, Any]:
    return {
        "ratio": profile.ratio,
        "log10_slope": profile.slope,
        "factor_1000_after_blocks": profile.far_at,
        "factor_1000_at": profile.far_block,
    }


def format_xray(xray: XRay, diagnosis: Diagnosis) -> str:
    """Return table, loss, steps and verdict for people, within 80 columns."""
    return "\n".join(
        [
            *_table(xray),
            "",
            *_prediction("forward", xray.forward),
            *_prediction("backward", xray.backward),
            _loss_line(xray),
            *_noise_lines(xray),
            "",
            *_steps(xray),
            "",
            format_diagnosis(diagnosis),
        ]
    )


def _table(xray: XRay) -> Iterator[str]:
    yield (
        f"{len(xray.micro_norms)} batches of {xray.batch_size} images at initialization "
        f"(training: {xray.config.fit.batch_size})"
    )
    yield f"{'':16}{'outputs':>9} {'between':>9} {'dL/da':>9} {'kernels':>9}  log10 dL/da"
    yield f"{'block':16}{'std':>9} {'images':>9} {'rms':>9} {'|grad|':>9}  1e-3 .. last .. 1e+3"
    gradient = np.median(xray.gradient_rms, axis=0)
    kernels = np.median(xray.kernel_gradient_norms, axis=0)
    owner = np.array([_block_of(path, xray.blocks) for path in xray.kernels])
    for index, name in enumerate(xray.blocks):
        own = kernels[owner == index]
        columns = (
            np.median(xray.output_std[:, index]),
            np.median(xray.image_std[:, index]),
            gradient[index],
            math.sqrt(float(np.sum(np.square(own)))) if len(own) else math.nan,
        )
        numbers = " ".join(f"{'' if math.isnan(v) else f'{v:.2e}':>9}" for v in columns)
        is_logits = index == len(xray.blocks) - 1
        bar = "" if is_logits else _bar(gradient[index], gradient[-2])
        yield f"{name[:16]:16}{numbers}  {bar}".rstrip()


def _block_of(path: str, blocks: tuple[str, ...]) -> int:
    """Index of the block that a kernel is in; the stem's is in front of the first output."""
    return next((i for i, block in enumerate(blocks) if path.startswith(f"{block}/")), 0)


def _bar(size: float, reference: float) -> str:
    """A mark that moves three columns for each factor of ten from the middle."""
    if not (math.isfinite(size) and size > 0 and math.isfinite(reference) and reference > 0):
        return "0" if size == 0 else "?"
    half = math.log10(FAR)
    place = round(_UNITS_OF_BAR * max(-half, min(half, math.log10(size / reference))))
    middle = round(_UNITS_OF_BAR * half)
    low, high = sorted((middle, middle + place))
    marks = [" "] * (2 * middle + 1)
    marks[low : high + 1] = "#" * (high - low + 1)
    return "".join(marks)


def _prediction(name: str, profile: Profile) -> Iterator[str]:
    if not math.isfinite(profile.slope):
        yield f"{name:8} too few blocks with a signal for a trend"
        return
    what = "vanish" if profile.slope < 0 else "explode"
    if profile.far_block:
        fate = f"{what}{'s' if what.endswith('e') else 'es'} at {profile.far_block}"
    elif profile.far_at > _NO_TREND:
        fate = "no trend"
    else:
        fate = f"would {what} after {profile.far_at:,.0f} blocks ({len(profile.blocks)} here)"
    yield f"{name:8} x{10**profile.slope:.3g} a block, x{profile.ratio:.3g} in all; {fate}"


def _loss_line(xray: XRay) -> str:
    return (
        f"first loss: {xray.cross_entropy:.3f}, ln({xray.num_classes}) = {xray.chance:.3f}; "
        f"regularizers {xray.regularization:.3f}"
    )


def _noise_lines(xray: XRay) -> Iterator[str]:
    scale, most, size = xray.noise_scale, xray.largest_noise_scale, xray.config.fit.batch_size
    if math.isnan(scale):
        yield "gradient noise scale: none, the gradient is zero or not finite"
    elif scale > most:
        yield f"gradient noise scale: over {most:,.0f} images, more than these few can tell"
        yield f"  suggested batch size: large, {_round_size(most):,} if it fits (here {size:,})"
    else:
        yield f"gradient noise scale: about {scale:.2g} images, and it grows in training"
        yield f"  suggested batch size: {_round_size(scale):,} or more (here {size:,})"


def _round_size(scale: float) -> int:
    """The nearest power of two."""
    return int(2 ** max(0, round(math.log2(max(scale, 1.0)))))


def _steps(xray: XRay) -> Iterator[str]:
    steps, config = xray.steps, xray.config
    yield (
        f"{len(steps.loss)} steps of {config.optimizer.kind} "
        f"(peak learning rate {config.optimizer.learning_rate:g})"
    )
    yield f"{'step':>4} {'loss':>10} {'rate':>9} {'|grad|':>9} {'clipped':>9} {'update ratio':>13}"
    ratios = nan_median(steps.update_ratios, axis=1)
    for index in range(len(steps.loss)):
        yield (
            f"{index:4} {steps.loss[index]:10.4g} {steps.learning_rate[index]:9.2e} "
            f"{steps.raw_norm[index]:9.2e} {steps.clipped_norm[index]:9.2e} {ratios[index]:13.2e}"
            f"{'  skipped' if steps.skipped[index] else ''}"
        )
