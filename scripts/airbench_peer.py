"""A contestant that takes the steps of airbench94 with Muon, in PyTorch.

Started by `benchmark_fast.py`, not by hand. After airbench94_muon.py (Keller Jordan,
github.com/KellerJordan/cifar10-airbench): its network, its two optimizers and its batches of
2,000; eager, channels-last, float32, or autocast for mixed_bfloat16 as CPUs have no fast
float16. Batches cycle from memory, already augmented, so that this one pays nothing for its
input. The bias of the whitening layer is trained, as in the first three of its eight epochs:
the others are a little quicker.
"""

from __future__ import annotations

import itertools
from typing import Any

from operator_profile import OPTIMIZER, torch_seconds
from turns import NEEDS_TORCH, Turns, TurnsOver

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    torch = None

BATCH_SIZE = 2000

if torch is not None:

    class Group(nn.Module):
        """Convolution, pooling, normalization, GELU; convolution, normalization, GELU."""

        def __init__(self, channels: int, filters: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = convolution(channels, filters), convolution(filters, filters)
            self.norm1, self.norm2 = normalization(filters), normalization(filters)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            pooled = functional.max_pool2d(self.conv1(inputs), 2)
            inner = functional.gelu(self.norm1(pooled))
            return functional.gelu(self.norm2(self.conv2(inner)))

    class Classifier(nn.Module):
        """The network, from scaled pixels to logits."""

        def __init__(self) -> None:
            super().__init__()
            self.whiten = nn.Conv2d(3, 24, 2)
            self.whiten.weight.requires_grad = False
            self.groups = nn.Sequential(Group(24, 64), Group(64, 256), Group(256, 256))
            self.head = nn.Linear(256, 10, bias=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            outputs = self.groups(functional.gelu(self.whiten(images)))
            return self.head(functional.max_pool2d(outputs, 3).flatten(1)) / 256

    def convolution(channels: int, filters: int) -> nn.Conv2d:
        """Return a 3x3 convolution whose first filters hand their input on."""
        layer = nn.Conv2d(channels, filters, 3, padding="same", bias=False)
        nn.init.dirac_(layer.weight.data[:channels])
        return layer

    def normalization(filters: int) -> nn.BatchNorm2d:
        """Return a normalization without a trained scale."""
        layer = nn.BatchNorm2d(filters, eps=1e-12, momentum=0.4)
        layer.weight.requires_grad = False
        return layer

    def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
        """Three steps of Newton and Schulz (Jordan 2024)."""
        x = matrix / (matrix.norm() + 1e-7)
        if x.shape[0] > x.shape[1]:
            return orthogonalized(matrix.T).T
        for _ in range(3):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x

    def muon_step(kernels: list[Any], buffers: list[Any], rate: float, momentum: float) -> None:
        """Move each kernel, brought to a norm, by its orthogonalized Nesterov momentum."""
        for kernel, buffer in zip(kernels, buffers, strict=True):
            buffer.mul_(momentum).add_(kernel.grad)
            direction = kernel.grad.add(buffer, alpha=momentum)
            kernel.data.mul_(len(kernel) ** 0.5 / kernel.data.norm())
            update = orthogonalized(direction.reshape(len(direction), -1))
            kernel.data.add_(update.view(kernel.shape), alpha=-rate)


def train(turns: Turns) -> None:
    """Train in turns until they are over."""
    in_bfloat16 = turns.spec["precision"] == "mixed_bfloat16"
    torch.manual_seed(0)
    model = Classifier().to(memory_format=torch.channels_last).train()
    kernels = [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
    biases = [p for p in model.parameters() if p.ndim == 1 and p.requires_grad]
    decay = 2e-6 * BATCH_SIZE
    others = torch.optim.SGD(
        [
            {"params": biases, "lr": 0.053, "weight_decay": decay / 0.053},
            {"params": [model.head.weight], "lr": 0.67, "weight_decay": decay / 0.67},
        ],
        momentum=0.85,
        nesterov=True,
        fused=True,
    )
    buffers = [torch.zeros_like(each) for each in kernels]
    num_batches = 4
    images = torch.randn(num_batches, BATCH_SIZE, 32, 32, 3)
    labels = torch.randint(0, 10, (num_batches, BATCH_SIZE))
    turns.ready(PyTorch=f"{torch.__version__}, CPU, {torch.get_num_threads()} threads")
    first, end = turns.spec.get("profiled_steps", (-1, -1))
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    for step in itertools.count():
        try:
            turns.before_step(lambda: None)
        except TurnsOver:
            break
        if step == first:
            profiler.start()
        index = step % num_batches
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            # Stored channels-last: the permuted view is that already.
            logits = model(images[index].permute(0, 3, 1, 2)).float()
            loss = functional.cross_entropy(logits, labels[index], label_smoothing=0.2)
        model.zero_grad(set_to_none=True)
        loss.backward()
        with torch.profiler.record_function(OPTIMIZER):
            others.step()
            muon_step(kernels, buffers, rate=0.24, momentum=0.6)
        if step == end - 1:
            profiler.stop()
    profiled = {"operator_seconds": torch_seconds(profiler.key_averages())} if end > 0 else {}
    turns.leave(**profiled)


def main() -> None:
    """Take part, or say why not."""
    turns = Turns()
    if torch is None:
        turns.decline(NEEDS_TORCH)
    train(turns)


if __name__ == "__main__":
    main()
