"""Images in folders: `path/train/<class>/*.png` and `path/test/<class>/*.png`.

Every image becomes 8-bit RGB of one size, whatever it was before: turned as its
EXIF orientation says, 16-bit grey scaled to 8 bits, transparency put on black,
then resized with an anti-aliased bilinear filter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.data.sources import Part, Split
from trainer.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


def load_directory(path: str, part: Part, image_size: tuple[int, int]) -> Split:
    """Load the images below `path/train` or `path/test`.

    Class names are the folder names of `train`, sorted, and `test` must have the
    same. Hidden files and files without an image's extension are passed over.

    Args:
        path: The folder that holds `train` and `test`.
        part: Which of the two to read; no image of the other one is opened.
        image_size: Height and width in pixels of the result.

    Returns:
        Images of shape `(num_images, *image_size, 3)`, by class, then file name.

    Raises:
        DataError: If a folder is missing or empty, or a file is no whole image.
    """
    root = Path(path).expanduser()
    classes = _class_folders(root, "train")
    class_names = tuple(folder.name for folder in classes)
    if part == "test":
        classes = _class_folders(root, "test")
        _check_same_classes(class_names, [folder.name for folder in classes], root)
    files = [_image_files(folder) for folder in classes]
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(names) for names in files])
    images = _read_images([file for names in files for file in names], image_size)
    return Split(images, labels, class_names, str(root / part), synthetic=False)


def _class_folders(root: Path, part: Part) -> list[Path]:
    """Return the folders below one part, sorted by name."""
    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"data.path must hold train/<class>/ and test/<class>/, but there is no folder "
            f"{folder}. Found in {root}: {_listing(root)}"
        )
    classes = [entry for entry in _visible(folder) if entry.is_dir()]
    if not classes:
        raise DataError(
            f"{folder} must hold one folder for each class. Found in it: {_listing(folder)}"
        )
    return classes


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _listing(folder: Path, limit: int = 8) -> str:
    """Return the first names in a folder, for a message."""
    if not folder.is_dir():
        return "no such folder"
    names = [entry.name + "/" * entry.is_dir() for entry in _visible(folder)]
    return (", ".join(names[:limit]) or "nothing") + (", ..." if len(names) > limit else "")


def _check_same_classes(train: Iterable[str], test: Iterable[str], root: Path) -> None:
    missing, unknown = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if missing or unknown:
        differences = [
            f"{', '.join(names)} only in {part}"
            for part, names in (("train", missing), ("test", unknown))
            if names
        ]
        raise DataError(
            f"train and test must have the same class folders. Found in {root}: "
            f"{'; '.join(differences)}"
        )


def _image_files(folder: Path) -> list[Path]:
    files = [entry for entry in _visible(folder) if entry.suffix.lower() in EXTENSIONS]
    if not files:
        raise DataError(
            f"every class needs at least one image ({', '.join(EXTENSIONS)}). "
            f"Found in {folder}: {_listing(folder)}"
        )
    return files


def _read_images(files: list[Path], image_size: tuple[int, int]) -> np.ndarray:
    images = np.empty((len(files), *image_size, 3), np.uint8)
    # Pillow only warns between its limit of pixels and twice that; here the limit is one.
    # The filter is set before the threads start because it belongs to the whole process.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for i, image in enumerate(pool.map(partial(read_image, image_size=image_size), files)):
            images[i] = image
    return images


def read_image(path: Path, image_size: tuple[int, int], content: bytes | None = None) -> np.ndarray:
    """Read one image file as RGB, resized.

    Args:
        path: A PNG, JPEG, BMP or WEBP file of any mode.
        image_size: Height and width in pixels.
        content: Of the file, if it was read already; `path` is then its name only.

    Returns:
        Shape (height, width, 3), uint8.

    Raises:
        DataError: If it is no image, damaged, too large, or a link to a file that is gone.
        FileNotFoundError: If there is no such file.
    """
    height, width = image_size

    def size() -> int:
        return path.stat().st_size if content is None else len(content)

    try:
        with Image.open(path if content is None else BytesIO(content), formats=_FORMATS) as file:
            image = _as_rgb(ImageOps.exif_transpose(file))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise
        raise DataError(
            f"{path} is a link to a file that does not exist. Delete or replace it"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} must be an image, but it is none of {', '.join(_FORMATS)} "
            f"({size()} bytes). Delete or replace it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path} must have at most {Image.MAX_IMAGE_PIXELS} pixels; it claims more, as files "
            "made to exhaust the memory do. Delete it or make it smaller"
        ) from error
    # Pillow's decoders raise nearly any exception on damaged bytes.
    except Exception as error:
        raise DataError(
            f"{path} is a damaged or truncated image ({size()} bytes). Delete or replace it"
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")
