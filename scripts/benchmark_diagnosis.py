"""Measure what a long log costs: its size, and the time and memory of its diagnosis.

    python scripts/benchmark_diagnosis.py

A log's size depends on its numbers of steps, windows, variables and layers, and not on the
values: the logs here have the variables of residual networks and drawn values, and pass
through the log's own writer. The table goes to `scripts/benchmark_diagnosis.md`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trainer.gradient_log import GradientLogWriter, LogHeader, VariableInfo
from trainer.log_frames import LogWindow
from trainer.recorded_steps import STEP_DTYPE, WINDOW_ACTIVATIONS, WINDOW_STATS

OUTPUT = Path(__file__).with_suffix(".md")
_WINDOW_STEPS = 50


def header_of(layers: int) -> LogHeader:
    """Return the header of a residual network on CIFAR-10 with so many layers (6n + 2)."""
    blocks = (layers - 2) // 6
    variables = []
    channels = 3
    for index in range(layers - 1):
        filters = 16 * 2 ** min(2, max(index - 1, 0) // (2 * blocks))
        name = f"stage{index // (2 * blocks) + 1}_block{index // 2}/conv{index % 2 + 1}"
        variables += [
            VariableInfo(f"{name}/kernel", (3, 3, channels, filters)),
            VariableInfo(f"{name}_norm/gamma", (filters,)),
            VariableInfo(f"{name}_norm/beta", (filters,)),
        ]
        channels = filters
    variables += [VariableInfo("head/kernel", (64, 10)), VariableInfo("head/bias", (10,))]
    return LogHeader(
        tuple(variables),
        moments_every_steps=10,
        activations=("stem", *(f"block{index}" for index in range(3 * blocks))),
        activations_every_steps=10,
        activation_images=16,
        probe_images=64,
    )


def write(folder: Path, layers: int, num_steps: int) -> int:
    """Write a log of drawn values and return its size in bytes."""
    header = header_of(layers)
    writer = GradientLogWriter(folder, header)
    random = np.random.default_rng(0)
    for first in range(0, num_steps, _WINDOW_STEPS):
        steps = np.zeros(_WINDOW_STEPS, STEP_DTYPE)
        for name in ("raw_norm", "clipped_norm", "update_norm", "weight_norm", "loss"):
            steps[name] = random.uniform(0.5, 1.0, _WINDOW_STEPS)
        steps["step"] = first + np.arange(_WINDOW_STEPS)
        steps["learning_rate"] = 0.1
        table = random.uniform(1e-3, 2e-3, (len(WINDOW_STATS), len(header.variables)))
        shape = (len(WINDOW_ACTIVATIONS), len(header.activations))
        activations = random.uniform(0.1, 0.2, shape)
        writer.append(LogWindow(steps, table.astype(np.float32), activations.astype(np.float32)))
    return sum(path.stat().st_size for path in folder.iterdir())


def diagnose(folder: Path) -> None:
    """Print wall seconds, CPU seconds and MiB of one diagnosis, imports included."""
    started = time.perf_counter()
    from trainer.diagnosis.evidence import Evidence
    from trainer.diagnosis.judge import diagnose as judge

    judge(Evidence.of_log(folder))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.perf_counter() - started
    print(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    """Write the logs and measure each in a fresh process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.log is not None:
        diagnose(arguments.log)
        return
    lines = [
        "# What a long log costs",
        "",
        "Written by `scripts/benchmark_diagnosis.py`: windows of 50 steps; each diagnosis in a "
        "process of its own, imports included, medians of five.",
        "",
        "| layers | variables | steps | log, MB | bytes a step | seconds | CPU s | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layers, num_steps in (
        (20, 1_000),
        (56, 1_000),
        (56, 10_000),
        (110, 10_000),
        (110, 100_000),
    ):
        with tempfile.TemporaryDirectory() as folder:
            size = write(Path(folder), layers, num_steps)
            command = [sys.executable, __file__, "--log", folder]
            runs = [
                [float(x) for x in subprocess.check_output(command, text=True).split()]
                for _ in range(5)
            ]
        seconds, cpu, memory = np.median(runs, axis=0)
        lines.append(
            f"| {layers} | {len(header_of(layers).variables)} | {num_steps:,} | {size / 1e6:.2f} | "
            f"{size / num_steps:.0f} | {seconds:.2f} | {cpu:.2f} | {memory:.0f} |"
        )
        print(lines[-1], file=sys.stderr)
    OUTPUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
