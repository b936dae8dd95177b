"""Image files as a served model decodes them, against Pillow and the loader of training images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from exported_runs import ask, encoded, train_tiny
from PIL import Image

from trainer.data.directory import read_image
from trainer.evaluate import load_run_model
from trainer.export.saved_model import BYTES, decode_image, write_saved_model
from trainer.export.serving_model import build_serving_model

SIZE = (32, 32)

# In levels of 0..255. Pillow resizes in integers, rounded after each axis, TensorFlow in floats,
# rounded once: 1. Each may also round 16 bits, or alpha, its own way before that: 2. For JPEG,
# TensorFlow takes libjpeg's fast cosine transform and Pillow the exact one: 4 were seen.
EXACT, RESIZED, ROUNDED_TWICE, JPEG = 0, 1, 2, 6


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """Return smooth waves with some noise."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(9 * x / width + c) * np.cos(7 * y / height - c) for c in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, channels))
    pixels = np.clip(127 + 120 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def posterized(mode: str) -> Image.Image:
    """Return an image with few colours, the one at the top left being frequent."""
    return photograph(120, 90).convert(mode).point(lambda value: value // 64 * 64)


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 40), dtype=np.uint16))


def palette() -> Image.Image:
    return photograph(120, 90).quantize(60)


FILES: dict[str, tuple[Callable[[], bytes], int]] = {
    "png of the right size": (lambda: encoded(photograph(*SIZE)), EXACT),
    "png": (lambda: encoded(photograph(120, 90)), RESIZED),
    "smaller png": (lambda: encoded(photograph(9, 13)), RESIZED),
    "long png": (lambda: encoded(photograph(20, 300)), RESIZED),
    "1x1 png": (lambda: encoded(photograph(1, 1)), EXACT),
    "3000x2000 png": (lambda: encoded(photograph(2000, 3000), compress_level=1), RESIZED),
    "grey png": (lambda: encoded(photograph(120, 90, 1)), RESIZED),
    "16-bit grey png": (lambda: encoded(sixteen_bits()), ROUNDED_TWICE),
    "1-bit png": (lambda: encoded(photograph(120, 90).convert("1")), RESIZED),
    "palette png": (lambda: encoded(palette()), RESIZED),
    "palette png, one transparent": (lambda: encoded(palette(), transparency=3), RESIZED),
    "palette png, alpha": (
        lambda: encoded(palette(), transparency=bytes(range(0, 240, 4))),
        ROUNDED_TWICE,
    ),
    "rgba png": (lambda: encoded(photograph(50, 70, 4)), ROUNDED_TWICE),
    "la png": (lambda: encoded(photograph(50, 70, 4).convert("LA")), ROUNDED_TWICE),
    "rgb png, one transparent": (
        lambda: encoded(posterized("RGB"), transparency=posterized("RGB").getpixel((0, 0))),
        RESIZED,
    ),
    "grey png, one transparent": (
        lambda: encoded(posterized("L"), transparency=posterized("L").getpixel((0, 0))),
        RESIZED,
    ),
    "jpeg": (lambda: encoded(photograph(120, 90), "JPEG"), JPEG),
    "jpeg of the right size": (lambda: encoded(photograph(*SIZE), "JPEG"), JPEG),
    "progressive jpeg": (lambda: encoded(photograph(120, 90), "JPEG", progressive=True), JPEG),
    "1x1 jpeg": (lambda: encoded(photograph(1, 1), "JPEG"), JPEG),
    "3000x2000 jpeg": (lambda: encoded(photograph(2000, 3000), "JPEG"), JPEG),
    "grey jpeg": (lambda: encoded(photograph(120, 90, 1), "JPEG"), JPEG),
    "cmyk jpeg": (lambda: encoded(photograph(120, 90).convert("CMYK"), "JPEG"), JPEG),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_decoded_as_training_images_are(name: str) -> None:
    make, levels = FILES[name]
    content = make()
    expected = read_image(Path(name), SIZE, content).astype(int)
    found = decode_image(tf.constant(content), *SIZE)
    assert found.dtype == tf.uint8
    assert found.shape == (*SIZE, 3)
    difference = np.abs(found.numpy() - expected)
    assert difference.max() <= levels, f"{difference.max()} levels, {difference.mean():.2f} mean"


def test_of_a_moving_gif_the_first_frame_counts() -> None:
    first = palette()
    content = encoded(first, "GIF", save_all=True, append_images=[palette().rotate(90)])
    with Image.open(io.BytesIO(content)) as file:
        expected = np.asarray(file.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))
    found = decode_image(tf.constant(content), *SIZE).numpy()
    np.testing.assert_allclose(found.astype(int), expected, atol=RESIZED)


def test_height_and_width_are_not_exchanged() -> None:
    content = encoded(photograph(120, 90))
    found = decode_image(tf.constant(content), 10, 24).numpy()
    expected = read_image(Path("a.png"), (10, 24), content)
    np.testing.assert_allclose(found.astype(int), expected, atol=RESIZED)


def test_an_image_of_8000x8000_is_decoded() -> None:
    content = encoded(Image.new("RGB", (8000, 8000), (10, 200, 90)), compress_level=1)
    found = decode_image(tf.constant(content), *SIZE).numpy()
    assert (found == (10, 200, 90)).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    run = train_tiny(folder, "fit.epochs=1")
    serving = build_serving_model(load_run_model(run), (*SIZE, 3), "single")
    write_saved_model(folder / "1", serving, [str(i) for i in range(10)], "tiny")
    return tf.saved_model.load(str(folder / "1"))


BROKEN = {
    "truncated png": encoded(photograph(120, 90))[:1000],
    "truncated jpeg": encoded(photograph(120, 90), "JPEG")[:2000],
    "truncated gif": encoded(palette(), "GIF")[:800],
    "bitmap": encoded(photograph(120, 90), "BMP"),
    "head of a png": encoded(photograph(120, 90))[:8],
    "text": b"this is no image\n",
    "random bytes": np.random.default_rng(0).bytes(5000),
    "empty string": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_decoded_fails_its_request_and_no_other(model: Any, name: str) -> None:
    good = encoded(photograph(*SIZE))
    before = ask(model, BYTES, [good])
    for request in ([BROKEN[name]], [good, BROKEN[name], good]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            ask(model, BYTES, request)
    after = ask(model, BYTES, [good])
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


def test_files_of_every_kind_and_size_go_together_in_one_request(model: Any) -> None:
    files = [make() for name, (make, _) in FILES.items() if "3000" not in name]
    together = ask(model, BYTES, files)["probabilities"]
    alone = [ask(model, BYTES, [file])["probabilities"][0] for file in files]
    np.testing.assert_allclose(together, alone, atol=1e-6)
