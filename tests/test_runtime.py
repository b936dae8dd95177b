"""What `set_up` chooses, on this machine for real and on others by their facts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import machine
from trainer.config.schema import RuntimeConfig
from trainer.errors import RuntimeSetupError
from trainer.runtime import describe_environment, set_up
from trainer.runtime_choices import (
    DeviceChoice,
    Gpu,
    choose_devices,
    choose_jit,
    choose_precision,
)

H100 = Gpu("NVIDIA H100", (9, 0))
CPU = DeviceChoice("CPU", 1, "")
TWO_CPUS = DeviceChoice("CPU", 2, "")
ONE_GPU = DeviceChoice("GPU", 1, "")
TWO_GPUS = DeviceChoice("GPU", 2, "")

# All that needs a process of its own, told as one story: TensorFlow fixes its devices once.
TWO_REPLICAS = """
import json
import keras
import numpy as np
import tensorflow as tf
from trainer.config.schema import RuntimeConfig
from trainer.errors import RuntimeSetupError
from trainer.runtime import describe_environment, set_up

def trained(runtime):
    keras.utils.set_random_seed(0)
    with runtime.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse", steps_per_execution=2)
    inputs = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)
    model.fit(inputs, inputs[:, :3], batch_size=4, shuffle=False, verbose=0)
    return model.get_weights()[0].tolist()

two = RuntimeConfig(logical_cpus=2)
first, again = set_up(two, 0), set_up(two, 0)
one = set_up(RuntimeConfig(logical_cpus=2, strategy="none"), 0)
try:
    set_up(RuntimeConfig(logical_cpus=3), 0)
    error = None
except RuntimeSetupError as caught:
    error = str(caught)
