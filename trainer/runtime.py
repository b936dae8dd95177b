"""What a run computes on: devices, strategy, precision, XLA and seeds, decided once.

`set_up` turns the `runtime` section of the config into one frozen `Runtime` and
one line that says what was chosen and why. It is called before anything is
built, because TensorFlow fixes its devices when it runs its first operation.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import trainer
from trainer import machine
from trainer.config.schema import RuntimeConfig
from trainer.errors import RuntimeSetupError
from trainer.quiet import require_tensorflow_backend
from trainer.runtime_choices import (
    DeviceChoice,
    Gpu,
    choose_devices,
    choose_jit,
    choose_precision,
)


@dataclass(frozen=True)
class Runtime:
    """Everything about the machine that the rest of the code needs to know.

    Attributes:
        strategy: What spreads a step over the replicas; None on one device.
        devices: Names of the devices that train, as TensorFlow calls them.
        num_replicas: Parts that each batch is divided into, one a device.
        precision: The Keras dtype policy, which is also set globally.
        jit_compile: Whether XLA compiles the training step; for `compile`.
        deterministic: Whether operations are bit-identical when repeated. Also
            True if an earlier call in this process asked for it, because
            TensorFlow has no public way back.
        line: What was chosen and why, for people.
    """

    strategy: tf.distribute.Strategy | None
    devices: tuple[str, ...]
    num_replicas: int
    precision: str
    jit_compile: bool
    deterministic: bool
    line: str

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which models and optimizers are built."""
        return nullcontext() if self.strategy is None else self.strategy.scope()


