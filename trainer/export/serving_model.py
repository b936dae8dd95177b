"""The model that every format is made of: from pixels to probabilities."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from trainer.views import VIEWS, View, Views


def build_serving_model(
    model: keras.Model, image_shape: tuple[int, int, int], views: Views
) -> keras.Model:
    """Return a model from images to probabilities that shares the weights of a trained one.

    Args:
        model: From images of 0..255 to logits.
        image_shape: (height, width, channels), also where the model takes any size.
        views: Whose logits are averaged, as `evaluation.views` of the run says.

    Returns:
        A functional model from `images`, shape (batch, height, width, channels), float32
        with values 0..255, to probabilities, shape (batch, num_classes), float32.
    """
    images = keras.Input(image_shape, name="images", dtype="float32")
    seen = [_view(images, view) for view in VIEWS[views]]
    if len(seen) == 1:
        logits = model(seen[0])
    else:
        # As one batch, so that the model is in the graph once.
        all_logits = model(ops.concatenate(seen, axis=0))
        of_views = ops.reshape(all_logits, (len(seen), -1, all_logits.shape[-1]))
        # No tensor of weights: it would be another input of an ONNX graph.
        logits = sum(view.weight * of_views[i] for i, view in enumerate(VIEWS[views]))
    # Whatever the policy: a half has two digits for a probability.
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(images, probabilities, name="serving")


def _view(images: Any, view: View) -> Any:
    if view.shift:
        height, width = images.shape[1:3]
        mode = "reflect" if min(height, width) > 1 else "symmetric"
        padded = ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
        start = 1 - view.shift
        images = padded[:, start : start + height, start : start + width]
    return ops.flip(images, axis=2) if view.is_mirrored else images


def float32_twin(model: keras.Model) -> keras.Model:
    """Return a model with the same weights whose layers all compute in float32.

    Formats for other runtimes know no mixed precision.
    """
    twin = model.__class__.from_config(_in_float32(model.get_config()))
    twin.set_weights(model.get_weights())
    return twin


def _in_float32(config: Any) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {**config["config"], "name": "float32"}}
        return {key: _in_float32(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_in_float32(value) for value in config)
    return config
