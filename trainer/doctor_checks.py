"""The judgements of `trainer doctor`, each a function of facts that it is given.

`doctor` gathers the facts. Nothing here needs a GPU, a network or TensorFlow, so
that every fault can be rehearsed on a healthy machine.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainer import machine
from trainer.data.cifar10 import load_cifar10
from trainer.errors import DataError
from trainer.machine import NvidiaGpu
from trainer.runtime_choices import Gpu

Status = Literal["ok", "note", "problem"]

_INSTALL_GPU = "pip install 'trainer[gpu]'"
_EXTRAS_NOT_REPORTED = ("dev", "gpu")  # Of gpu, the GPU check speaks.
_PURPOSES = {"keras-tuner": "the hyperparameter search of `trainer tune`"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at, a few words.
        status: ok; note, for what is good to know; problem, for what stops a run
            or silently wastes the machine.
        detail: What was found.
        fix: A command or an action that mends it.
    """

    name: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class TensorFlowFacts:
    """What TensorFlow says of itself, or the error with which its import ended."""

    gpus: tuple[Gpu, ...] = ()
    build: Mapping[str, Any] = field(default_factory=dict)
    site_packages: Path = Path()
    error: str | None = None


def check_python(requires: str) -> Check:
    """Judge the Python version against a specifier such as `">=3.11"`."""
    version = platform.python_version()
    if SpecifierSet(requires).contains(version, prereleases=True):
        return Check("Python", "ok", f"{version} (needs {requires})")
    return Check("Python", "problem", f"{version} (needs {requires})", f"install Python {requires}")


def check_packages(
    requirements: Sequence[str], find_version: Callable[[str], str | None]
) -> list[Check]:
    """Judge the installed packages against what the trainer asks for.

    Args:
        requirements: As in a package's metadata: `"keras<4,>=3.15"`, or
            `"keras-tuner>=1.4.8; extra == 'search'"` for an optional one.
        find_version: Package name -> installed version, or None.
    """
    parsed = [Requirement(text) for text in requirements]
    return [
        check
        for requirement in parsed
        if (check := _check_package(requirement, find_version(requirement.name))) is not None
    ]


def _check_package(requirement: Requirement, version: str | None) -> Check | None:
    name, needs = requirement.name, f"needs {requirement.specifier}"
    fits = version is not None and requirement.specifier.contains(version, prereleases=True)
    extra = _extra_of(requirement)
    if extra in _EXTRAS_NOT_REPORTED:
        return None
    if extra is None:
        if requirement.marker is not None and not requirement.marker.evaluate():
            return None
        if fits:
            return Check(name, "ok", f"{version} ({needs})")
        fix = f"pip install '{name}{requirement.specifier}'"
        return Check(name, "problem", f"{version or 'not installed'} ({needs})", fix)
    purpose = f"for {_PURPOSES.get(name, f'the extra {extra}')}"
    if fits:
        return Check(name, "ok", f"{version}, {purpose}")
    detail = f"{version or 'not installed'} ({needs}), {purpose}"
    return Check(name, "note", detail, f"pip install 'trainer[{extra}]'")


def _extra_of(requirement: Requirement) -> str | None:
    """Return the extra that a requirement belongs to, None if it is always needed."""
    quoted = str(requirement.marker or "").replace("'", '"').partition('extra == "')[2]
    return quoted.partition('"')[0] or None


def check_backend(keras_backend: str | None, tensorflow_error: str | None) -> Check:
    """Judge whether Keras runs on a TensorFlow that can be imported."""
    if tensorflow_error is not None:
        return Check(
            "TensorFlow", "problem", f"cannot be imported: {tensorflow_error}",
            "pip install --force-reinstall tensorflow",
        )  # fmt: skip
    if keras_backend not in (None, "tensorflow"):
        detail = f"KERAS_BACKEND={keras_backend}; the trainer needs tensorflow"
        return Check("Keras backend", "problem", detail, "unset KERAS_BACKEND")
    return Check("Keras backend", "ok", "tensorflow")


