"""Which gradients the training step adds up in bfloat16 itself, where digits get lost."""

from __future__ import annotations

from math import prod
from typing import Any

import tensorflow as tf

# Sums of ones: in bfloat16 they stop at 256, 1 being less than half of the next step.
_ONES = 4096
# What hands on a sum, or a part of one, component by component.
_HANDING_ON = {"AddN", "AddV2", "Cast", "Identity", "Mul", "RealDiv", "Reshape"}


def summands_in_bfloat16(gradient: Any) -> int:
    """Return how many numbers of each example a bias' gradient adds up in bfloat16.

    TensorFlow's gradient of `bias_add`, which Keras' layers take, adds up in the 16 bits
    themselves on a CPU: `bias_op.cc` of 2.21 has sums in float32 for float16 alone. Of
    131,072 numbers whose mean is a tenth of their deviation 85 % of the sum gets lost.
    Whether the kernel at hand does so is tried out on ones.

    Args:
        gradient: Raw, of one variable, while a training step is traced; None or eager too.

    Returns:
        Positions of one example over which it sums, of all calls of the layer together; an
        axis of unknown size counts as 1. 0 where no such sum is found: also in a loop, such
        as that of a recurrent layer, or in a function with a graph of its own.
    """
    summands = 0
    pending, seen = [gradient], set()
    while pending:
        tensor = pending.pop()
        # An eager tensor has no op; rows of a table are no sum.
        if not tf.is_symbolic_tensor(tensor) or not isinstance(tensor, tf.Tensor):
            continue
        operation = tensor.op
        if operation.name in seen:
            continue
        seen.add(operation.name)
        if operation.type == "BiasAddGrad" and tensor.dtype == tf.bfloat16:
            summands += _positions(operation) if _loses_digits(operation.device) else 0
        elif operation.type in _HANDING_ON:
            sizes = (tensor.shape.num_elements(), None)
            pending += [each for each in operation.inputs if each.shape.num_elements() in sizes]
    return summands


def _positions(operation: tf.Operation) -> int:
    shape = operation.inputs[0].shape
    if shape.rank is None:
        return 1
    sizes = shape.as_list()[1:]
    # Channels are no summands.
    sizes.pop(0 if operation.get_attr("data_format") == b"NCHW" else -1)
    return prod(size or 1 for size in sizes)


def _loses_digits(device: str) -> bool:
    with tf.init_scope(), tf.device(device):
        total = tf.raw_ops.BiasAddGrad(out_backprop=tf.ones((_ONES, 1), tf.bfloat16)).numpy()
    return bool(total[0] < 0.99 * _ONES)
