"""The fused L2 against Keras' own."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.regularizers import L1L2

AMOUNTS = [(0.0, 1e-4), (0.0, 0.3), (1e-3, 0.0), (1e-3, 0.2)]


def kernel(seed: int = 0) -> tf.Variable:
    return tf.Variable(np.random.default_rng(seed).normal(size=(3, 3, 16, 32)), dtype="float32")


@pytest.mark.parametrize(("l1", "l2"), AMOUNTS)
def test_the_loss_is_that_of_keras_and_the_gradient_is_to_the_last_bit(
    l1: float, l2: float
) -> None:
    weights = kernel()
    results = []
    for regularizer in (L1L2(l1=l1, l2=l2), keras.regularizers.L1L2(l1=l1, l2=l2)):
        with tf.GradientTape() as tape:
            loss = regularizer(weights)
        results.append((float(loss), tape.gradient(loss, weights).numpy()))
    (ours, our_gradient), (keras_own, keras_gradient) = results

    assert ours == pytest.approx(keras_own, rel=1e-6)
    np.testing.assert_array_equal(our_gradient, keras_gradient)


def test_it_and_its_gradient_take_ten_operations_less() -> None:
    weights = kernel()

    def num_operations(regularizer: keras.regularizers.Regularizer) -> int:
        @tf.function(autograph=False)
        def gradient() -> tf.Tensor:
            return tf.gradients(regularizer(weights), weights)

        return len(gradient.get_concrete_function().graph.get_operations())

    ours, keras_own = (num_operations(kind(l2=0.1)) for kind in (L1L2, keras.regularizers.L1L2))
    assert keras_own - ours == 10


def test_a_model_that_is_saved_with_it_is_read_again(tmp_path: Path) -> None:
    inputs = keras.Input((8,))
    outputs = keras.layers.Dense(4, kernel_regularizer=L1L2(l1=1e-3, l2=0.25))(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "m.keras")

    again = keras.models.load_model(tmp_path / "m.keras").layers[-1].kernel_regularizer

    assert type(again) is L1L2
    assert again.get_config() == {"l1": 1e-3, "l2": 0.25}
