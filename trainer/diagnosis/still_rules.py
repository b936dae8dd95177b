"""What never moves: variables that are stuck, and kernels that are not trained."""

from __future__ import annotations

from math import prod

import numpy as np

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.loss_rules import learns_nothing
from trainer.diagnosis.registry import rule


@rule("stuck", rank=10)
def stuck(evidence: Evidence) -> list[Finding]:
    """Variables that never move.

    Formula: largest norm of the update over all windows is 0, while the learning rate is
    not, because the loss does not depend on the variable or its gradient is exactly 0. What
    is so small that the weight rounds it away is for `vanishing` or `small_updates`.
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
    still &= (log.stat("raw_norm/max")[windows] == 0).all(axis=0)
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


@rule("symmetry", rank=5)
def symmetry(evidence: Evidence) -> list[Finding]:
    """Kernels whose filters all start equal, and so stay equal.

    Formula: kernels of more than one filter in which all filters have the same values, not
    zero, before the first step; the last one, whose outputs the loss tells apart, is left out.
    Threshold: one kernel.
    Source: Goodfellow et al. 2016, section 8.4: units with equal weights and inputs get
    equal gradients for ever, and a layer of them is as good as one unit.
    Wrong when: dropout, noise or frozen neighbours that differ tell the filters apart.
    """
    variables = evidence.gradients.header.variables
    found = [index for index in evidence.kernel_indices[:-1] if variables[index].alike]
    if not found:
        return []
    steps = evidence.gradients.steps["step"]
    return [
        Finding(
            "symmetry",
            "error",
            f"{len(found)} of {len(evidence.kernel_indices)} kernels start with equal filters, "
            "which stay equal: each layer is as good as one filter",
            evidence.paths_of(found),
            (int(steps[0]), int(steps[-1])),
            {"kernels": float(len(found))},
            {"kernels": 0.0},
            remedies=(
                Remedy("tells filters apart", {"model.block.kernel_initializer": "he_normal"}),
            ),
        )
    ]


@rule("frozen", rank=5)
def frozen(evidence: Evidence) -> list[Finding]:
    """Kernels that are not trained.

    Formula: values of the model's kernels that are not trainable over those of all kernels.
    Threshold: 0.1: a warning; an error from 0.5 on if nothing is learned (`plateau`).
    Source: the project's own; UMLAUT and TheDeepChecker ask whether all is trained that
    should be.
    Wrong when: the frozen part is pre-trained or fixed on purpose.
    """
    header = evidence.gradients.header
    fixed = sum(prod(variable.shape) for variable in header.frozen)
    trained = sum(prod(variable.shape) for variable in header.variables if variable.is_kernel)
    share = fixed / (fixed + trained) if fixed else 0.0
    if share <= 0.1:
        return []
    steps = evidence.gradients.steps["step"]
    return [
        Finding(
            "frozen",
            "error" if share >= 0.5 and learns_nothing(evidence) else "warning",
            f"{len(header.frozen)} kernels are not trained, {share:.0%} of all their values",
            tuple(variable.path for variable in header.frozen),
            (int(steps[0]), int(steps[-1])),
            {"frozen_share": share},
            {"frozen_share": 0.1},
            len(evidence.gradients.window_steps),
            len(evidence.gradients.window_steps),
        )
    ]
