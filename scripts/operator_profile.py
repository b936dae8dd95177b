"""What the operators of some training steps took, in TensorFlow and in PyTorch.

Both count the wall time of an operator, whatever threads it has inside. TensorFlow has to run
one operator at a time for that (`TF_NUM_INTEROP_THREADS=1`), as PyTorch always does.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

# The first that matches the name of a TensorFlow operator, `graph/path:Type`, counts.
_TENSORFLOW = {
    "convolutions, backward": r"Conv2DBackprop|/kernel_gradient(_\d+)?/",
    "convolutions, forward": r":_?\w*Conv2D$",
    "normalization": r"FusedBatchNorm",
    "max-pooling": r"MaxPool",
    # XLA runs it, and says so instead of naming an operator.
    "activation": r"^CpuExecutable::ExecuteAsyncOnStream$|Gelu",
    "optimizer": r"/conv_muon/",
    "everything else in the step": r"^StatefulPartitionedCall/.*:",
    "input pipeline": r"^[^:]+:\w+$",
}
_TORCH = {
    "convolutions, backward": r"^aten::convolution_backward$",
    "convolutions, forward": r"^aten::mkldnn_convolution$",
    "normalization": r"batch_norm",
    "max-pooling": r"max_pool2d",
    "activation": r"gelu",
    "everything else in the step": r"^aten::",
}
# Of PyTorch's, by what it is wrapped in.
OPTIMIZER = "optimizer"
GROUPS = tuple(_TENSORFLOW)


def _group_of(name: str, patterns: dict[str, str]) -> str | None:
    return next((group for group, pattern in patterns.items() if re.search(pattern, name)), None)


class TensorFlowProfile:
    """Profiles what runs between its start and its stop."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()

    def start(self) -> None:
        """Begin; whatever was dispatched before should be done."""
        import tensorflow as tf

        tf.profiler.experimental.start(self._folder.name)

    def stop(self) -> dict[str, float]:
        """End, and return the seconds of each group."""
        import tensorflow as tf
        from tensorflow.tsl.profiler.protobuf import xplane_pb2

        tf.profiler.experimental.stop()
        [file] = Path(self._folder.name).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
        self._folder.cleanup()
        seconds: dict[str, float] = defaultdict(float)
        for plane in space.planes:
            if plane.name != "/host:CPU":
                continue
            for line in plane.lines:
                for event in line.events:
                    name = plane.event_metadata[event.metadata_id].name
                    if group := _group_of(name, _TENSORFLOW):
                        seconds[group] += event.duration_ps / 1e12
        return dict(seconds)


def torch_seconds(events: Any) -> dict[str, float]:
    """Return the seconds of each group.

    Args:
        events: `key_averages()` of a `torch.profiler.profile`, whose optimizer's steps are
            wrapped in `record_function(OPTIMIZER)`.
    """
    seconds: dict[str, float] = defaultdict(float)
    in_optimizer = 0.0
    for event in events:
        if event.key == OPTIMIZER:
            in_optimizer = event.cpu_time_total / 1e6
        elif group := _group_of(event.key, _TORCH):
            seconds[group] += event.self_cpu_time_total / 1e6
    # What is in the optimizer was counted with everything else before.
    seconds["everything else in the step"] -= in_optimizer
    return {**seconds, OPTIMIZER: in_optimizer}
