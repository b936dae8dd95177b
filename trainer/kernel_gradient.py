"""A convolution whose kernel's gradient is a few matrix products."""

from __future__ import annotations

import tensorflow as tf


@tf.custom_gradient
def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, object]:
    """Return `tf.nn.conv2d` of stride 1 and padding "SAME"; the kernel's gradient is ours.

    Args:
        images: (batch, height, width, channels), any of them unknown but the last.
        kernel: (rows, columns, channels, filters), of the dtype of the images; rows and
            columns are odd.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        by_images = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(images),
            filter=kernel,
            out_backprop=upstream,
            strides=[1, 1, 1, 1],
            padding="SAME",
        )
        return by_images, kernel_gradient(images, upstream, tuple(kernel.shape[:2]))

    return tf.nn.conv2d(images, kernel, 1, "SAME"), gradient


def kernel_gradient(
    images: tf.Tensor, upstream: tf.Tensor, kernel_size: tuple[int, int]
) -> tf.Tensor:
    """Return the gradient of a loss by the kernel of a convolution of stride 1, "SAME".

    A row of the kernel meets each row of the outputs with one row of the images, above
    or below by as much as its own place is. With the rows of all images in front, those
    that meet lie in one piece, and each row of the kernel is one matrix product over all
    of them: of the pixels with their neighbours of that row, and the outputs' gradient.

    Args:
        images: (batch, height, width, channels).
        upstream: Gradient of the loss by the outputs, (batch, height, width, filters).
        kernel_size: Rows and columns of the kernel, both odd.

    Returns:
        (rows, columns, channels, filters), rounded once from sums in float32.
    """
    rows, columns = kernel_size
    channels, filters = images.shape[-1], upstream.shape[-1]
    by_row = [1, 0, 2, 3]
    upstream = tf.transpose(upstream, by_row)
    margin = [columns // 2] * 2
    padded = tf.pad(tf.transpose(images, by_row), [[0, 0], [0, 0], margin, [0, 0]])
    width = tf.shape(images)[2]
    neighbours = tf.concat([padded[:, :, j : j + width] for j in range(columns)], axis=-1)
    products = []
    for offset in range(-(rows // 2), rows // 2 + 1):
        # Beyond the first and the last row are zeros, which add nothing.
        met = neighbours[max(offset, 0) : min(offset, 0) or None]
        meeting = upstream[max(-offset, 0) : min(-offset, 0) or None]
        products.append(
            tf.matmul(
                tf.reshape(met, [-1, columns * channels]),
                tf.reshape(meeting, [-1, filters]),
                transpose_a=True,
            )
        )
    return tf.reshape(tf.stack(products), [rows, columns, channels, filters])
