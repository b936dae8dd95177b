"""Facts about this computer and this working tree, found without TensorFlow.

`runtime` decides by them, `doctor` reports them, and a run's
`environment.json` keeps them. A fact that cannot be found is None, never an
error: no run fails because its surroundings are hard to describe.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

GIB = 2**30
# AMX multiplies whole tiles of bfloat16. With AVX-512's instruction for it, oneDNN's convolutions
# (TensorFlow 2.21) take 0.5 to 1.0 times as long as in float32 on AMD's Zen 4, the gradients of
# kernels the most, and up to 1.9 times as long on Intel's Xeon, see `convolution`.
_BFLOAT16_FLAG = "amx_bf16"
BFLOAT16_FLAG_OF_AMD = "avx512_bf16"

_VARIABLES = ("CIFAR10_DIR", "CUDA_VISIBLE_DEVICES", "KERAS_BACKEND", "KERAS_HOME", "XLA_FLAGS")
# Not every TF_*: Terraform shares that prefix and keeps credentials under it.
_VARIABLE_PREFIXES = (
    "TF_CONFIG", "TF_CPP_", "TF_CUDNN_", "TF_DETERMINISTIC_", "TF_DISABLE_", "TF_ENABLE_",
    "TF_FORCE_", "TF_GPU_", "TF_NUM_", "TF_ONEDNN_", "TF_USE_", "TF_XLA_",
)  # fmt: skip


@dataclass(frozen=True)
class NvidiaGpu:
    """One GPU as the NVIDIA driver describes it, whether TensorFlow can use it or not."""

    name: str
    driver: str
    free_gib: float | None


def cpu_model() -> str:
    """Return the CPU's name for people, `unknown` if the system does not tell."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def cpu_bfloat16_flag(cpuinfo: str | None = None) -> str | None:
    """Return the instruction set that makes bfloat16 fast on this CPU, if it has one.

    Args:
        cpuinfo: The text of `/proc/cpuinfo`; None reads it. Systems without that
            file have no x86 CPU that TensorFlow runs bfloat16 fast on.

    Returns:
        `"amx_bf16"`, on an AMD CPU `"avx512_bf16"`, too, or None.
    """
    text = _read(Path("/proc/cpuinfo")) if cpuinfo is None else cpuinfo
    words: dict[str, set[str]] = {"flags": set(), "vendor_id": set()}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in words:
            words[key.strip()].update(value.split())
    if _BFLOAT16_FLAG in words["flags"]:
        return _BFLOAT16_FLAG
    if "AuthenticAMD" in words["vendor_id"] and BFLOAT16_FLAG_OF_AMD in words["flags"]:
        return BFLOAT16_FLAG_OF_AMD
    return None


def num_cores() -> int:
    """Return how many cores this process may use, which can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> tuple[float, float] | None:
    """Return the memory this process may use and what is free of it, in GiB.

    A container's limit counts where it is below what the computer has.
    """
    meminfo = _read(Path("/proc/meminfo"))
    kib = {
        key: int(value.split()[0])
        for key, _, value in (line.partition(":") for line in meminfo.splitlines())
        if value.split()
    }
    if not {"MemTotal", "MemAvailable"} <= kib.keys():
        return None
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    limit, used = _container_memory()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(limit - used, 0))
    return total / GIB, free / GIB


def peak_memory_mib() -> float:
    """Return the largest resident set that this process ever had, in MiB; NaN if unknown."""
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == "darwin" else 1)


def _container_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """Return the container's limit and its use in bytes, for cgroup version 2, then 1."""
    for limit_file, used_file, stat_file, cache_key in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        limit, used = _read(root / limit_file).strip(), _read(root / used_file).strip()
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split() for line in _read(root / stat_file).splitlines())
            # Cached files count as used but are given back on demand.
            return int(limit), max(int(used) - int(stat.get(cache_key, 0)), 0)
    return None, 0


def nvidia_gpus() -> tuple[NvidiaGpu, ...]:
    """Return the GPUs that `nvidia-smi` lists: none if it is absent or fails."""
    query = "--query-gpu=driver_version,memory.free,name"
    text = _output("nvidia-smi", query, "--format=csv,noheader,nounits") or ""
    rows = [line.split(",", 2) for line in text.splitlines() if line.count(",") >= 2]
    return tuple(
        NvidiaGpu(name.strip(), driver.strip(), int(mib) / 1024 if mib.strip().isdigit() else None)
        for driver, mib, name in rows
    )


def cuda_libraries(cuda_version: str, cudnn_version: str) -> dict[str, str]:
    """Return the libraries that a TensorFlow built for CUDA loads when it looks for GPUs.

    Args:
        cuda_version: As TensorFlow's build information has it, `"12.5.1"`.
        cudnn_version: Likewise, `"9"`.

    Returns:
        File name of each library -> the pip package that carries it.
    """
    cuda, cudnn = cuda_version.partition(".")[0], cudnn_version.partition(".")[0]
    libraries = {
        f"libcudart.so.{cuda}": f"nvidia-cuda-runtime-cu{cuda}",
        f"libcublas.so.{cuda}": f"nvidia-cublas-cu{cuda}",
        f"libcublasLt.so.{cuda}": f"nvidia-cublas-cu{cuda}",
        f"libcudnn.so.{cudnn}": f"nvidia-cudnn-cu{cuda}",
    }
    # These count their versions by themselves.
    if cuda == "12":
        libraries |= {
            "libcufft.so.11": "nvidia-cufft-cu12",
            "libcusolver.so.11": "nvidia-cusolver-cu12",
            "libcusparse.so.12": "nvidia-cusparse-cu12",
        }
    return libraries


def can_load(library: str, site_packages: Path) -> bool:
    """Return whether a shared library is found by the system or in an NVIDIA pip package.

    Args:
        library: File name, such as `"libcudnn.so.9"`.
        site_packages: The folder that holds the `nvidia` packages, where
            TensorFlow looks besides the system's folders.
    """
    packaged = sorted((site_packages / "nvidia").glob(f"*/lib/{library}"))
    for name in (library, *map(str, packaged)):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def git_state(directory: Path) -> dict[str, str | bool] | None:
    """Return the commit of the working tree around a directory and whether it was changed.

    Returns:
        `{"commit": ..., "dirty": ...}`, dirty also by untracked files; None
        without git, outside of a working tree, and before the first commit.
    """
    commit = _output("git", "-C", str(directory), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(directory), "--no-optional-locks", "status", "--porcelain")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def package_version(name: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def relevant_environment() -> dict[str, str]:
    """Return the environment variables that change what a run computes or where it reads."""
    return {
        key: value
        for key, value in sorted(os.environ.items())
        if key in _VARIABLES or key.startswith(_VARIABLE_PREFIXES)
    }


def _output(*command: str, timeout_seconds: float = 20.0) -> str | None:
    """Return what a command prints, or None if it is absent, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=timeout_seconds
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
