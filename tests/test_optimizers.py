"""Optimizers against one or two steps computed in NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_steps import RATE, small_network, stepped, values_of

from trainer.config.schema import Adam, AdamW, Lion, Muon, Optimizer, RmsProp, Sgd
from trainer.optimizers import ConvMuon, build_optimizer
from trainer.schedules import PiecewiseLinear, WarmUp

KINDS: list[Optimizer] = [Sgd(), Adam(), AdamW(), RmsProp(), Lion(), Muon()]


def name_of(config: Any) -> str:
    return config.kind if hasattr(config, "kind") else str(config)


@pytest.fixture
def network() -> keras.Model:
    return small_network()


# Hyperparameters


@pytest.mark.parametrize(
    ("config", "kind", "expected"),
    [
        (
            Sgd(momentum=0.5, nesterov=True),
            keras.optimizers.SGD,
            {"momentum": 0.5, "nesterov": True, "weight_decay": None},
        ),
        (
            Adam(beta_1=0.8, beta_2=0.98, epsilon=1e-5),
            keras.optimizers.Adam,
            {"beta_1": 0.8, "beta_2": 0.98, "epsilon": 1e-5, "weight_decay": None},
        ),
        (
            AdamW(beta_1=0.8, beta_2=0.98, epsilon=1e-5),
            keras.optimizers.AdamW,
            {"beta_1": 0.8, "beta_2": 0.98, "epsilon": 1e-5, "weight_decay": 4e-3},
        ),
        (AdamW(weight_decay=0), keras.optimizers.AdamW, {"weight_decay": 0}),
        (
            RmsProp(rho=0.8, momentum=0.5, epsilon=1e-5, centered=True),
            keras.optimizers.RMSprop,
            {"rho": 0.8, "momentum": 0.5, "epsilon": 1e-5, "centered": True},
        ),
        (Lion(beta_1=0.8, beta_2=0.98), keras.optimizers.Lion, {"beta_1": 0.8, "beta_2": 0.98}),
        (
            Muon(momentum=0.8, nesterov=False, adam_learning_rate_ratio=0.5, weight_decay=0.1),
            ConvMuon,
            {
                "momentum": 0.8,
                "nesterov": False,
                "adam_lr_ratio": 0.5,
                "weight_decay": 0.1,
                "adam_weight_decay": 0.1,
            },
        ),
    ],
    ids=name_of,
)
def test_a_kind_is_built_with_its_hyperparameters(
    config: Optimizer, kind: type, expected: dict[str, Any]
) -> None:
    optimizer = build_optimizer(config, RATE)
    assert type(optimizer) is kind
    assert {key: getattr(optimizer, key) for key in expected} == expected
    assert float(optimizer.learning_rate) == pytest.approx(RATE)


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_every_kind_goes_down_a_bowl(config: Optimizer) -> None:
    config = config.model_copy(update={"learning_rate": 0.01})
    optimizer = build_optimizer(config, PiecewiseLinear([0], [0.01]))
    kernel, bias = (keras.Variable(values_of(shape, 0)) for shape in ((3, 3, 2, 4), (4,)))
    before = [float((v.numpy() ** 2).sum()) for v in (kernel, bias)]
    for _ in range(20):
        optimizer.apply([2 * kernel.numpy(), 2 * bias.numpy()], [kernel, bias])
    for variable, start in zip((kernel, bias), before, strict=True):
        assert float((variable.numpy() ** 2).sum()) < start


# By hand


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov: bool) -> None:
    config = Sgd(learning_rate=RATE, momentum=0.9, nesterov=nesterov)
    start, gradients = values_of((3, 2), 0), [values_of((3, 2), seed) for seed in (1, 2)]
    expected, velocity = start.astype("float64"), 0.0
    for gradient in gradients:
        velocity = 0.9 * velocity - RATE * gradient
        expected = expected + (0.9 * velocity - RATE * gradient if nesterov else velocity)
    np.testing.assert_allclose(stepped(config, start, gradients), expected, rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_adam_and_adamw_by_hand(weight_decay: float | None) -> None:
    arguments = {"learning_rate": RATE, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-6}
    config = AdamW(weight_decay=weight_decay, **arguments) if weight_decay else Adam(**arguments)
    start, gradients = values_of((3, 2), 0), [values_of((3, 2), seed) for seed in (1, 2, 3)]
    expected = start.astype("float64")
    first, second = np.zeros((3, 2)), np.zeros((3, 2))
    for step, gradient in enumerate(gradients, start=1):
        expected = expected - RATE * (weight_decay or 0) * expected
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient.astype("float64") ** 2
        # Kingma and Ba's form at the end of their section 2, which Keras has as well.
        rate = RATE * np.sqrt(1 - 0.95**step) / (1 - 0.8**step)
        expected = expected - rate * first / (np.sqrt(second) + 1e-6)
    np.testing.assert_allclose(stepped(config, start, gradients), expected, rtol=1e-5)


def test_rmsprop_by_hand() -> None:
    config = RmsProp(learning_rate=RATE, rho=0.8, epsilon=1e-6)
    start, gradient = values_of((3, 2), 0), values_of((3, 2), 1)
    expected = start - RATE * gradient / np.sqrt(0.2 * gradient**2 + 1e-6)
    np.testing.assert_allclose(stepped(config, start, [gradient]), expected, rtol=1e-4)


def test_lion_steps_by_the_sign() -> None:
    start, gradient = values_of((3, 2), 0), values_of((3, 2), 1)
    expected = start - RATE * np.sign(gradient)
    actual = stepped(Lion(learning_rate=RATE), start, [gradient])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# Weight decay


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_weight_decay_touches_kernels_only(config: Optimizer, network: keras.Model) -> None:
    config = config.model_copy(update={"weight_decay": 0.25})
    optimizer = build_optimizer(config, 0.5)
    network.set_weights([values_of(w.shape, 3) for w in network.weights])
    variables = network.trainable_variables
    assert {v.name for v in variables} == {"kernel", "bias", "gamma", "beta", "alpha"}
    before = [variable.numpy() for variable in variables]
    # Without a gradient no kind moves a weight but by decay.
    optimizer.apply([tf.zeros(variable.shape) for variable in variables], variables)
    for variable, start in zip(variables, before, strict=True):
        kept = 1 - 0.5 * 0.25 if variable.name == "kernel" else 1
        np.testing.assert_allclose(variable.numpy(), kept * start, rtol=1e-6, err_msg=variable.path)


@pytest.mark.parametrize("config", [Sgd(), Adam(), AdamW(weight_decay=0), Muon()], ids=name_of)
def test_no_weight_decay_is_none(config: Optimizer) -> None:
    start = values_of((2, 3), 0)
    np.testing.assert_array_equal(stepped(config, start, [np.zeros_like(start)]), start)


# Clipping and averages


@pytest.mark.parametrize(
    ("clipping", "expected"),
    [
        ({"clipnorm": 1.0}, [[0.6, 0.8], [0.0, 1.0]]),
        ({"global_clipnorm": 13.0}, [[3.0, 4.0], [0.0, 12.0]]),
        ({"global_clipnorm": 1.3}, [[0.3, 0.4], [0.0, 1.2]]),
        ({"clipvalue": 3.5}, [[3.0, 3.5], [0.0, 3.5]]),
        ({}, [[3.0, 4.0], [0.0, 12.0]]),
    ],
    ids=str,
)
def test_clipping_is_passed_on(clipping: dict[str, float], expected: list[list[float]]) -> None:
    optimizer = build_optimizer(Sgd(momentum=0, **clipping), 1.0)
    variables = [keras.Variable(np.zeros(2, "float32")) for _ in range(2)]
    optimizer.apply([np.float32([3, 4]), np.float32([0, 12])], variables)
    moved = [-variable.numpy() for variable in variables]
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


@pytest.mark.parametrize("config", KINDS, ids=name_of)
@pytest.mark.parametrize("key", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_every_kind_clips(config: Optimizer, key: str) -> None:
    optimizer = build_optimizer(config.model_copy(update={key: 0.5}), RATE)
    clipping = {k: getattr(optimizer, k) for k in ("clipnorm", "global_clipnorm", "clipvalue")}
    assert clipping == {"clipnorm": None, "global_clipnorm": None, "clipvalue": None, key: 0.5}


def test_the_average_of_the_weights_has_the_asked_momentum_and_ends_as_the_weights() -> None:
    optimizer = build_optimizer(Sgd(momentum=0, ema_momentum=0.75), 1.0)
    variable = keras.Variable(np.float32([8.0]))
    for _ in range(3):
        optimizer.apply([np.float32([2.0])], [variable])
    assert variable.numpy() == pytest.approx([2.0])
    # After the weights 6, 4 and 2, beginning at the first of them.
    average = 0.75 * (0.75 * 6 + 0.25 * 4) + 0.25 * 2
    optimizer.finalize_variable_values([variable])
    assert variable.numpy() == pytest.approx([average])


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_no_average_is_kept_unasked(config: Optimizer) -> None:
    assert not build_optimizer(config, RATE).use_ema
    averaging = build_optimizer(config.model_copy(update={"ema_momentum": 0.9}), RATE)
    assert (averaging.use_ema, averaging.ema_momentum) == (True, 0.9)


# Files


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_an_optimizer_comes_back_from_its_config(config: Optimizer) -> None:
    config = config.model_copy(update={"clipnorm": 2.0, "ema_momentum": 0.9})
    schedule = WarmUp(0.1, 3, PiecewiseLinear([0, 5], [0.1, 0.0]))
    optimizer = build_optimizer(config, schedule)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()

    start = values_of((3, 3, 2, 4), 0)
    variables = [keras.Variable(start, name="kernel") for _ in range(2)]
    for seed in range(3):
        for each, variable in zip((optimizer, again), variables, strict=True):
            each.apply([tf.constant(values_of(start.shape, seed))], [variable])
    np.testing.assert_array_equal(*(variable.numpy() for variable in variables))


def test_an_optimizer_from_a_file_decays_everything_so_that_it_is_built_anew() -> None:
    optimizer = build_optimizer(Sgd(weight_decay=0.25), 1.0)
    loaded = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    decayed = []
    for each in (optimizer, loaded):
        gamma = keras.Variable(np.ones(3, "float32"), name="gamma")
        each.apply([tf.zeros(3)], [gamma])
        decayed.append(gamma.numpy()[0] < 1)
    assert decayed == [False, True]
