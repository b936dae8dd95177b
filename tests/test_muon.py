"""Muon on convolution kernels, against singular values and Keras' own steps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_steps import RATE, small_network, stepped, values_of

from trainer.config.schema import Muon
from trainer.optimizers import ConvMuon, build_optimizer


@pytest.fixture
def network() -> keras.Model:
    return small_network()


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Jordan (2024): five quintic steps towards the nearest orthogonal matrix."""
    x = matrix.astype("float64") / np.linalg.norm(matrix)
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    for _ in range(5):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return left @ np.diag(singular) @ right


def momentum_of(gradients: list[np.ndarray], nesterov: bool) -> np.ndarray:
    momentum = np.zeros_like(gradients[0])
    for gradient in gradients:
        momentum = 0.95 * momentum + gradient
    return gradients[-1] + 0.95 * momentum if nesterov else momentum


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (1, 1, 4, 9), (1, 1, 8, 8)])
def test_muon_orthogonalizes_a_convolution_kernel_as_a_matrix(
    shape: tuple[int, ...], nesterov: bool
) -> None:
    config = Muon(learning_rate=RATE, nesterov=nesterov)
    gradients = [values_of(shape, seed) for seed in (1, 2)]
    start = values_of(shape, 0)
    before = stepped(config, start, gradients[:1])
    update = stepped(config, start, gradients) - before

    rows, columns = shape[0] * shape[1] * shape[2], shape[3]
    momentum = momentum_of(gradients, nesterov).reshape(rows, columns)
    # Scaled so that the root mean square of an orthogonal matrix is 0.2 (Liu et al. 2025).
    expected = -RATE * 0.2 * np.sqrt(max(rows, columns)) * newton_schulz(momentum)
    np.testing.assert_allclose(update.reshape(rows, columns), expected, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("shape", [(144, 16), (16, 144), (20, 16), (16, 16)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 0.0])
def test_an_oblong_matrix_is_orthogonalized_as_keras_does(
    shape: tuple[int, int], steps: int, smallest: float
) -> None:
    matrix = values_of(shape, 0) * np.geomspace(1, smallest or 1e-30, shape[1], dtype="float32")
    optimizer = build_optimizer(Muon(), RATE)
    stock = keras.optimizers.Muon(RATE)
    actual = optimizer.zeropower_via_newtonschulz5(tf.constant(matrix), steps)
    expected = stock.zeropower_via_newtonschulz5(tf.constant(matrix, tf.float64), steps)
    error = np.linalg.norm(actual - expected.numpy()) / np.linalg.norm(expected)
    # float32 has no digits left of the squares of what is smallest.
    assert error < (2e-5 if smallest else 1e-3)


def test_newton_schulz_multiplies_the_long_side_of_a_matrix_twice() -> None:
    optimizer = build_optimizer(Muon(), RATE)

    @tf.function
    def orthogonalized(matrix: tf.Tensor) -> tf.Tensor:
        return optimizer.zeropower_via_newtonschulz5(matrix, 5)

    graph = orthogonalized.get_concrete_function(tf.TensorSpec((144, 16))).graph
    products = [op for op in graph.get_operations() if "MatMul" in op.type]
    with_long_side = [op for op in products if any(144 in x.shape for x in op.inputs)]
    assert len(with_long_side) == 2 < len(products)


def test_a_step_of_muon_is_nearly_orthogonal_and_of_the_size_that_the_schema_says() -> None:
    shape = (3, 3, 16, 16)
    # Of all sizes, as gradients are.
    scales = np.geomspace(1, 30, 16, dtype="float32")
    gradient = values_of(shape, 1) * scales
    update = stepped(Muon(learning_rate=RATE), np.zeros(shape, "float32"), [gradient])
    singular = np.linalg.svd(update.reshape(-1, 16), compute_uv=False)
    assert singular.max() / singular.min() < 2
    assert np.linalg.cond(gradient.reshape(-1, 16)) > 10
    assert np.sqrt((update**2).mean()) == pytest.approx(0.2 * RATE, rel=0.25)


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (1, 1, 4, 6), (3, 3, 2, 20)])
def test_a_fixed_norm_takes_the_learning_rate_as_a_share_of_the_kernel(
    shape: tuple[int, ...],
) -> None:
    rate = 0.1
    start, gradient = 7 * values_of(shape, 1), values_of(shape, 2)
    config = Muon(learning_rate=rate, kernel_norm="fixed")
    moved = stepped(config, start, [gradient]).astype(np.float64)
    norm = shape[-1] ** 0.5
    scaled = start * (norm / np.linalg.norm(start))
    matrix = gradient.reshape(-1, shape[-1]).astype(np.float64)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    update = (scaled - moved).reshape(matrix.shape)
    # Newton-Schulz leaves singular values between about 0.7 and 1.2.
    assert np.linalg.norm(update) / norm == pytest.approx(rate, rel=0.25)
    rotated = left.T @ update @ right.T / (rate * norm / min(matrix.shape) ** 0.5)
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-4)
    assert 0.6 < np.diag(rotated).min() <= np.diag(rotated).max() < 1.3


