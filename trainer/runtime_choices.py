"""The decisions behind a run's runtime, as plain functions of facts.

No TensorFlow here, so that a machine without a GPU can check what happens on one
with four. `runtime.set_up` gathers the facts and carries the decisions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.config.schema import RuntimeConfig
from trainer.errors import RuntimeSetupError


@dataclass(frozen=True)
class Gpu:
    """One GPU that TensorFlow can use."""

    name: str
    compute_capability: tuple[int, int] | None


@dataclass(frozen=True)
class DeviceChoice:
    """How many devices of one kind train, and why."""

    kind: Literal["CPU", "GPU"]
    count: int
    reason: str


def choose_devices(config: RuntimeConfig, gpus: Sequence[Gpu]) -> DeviceChoice:
    """Decide which devices train.

    Raises:
        RuntimeSetupError: If the config asks for GPUs that do not exist, or
            contradicts itself.
    """
    asked, num_gpus = config.devices, len(gpus)
    wants_gpus = asked == "gpu" or isinstance(asked, int)
    if wants_gpus and config.logical_cpus > 1:
        raise RuntimeSetupError(
            "logical_cpus splits the CPU and cannot be combined with training on GPUs. "
            f"Received: devices={asked}, logical_cpus={config.logical_cpus}. "
            "Set devices: cpu, or leave logical_cpus out"
        )
    if wants_gpus and num_gpus == 0:
        raise RuntimeSetupError(
            "training on GPUs needs a GPU that TensorFlow can use, and it sees the CPU alone. "
            f"Received: devices={asked}. `trainer doctor` says why; devices: auto trains on "
            "the CPU instead"
        )
    if isinstance(asked, int) and asked > num_gpus:
        raise RuntimeSetupError(
            f"devices can be at most the number of GPUs that TensorFlow sees, {num_gpus}. "
            f"Received: devices={asked}. Use a smaller number, or look at CUDA_VISIBLE_DEVICES"
        )
    if isinstance(asked, int) and asked > 1 and config.strategy == "none":
        raise RuntimeSetupError(
            "several devices need a strategy. "
            f"Received: devices={asked}, strategy=none. Set strategy: auto, or devices: 1"
        )
    if asked == "cpu" or num_gpus == 0 or (asked == "auto" and config.logical_cpus > 1):
        return _choose_cpus(config, num_gpus)
    count = asked if isinstance(asked, int) else num_gpus
    if config.strategy == "none" and count > 1:
        return DeviceChoice("GPU", 1, f"{gpus[0].name}; strategy none uses one of {num_gpus}")
    names = dict.fromkeys(gpu.name for gpu in gpus[:count])
    rest = f"; {count} of {num_gpus}" if count < num_gpus else ""
    return DeviceChoice("GPU", count, ", ".join(names) + rest)


def _choose_cpus(config: RuntimeConfig, num_gpus: int) -> DeviceChoice:
    if config.logical_cpus > 1 and config.strategy != "none":
        return DeviceChoice("CPU", config.logical_cpus, "one processor, split by logical_cpus")
    if config.devices == "cpu":
        return DeviceChoice("CPU", 1, "as asked")
    return DeviceChoice("CPU", 1, "no GPU found" if num_gpus == 0 else "as logical_cpus asks")


def choose_precision(
    asked: str,
    compute_capabilities: Sequence[tuple[int, int] | None],
    cpu_bfloat16_flag: str | None,
) -> tuple[str, str]:
    """Decide the dtype policy.

    Args:
        asked: The config's `precision`.
        compute_capabilities: Of each GPU that trains, None where unknown; empty
            on the CPU. The weakest GPU decides.
        cpu_bfloat16_flag: What makes bfloat16 fast on this CPU, None if nothing does.

    Returns:
        The name of the Keras policy, and the reason.
    """
    if asked != "auto":
        return asked, "as asked"
    if not compute_capabilities:
        if cpu_bfloat16_flag is None:
            return "float32", "bfloat16 is not faster on this CPU"
        return "float32", f"this CPU has {cpu_bfloat16_flag}: mixed_bfloat16 may be faster"
    known = [capability for capability in compute_capabilities if capability is not None]
    if len(known) < len(compute_capabilities):
        return "float32", "unknown compute capability"
    major, minor = weakest = min(known)
    reason = f"compute capability {major}.{minor}"
    if weakest >= (8, 0):
        return "mixed_bfloat16", reason
    if weakest >= (7, 0):
        return "mixed_float16", reason
    return "float32", reason


def choose_jit(
    asked: str, choice: DeviceChoice, precision: str, *, mirrored: bool, deterministic: bool
) -> tuple[bool, str]:
    """Decide whether XLA compiles the training step.

    Args:
        asked: The config's `jit`.
        choice: The devices that train.
        precision: The dtype policy that was chosen.
        mirrored: Whether the step runs under a strategy.
        deterministic: Whether operations have to be bit-identical when repeated.

    Returns:
        On or off, and the reason.

    Raises:
        RuntimeSetupError: If XLA is asked for where it is known to fail.
    """
    if asked == "off":
        return False, "as asked"
    if asked == "on":
        _check_jit_is_possible(choice, precision)
        if choice.count > 1:
            return True, "as asked; with several replicas it leaks memory"
        return True, "as asked; slower on CPU" if choice.kind == "CPU" else "as asked"
    if choice.kind == "CPU":
        return False, "slower on CPU"
    if mirrored:
        return False, "unreliable under a strategy"
    if deterministic:
        return False, "not every operation is deterministic under it"
    return True, "one GPU"


def _check_jit_is_possible(choice: DeviceChoice, precision: str) -> None:
    """Refuse what TensorFlow 2.21 fails on only in the middle of the first step."""
    fix = "Set jit: off, or train on one device"
    if choice.kind == "CPU" and choice.count > 1:
        raise RuntimeSetupError(
            "XLA cannot compile a step that is spread over several CPU devices. "
            f"Received: jit=on, {choice.count} CPU replicas. {fix}"
        )
    if precision == "mixed_float16" and choice.count > 1:
        raise RuntimeSetupError(
            "XLA cannot compile loss scaling over several replicas (keras issue 21366). Received: "
            f"jit=on, precision=mixed_float16, {choice.count} replicas. {fix}, or set precision: "
            "mixed_bfloat16"
        )
