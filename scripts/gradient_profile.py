"""Print the gradient profile by depth of one or more runs: scripts/gradient_profile.py RUN...

For the first and the last epoch's worth of windows: the raw norm of each kernel, its
median over the windows, first layer first. Reads run directories only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from trainer.gradient_log import GradientLog, first_to_last_ratio
from trainer.run_dir import RunDir, read_history


def profile(run: RunDir, points: int = 8) -> str:
    """Return the table of one run.

    Args:
        run: A run with a gradient log.
        points: Kernels shown, evenly spaced in depth, first and last included.
    """
    log = GradientLog.read(run.gradients)
    history = read_history(run.history)
    epoch_steps = int(history[0]["step"])
    windows = {
        "first epoch": log.window_steps[:, 0] < epoch_steps,
        "last epoch": log.window_steps[:, 0] >= log.steps["step"][-1] + 1 - epoch_steps,
    }
    raw = log.stat("raw_norm/median")
    ratio = log.stat("update_ratio/median")
    clipped = log.stat("clipped_fraction")
    kernels = log.kernels
    shown = kernels[np.linspace(0, len(kernels) - 1, points).round().astype(int)]

    lines = [f"{run.path.name}: {len(kernels)} kernels, median over the windows of an epoch"]
    header = "".join(f"{name:>24}" for name in windows)
    lines.append(f"{'':32}{header}")
    lines.append(f"{'kernel':32}" + f"{'raw norm':>13}{'update':>11}" * len(windows))
    for index in shown:
        row = f"{log.header.paths[index].removesuffix('/kernel'):32}"
        for chosen in windows.values():
            norm, update = (np.median(stat[chosen, index]) for stat in (raw, ratio))
            row += f"{norm:13.2e}{update:11.1e}"
        lines.append(row)
    for name, chosen in windows.items():
        lines.append(
            f"{name}: first/last {first_to_last_ratio(raw[chosen], kernels):.3g}, "
            f"clipped {clipped[chosen].mean():.0%} of the steps"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print("\n\n".join(profile(RunDir.open(Path(path))) for path in sys.argv[1:]))
