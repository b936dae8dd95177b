"""What an x-ray of a model at its start has measured, and what follows from it. NumPy only.

Words: *outputs* are those of the stem, of each block and of the head, in the order of
computation; *dL/da* is the gradient of one image's loss with respect to an output, unscaled;
*raw* is the gradient of the batch's whole loss (data and regularizers) with respect to a
variable, unscaled and before clipping. A micro-batch is one of a few batches that the model
is looked at with before its first step, at equal weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainer.config import Config

FAR = 1e3
"""A signal that has changed by this factor is called vanished or exploded."""


@dataclass(frozen=True, eq=False)
class FirstSteps:
    """The first steps of the training, at most ten; fewer if one was not finite.

    Attributes:
        loss: Data and regularizers, shape (steps,), float64.
        learning_rate: Of the schedule, warm-up included, shape (steps,), float64.
        raw_norm: Norm of the raw gradient of all variables, shape (steps,), float64.
        clipped_norm: The same after clipping.
        skipped: Whether loss scaling made no update of it, shape (steps,), bool.
        kernel_raw_norms: Shape (steps, kernels), float64.
        update_norms: Norm of each kernel's change, shape (steps, kernels), float64.
        weight_norms: Norm of each kernel before the step, shape (steps, kernels), float64.
    """

    loss: np.ndarray
    learning_rate: np.ndarray
    raw_norm: np.ndarray
    clipped_norm: np.ndarray
    skipped: np.ndarray
    kernel_raw_norms: np.ndarray
    update_norms: np.ndarray
    weight_norms: np.ndarray

    @cached_property
    def update_ratios(self) -> np.ndarray:
        """Norm of the update over that of the weight, shape (steps, kernels); NaN for 0 / 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.update_norms / self.weight_norms


@dataclass(frozen=True, eq=False)
class XRay:
    """A model at its start.

    Attributes:
        config: What was built.
        batch_size: Images of a micro-batch and of a step here.
        num_classes: Of the data.
        blocks: Names of the layers whose outputs were looked at; the last is the logits.
        output_std: Deviation of all values of an output, shape (micro-batches, blocks),
            float64, as all arrays here are; not finite where a value is not.
        image_std: Deviation of a unit between images, the root mean square over units, shape
            (micro-batches, blocks): what is left of the differences between images, and the
            noise of dropout.
        saturated: Share of values where the block's activation is flat, shape (micro-batches,
            blocks); NaN for activations without bounds.
        gradient_rms: Root mean square of dL/da, shape (micro-batches, blocks).
        kernels: Paths of the trainable kernels, first layer first.
        kernel_gradient_norms: Norm of each kernel's raw gradient, shape (micro-batches,
            kernels).
        cross_entropies: The data's part of the loss, shape (micro-batches,).
        regularization: The regularizers' part.
        micro_norms: Norm of the raw gradient of all variables, shape (micro-batches,).
        mean_norm: Norm of the mean of these gradients.
        clipping: The bound that is set, such as `{"clipnorm": 1.0}`, or nothing.
        steps: The first steps.
    """

    config: Config
    batch_size: int
    num_classes: int
    blocks: tuple[str, ...]
    output_std: np.ndarray
    image_std: np.ndarray
    saturated: np.ndarray
    gradient_rms: np.ndarray
    kernels: tuple[str, ...]
    kernel_gradient_norms: np.ndarray
    cross_entropies: np.ndarray
    regularization: float
    micro_norms: np.ndarray
    mean_norm: float
    clipping: dict[str, float]
    steps: FirstSteps

    @cached_property
    def cross_entropy(self) -> float:
        """The data's part of the loss before the first step."""
        return float(np.mean(self.cross_entropies))

    @property
    def chance(self) -> float:
        """The loss of knowing nothing, ln(classes)."""
        return math.log(self.num_classes)

    @cached_property
    def forward(self) -> Profile:
        """How the differences between images pass from the stem to the last block."""
        return Profile.of(self.blocks[:-1], np.median(self.image_std, axis=0)[:-1])

    @cached_property
    def backward(self) -> Profile:
        """How dL/da passes from the last block to the stem."""
        return Profile.of(self.blocks[-2::-1], np.median(self.gradient_rms, axis=0)[-2::-1])

    @cached_property
    def noise_scale(self) -> float:
        """The gradient noise scale in images: see `gradient_noise_scale`."""
        return gradient_noise_scale(self.micro_norms, self.mean_norm, self.batch_size)

    @property
    def largest_noise_scale(self) -> float:
        """The largest noise scale that so few images can tell: four times their number.

        The norm of their mean gradient is then to four fifths noise.
        """
        return 4.0 * self.batch_size * len(self.micro_norms)


