"""Files that stand beside the code and are made from it are true."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trainer.config import load_config
from trainer.config.json_schema import config_json_schema

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_config(path).name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_points_editors_to_the_schema(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")


def test_the_shipped_schema_is_that_of_the_code() -> None:
    shipped = json.loads((ROOT / "configs" / "schema.json").read_text())

    assert shipped == config_json_schema()  # else: trainer config schema configs/schema.json


def test_the_plain_configs_differ_from_the_residual_ones_in_one_word() -> None:
    for depth in (20, 56):
        plain = load_config(ROOT / "configs" / f"plain{depth}.yaml").model_dump()
        residual = load_config(ROOT / "configs" / f"resnet{depth}.yaml").model_dump()
        assert plain["model"]["block"].pop("kind") == "plain"
        assert residual["model"]["block"].pop("kind") == "residual"
        assert plain.pop("name") != residual.pop("name")
        assert plain == residual


def test_the_table_of_errors_is_that_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    from write_error_table import error_table

    # Else: python scripts/write_error_table.py
    assert (ROOT / "configs" / "errors.md").read_text(encoding="utf-8") == error_table()