def test_a_kernel_of_zeros_gets_its_norm_from_its_steps() -> None:
    shape = (3, 3, 4, 6)
    gradients = [values_of(shape, seed) for seed in (1, 2)]
    config = Muon(learning_rate=0.1, kernel_norm="fixed")
    moved = stepped(config, np.zeros(shape, np.float32), gradients)
    # The first step's length is a tenth of the norm, and is brought to it before the second.
    assert np.linalg.norm(moved) == pytest.approx(6**0.5, rel=0.2)


def test_the_steps_of_newton_schulz_and_the_norm_survive_a_config() -> None:
    optimizer = build_optimizer(Muon(newton_schulz_steps=3, kernel_norm="fixed"), RATE)
    same = ConvMuon.from_config(optimizer.get_config())
    assert (same.ns_steps, same.fixed_norm) == (3, True)


def test_muon_leaves_first_and_last_layer_scales_and_biases_to_adam(network: keras.Model) -> None:
    optimizer = build_optimizer(Muon(), RATE)
    optimizer.build(network.trainable_variables)
    by_adam = {
        variable.path
        for variable, velocity in zip(
            network.trainable_variables, optimizer.adam_velocities, strict=True
        )
        if velocity is not None
    }
    everything = {variable.path for variable in network.trainable_variables}
    assert everything - by_adam == {"stage0_block0/conv1/kernel", "stage0_block0/conv2/kernel"}


def test_the_adam_part_of_muon_has_its_share_of_the_learning_rate() -> None:
    start, gradient = values_of((4,), 0), values_of((4,), 1)
    config = Muon(learning_rate=RATE, adam_learning_rate_ratio=0.5)
    # The first step of Adam is the sign of the gradient.
    expected = start - 0.5 * RATE * np.sign(gradient)
    np.testing.assert_allclose(stepped(config, start, [gradient], "bias"), expected, rtol=1e-4)


@pytest.mark.parametrize(("name", "ratio"), [("bias", 2.0), ("beta", 2.0), ("gamma", 0.5)])
def test_biases_and_offsets_can_have_a_share_of_their_own(name: str, ratio: float) -> None:
    start, gradient = values_of((4,), 0), values_of((4,), 1)
    config = Muon(
        learning_rate=RATE, adam_learning_rate_ratio=0.5, adam_bias_learning_rate_ratio=2.0
    )
    expected = start - ratio * RATE * np.sign(gradient)
    np.testing.assert_allclose(stepped(config, start, [gradient], name), expected, rtol=1e-4)


def test_the_share_of_the_biases_is_that_of_a_whole_network(network: keras.Model) -> None:
    config = Muon(adam_learning_rate_ratio=0.5, adam_bias_learning_rate_ratio=4.0)
    network.compile(build_optimizer(config, RATE), "mse")
    before = {variable.path: variable.numpy() for variable in network.trainable_variables}
    network.fit(values_of((8, 6, 6, 3), 0), values_of((8, 2), 1), verbose=0)
    moved = {
        variable.path: np.abs(variable.numpy() - before[variable.path]).max() / RATE
        for variable in network.trainable_variables
    }
    for path, distance in moved.items():
        if path.endswith(("/bias", "/beta")):
            assert distance == pytest.approx(4.0, rel=1e-2), path
        elif "conv1" not in path and "conv2" not in path:
            assert distance == pytest.approx(0.5, rel=1e-2), path
    assert any(path.endswith("/beta") for path in moved)


def test_muon_trains_a_network_that_is_compiled_by_xla(network: keras.Model) -> None:
    network.compile(build_optimizer(Muon(), 0.05), "mse", jit_compile=True)
    images, targets = values_of((16, 6, 6, 3), 0), values_of((16, 2), 1)
    losses = network.fit(images, targets, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