@dataclass(frozen=True, eq=False)
class Profile:
    """A signal's size along its way.

    Attributes:
        blocks: Names in the order in which it comes to them.
        sizes: Shape (blocks,), float64.
        slope: Of log10(size) a block, by least squares over the sizes that are finite and
            not 0; NaN for fewer than three.
        far_at: Blocks from the first one after which the fit has changed by `FAR`, beyond
            the last one too; infinite for a slope of 0.
    """

    blocks: tuple[str, ...]
    sizes: np.ndarray
    slope: float
    far_at: float

    @classmethod
    def of(cls, blocks: tuple[str, ...], sizes: np.ndarray) -> Profile:
        """Fit a line."""
        known = np.flatnonzero(np.isfinite(sizes) & (sizes > 0))
        slope = math.nan
        if len(known) >= 3:
            slope = float(np.polyfit(known, np.log10(sizes[known]), 1)[0])
        # Below the digits of float32 in a network of a million blocks there is no trend.
        flat = not abs(slope) > 1e-12
        return cls(blocks, sizes, slope, math.inf if flat else math.log10(FAR) / abs(slope))

    @property
    def ratio(self) -> float:
        """Last size over first; NaN if one is not finite or the first is 0."""
        first, last = float(self.sizes[0]), float(self.sizes[-1])
        return last / first if first > 0 and math.isfinite(first + last) else math.nan

    @property
    def far_block(self) -> str | None:
        """The first block whose measured size is `FAR` from that of the first one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            is_far = np.abs(np.log10(self.sizes / self.sizes[0])) >= math.log10(FAR)
        return self.blocks[int(np.argmax(is_far))] if is_far.any() else None


def gradient_noise_scale(norms: np.ndarray, mean_norm: float, batch_size: int) -> float:
    """Return the batch size at which noise and gradient are equally large.

    The estimator of McCandlish et al. 2018, appendix A.1: with b images a micro-batch and
    B in all, g_b^2 the mean squared norm of a micro-batch's gradient and g_B^2 that of the
    mean gradient, noise S = (g_b^2 - g_B^2) / (1/b - 1/B), gradient G^2 = (B g_B^2 - b g_b^2)
    / (B - b), and the scale is S / G^2. From a few micro-batches it is an order of magnitude;
    it is smallest at the start of a training, and grows.

    Args:
        norms: Of the raw gradients of the micro-batches, shape (micro-batches,), at least two.
        mean_norm: Of their mean.
        batch_size: Images of a micro-batch.

    Returns:
        Images. Infinite where the gradient drowns in the noise of all the images together,
        NaN where a norm is not finite or all are 0.
    """
    small, large = batch_size, batch_size * len(norms)
    with np.errstate(over="ignore", invalid="ignore"):
        small_square = float(np.mean(np.square(norms, dtype=np.float64)))
    large_square = mean_norm * mean_norm
    if not math.isfinite(small_square + large_square) or small_square == 0:
        return math.nan
    noise = max(0.0, (small_square - large_square) / (1 / small - 1 / large))
    gradient = (large * large_square - small * small_square) / (large - small)
    return noise / gradient if gradient > 0 else math.inf
