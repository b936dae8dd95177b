"""What the doctor finds, with the machine's facts given and with the real ones."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from trainer import machine
from trainer.doctor import Check, examine, format_checks
from trainer.doctor_checks import (
    TensorFlowFacts,
    check_backend,
    check_cifar10,
    check_cpu,
    check_data,
    check_gpu,
    check_memory,
    check_packages,
    check_python,
    check_runs_dir,
)
from trainer.machine import NvidiaGpu
from trainer.runtime_choices import Gpu

BUILD = {
    "is_cuda_build": True,
    "cuda_version": "12.5.1",
    "cudnn_version": "9",
    "cuda_compute_capabilities": ["sm_60", "sm_89", "compute_90"],
}
A100 = NvidiaGpu("NVIDIA A100-SXM4-40GB", "550.54", 39.0)


def gpu_check(gpus=(), driver_gpus=(A100,), visible=None, lacking=(), build=BUILD, error=None):
    facts = TensorFlowFacts(gpus=gpus, build=build, error=error)
    return check_gpu(facts, driver_gpus, visible, lambda library: library not in lacking)


def test_a_usable_gpu_is_reported_with_its_capability_and_driver():
    check = gpu_check(gpus=(Gpu("NVIDIA A100-SXM4-40GB", (8, 0)),))
    assert check.status == "ok"
    assert "A100" in check.detail and "8.0" in check.detail and "550.54" in check.detail


def test_no_gpu_at_all_is_a_note():
    assert gpu_check(driver_gpus=()).status == "note"


def test_missing_cuda_libraries_are_named_with_their_packages_and_the_command():
    check = gpu_check(lacking={"libcudnn.so.9", "libcublas.so.12"})
    assert check.status == "problem"
    assert "libcudnn.so.9" in check.detail and "nvidia-cudnn-cu12" in check.detail
    assert "libcublas.so.12" in check.detail and "libcudart" not in check.detail
    assert check.fix == "pip install 'trainer[gpu]'"


def test_a_missing_driver_library_is_not_mended_by_pip():
    check = gpu_check(lacking={"libcuda.so.1", "libcudnn.so.9"})
    assert check.status == "problem" and "libcuda.so.1" in check.detail
    assert "pip" not in check.fix


def test_gpus_hidden_by_the_environment_are_a_note():
    check = gpu_check(visible="-1", lacking={"libcudnn.so.9"})
    assert check.status == "note"
    assert check.fix == "unset CUDA_VISIBLE_DEVICES"


def test_a_tensorflow_without_cuda_is_to_be_replaced():
    check = gpu_check(build={"is_cuda_build": False})
    assert check.status == "problem" and "without CUDA" in check.detail


def test_a_gpu_that_tensorflow_ignores_with_all_libraries_there_is_a_problem():
    check = gpu_check()
    assert check.status == "problem"
    assert "driver 550.54" in check.detail and "CUDA 12.5.1" in check.detail


@pytest.mark.parametrize(
    ("capability", "status"),
    [((5, 2), "problem"), ((8, 6), "ok"), ((9, 0), "ok"), ((12, 0), "note")],
)
def test_a_gpu_is_judged_by_what_tensorflow_was_built_for(capability, status):
    assert gpu_check(gpus=(Gpu("a GPU", capability),)).status == status


def test_a_gpu_whose_memory_is_taken_is_a_note():
    check = gpu_check(gpus=(Gpu("a GPU", (8, 0)),), driver_gpus=(NvidiaGpu("a GPU", "550", 0.3),))
    assert check.status == "note" and "0.3 GiB free" in check.detail


def test_the_libraries_asked_for_are_those_of_the_build():
    libraries = machine.cuda_libraries("13.1.0", "10")
    assert {"libcudart.so.13", "libcudnn.so.10"} <= libraries.keys()
    assert libraries["libcublas.so.13"] == "nvidia-cublas-cu13"


def test_a_library_that_does_not_exist_cannot_be_loaded(tmp_path):
    assert not machine.can_load("libno_such_library.so.1", tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names a Linux library")
def test_a_library_of_the_system_can_be_loaded(tmp_path):
    assert machine.can_load("libc.so.6", tmp_path)


def test_a_broken_library_in_a_pip_package_cannot_be_loaded(tmp_path):
    folder = tmp_path / "nvidia" / "cudnn" / "lib"
    folder.mkdir(parents=True)
    (folder / "libno_such_library.so.1").write_bytes(b"no ELF")
    assert not machine.can_load("libno_such_library.so.1", tmp_path)


def test_nvidia_smi_is_read_as_it_prints(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text(
        "#!/bin/sh\necho '550.54, 38912, NVIDIA A100-SXM4-40GB'\necho '550.54, [N/A], GPU, odd'\n"
    )
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpus() == (
        NvidiaGpu("NVIDIA A100-SXM4-40GB", "550.54", 38.0),
        NvidiaGpu("GPU, odd", "550.54", None),
    )


def test_a_failing_nvidia_smi_means_no_gpu(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, because, of'\nexit 9\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpus() == ()


def test_packages_are_judged_by_the_versions_that_are_asked_for():
    versions = {"keras": "3.14.0", "numpy": "2.4.6", "keras-tuner": None, "tensorflow": None}
    checks = check_packages(
        [
            "keras<4,>=3.15",
            "numpy<3,>=2.0",
            "tensorflow>=2.21",
            "keras-tuner>=1.4.8; extra == 'search'",
            "pytest>=8; extra == 'dev'",
            "tomli>=1; python_version < '3.0'",
        ],
        versions.get,
    )
    assert [(check.name, check.status) for check in checks] == [
        ("keras", "problem"),
        ("numpy", "ok"),
        ("tensorflow", "problem"),
        ("keras-tuner", "note"),
    ]
    keras, _, tensorflow, tuner = checks
    assert "3.14.0" in keras.detail and ">=3.15" in keras.fix
    assert "not installed" in tensorflow.detail
    assert "trainer tune" in tuner.detail and tuner.fix == "pip install 'trainer[search]'"


def test_an_old_python_is_a_problem():
    assert check_python(">=3.11").status == "ok"
    assert check_python(">=4.0").status == "problem"


def test_a_tensorflow_that_cannot_be_imported_is_a_problem_with_its_reason():
    check = check_backend(None, "ImportError: DLL load failed")
    assert check.status == "problem" and "DLL load failed" in check.detail
    gpu = gpu_check(error="ImportError: DLL load failed")
    assert gpu.status == "problem" and "cannot be imported" in gpu.detail


def test_another_keras_backend_is_a_problem():
    assert check_backend("jax", None).fix == "unset KERAS_BACKEND"
    assert check_backend(None, None).status == "ok"


def test_bfloat16_ability_names_the_setting_that_uses_it():
    assert "mixed_bfloat16" in check_cpu("Some CPU", 2, "amx_bf16").detail
    assert "mixed_bfloat16" not in check_cpu("Some CPU", 2, None).detail


@pytest.mark.parametrize(
    ("memory", "status"),
    [((16.0, 8.0), "ok"), ((16.0, 1.5), "note"), ((16.0, 0.5), "problem"), (None, "note")],
)
def test_little_free_memory_is_pointed_out(memory, status):
    assert check_memory(memory).status == status


def test_a_runs_folder_is_tried_by_writing_and_left_clean(tmp_path):
    assert check_runs_dir(tmp_path).status == "ok"
    assert check_runs_dir(tmp_path / "not" / "yet").status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_runs_folder_is_a_problem(tmp_path):
    (tmp_path / "runs").touch()
    assert check_runs_dir(tmp_path / "runs").status == "problem"


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    check = check_runs_dir(tmp_path)
    assert check.status == "problem" and "Permission denied" in check.detail


def test_an_empty_cifar10_folder_is_a_problem_and_no_copy_at_all_a_note(tmp_path):
    assert check_cifar10(str(tmp_path), tmp_path / "cache").status == "problem"
    assert check_cifar10(None, tmp_path / "cache").status == "note"


def test_a_directory_source_is_recognised_with_its_classes(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
    check = check_data(tmp_path, "pets")
    assert check.status == "ok" and "2 classes" in check.detail
    assert check_data(tmp_path / "absent", "absent").status == "problem"


def test_examining_this_machine_covers_every_subject(tmp_path, monkeypatch):
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    checks = examine(runs_dir=tmp_path / "runs")
    names = {check.name for check in checks}
    assert {"Keras backend", "GPU", "CPU", "memory", "disk", "runs"} <= names
    assert {"data: cifar10", "data: shapes"} <= names
    assert not (tmp_path / "runs").exists()


def test_checks_are_laid_out_in_80_columns_with_fixes_and_a_count():
    text = format_checks(
        [
            Check("CPU", "ok", "word " * 40),
            Check("GPU", "problem", "not seen", "pip install 'trainer[gpu]'"),
            Check("memory", "problem", "none left"),
        ]
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "                 fix: pip install 'trainer[gpu]'" in lines
    assert lines[-1] == "2 problems"


def test_a_long_path_is_not_broken():
    path = str(Path("/data") / ("x" * 90))
    assert path in format_checks([Check("runs", "ok", f"written to {path}")])


def test_a_healthy_machine_is_told_so():
    assert format_checks([Check("CPU", "ok", "fine")]).endswith("all is well")
