"""Build the optimizer of a config; Keras' own, but for Muon on convolution kernels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.config.schema import Adam, AdamW, Lion, Muon, Optimizer, RmsProp, Sgd

# Regularization by decay is for kernels: pulling scales and biases to zero only hurts.
_NOT_DECAYED = ("bias", "gamma", "beta", "alpha")
# What is added to a channel: the bias of a layer, the offset of a normalization.
_OFFSETS = ("bias", "beta")
# First and last layer of a network: their rows are pixels and classes, not features.
_NOT_ORTHOGONALIZED = ["stem_conv", "head_logits"]


@keras.saving.register_keras_serializable(package="trainer")
class ConvMuon(keras.optimizers.Muon):
    """`keras.optimizers.Muon` that orthogonalizes convolution kernels too (Jordan 2024).

    Keras' Muon gives only matrices to the Muon step, so that a convolutional network
    would be trained by its AdamW part. Here a kernel (height, width, in, out) counts as
    the matrix (height * width * in, out).

    Args:
        fixed_norm: Scale each kernel of f filters to the norm sqrt(f) before its step,
            and take the learning rate as the norm of the update over that of the kernel.
            For kernels in front of a normalization, which undoes the scaling.
        adam_bias_lr_ratio: As `adam_lr_ratio`, for biases and the offsets of
            normalizations alone; None leaves those to `adam_lr_ratio`.
        **kwargs: Of `keras.optimizers.Muon`.
    """

    def __init__(
        self, *, fixed_norm: bool = False, adam_bias_lr_ratio: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.fixed_norm = fixed_norm
        self.adam_bias_lr_ratio = adam_bias_lr_ratio

    def _should_use_adamw(self, variable: Any) -> bool:
        if len(variable.shape) == 4:
            return any(name in variable.path for name in self.exclude_layers)
        return super()._should_use_adamw(variable)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.adam_bias_lr_ratio is not None:
            # `variable` may be TensorFlow's, which has no path.
            path = self._trainable_variables[self._get_variable_index(variable)].path
            if path.rpartition("/")[2] in _OFFSETS:
                learning_rate = learning_rate * (self.adam_bias_lr_ratio / self.adam_lr_ratio)
        super().update_step(gradient, variable, learning_rate)

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        if len(variable.shape) != 4:
            super()._muon_update_step(gradient, variable, lr, m)
            return
        self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
        step = ops.add(gradient, self.momentum * m) if self.nesterov else m
        matrix = ops.reshape(step, (-1, variable.shape[-1]))
        update = lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps)
        if not self.fixed_norm:
            self.assign_sub(variable, ops.reshape(self.lr_adjust(update), variable.shape))
            return
        # An orthogonalized matrix has the norm of the root of its smaller side.
        norm = variable.shape[-1] ** 0.5
        update *= norm / min(update.shape) ** 0.5
        # A kernel of zeros has no direction yet: its first step gives it one.
        length = ops.maximum(ops.norm(ops.reshape(variable, (-1,))), 1e-30)
        kernel = variable * (norm / length)
        self.assign(variable, kernel - ops.reshape(update, variable.shape))

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """Return Keras' numbers, but for rounding, with less work for an oblong matrix.

        Every step multiplies x by a polynomial of its inner products, the square matrix
        of its shorter side. That matrix says what the next one is, so that the steps need
        nothing else, and x takes part twice instead of 2 * steps times. Where x is nearly of
        a lower rank, some 1e-4 of the result is another.

        Args:
            x: A matrix, float32.
            steps: How many.
        """
        short, long = sorted(x.shape)
        # Of s steps with sides 1 and r, in products of short by short: s * (2r + 1) against
        # 2r + 4s - 3.
        if steps < 2 or long <= 1.5 * short:
            return super().zeropower_via_newtonschulz5(x, steps)
        is_tall = x.shape[0] > x.shape[1]
        x = x / (ops.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
        transposed = ops.transpose(x)
        inner = transposed @ x if is_tall else x @ transposed
        identity = product = ops.eye(short, dtype=x.dtype)
        for step in range(steps):
            factor = self.muon_a * identity + self.muon_b * inner + self.muon_c * inner @ inner
            product = factor if step == 0 else factor @ product
            if step < steps - 1:
                inner = factor @ inner @ factor
        return x @ product if is_tall else product @ x

    def get_config(self) -> dict[str, Any]:
        own = {"fixed_norm": self.fixed_norm, "adam_bias_lr_ratio": self.adam_bias_lr_ratio}
        return {**super().get_config(), **own}


def build_optimizer(
    config: Optimizer, learning_rate: keras.optimizers.schedules.LearningRateSchedule | float
) -> keras.optimizers.Optimizer:
    """Return the optimizer of a config.

    Under mixed_float16, `compile` wraps it in Keras' `LossScaleOptimizer`. A model
    file of Keras does not say which variables are spared the decay: to train on, build
    the optimizer anew.

    Args:
        config: The `optimizer` section.
        learning_rate: A schedule whose peak is `config.learning_rate`.
    """
    common: dict[str, Any] = {
        "learning_rate": learning_rate,
        "clipnorm": config.clipnorm,
        "global_clipnorm": config.global_clipnorm,
        "clipvalue": config.clipvalue,
        "weight_decay": config.weight_decay or None,
        "use_ema": config.ema_momentum is not None,
        "ema_momentum": config.ema_momentum or 0.99,
    }
    optimizer = _build(config, common)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=list(_NOT_DECAYED))
    return optimizer


def _build(config: Optimizer, common: dict[str, Any]) -> keras.optimizers.Optimizer:
    match config:
        case Sgd():
            return keras.optimizers.SGD(
                momentum=config.momentum, nesterov=config.nesterov, **common
            )
        case Adam() | AdamW():
            build = keras.optimizers.AdamW if isinstance(config, AdamW) else keras.optimizers.Adam
            if isinstance(config, AdamW):
                # Keras' AdamW refuses None.
                common["weight_decay"] = config.weight_decay
            return build(
                beta_1=config.beta_1, beta_2=config.beta_2, epsilon=config.epsilon, **common
            )
        case RmsProp():
            return keras.optimizers.RMSprop(
                rho=config.rho,
                momentum=config.momentum,
                epsilon=config.epsilon,
                centered=config.centered,
                **common,
            )
        case Lion():
            return keras.optimizers.Lion(beta_1=config.beta_1, beta_2=config.beta_2, **common)
        case Muon():
            return ConvMuon(
                momentum=config.momentum,
                nesterov=config.nesterov,
                adam_lr_ratio=config.adam_learning_rate_ratio,
                adam_bias_lr_ratio=config.adam_bias_learning_rate_ratio,
                adam_weight_decay=config.weight_decay or None,
                exclude_layers=_NOT_ORTHOGONALIZED,
                ns_steps=config.newton_schulz_steps,
                fixed_norm=config.kernel_norm == "fixed",
                **common,
            )
