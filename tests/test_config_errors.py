"""What a wrong config says: every message in full, at its file and line."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from broken_configs import BROKEN_CONFIGS, MODEL, BrokenConfig

from trainer.config import dump_config, load_config
from trainer.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages name files as a user does, without a leading directory."""
    monkeypatch.chdir(tmp_path)


def message_of(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Path(path), overrides)
    return str(caught.value)


@pytest.mark.parametrize("broken", BROKEN_CONFIGS, ids=lambda broken: broken.name)
def test_a_broken_config_says_what_is_wrong_and_where(broken: BrokenConfig) -> None:
    Path("broken.yaml").write_text(broken.text, encoding="utf-8")
    if broken.base is not None:
        Path("base.yaml").write_text(broken.base, encoding="utf-8")
    assert message_of("broken.yaml", *broken.overrides) == broken.message


def test_every_broken_config_has_its_own_name() -> None:
    assert len({broken.name for broken in BROKEN_CONFIGS}) == len(BROKEN_CONFIGS)


def test_a_file_that_does_not_exist_names_one_that_does() -> None:
    Path("resnet20.yaml").write_text(MODEL)
    assert message_of("resnet2O.yaml") == (
        "resnet2O.yaml: no such file. Did you mean resnet20.yaml?"
    )


def test_a_file_in_a_directory_that_does_not_exist_is_missing() -> None:
    assert message_of("configs/resnet20.yaml") == "configs/resnet20.yaml: no such file"


def test_a_directory_is_no_config() -> None:
    Path("configs").mkdir()
    assert message_of("configs") == "configs: must be a YAML file, and this is a directory"


def test_a_path_through_a_file_says_why_it_cannot_be_read() -> None:
    Path("file").write_text("")
    assert message_of("file/a.yaml") == "file/a.yaml: cannot be read: Not a directory"


def test_a_base_that_is_no_path_or_leads_to_itself_says_why_it_cannot_be_read() -> None:
    Path("loop.yaml").symlink_to("loop.yaml")
    for name, reason in (
        ("a\\0b.yaml", "a\0b.yaml: cannot be read: embedded null byte"),
        ("loop.yaml", "loop.yaml: cannot be read: Too many levels of symbolic links"),
    ):
        Path("mine.yaml").write_text(f'extends: "{name}"\n')
        assert message_of("mine.yaml") == f"mine.yaml:1: extends: {reason}"


def test_bytes_that_are_not_utf_8_are_named_with_their_line() -> None:
    Path("latin.yaml").write_bytes(MODEL.encode() + "name: \u00e9\n".encode("latin-1"))
    assert message_of("latin.yaml") == (
        "latin.yaml:2: the file must be UTF-8. Received: the byte 0xe9"
    )


def test_values_that_are_nested_too_deeply_are_refused() -> None:
    Path("deep.yaml").write_text("model: " + "[" * 5000)
    assert message_of("deep.yaml") == (
        "deep.yaml: values are nested too deeply, or an alias stands inside of its own anchor"
    )


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    Path("bomb.yaml").write_text("\n".join(lines))
    assert message_of("bomb.yaml") == "bomb.yaml:1: aliases stand for more than 100000 values"


def test_problems_are_sorted_by_file_and_line_with_overrides_last() -> None:
    Path("a.yaml").write_text("extends: b.yaml\nseed: -1\nname: /\n")
    Path("b.yaml").write_text("fit: {epochs: 0}\nmodel: {stages: []}\n")
    lines = message_of("a.yaml", "runtime.jit=1", "data.path=2").splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "a.yaml:2",
        "a.yaml:3",
        "b.yaml:1",
        "b.yaml:2",
        "--set data.path=2",
        "--set runtime.jit=1",
    ]


@pytest.mark.parametrize("wrong", ["null", "-1", "[[]]", "{kind: [x]}", "{x: null}"])
def test_a_wrong_value_at_any_key_is_a_config_error_in_that_file(wrong: str) -> None:
    Path("a.yaml").write_text(MODEL + "schedule: {kind: step, boundary_epochs: [1]}\n")
    lines = dump_config(load_config(Path("a.yaml"), ["data.augment=[cutout]"])).splitlines()
    messages = []
    for number, line in enumerate(lines):
        key, _, value = line.partition(": ")
        if value:
            changed = [*lines[:number], f"{key}: {wrong}", *lines[number + 1 :]]
            Path("a.yaml").write_text("\n".join(changed))
            with suppress(ConfigError):
                load_config(Path("a.yaml"))
                continue
            messages += message_of("a.yaml").splitlines()
    assert messages
    assert all(re.match(r"a\.yaml:\d+: \S+: \S", message) for message in messages)
