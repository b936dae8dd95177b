"""A contestant that trains the same network with PyTorch, as a competent user would.

Started by `benchmark_step.py`, not by hand. Eager, channels-last, autocast in bfloat16 for
mixed_bfloat16, SGD in its fused form, gradients clipped to the config's global norm, L2 as
weight decay of the kernels, running loss and accuracy. CUDA if there is one, with cuDNN
choosing its algorithms by trial. Batches cycle from memory, already augmented: unlike the
Keras contestants, this one pays nothing for its input.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from turns import NEEDS_TORCH, Turns, TurnsOver

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    torch = None

_SUPPORTED = {
    "data.early_crops": None,
    "model.stem.kind": "convolution",
    "model.stem.strides": 1,
    "model.stem.pool_size": 1,
    "model.stem.trainable": True,
    "model.block.layout": "basic",
    "model.block.preactivation": False,
    "model.block.shortcut": "padded",
    "model.block.activation": "relu",
    "model.block.normalization.kind": "batch",
    "model.block.zero_init_last": False,
    "model.block.kernel_regularizer.l1": 0.0,
    "model.block.dropout": 0.0,
    "model.block.spatial_dropout": 0.0,
    "model.block.stochastic_depth": 0.0,
    "model.head.pooling": "average",
    "model.head.dropout": 0.0,
    "model.head.kernel_regularizer.l1": 0.0,
    "optimizer.kind": "sgd",
    "optimizer.clipnorm": None,
    "optimizer.clipvalue": None,
    "optimizer.weight_decay": 0.0,
    "optimizer.ema_momentum": None,
}


def unsupported(config: dict[str, Any]) -> list[str]:
    """Return what of a config this peer cannot do, empty if it can do all."""
    found = []
    for path, wanted in _SUPPORTED.items():
        value: Any = config
        for key in path.split("."):
            value = value.get(key, wanted) if isinstance(value, dict) else value
        if value != wanted:
            found.append(f"{path}={value}")
    model = config["model"]
    if any(stage["pool_size"] != 1 or not stage["trainable"] for stage in model["stages"]):
        found.append("pooling in a stage, or one that is frozen")
    if model["head"]["kernel_regularizer"]["l2"] != model["block"]["kernel_regularizer"]["l2"]:
        found.append("another l2 for the head")
    if config["optimizer"].get("nesterov") and not config["optimizer"]["momentum"]:
        found.append("nesterov without momentum")
    return found


if torch is not None:

    class Block(nn.Module):
        """Two convolutions, with a padded shortcut around them if it is residual."""

        def __init__(self, channels: int, filters: int, strides: int, spec: dict[str, Any]) -> None:
            super().__init__()
            self.conv1 = convolution(channels, filters, strides, spec["kernel_size"])
            self.norm1 = batch_norm(filters, spec)
            self.conv2 = convolution(filters, filters, 1, spec["kernel_size"])
            self.norm2 = batch_norm(filters, spec)
            self.is_residual = spec["kind"] == "residual"
            self.strides, self.missing = strides, filters - channels

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            branch = functional.relu(self.norm1(self.conv1(inputs)), inplace=True)
            branch = self.norm2(self.conv2(branch))
            if self.is_residual:
                shortcut = inputs
                if self.strides > 1:
                    shortcut = shortcut[:, :, :: self.strides, :: self.strides]
                if self.missing:
                    before = self.missing // 2
                    pad = (0, 0, 0, 0, before, self.missing - before)
                    shortcut = functional.pad(shortcut, pad)
                branch = branch + shortcut
            return functional.relu(branch, inplace=True)

    class Classifier(nn.Module):
        """The network of a config, from pixels of 0..255 to logits."""

        def __init__(self, spec: dict[str, Any], num_classes: int) -> None:
            super().__init__()
            stem, block = spec["stem"], spec["block"]
            channels = stem["filters"]
            self.stem = nn.Sequential(
                convolution(3, channels, 1, stem["kernel_size"]),
                batch_norm(channels, block),
                nn.ReLU(inplace=True),
            )
            blocks = []
            for stage in spec["stages"]:
                for index in range(stage["blocks"]):
                    strides = stage["strides"] if index == 0 else 1
                    blocks.append(Block(channels, stage["filters"], strides, block))
                    channels = stage["filters"]
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(channels, num_classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            # Zero mean and unit deviation of uniform pixels, as the Keras model scales them.
            outputs = self.blocks(self.stem((images.float() - 127.5) / 73.9))
            return self.head(outputs.mean((2, 3)))

    def convolution(channels: int, filters: int, strides: int, kernel_size: int) -> nn.Conv2d:
        """Return a convolution with weights drawn as He et al. 2015 do."""
        layer = nn.Conv2d(
            channels, filters, kernel_size, strides, padding=kernel_size // 2, bias=False
        )
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return layer

    def batch_norm(filters: int, block: dict[str, Any]) -> nn.BatchNorm2d:
        """Return the normalization of a block's spec; momentum counts the other way here."""
        spec = block["normalization"]
        return nn.BatchNorm2d(filters, eps=spec["epsilon"], momentum=1 - spec["momentum"])


