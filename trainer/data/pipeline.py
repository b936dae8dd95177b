"""Streams of batches out of arrays in memory.

The training stream is a pure function of the seed and the global step: it can be
resumed at any step, and every epoch is a new permutation. It never ends, so that
`fit` keeps one iterator for the whole run: a new one each epoch, or tf.data's
autotuning, can stall the first step of an epoch by seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trainer.config.schema import Augmentation, Cutout, EarlyCrops
from trainer.data.augment import augment_batch, fold_seed
from trainer.errors import ConfigError, DataError

_THREADS = 2
_PREFETCHED_BATCHES = 4


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return how many full batches an epoch has; the remainder is left out.

    Raises:
        DataError: If there is not one full batch.
    """
    if num_images < batch_size:
        raise DataError(
            "an epoch needs at least one full batch of training images. "
            f"Received: {num_images} images, batch_size={batch_size}. "
            "Lower fit.batch_size or add images"
        )
    return num_images // batch_size


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    batch_size: int,
    seed: int,
    augment: Sequence[Augmentation] = (),
    early_crops: EarlyCrops | None = None,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Return the endless stream of training batches.

    An epoch takes each image at most once; the images that do not fill a last batch
    are left out, others in each epoch.

    Args:
        images: Shape (images, height, width, channels), uint8, 0..255.
        labels: Class numbers, shape (images,), integer.
        num_classes: Length of a one-hot label.
        batch_size: Images a step, over all replicas together.
        seed: Of the run, 0 to 2**31 - 1.
        augment: Applied to each batch in this order.
        early_crops: Cut each augmented batch of the first epochs to a window.
        first_step: Where to begin: the number of steps already trained.

    Returns:
        Endless batches of static shape: images (batch_size, height, width, channels),
        uint8, or float32 with mixup, 0..255; labels (batch_size, num_classes), float32,
        each row of sum one. With `early_crops` the static height and width are None in
        every epoch.

    Raises:
        DataError: If there is not one full batch.
        ConfigError: If an augmentation or `early_crops` does not fit the images.
    """
    if early_crops is not None and early_crops.size >= min(images.shape[1:3]):
        raise ConfigError(
            "early_crops must be smaller than the images. "
            f"Received: size={early_crops.size}, images of {images.shape[1]}x{images.shape[2]}. "
            "Lower data.early_crops.size or set data.early_crops to null"
        )
    steps = steps_per_epoch(len(images), batch_size)
    all_images, all_labels = _in_host_memory(images), _in_host_memory(labels)
    mean_color = None
    if any(isinstance(spec, Cutout) for spec in augment):
        mean_color = images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)

    def batches_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # Not tf.random.experimental.index_shuffle, which is stateless for each index: its four
        # rounds leave the orders of successive epochs visibly alike (TensorFlow 2.21).
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(images), dtype=tf.int64), fold_seed(seed, "order", epoch)
        )
        indices = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        start = tf.maximum(epoch * steps, first_step)
        return tf.data.Dataset.range(start, (epoch + 1) * steps).map(
            lambda step: (epoch, step, indices[step % steps])
        )

    def make_batch(
        epoch: tf.Tensor, step: tf.Tensor, indices: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        batch, one_hot = augment_batch(
            tf.gather(all_images, indices),
            tf.one_hot(tf.gather(all_labels, indices), num_classes),
            indices=indices,
            epoch=epoch,
            step=step,
            seed=seed,
            augmentations=augment,
            mean_color=mean_color,
        )
        if early_crops is not None:
            batch = _crop_early(batch, early_crops, epoch=epoch, step=step, seed=seed)
        return batch, one_hot

    epochs = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return (
        epochs.flat_map(batches_of_epoch)
        .map(
            tf.autograph.experimental.do_not_convert(make_batch),
            num_parallel_calls=_THREADS,
            deterministic=True,
        )
        .apply(endless)
        .prefetch(_PREFETCHED_BATCHES)
        .with_options(_options())
    )


def _crop_early(
    images: tf.Tensor, early_crops: EarlyCrops, *, epoch: tf.Tensor, step: tf.Tensor, seed: int
) -> tf.Tensor:
    """Return one window of all images in an early epoch, and whole images in a later one."""
    batch_size, height, width, channels = images.shape
    is_early = epoch < early_crops.epochs
    starts, sides = [], []
    for axis, length in (("row", height), ("column", width)):
        side = tf.where(is_early, early_crops.size, length)
        start = tf.random.stateless_uniform(
            [],
            fold_seed(seed, f"early_crops/{axis}", step),
            maxval=length - side + 1,
            dtype=tf.int32,
        )
        starts.append(start)
        sides.append(side)
    windows = tf.slice(images, [0, *starts, 0], [-1, *sides, -1])
    windows.set_shape([batch_size, None, None, channels])
    return windows


def evaluation_batch_size(num_images: int, batch_size: int, num_replicas: int = 1) -> int:
    """Return the largest usable batch size up to `batch_size`.

    Usable: each replica gets an equal share of every full batch, and the last batch,
    which may be smaller, still has an image for each replica. Keras fails otherwise.

    Raises:
        DataError: If there is none.
    """
    largest = min(batch_size, num_images) // num_replicas * num_replicas
    for size in range(largest, 0, -num_replicas):
        remainder = num_images % size
        if remainder == 0 or remainder >= num_replicas:
            return size
    raise DataError(
        "every replica needs an image of each batch that is evaluated, the last one included. "
        f"Received: {num_images} images, batch_size={batch_size}, {num_replicas} replicas. "
        "Add images, raise fit.batch_size, or use fewer devices"
    )


def evaluation_batches(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    batch_size: int,
    num_replicas: int = 1,
) -> tf.data.Dataset:
    """Return every image once, in order and unaugmented.

    Args:
        images: Shape (images, height, width, channels), uint8, 0..255.
        labels: Class numbers, shape (images,), integer.
        num_classes: Length of a one-hot label.
        batch_size: Largest batch over all replicas; see `evaluation_batch_size`.
        num_replicas: How many replicas share a batch.

    Returns:
        Finite batches: images (batch, height, width, channels), uint8; one-hot labels
        (batch, num_classes), float32. The last batch may be smaller.

    Raises:
        DataError: If the images cannot be shared among the replicas.
    """
    size = evaluation_batch_size(len(images), batch_size, num_replicas)
    arrays = (_in_host_memory(images), _in_host_memory(labels))
    return (
        tf.data.Dataset.from_tensor_slices(arrays)
        .batch(size)
        .map(
            lambda batch, classes: (batch, tf.one_hot(classes, num_classes)),
            num_parallel_calls=_THREADS,
            deterministic=True,
        )
        .prefetch(_PREFETCHED_BATCHES)
        .with_options(_options())
    )


def _in_host_memory(array: np.ndarray) -> tf.Tensor:
    # TensorFlow puts a constant on the GPU when there is one; tf.data would copy it back.
    with tf.device("CPU:0"):
        return tf.convert_to_tensor(array)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    # Few threads of its own, so that the stream does not delay the training step's kernels.
    options.threading.private_threadpool_size = _THREADS
    options.threading.max_intra_op_parallelism = 1
    # Replicas share each batch; sharding by elements would give each worker its own few.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
