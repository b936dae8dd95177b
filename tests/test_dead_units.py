"""Units that are zero for every image of the probe set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from recorded_models import compiled, fit, make_data, numbers

from trainer.callbacks import GradientRecorder
from trainer.recorded_steps import ACTIVATIONS


def network(*, dropout: float = 0.0) -> keras.Model:
    """Return two layers of ReLUs; three of the first one's eight units are dead by their bias."""
    keras.utils.set_random_seed(0)
    bias = np.array([-100.0] * 3 + [5.0] * 5, np.float32)
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(8, "relu", bias_initializer=keras.initializers.Zeros(), name="first"),
        keras.layers.Dropout(dropout),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(4, "relu", name="second"),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    model.get_layer("first").bias.assign(bias)
    return model


def recorded(model: keras.Model, folder: Path, **options: Any) -> GradientRecorder:
    recorder = GradientRecorder(folder, window_steps=4, **options)
    fit(model, recorder)
    return recorder


def test_units_that_are_zero_for_all_images_are_counted(tmp_path: Path) -> None:
    model = compiled(network(), optimizer=keras.optimizers.SGD(1e-3))
    recorder = recorded(model, tmp_path, probe=make_data()[0])
    log = recorder.log()
    assert [path.rpartition("/")[2] for path in log.header.activations] == ["first", "second"]
    assert log.header.probe_images == 32
    shares = log.activation("dead_fraction")
    assert shares.shape == (2, 2)
    np.testing.assert_array_equal(shares[:, 0], 3 / 8)
    # The last window ends with the training.
    submodel = keras.Model(model.inputs, model.get_layer("second").output)
    outputs = submodel.predict(make_data()[0], verbose=0)
    assert shares[-1, 1] == np.mean((outputs == 0).all(axis=0))


def test_a_unit_that_one_image_wakes_is_alive(tmp_path: Path) -> None:
    model = compiled(network(), optimizer=keras.optimizers.SGD(0.0))
    images = make_data()[0]
    kernel = model.get_layer("first").kernel.numpy()
    images[7] = 1000 * kernel[:, 0]
    recorder = recorded(model, tmp_path, probe=images)
    assert recorder.log().activation("dead_fraction")[0, 0] < 3 / 8


def test_channels_of_images_are_units(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )
    model.get_layer("conv").bias.assign([-100.0, 100.0, -100.0, -100.0])
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32)
    recorder = GradientRecorder(tmp_path, probe=images)
    model = compiled(model, optimizer=keras.optimizers.SGD(0.0))
    fit(model, recorder, data=(images, np.zeros((8, 1), np.float32)))
    np.testing.assert_array_equal(recorder.log().activation("dead_fraction"), [[0.75]])


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_the_training_is_bit_identical_with_the_probe_and_without(
    tmp_path: Path, steps_per_execution: int
) -> None:
    states = []
    for name, probe in (("with", make_data()[0]), ("without", None)):
        model = compiled(network(dropout=0.5), steps_per_execution=steps_per_execution)
        recorded(model, tmp_path / name, probe=probe)
        states.append(numbers(model))
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_probe_set_there_is_no_figure(tmp_path: Path) -> None:
    log = recorded(compiled(network()), tmp_path).log()
    assert log.header.probe_images == 0
    assert np.isnan(log.activation("dead_fraction")).all()


def test_a_window_whose_steps_recorded_no_activations_has_its_dead_units(tmp_path: Path) -> None:
    model = compiled(network(), optimizer=keras.optimizers.SGD(1e-3))
    recorder = recorded(model, tmp_path, probe=make_data()[0], activations_every_steps=100)
    log = recorder.log()
    assert np.isnan(log.activation(f"{ACTIVATIONS[0]}/median")[1]).all()
    assert log.activation("dead_fraction")[1, 0] == 3 / 8