def check_gpu(
    tensorflow: TensorFlowFacts,
    driver_gpus: Sequence[NvidiaGpu],
    visible: str | None,
    can_load: Callable[[str], bool],
) -> Check:
    """Judge whether TensorFlow can use the GPUs that are there, and if not, why.

    Args:
        tensorflow: What TensorFlow sees.
        driver_gpus: What the NVIDIA driver sees.
        visible: The variable CUDA_VISIBLE_DEVICES.
        can_load: Tells whether the shared library of a file name can be loaded;
            asked only if TensorFlow sees no GPU where there is one.
    """
    if tensorflow.gpus:
        return _check_usable_gpus(tensorflow, driver_gpus)
    if not driver_gpus:
        return Check("GPU", "note", "no NVIDIA GPU found (nvidia-smi lists none): runs use the CPU")
    there = ", ".join(dict.fromkeys(gpu.name for gpu in driver_gpus))
    start = f"{len(driver_gpus)} ({there}), but TensorFlow sees none: "
    if tensorflow.error is not None:
        return Check("GPU", "problem", start + "it cannot be imported", "see TensorFlow above")
    if visible is not None and visible.strip() in ("", "-1"):
        detail = f"{start}CUDA_VISIBLE_DEVICES={visible!r} hides them"
        return Check("GPU", "note", detail, "unset CUDA_VISIBLE_DEVICES")
    if not tensorflow.build.get("is_cuda_build"):
        fix = f"pip uninstall -y tensorflow tensorflow-cpu && {_INSTALL_GPU}"
        return Check("GPU", "problem", start + "it is built without CUDA", fix)
    if not can_load("libcuda.so.1"):
        return Check(
            "GPU", "problem", start + "the driver's own library libcuda.so.1 cannot be loaded",
            "install the NVIDIA driver's libraries; for a container, start it with --gpus all and "
            "the NVIDIA Container Toolkit",
        )  # fmt: skip
    versions = tensorflow.build.get("cuda_version", ""), tensorflow.build.get("cudnn_version", "")
    libraries = machine.cuda_libraries(*versions)
    missing = [library for library in libraries if not can_load(library)]
    if missing:
        packages = ", ".join(dict.fromkeys(libraries[library] for library in missing))
        detail = f"{start}cannot load {', '.join(missing)} (of {packages})"
        return Check("GPU", "problem", detail, _INSTALL_GPU)
    return Check(
        "GPU", "problem",
        f"{start}every CUDA library can be loaded, so that driver {driver_gpus[0].driver} may be "
        f"too old for CUDA {versions[0]}, or LD_LIBRARY_PATH puts other versions first",
        "unset LD_LIBRARY_PATH, or update the driver; TensorFlow names its reason in: python -c "
        "\"import tensorflow as tf; print(tf.config.list_physical_devices('GPU'))\"",
    )  # fmt: skip


def _check_usable_gpus(tensorflow: TensorFlowFacts, driver_gpus: Sequence[NvidiaGpu]) -> Check:
    names = ", ".join(
        gpu.name + (" (compute capability {}.{})".format(*gpu.compute_capability)
                    if gpu.compute_capability else "")
        for gpu in tensorflow.gpus
    )  # fmt: skip
    detail = f"{len(tensorflow.gpus)}: {names}"
    if driver_gpus:
        detail += f", driver {driver_gpus[0].driver}"
    free = [gpu.free_gib for gpu in driver_gpus if gpu.free_gib is not None]
    if free:
        detail += f", {min(free):.1f} GiB free"
    built = [
        int(digits)
        for name in tensorflow.build.get("cuda_compute_capabilities", ())
        if (digits := name.rpartition("_")[2]).isdigit()
    ]
    present = [10 * gpu.compute_capability[0] + gpu.compute_capability[1]
               for gpu in tensorflow.gpus if gpu.compute_capability]  # fmt: skip
    if built and present and min(present) < min(built):
        detail += "; this TensorFlow has no code for so old a GPU"
        return Check("GPU", "problem", detail, "set devices: cpu in the runtime section")
    if built and present and max(present) // 10 > max(built) // 10:
        detail += "; newer than this TensorFlow: the first run compiles for minutes"
        return Check("GPU", "note", detail, "pip install --upgrade 'tensorflow[and-cuda]'")
    if free and min(free) < 1:
        detail += "; another process holds its memory"
        return Check("GPU", "note", detail, "nvidia-smi lists the processes")
    return Check("GPU", "ok", detail)


