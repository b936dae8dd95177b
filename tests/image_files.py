"""Image files of every kind that a folder may hold, each with what must be made of it.

`BAD` gives the content and a part of what is said about it; `GOOD` gives the content and
the 32x32 pixels that it stands for.
"""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
from PIL import Image

NO_IMAGE = "must be an image, but it is none of PNG, JPEG, BMP, WEBP ("
DAMAGED = "is a damaged or truncated image ("
TOO_LARGE = "must have at most 89478485 pixels"


def encoded(image: Image.Image | np.ndarray, form: str = "PNG") -> bytes:
    content = BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(content, form)
    return content.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """Return a small file whose header, checksum included, is that of a huge image."""
    content = bytearray(encoded(Image.new("L", (1, 1))))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def in_rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=2)


RAMP = (np.arange(32 * 32) // 4).reshape(32, 32).astype(np.uint8)
COLOUR = (200, 90, 30)
_INVERTED = (55, 165, 225, 0)
_ONE_COLOUR = np.full((32, 32, 3), COLOUR, np.uint8)
_PNG = encoded(in_rgb(RAMP))
_GIF = encoded(Image.new("P", (4, 4)), "GIF")
_WHITE = np.full((32, 32, 1), 255, np.uint8)

BAD: dict[str, tuple[bytes, str]] = {
    "truncated.png": (_PNG[: len(_PNG) // 2], DAMAGED),
    "truncated.jpg": (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-500], DAMAGED),
    "animation.gif": (_GIF, NO_IMAGE),
    "gif.png": (_GIF, NO_IMAGE),
    "tiff.png": (encoded(Image.new("RGB", (4, 4)), "TIFF"), NO_IMAGE),
    "text.png": (b"no image at all\n", NO_IMAGE),
    "random.png": (np.random.default_rng(1).bytes(5000), NO_IMAGE),
    "empty.png": (b"", NO_IMAGE),
    "bomb.png": (png_that_claims(60_000, 60_000), TOO_LARGE),
    "small_bomb.png": (png_that_claims(12_000, 10_000), TOO_LARGE),
}

GOOD: dict[str, tuple[bytes, np.ndarray]] = {
    "rgb.png": (_PNG, in_rgb(RAMP)),
    "grey.png": (encoded(RAMP), in_rgb(RAMP)),
    "16_bit_grey.png": (encoded(RAMP.astype(np.uint16) * 257), in_rgb(RAMP)),
    "cmyk.jpg": (encoded(Image.new("CMYK", (32, 32), _INVERTED), "JPEG"), _ONE_COLOUR),
    "rgba.png": (encoded(np.dstack([_WHITE] * 3 + [RAMP])), in_rgb(RAMP)),
    "grey_and_alpha.png": (encoded(np.dstack([_WHITE, RAMP])), in_rgb(RAMP)),
    "1x1.png": (encoded(Image.new("RGB", (1, 1), COLOUR)), _ONE_COLOUR),
    "1x500.png": (encoded(Image.new("RGB", (1, 500), COLOUR)), _ONE_COLOUR),
    "8000x8000.png": (encoded(Image.new("L", (8000, 8000), 90)), np.full_like(_ONE_COLOUR, 90)),
}