def train(turns: Turns) -> None:
    """Train in turns until they are over."""
    config = turns.spec["config"]
    optimizer_spec, batch_size = config["optimizer"], config["fit"]["batch_size"]
    in_bfloat16 = config["runtime"]["precision"] == "mixed_bfloat16"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config["seed"])
    torch.backends.cudnn.benchmark = True
    # TensorFlow multiplies float32 in TF32 by default, too.
    torch.set_float32_matmul_precision("high")

    model = Classifier(config["model"], num_classes=10)
    model = model.to(device, memory_format=torch.channels_last).train()
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    # The derivative of l2 * w^2 is 2 * l2 * w.
    decay = 2 * config["model"]["block"]["kernel_regularizer"]["l2"]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": decay}, {"params": others}],
        lr=optimizer_spec["learning_rate"],
        momentum=optimizer_spec["momentum"],
        nesterov=optimizer_spec["nesterov"],
        fused=True,
    )
    num_batches = turns.spec["num_images"] // batch_size
    images = torch.randint(0, 256, (num_batches, batch_size, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(0, 10, (num_batches, batch_size))
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    loss_sum = torch.zeros((), device=device)
    num_correct = torch.zeros((), dtype=torch.int64, device=device)

    onednn = re.search(r"DNN v([\d.]+)", torch.__config__.show())
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    turns.ready(
        PyTorch=f"{torch.__version__}, {where}, {torch.get_num_threads()} threads, "
        f"oneDNN {onednn[1] if onednn else 'absent'}"
    )
    for index in itertools.cycle(range(num_batches)):
        turns.before_step(torch.cuda.synchronize if device.type == "cuda" else lambda: None)
        # Stored channels-last: the permuted view is that already.
        batch = images[index].permute(0, 3, 1, 2).to(device, non_blocking=True)
        classes = labels[index].to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            logits = model(batch).float()
            loss = functional.cross_entropy(
                logits, classes, label_smoothing=config["fit"]["label_smoothing"]
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if optimizer_spec["global_clipnorm"]:
            nn.utils.clip_grad_norm_(model.parameters(), optimizer_spec["global_clipnorm"])
        optimizer.step()
        loss_sum += loss.detach()
        num_correct += (logits.argmax(1) == classes).sum()


def main() -> None:
    """Take part, or say why not."""
    turns = Turns()
    if torch is None:
        turns.decline(NEEDS_TORCH)
    if problems := unsupported(turns.spec["config"]):
        turns.decline(f"the peer does not know {', '.join(problems)}")
    try:
        train(turns)
    except TurnsOver:
        turns.leave()


if __name__ == "__main__":
    main()
