"""A convolution whose kernel's gradient is a few matrix products."""

from __future__ import annotations

import tensorflow as tf

# oneDNN's gradient of a kernel is slow where the rows of an image are short. On Zen 4 (bfloat16,
# batches of 500, 3x3, 64 times 128 channels and more) ours takes 0.2 to 0.9 times as long with
# sides of 2 to 11 pixels, and 0.9 to 1.4 times with sides of 15 and more.
SHORT_ROW = 11


@tf.custom_gradient
def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, object]:
    """Return `tf.nn.conv2d` of stride 1 and padding "SAME".

    Where the rows are short, the gradient of the kernel is `kernel_gradient`.

    Args:
        images: (batch, height, width, channels), any of them unknown but the last.
        kernel: (rows, columns, channels, filters), of the dtype of the images; rows and
            columns are odd.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        common = {"strides": [1, 1, 1, 1], "padding": "SAME", "out_backprop": upstream}
        by_images = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(images), filter=kernel, **common
        )

        def of_tensorflow() -> tf.Tensor:
            return tf.raw_ops.Conv2DBackpropFilter(
                input=images, filter_sizes=kernel.shape, **common
            )

        def of_rows() -> tf.Tensor:
            # What a profile calls its operators by.
            with tf.name_scope("kernel_gradient"):
                return kernel_gradient(images, upstream, tuple(kernel.shape[:2]))

        width = images.shape[2]
        if width is None:
            # Of training on small crops first: the step is traced for any size.
            is_short = tf.shape(images)[2] <= SHORT_ROW
            return by_images, tf.cond(is_short, of_rows, of_tensorflow)
        return by_images, of_rows() if width <= SHORT_ROW else of_tensorflow()

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