def check_cpu(model: str, num_cores: int, bfloat16_flag: str | None) -> Check:
    """Report the CPU and whether bfloat16 pays off on it."""
    detail = f"{model}, {num_cores} core{'s' if num_cores > 1 else ''}"
    if bfloat16_flag is None:
        return Check("CPU", "ok", f"{detail}; float32 is fastest")
    return Check("CPU", "ok", f"{detail}, {bfloat16_flag}: precision: mixed_bfloat16 may be faster")


def check_memory(memory_gib: tuple[float, float] | None) -> Check:
    """Judge the memory: in GiB, what this process may use and what is free of it."""
    if memory_gib is None:
        return Check("memory", "note", "unknown on this system")
    total, free = memory_gib
    detail = f"{free:.1f} of {total:.1f} GiB free"
    if free >= 2:
        return Check("memory", "ok", detail)
    return Check(
        "memory", "problem" if free < 1 else "note", f"{detail}; CIFAR-10 needs about 2",
        "end other programs, or use data.source: shapes",
    )  # fmt: skip


def check_disk(path: Path) -> Check:
    """Judge the free space around a folder that exists."""
    free_gib = shutil.disk_usage(path).free / machine.GIB
    detail = f"{free_gib:.1f} GiB free at {path}"
    if free_gib >= 2:
        return Check("disk", "ok", detail)
    return Check("disk", "problem" if free_gib < 0.2 else "note", detail, "delete old runs")


def check_runs_dir(runs_dir: Path) -> Check:
    """Judge whether a run directory could be written, by writing a file there."""
    if runs_dir.exists() and not runs_dir.is_dir():
        return Check("runs", "problem", f"{runs_dir} is a file", f"move {runs_dir} away")
    try:
        with tempfile.TemporaryFile(dir=existing_folder(runs_dir)) as file:
            file.write(b"x")
    except OSError as error:
        fix = "make the folder writable, or start from another one"
        return Check("runs", "problem", f"cannot write to {runs_dir}: {error.strerror}", fix)
    state = "can be written" if runs_dir.exists() else "can be made"
    return Check("runs", "ok", f"{runs_dir} {state}")


def check_data(path: Path, name: str) -> Check:
    """Judge a folder of images: CIFAR-10, or train/ and test/ with a folder a class."""
    parts = [path / "train", path / "test"]
    if all(part.is_dir() for part in parts):
        num_classes = sum(entry.is_dir() for entry in parts[0].iterdir())
        return Check(f"data: {name}", "ok", f"a directory source with {num_classes} classes")
    return _check_cifar10_copy(path, f"data: {name}")


def check_cifar10(environment: str | None, cache: Path) -> Check:
    """Judge the copy of CIFAR-10 that a config without `data.path` gets.

    Args:
        environment: The variable CIFAR10_DIR.
        cache: The folder in which Keras keeps its copy.
    """
    if environment:
        return _check_cifar10_copy(Path(environment).expanduser(), "data: cifar10")
    if cache.exists():
        return _check_cifar10_copy(cache, "data: cifar10")
    return Check(
        "data: cifar10", "note", "no local copy: the first run downloads 163 MiB",
        "set CIFAR10_DIR to a copy, or use data.source: shapes",
    )  # fmt: skip


def _check_cifar10_copy(path: Path, name: str) -> Check:
    try:
        parts = [load_cifar10(str(path), part) for part in ("train", "test")]
    except DataError as error:
        return Check(name, "problem", str(error))
    images = " and ".join(f"{part.num_images}" for part in parts)
    return Check(name, "ok", f"{parts[0].origin}, {images} images, read in full")


def existing_folder(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    absolute = path.absolute()
    return next(each for each in (absolute, *absolute.parents) if each.is_dir())
