"""Which image files the arguments of `trainer predict` stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import encoded
from PIL import Image

from trainer.errors import DataError
from trainer.predict import Source, sources_of


def paths(sources: list[Source]) -> list[str]:
    assert all(source.content is None for source in sources)
    return [source.name for source in sources]


def test_a_folder_stands_for_the_images_in_and_below_it_sorted(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "folder.png").mkdir()
    names = ["a.png", "b/1.JPG", "b/deep/2.jpeg", "b/deep/3.webp", "c.bmp"]
    for name in [*names, "b/notes.txt", "b/labels.csv", "b/png"]:
        (tmp_path / name).touch()

    assert paths(sources_of([str(tmp_path)])) == [str(tmp_path / name) for name in names]


def test_files_and_folders_keep_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    for name in ("x/2.png", "x/1.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    arguments = [str(tmp_path / name) for name in ("x", "a.png", "notes.txt", "nowhere.png")]

    names = ["x/1.png", "x/2.png", "a.png", "notes.txt", "nowhere.png"]
    assert paths(sources_of(arguments)) == [str(tmp_path / name) for name in names]


def test_standard_input_may_hold_a_path_a_line(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    lines = f"two words.png\r\n\n  \nB\u00e4r/L\u00f6we.png\n{tmp_path}\nlast.png"

    names = [
        "first.png",
        "two words.png",
        "B\u00e4r/L\u00f6we.png",
        str(tmp_path / "1.png"),
        "last.png",
    ]
    assert paths(sources_of(["first.png", "-"], lines.encode())) == names


@pytest.mark.parametrize("line", ["BMW.png", "BM/1.png", "RIFF/1.png", "GIF89/1.png"])
def test_a_path_that_begins_like_an_image_is_a_path(line: str) -> None:
    assert paths(sources_of(["-"], f"{line}\n".encode())) == [line]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "GIF"])
def test_standard_input_may_hold_an_image(form: str) -> None:
    content = encoded(Image.new("RGB", (4, 4)), form)

    assert sources_of(["-"], content) == [Source("-", content)]


def test_no_image_at_all_is_an_error_that_names_what_was_given(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"there is none in {tmp_path}, standard input"):
        sources_of([str(tmp_path), "-"])
