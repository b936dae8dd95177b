"""What each of several workers on one machine may use of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from trainer.config.schema import RuntimeConfig
from trainer.machine import num_cores, nvidia_gpus

_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
_GPUS = "CUDA_VISIBLE_DEVICES"


def environment_of(worker: int, workers: int, runtime: RuntimeConfig) -> dict[str, str]:
    """Return the environment of one of several workers: ours, and its share of the machine.

    Cores are divided, unless the user has said how many threads there are to be. GPUs are
    divided evenly: workers with more of them than others would score the same point
    otherwise. Where there are fewer GPUs than workers, some share one.
    """
    shared = dict(os.environ)
    threads = str(max(1, num_cores() // workers))
    for name in _THREADS:
        shared.setdefault(name, threads)
    if runtime.devices != "cpu":
        gpus = share_of_gpus(worker, workers, _visible(os.environ), runtime.devices)
        if gpus:
            shared[_GPUS] = ",".join(gpus)
    return shared


def share_of_gpus(worker: int, workers: int, gpus: Sequence[str], devices: int | str) -> list[str]:
    """Return the GPUs of a worker.

    Args:
        worker: From 0.
        workers: How many there are.
        gpus: What CUDA calls those that may be used.
        devices: `runtime.devices`; a number is what each trial needs.
    """
    if not gpus:
        return []
    each = devices if isinstance(devices, int) else max(1, len(gpus) // workers)
    first = worker * each
    return [gpus[(first + i) % len(gpus)] for i in range(min(each, len(gpus)))]


def _visible(environment: Mapping[str, str]) -> list[str]:
    said = environment.get(_GPUS)
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip()]
    return [str(i) for i in range(len(nvidia_gpus()))]
