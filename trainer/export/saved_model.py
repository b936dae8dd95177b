"""Write a SavedModel with two signatures: one for pixels, one for encoded images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.export.warmup import write_warmup_requests

PIXELS = "serving_default"
"""Signature: `images`, uint8, shape (batch, height, width, 3)."""

BYTES = "serve_bytes"
"""Signature: `image_bytes`, strings, shape (batch,), each a whole PNG or JPEG file."""

OUTPUTS = ("probabilities", "class_index", "class_name")
"""Of both: float32 (batch, classes), int64 (batch,), string (batch,)."""

# Bytes of a PNG file up to its depth and colour type (PNG specification, 11.2.1).
_PNG_HEADER = 26


def write_saved_model(
    directory: Path, serving: keras.Model, class_names: Sequence[str], model_name: str
) -> None:
    """Write a SavedModel and its warm-up requests.

    Args:
        directory: Of one version, as TensorFlow Serving lays them out.
        serving: From `serving_model.build_serving_model`.
        class_names: In the order of the probabilities.
        model_name: For the warm-up requests.
    """
    height, width, _ = serving.input_shape[1:]

    def answer_pixels(images: tf.Tensor) -> dict[str, tf.Tensor]:
        num_images = tf.shape(images)[0]
        # Normalization fails on no images: an empty batch gets an image, and no answer.
        is_empty = tf.cast(tf.equal(num_images, 0), tf.int32)
        padded = tf.pad(images, [[0, is_empty], [0, 0], [0, 0], [0, 0]])
        probabilities = serving(tf.cast(padded, tf.float32), training=False)[:num_images]
        class_index = tf.argmax(probabilities, axis=1)
        values = (probabilities, class_index, tf.gather(tf.constant(class_names), class_index))
        return dict(zip(OUTPUTS, values, strict=True))

    def answer_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = tf.map_fn(
            lambda encoded: decode_image(encoded, height, width),
            image_bytes,
            fn_output_signature=tf.TensorSpec((height, width, 3), tf.uint8),
        )
        return answer_pixels(images)

    pixels = tf.TensorSpec((None, height, width, 3), tf.uint8, name="images")
    strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
    # Not Keras' ExportArchive: it writes every variable twice.
    module = tf.Module()
    module.weights = [variable.value for variable in serving.variables]
    signatures = {
        PIXELS: tf.function(answer_pixels, input_signature=[pixels]),
        BYTES: tf.function(answer_bytes, input_signature=[strings]),
    }
    tf.saved_model.save(module, str(directory), signatures=signatures)
    blank = np.zeros((1, height, width, 3), np.uint8)
    png = tf.io.encode_png(blank[0])
    write_warmup_requests(
        directory, model_name, {PIXELS: {"images": blank}, BYTES: {"image_bytes": png[None]}}
    )


def decode_image(encoded: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Decode one PNG, JPEG or GIF (its first frame) as `read_image` does, in the graph.

    Grey becomes RGB, 16 bits become 8, transparency is put on black, and another size is
    resized with an anti-aliased bilinear filter. An EXIF orientation is not followed. Of
    other formats TensorFlow's decoder makes an error.

    Args:
        encoded: Scalar string.
        height: Of the result, in pixels.
        width: Of the result, in pixels.

    Returns:
        Shape (height, width, 3), uint8.
    """
    start = tf.strings.substr(encoded, 0, 4)
    has_header = tf.strings.length(encoded) >= _PNG_HEADER
    # Not `decode_image`: it knows bitmaps too, and takes indices of a palette for grey.
    image = tf.cond(
        tf.equal(start, b"\x89PNG") & has_header,
        lambda: _decode_png(encoded),
        lambda: tf.cond(
            tf.equal(start, b"GIF8"),
            lambda: tf.io.decode_gif(encoded)[0],
            lambda: tf.io.decode_jpeg(encoded, channels=3),
        ),
    )
    image.set_shape((None, None, 3))
    resized = tf.image.resize(image, (height, width), antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)


def _decode_png(encoded: tf.Tensor) -> tf.Tensor:
    header = tf.io.decode_raw(tf.strings.substr(encoded, _PNG_HEADER - 2, 2), tf.uint8)
    depth, colour_type = header[0], header[1]
    # TensorFlow leaves grey of 1, 2 or 4 bits as it is when asked for an alpha channel.
    return tf.cond(
        (depth < 8) & tf.equal(colour_type, 0),
        lambda: tf.io.decode_png(encoded, channels=3),
        lambda: _without_alpha(tf.io.decode_png(encoded, channels=4)),
    )


def _without_alpha(image: tf.Tensor) -> tf.Tensor:
    colours, alpha = image[..., :3], image[..., 3:]

    def on_black() -> tf.Tensor:
        shares = tf.cast(alpha, tf.float32) / 255.0
        return tf.cast(tf.round(tf.cast(colours, tf.float32) * shares), tf.uint8)

    # Rare, and the floats of a large photograph take gigabytes.
    return tf.cond(tf.reduce_min(alpha) < 255, on_black, lambda: colours)