print(json.dumps({
    "line": first.line,
    "devices": first.devices,
    "num_replicas": [first.num_replicas, first.strategy.num_replicas_in_sync],
    "again": [again.line == first.line, again.devices == first.devices],
    "error": error,
    "environment": describe_environment(first, ["trainer", "train"], 0),
    "weights": [trained(first), trained(again), trained(one)],
    "deterministic": [
        set_up(RuntimeConfig(devices="cpu", deterministic=True), 0).deterministic,
        set_up(RuntimeConfig(devices="cpu"), 0).deterministic,
    ],
    "line_after": set_up(RuntimeConfig(devices="cpu"), 0).line,
}))
"""


@pytest.fixture(scope="module")
def two_replicas() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parents[1],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def _keep_the_dtype_policy():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


def draw() -> list[float]:
    return [
        random.random(),
        float(np.random.random()),
        float(tf.random.uniform(())),
        float(keras.random.uniform(())),
    ]


def test_two_logical_cpus_make_two_replicas(two_replicas):
    assert two_replicas["devices"] == ["/device:CPU:0", "/device:CPU:1"]
    assert two_replicas["num_replicas"] == [2, 2]
    assert "2 CPUs" in two_replicas["line"] and "MirroredStrategy" in two_replicas["line"]


def test_set_up_twice_with_the_same_setting_gives_the_same_runtime(two_replicas):
    assert two_replicas["again"] == [True, True]


def test_more_logical_cpus_after_tensorflow_started_are_refused(two_replicas):
    assert "needs 3 CPU devices" in two_replicas["error"]
    assert "already started with 2" in two_replicas["error"]
    assert "Start a new process" in two_replicas["error"]


def test_a_second_strategy_and_several_steps_an_execution_train_as_one_device(two_replicas):
    first, second, one_device = two_replicas["weights"]
    np.testing.assert_array_equal(first, second)
    # The replicas' sums are added in another order.
    np.testing.assert_allclose(first, one_device, rtol=0, atol=1e-6)


def test_determinism_stays_on_and_the_line_says_so(two_replicas):
    assert two_replicas["deterministic"] == [True, True]
    assert "deterministic (since an earlier run in this process)" in two_replicas["line_after"]


def test_the_environment_of_a_run_names_strategy_versions_and_command(two_replicas):
    environment = two_replicas["environment"]
    assert environment["strategy"] == "MirroredStrategy"
    assert environment["devices"] == two_replicas["devices"]
    assert environment["versions"]["tensorflow"] == tf.__version__
    assert environment["versions"]["keras"] == keras.__version__
    assert environment["command"] == ["trainer", "train"]
    assert environment["runtime"] == two_replicas["line"]


def test_the_same_seed_repeats_every_generator():
    set_up(RuntimeConfig(strategy="none"), 7)
    first = draw()
    set_up(RuntimeConfig(strategy="none"), 7)
    assert draw() == first


def test_another_seed_changes_every_generator():
    set_up(RuntimeConfig(strategy="none"), 7)
    first = draw()
    set_up(RuntimeConfig(strategy="none"), 8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_precision_becomes_the_policy_of_new_layers():
    runtime = set_up(RuntimeConfig(strategy="none", precision="mixed_bfloat16"), 0)
    assert runtime.precision == "mixed_bfloat16"
    assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    assert "mixed_bfloat16 (as asked)" in runtime.line


def test_one_device_needs_no_strategy():
    runtime = set_up(RuntimeConfig(strategy="none"), 0)
    assert runtime.strategy is None and runtime.num_replicas == 1
    with runtime.scope():
        assert not tf.distribute.has_strategy()


def test_mirrored_is_allowed_without_several_devices():
    runtime = set_up(RuntimeConfig(strategy="mirrored"), 0)
    assert runtime.strategy.num_replicas_in_sync == runtime.num_replicas
    with runtime.scope():
        assert tf.distribute.get_strategy() is runtime.strategy


def test_another_keras_backend_is_refused_before_keras_fails_on_it(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(RuntimeSetupError, match=r"TensorFlow backend.*'jax'.*KERAS_BACKEND"):
        set_up(RuntimeConfig(), 0)


def test_the_environment_can_be_written_as_json():
    runtime = set_up(RuntimeConfig(strategy="none"), 3)
    environment = describe_environment(runtime, ("trainer", "train"), 3)
    assert json.loads(json.dumps(environment)) == environment
    assert environment["seed"] == 3 and environment["strategy"] is None


@pytest.mark.parametrize(
    ("devices", "num_gpus", "kind", "count"),
    [
        ("auto", 0, "CPU", 1),
        ("auto", 1, "GPU", 1),
        ("auto", 4, "GPU", 4),
        ("gpu", 4, "GPU", 4),
        (2, 4, "GPU", 2),
        ("cpu", 4, "CPU", 1),
    ],
)
def test_devices_are_chosen_by_what_is_asked_and_what_is_there(devices, num_gpus, kind, count):
    choice = choose_devices(RuntimeConfig(devices=devices), [H100] * num_gpus)
    assert (choice.kind, choice.count) == (kind, count)


def test_strategy_none_uses_one_of_several_gpus_and_says_so():
    choice = choose_devices(RuntimeConfig(strategy="none"), [H100] * 4)
    assert choice.count == 1
    assert "one of 4" in choice.reason


def test_logical_cpus_rehearse_replicas_even_where_there_is_a_gpu():
    choice = choose_devices(RuntimeConfig(logical_cpus=2), [H100])
    assert (choice.kind, choice.count) == ("CPU", 2)


@pytest.mark.parametrize(
    ("config", "num_gpus", "message"),
    [
        ({"devices": "gpu"}, 0, "devices=gpu.*trainer doctor"),
        ({"devices": 1}, 0, "devices=1.*trainer doctor"),
        ({"devices": 3}, 2, "at most the number of GPUs.*2.*devices=3"),
        ({"devices": 2, "strategy": "none"}, 2, "devices=2, strategy=none"),
        ({"devices": "gpu", "logical_cpus": 2}, 1, "devices=gpu, logical_cpus=2"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(config, num_gpus, message):
    with pytest.raises(RuntimeSetupError, match=message):
        choose_devices(RuntimeConfig(**config), [H100] * num_gpus)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ([(9, 0)], "mixed_bfloat16"),
        ([(8, 0)], "mixed_bfloat16"),
        ([(7, 5)], "mixed_float16"),
        ([(7, 0)], "mixed_float16"),
        ([(6, 1)], "float32"),
        ([(10, 0), (7, 0)], "mixed_float16"),
        ([(9, 0), None], "float32"),
        ([], "float32"),
    ],
)
def test_the_weakest_gpu_decides_the_precision(capabilities, precision):
    assert choose_precision("auto", capabilities, None)[0] == precision


def test_a_cpu_with_bfloat16_stays_on_float32_and_hears_of_the_faster_way():
    precision, reason = choose_precision("auto", [], "amx_bf16")
    assert precision == "float32"
    assert "amx_bf16: mixed_bfloat16 may be faster" in reason


def test_an_explicit_precision_is_kept():
    assert choose_precision("float32", [(9, 0)], None)[0] == "float32"


def jit(asked="auto", choice=ONE_GPU, precision="float32", mirrored=False, deterministic=False):
    return choose_jit(asked, choice, precision, mirrored=mirrored, deterministic=deterministic)


def test_xla_is_on_by_itself_on_exactly_one_gpu():
    assert jit()[0] is True
    assert jit(choice=CPU)[0] is False
    assert jit(choice=TWO_GPUS, mirrored=True)[0] is False
    assert jit(deterministic=True)[0] is False


def test_explicit_xla_settings_are_kept():
    assert jit("off")[0] is False
    assert jit("on", choice=CPU) == (True, "as asked; slower on CPU")
    assert "leaks memory" in jit("on", choice=TWO_GPUS, mirrored=True)[1]


@pytest.mark.parametrize(
    ("choice", "precision", "message"),
    [
        (TWO_GPUS, "mixed_float16", "loss scaling.*2 replicas.*jit: off"),
        (TWO_CPUS, "float32", "several CPU devices.*2 CPU replicas.*jit: off"),
    ],
)
def test_xla_is_refused_where_the_first_step_would_fail(choice, precision, message):
    with pytest.raises(RuntimeSetupError, match=message):
        jit("on", choice=choice, precision=precision, mirrored=True)


@pytest.mark.parametrize(
    ("cpuinfo", "flag"),
    [
        ("flags\t\t: fpu avx512_bf16 sse\n", None),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16\n", None),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16\n", "avx512_bf16"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx512_bf16 amx_bf16\n", "amx_bf16"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f\n", None),
        ("flags\t\t: avx512_bf16 amx_bf16\n", "amx_bf16"),
        ("flags\t\t: fpu avx512f\n", None),
        ("model name\t: amx_bf16 lookalike\nflags\t\t: fpu\n", None),
        ("", None),
    ],
)
def test_bfloat16_ability_is_read_from_the_flags_of_the_cpu(cpuinfo, flag):
    assert machine.cpu_bfloat16_flag(cpuinfo) == flag


def test_git_state_names_the_commit_and_whether_the_tree_was_changed(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    assert machine.git_state(tmp_path) is None
    git("init")
    assert machine.git_state(tmp_path) is None
    git("commit", "--allow-empty", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert machine.git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "new").touch()
    assert machine.git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_without_git_there_is_no_commit_and_no_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.git_state(Path.cwd()) is None


def test_the_environment_keeps_tensorflow_variables_and_no_credentials(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setenv("CIFAR10_DIR", "/data")
    monkeypatch.setenv("TF_VAR_password", "secret")
    monkeypatch.setenv("TF_TOKEN_app_terraform_io", "secret")
    kept = machine.relevant_environment()
    assert kept["TF_CPP_MIN_LOG_LEVEL"] == "2" and kept["CIFAR10_DIR"] == "/data"
    assert "secret" not in kept.values()
