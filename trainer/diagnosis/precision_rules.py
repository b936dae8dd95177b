"""Whether the numbers of the training step have digits enough."""

from __future__ import annotations

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import Finding, Remedy
from trainer.diagnosis.registry import rule

MOST_SUMMANDS = 256
"""Numbers of one example from which on a batch of 32 loses a seventh of a sum or more."""


@rule("rounded_bias", rank=13)
def rounded_bias(evidence: Evidence) -> list[Finding]:
    """Gradients of biases that are added up in bfloat16 itself.

    Formula: positions (pixels, time steps) of one example over which the gradient of a bias
    is the sum, where the device was seen to add ones up wrongly. A bias in front of a batch
    normalization is left out: it is taken out again.
    Threshold: 256. Batches of 32 then sum 8,192 numbers, and lose 15 % of the sum where the
    numbers' mean is 0, and 24 % where it is a tenth of their deviation; 131,072 lose 27 % and
    85 % (norm of the error over that of the sum, measured with TensorFlow 2.21 on a CPU).
    Source: the project's own; TensorFlow's bias_op.cc has sums in float32 for float16 alone.
    Wrong when: batches are of a few examples; the biases do not matter. Not seen are the sums
    in loops (recurrent layers), and a bias whose sum with a shortcut is normalized.
    """
    header = evidence.gradients.header
    variables = header.variables
    order = header.order or tuple(range(len(variables)))
    found = [
        index
        for index, following in zip(order, [*order[1:], None], strict=True)
        if variables[index].summands_in_bfloat16 >= MOST_SUMMANDS
        and following not in header.batch_norms
    ]
    if not found:
        return []
    found.sort(key=lambda index: -variables[index].summands_in_bfloat16)
    most = variables[found[0]].summands_in_bfloat16
    gradients = (
        "gradient of 1 bias is" if len(found) == 1 else f"gradients of {len(found)} biases are"
    )
    return [
        Finding(
            "rounded_bias",
            "warning",
            f"the {gradients} added up in bfloat16, over up to {most:,} positions of each "
            "example: this device's kernel for it loses digits, and with large batches most of "
            "the sum",
            evidence.paths_of(found),
            numbers={"summands": float(most)},
            thresholds={"summands": float(MOST_SUMMANDS)},
            windows_fired=0,
            windows_seen=0,
            remedies=(
                Remedy("dtype='float32' for these layers: sums keep their digits", {}),
                Remedy("use_bias=False and a normalization behind: its offset does the same", {}),
            ),
        )
    ]
