"""Images in folders: order, decoding, and what is passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.config.schema import DataConfig
from trainer.data.sources import Split, load_split
from trainer.errors import DataError


def save(image: Image.Image | np.ndarray, *path: Path | str, **options: object) -> None:
    file = Path(*path)
    file.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, **options)


def plain(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value, value, value))


def load(root: Path, part: str = "train", image_size: tuple[int, int] = (4, 4)) -> Split:
    data = DataConfig(source="directory", path=str(root), image_size=image_size)
    return load_split(data, part, seed=0)  # type: ignore[arg-type]


def load_one(root: Path, image_size: tuple[int, int] = (4, 4)) -> np.ndarray:
    """Load a folder whose class `a` holds one image, beside a second class."""
    save(plain(0), root, "train/b/1.png")
    return load(root, image_size=image_size).images[0]


def test_images_come_by_class_then_by_name(tmp_path: Path) -> None:
    for name, value in (("dog/1.png", 30), ("cat/2.bmp", 20), ("cat/1.PNG", 10)):
        save(plain(value), tmp_path, "train", name)
    split = load(tmp_path)
    assert split.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert split.labels.tolist() == [0, 0, 1]
    assert split.class_names == ("cat", "dog")
    assert split.origin == str(tmp_path / "train")
    assert not split.synthetic


def test_the_order_holds_for_many_images_decoded_in_parallel(tmp_path: Path) -> None:
    for i in range(200):
        save(plain(i), tmp_path, "train", "ab"[i % 2], f"{i:03}.png")
    split = load(tmp_path)
    assert split.images[:, 0, 0, 0].tolist() == [*range(0, 200, 2), *range(1, 200, 2)]


def test_loading_train_opens_nothing_of_test(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        save(plain(1), tmp_path, name)
    (tmp_path / "test/a/1.png").write_bytes(b"damaged")
    assert load(tmp_path, "train").num_images == 2


def test_a_link_to_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png"):
        save(plain(1), tmp_path, name)
    (tmp_path / "train/b/2.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"b/2.png is a link to a file that does not exist"):
        load(tmp_path, "train")


def test_test_labels_are_those_of_train(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/b/1.png", "test/b/2.png", "test/a/1.png"):
        save(plain(1), tmp_path, name)
    assert load(tmp_path, "test").labels.tolist() == [0, 1, 1]


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    save(plain(9), tmp_path, "train/a/1.png")
    for name in ("train/a/.1.png", "train/a/notes.txt", "train/README.md"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    assert load_one(tmp_path).max() == 9


def test_image_size_is_height_then_width(tmp_path: Path) -> None:
    save(plain(5), tmp_path, "train/a/1.png")
    assert load_one(tmp_path, image_size=(6, 3)).shape == (6, 3, 3)


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path: Path) -> None:
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    save(checkers.astype(np.uint8), tmp_path, "train/a/1.png")
    assert np.abs(load_one(tmp_path).astype(int) - 127).max() <= 8


@pytest.mark.parametrize("name", ["1.png", "1.jpg", "1.jpeg", "1.bmp", "1.webp"])
def test_each_format_is_read(tmp_path: Path, name: str) -> None:
    save(plain(128), tmp_path, "train/a", name)
    assert np.abs(load_one(tmp_path).astype(int) - 128).max() <= 2


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    save(Image.new("L", (4, 4), 77), tmp_path, "train/a/1.png")
    assert (load_one(tmp_path) == 77).all()


def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    save(np.full((4, 4), 200 * 257, np.uint16), tmp_path, "train/a/1.png")
    assert (load_one(tmp_path) == 200).all()


def test_palette_colours_are_looked_up(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    save(image, tmp_path, "train/a/1.png")
    assert load_one(tmp_path)[0, 0].tolist() == [10, 200, 30]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (4, 4), (200, 100, 50, 0)), [0, 0, 0]),
        (Image.new("RGBA", (4, 4), (200, 100, 50, 255)), [200, 100, 50]),
        (Image.new("LA", (4, 4), (200, 51)), [40, 40, 40]),
    ],
)
def test_transparency_is_put_on_black(
    tmp_path: Path, image: Image.Image, expected: list[int]
) -> None:
    save(image, tmp_path, "train/a/1.png")
    assert load_one(tmp_path)[0, 0].tolist() == expected


def test_a_transparent_palette_entry_is_black(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    save(image, tmp_path, "train/a/1.png", transparency=1)
    assert (load_one(tmp_path) == 0).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    save(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path, "train/a/1.jpg", quality=100)
    red, green, blue = load_one(tmp_path)[0, 0].tolist()
    assert red <= 3
    assert min(green, blue) >= 252


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by a quarter clockwise to view: the stored top is on the right.
    save(stored, tmp_path, "train/a/1.png", exif=exif)
    image = load_one(tmp_path, image_size=(8, 8))
    assert (image[:, 4:] == 255).all()
    assert (image[:, :4] == 0).all()
