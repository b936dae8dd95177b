"""A run goes on with the data that it began with, and with no others."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_config

from trainer.config import load_config
from trainer.errors import ConfigError, RunDirectoryError
from trainer.run_dir import RunDir, read_json
from trainer.train import resume, train

SOURCE = """\
import numpy as np

from trainer.data.sources import Split

def load(data, part, seed):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    return Split(images, np.arange(COUNT, dtype=np.int32) % 2, ("a", "b"), "drawn", True)
"""


def train_on(folder: Path, text: str, *overrides: str) -> RunDir:
    (folder / "source.py").write_text(text)
    config = load_config(
        write_tiny_config(folder), [f"data.source={folder / 'source.py'}", *overrides]
    )
    return train(config, runs_dir=folder / "runs", command=["trainer"])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("run")
    return train_on(folder, SOURCE.replace("COUNT", "100"), "optimizer.ema_momentum=0.9")


@pytest.fixture
def stopped(done: RunDir, tmp_path: Path) -> RunDir:
    """The run as it is where nothing but the model is missing."""
    run = RunDir(Path(shutil.copytree(done.path, tmp_path / "stopped")))
    source = tmp_path / "source.py"
    source.write_text(SOURCE.replace("COUNT", "100"))
    text = run.config.read_text().replace(str(done.path.parents[1] / "source.py"), str(source))
    run.config.write_text(text)
    run.model.unlink()
    run.write_status("failed", reason="the disk is full")
    return run


def weights_of(run: RunDir) -> list[np.ndarray]:
    import keras

    return keras.models.load_model(run.model, compile=False).get_weights()


def test_a_run_without_a_step_left_ends_with_the_average_of_its_weights(
    done: RunDir, stopped: RunDir
) -> None:
    resume(stopped, command=["trainer"])
    assert all(map(np.array_equal, weights_of(done), weights_of(stopped)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace('"b"', '"c"'),
            r"Changed since: the classes \(\['a', 'b'\], now \['a', 'c'\]\)",
        ),
        (lambda text: text.replace("100", "120"), r"training images \(90, now 108\), the number"),
        (lambda text: text.replace("32, 32, 3", "32, 16, 3"), r"size of the images \(\[32, 32, 3"),
        (lambda text: text.replace("% 2", "% 3 % 2"), "Changed since: the (number of|labels)"),
        (lambda text: text.replace("rng(0)", "rng(1)"), "Changed since: the training images"),
    ],
    ids=["classes", "count", "size", "labels", "pixels"],
)
def test_other_data_are_refused_before_anything_is_written(
    change: Callable[[str], str], message: str, stopped: RunDir, tmp_path: Path
) -> None:
    source = tmp_path / "source.py"
    source.write_text(change(source.read_text()))
    before = read_json(stopped.data), stopped.history.read_text()
    with pytest.raises(RunDirectoryError, match=message):
        resume(stopped, command=["trainer"])
    assert (read_json(stopped.data), stopped.history.read_text()) == before
    assert stopped.read_status()["state"] == "failed"


def test_another_number_of_steps_an_epoch_is_refused(stopped: RunDir) -> None:
    stopped.config.write_text(
        stopped.config.read_text().replace("batch_size: 20", "batch_size: 30")
    )
    with pytest.raises(
        RunDirectoryError, match=r"steps of an epoch, by fit\.batch_size \(4, now 3\)"
    ):
        resume(stopped, command=["trainer"])


def test_a_batch_that_does_not_divide_over_the_devices_that_were_found_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("trainer.train")
    set_up = module.set_up
    monkeypatch.setattr(module, "set_up", lambda *a: replace(set_up(*a), num_replicas=3))
    with pytest.raises(ConfigError, match="Received: 20 over 3 devices"):
        train_on(tmp_path, SOURCE.replace("COUNT", "100"))


def test_a_network_that_uses_the_images_up_is_refused(tmp_path: Path) -> None:
    text = SOURCE.replace("COUNT", "100").replace("32, 32, 3", "3, 3, 3")
    stages = (
        "model.stages=[{filters: 4, blocks: 1, strides: 2}, {filters: 4, blocks: 1, strides: 2}]"
    )
    with pytest.raises(ConfigError, match="Received: 4 of 3 pixels"):
        train_on(tmp_path, text, stages)