def set_up(config: RuntimeConfig, seed: int) -> Runtime:
    """Prepare TensorFlow and Keras for one run and say what was chosen.

    May be called again in one process, as long as no call needs devices that the
    first one did not start: TensorFlow fixes them for the life of a process.

    Args:
        config: The `runtime` section.
        seed: Given to the generators of Python, NumPy, TensorFlow and Keras.

    Raises:
        RuntimeSetupError: If the machine, or this process by now, cannot do what
            the config asks for, or if Keras is set to another backend.
    """
    require_tensorflow_backend()
    # Not above: with another backend, importing Keras fails before a message can be given.
    import keras

    require_tensorflow_backend(keras.config.backend())
    gpus = find_gpus()
    choice = choose_devices(config, gpus)
    devices = _start_devices(choice, config.logical_cpus)
    precision, why_precision = choose_precision(
        config.precision,
        [gpu.compute_capability for gpu in gpus[: choice.count] if choice.kind == "GPU"],
        machine.cpu_bfloat16_flag(),
    )
    mirrored = config.strategy == "mirrored" or choice.count > 1
    deterministic = config.deterministic or _is_deterministic()
    jit_compile, why_jit = choose_jit(
        config.jit, choice, precision, mirrored=mirrored, deterministic=deterministic
    )

    keras.config.set_dtype_policy(precision)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)

    words = [
        f"{choice.count} {choice.kind}{'s' if choice.count > 1 else ''} ({choice.reason})",
        f"{precision} ({why_precision})",
        f"XLA {'on' if jit_compile else 'off'} ({why_jit})",
        f"seed {seed}",
    ]
    if mirrored:
        words.insert(1, "MirroredStrategy")
    if deterministic:
        why = "as asked" if config.deterministic else "since an earlier run in this process"
        words.insert(-1, f"deterministic ({why})")
    return Runtime(
        strategy=_mirrored_strategy(devices, choice.kind) if mirrored else None,
        devices=devices,
        num_replicas=choice.count,
        precision=precision,
        jit_compile=jit_compile,
        deterministic=deterministic,
        line=f"runtime: {', '.join(words)}",
    )


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that TensorFlow can use, without starting them."""
    details = (
        tf.config.experimental.get_device_details(device)
        for device in tf.config.list_physical_devices("GPU")
    )
    return tuple(
        Gpu(each.get("device_name", "unnamed GPU"), each.get("compute_capability"))
        for each in details
    )


def peak_gpu_memory_mib() -> dict[str, float]:
    """Return `gpu_memory_mib`, the most that TensorFlow has had of one GPU; nothing without."""
    peaks = []
    for gpu in tf.config.list_logical_devices("GPU"):
        # Some allocators count nothing.
        with suppress(ValueError, tf.errors.OpError):
            name = gpu.name.removeprefix("/device:")
            peaks.append(tf.config.experimental.get_memory_info(name)["peak"])
    return {"gpu_memory_mib": max(peaks) / 2**20} if peaks else {}


def _start_devices(choice: DeviceChoice, logical_cpus: int) -> tuple[str, ...]:
    """Start TensorFlow with the chosen devices only and return their names."""
    gpus = tf.config.list_physical_devices("GPU")[: choice.count if choice.kind == "GPU" else 0]
    # Each raises once TensorFlow has started; whether what it started with is enough
    # is judged below. Memory growth alone is no reason to refuse.
    with suppress(RuntimeError):
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        with suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if logical_cpus > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        with suppress(RuntimeError):
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * logical_cpus
            )
    started = [device.name for device in tf.config.list_logical_devices(choice.kind)]
    if len(started) < choice.count:
        raise RuntimeSetupError(
            f"the run needs {choice.count} {choice.kind} devices and TensorFlow has already "
            f"started with {len(started)}; it cannot change them afterwards. Start a new process, "
            "and set up the runtime before any TensorFlow operation"
        )
    if choice.kind == "CPU" and tf.config.list_logical_devices("GPU"):
        raise RuntimeSetupError(
            "the run is to use the CPU and TensorFlow has already started with a GPU; it cannot "
            "leave it afterwards. Start a new process, and set up the runtime before any "
            "TensorFlow operation"
        )
    return tuple(started[: choice.count])


def _mirrored_strategy(devices: Sequence[str], kind: str) -> tf.distribute.MirroredStrategy:
    # The default reduction fails with several steps in one execution and with a second
    # strategy in one process (TensorFlow 2.21).
    reduction = (
        tf.distribute.HierarchicalCopyAllReduce()
        if kind == "GPU" and len(devices) > 1
        else tf.distribute.ReductionToOneDevice()
    )
    return tf.distribute.MirroredStrategy(list(devices), cross_device_ops=reduction)


def _is_deterministic() -> bool:
    # TensorFlow has no public name for this; Keras asks the same way.
    from tensorflow.python.framework.config import is_op_determinism_enabled

    return bool(is_op_determinism_enabled())


def describe_environment(runtime: Runtime, command: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what has to be known to repeat a run, ready for JSON.

    Args:
        runtime: What `set_up` returned.
        command: The command line, one string an argument.
        seed: The config's seed.
    """
    import keras

    memory = machine.memory_gib()
    drivers = {gpu.name: gpu.driver for gpu in machine.nvidia_gpus()}
    strategy = runtime.strategy
    return {
        "command": list(command),
        "seed": seed,
        "git": machine.git_state(Path.cwd()),
        "versions": {
            "trainer": trainer.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "platform": platform.platform(),
        "cpu": machine.cpu_model(),
        "cores": machine.num_cores(),
        "memory_gib": None if memory is None else round(memory[0], 1),
        "gpus": [
            {
                "name": gpu.name,
                "compute_capability": gpu.compute_capability
                and ".".join(map(str, gpu.compute_capability)),
                "driver": drivers.get(gpu.name),
            }
            for gpu in find_gpus()
        ],
        "devices": list(runtime.devices),
        "strategy": None if strategy is None else type(strategy).__name__,
        "num_replicas": runtime.num_replicas,
        "precision": runtime.precision,
        "jit_compile": runtime.jit_compile,
        "deterministic": runtime.deterministic,
        "runtime": runtime.line,
        "environment": machine.relevant_environment(),
    }
