"""`trainer doctor`: what this machine offers, what is amiss, and what mends it.

The facts are gathered here and judged in `doctor_checks`. TensorFlow is imported
late and under guard, because a broken TensorFlow is one of the things to be found.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from trainer import machine
from trainer.doctor_checks import (
    Check,
    TensorFlowFacts,
    check_backend,
    check_cifar10,
    check_cpu,
    check_data,
    check_disk,
    check_gpu,
    check_memory,
    check_packages,
    check_python,
    check_runs_dir,
    existing_folder,
)

__all__ = ["Check", "examine", "format_checks"]


def examine(*data_paths: str, runs_dir: Path = Path("runs")) -> list[Check]:
    """Look at everything that a run depends on.

    Args:
        *data_paths: Folders with images that a config names, besides the places
            where CIFAR-10 is looked for anyway.
        runs_dir: Where runs are kept; it need not exist yet.
    """
    tensorflow = _tensorflow_facts()
    return [
        *_check_installation(),
        check_backend(os.environ.get("KERAS_BACKEND"), tensorflow.error),
        check_gpu(
            tensorflow,
            machine.nvidia_gpus(),
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            lambda library: machine.can_load(library, tensorflow.site_packages),
        ),
        check_cpu(machine.cpu_model(), machine.num_cores(), machine.cpu_bfloat16_flag()),
        check_memory(machine.memory_gib()),
        check_runs_dir(runs_dir),
        *(check_disk(path) for path in dict.fromkeys((Path.cwd(), existing_folder(runs_dir)))),
        *(check_data(Path(path).expanduser(), path) for path in data_paths),
        check_cifar10(os.environ.get("CIFAR10_DIR"), _keras_cache()),
        Check("data: shapes", "ok", "embedded, always there"),
    ]


def format_checks(checks: Sequence[Check]) -> str:
    """Return the checks as plain text of 80 columns, problems counted at the end.

    Paths and commands are not broken, so that they can be copied.
    """
    width = max((len(check.name) for check in checks), default=0)
    indent = " " * (9 + width + 2)
    lines = []
    for check in checks:
        texts = [(f"{check.status:<9}{check.name:<{width}}  ", check.detail)]
        if check.fix is not None:
            texts.append((indent, f"fix: {check.fix}"))
        lines += [
            textwrap.fill(
                text, 80, initial_indent=start, subsequent_indent=indent,
                break_long_words=False, break_on_hyphens=False,
            )
            for start, text in texts
        ]  # fmt: skip
    problems = sum(check.status == "problem" for check in checks)
    notes = sum(check.status == "note" for check in checks)
    counts = [
        f"{count} {word}{'s' if count > 1 else ''}"
        for count, word in ((problems, "problem"), (notes, "note"))
        if count
    ]
    return "\n".join([*lines, "", ", ".join(counts) or "all is well"])


def _check_installation() -> list[Check]:
    try:
        package = metadata.metadata("trainer")
    except metadata.PackageNotFoundError:
        detail = "not installed, so that package versions cannot be checked"
        return [Check("trainer", "note", detail, "pip install -e . in the project's folder")]
    return [
        check_python(package["Requires-Python"]),
        *check_packages(metadata.requires("trainer") or (), machine.package_version),
    ]


def _keras_cache() -> Path:
    """Return where `keras.datasets.cifar10` keeps its copy (Keras 3.15)."""
    base = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return base / "datasets" / "cifar-10-batches-py-target" / "cifar-10-batches-py"


def _tensorflow_facts() -> TensorFlowFacts:
    # A broken installation raises nearly anything: ImportError, TypeError of an old
    # protobuf, AttributeError of a mismatched NumPy.
    try:
        import tensorflow as tf

        from trainer.runtime import find_gpus

        return TensorFlowFacts(
            gpus=find_gpus(),
            build=dict(tf.sysconfig.get_build_info()),
            site_packages=Path(tf.__file__).parents[1],
        )
    except Exception as error:
        lines = str(error).strip().splitlines()
        return TensorFlowFacts(
            error=f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        )
