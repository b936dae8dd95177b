"""The table of a network's layers against its own weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from small_networks import built, num_trainable, spec_of

from trainer.config.schema import DataConfig
from trainer.errors import DataError
from trainer.model_summary import expected_shape, format_layers, summarize


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"shortcut": "projection", "activation": "prelu"},
        {"layout": "bottleneck", "preactivation": True, "shortcut": "projection", "dropout": 0.1},
        {"normalization": "none", "stochastic_depth": 0.2},
    ],
)
def test_the_summary_accounts_for_every_parameter(block: dict[str, Any]) -> None:
    model = built(spec_of(**block))
    layers = summarize(model)
    assert sum(layer.parameters for layer in layers) == num_trainable(model)
    by_path = {layer.path: layer for layer in layers}
    assert len(by_path) == len(layers)
    assert by_path["stage1_block0/conv1"].output_shape == (
        (4, 4, 8) if block.get("layout") != "bottleneck" else (8, 8, 2)
    )


def test_the_summary_counts_the_projection_at_the_resolution_of_its_output() -> None:
    by_path = {layer.path: layer for layer in summarize(built(spec_of(shortcut="projection")))}
    shortcut = by_path["stage1_block0/shortcut_conv"]
    assert (shortcut.output_shape, shortcut.parameters) == ((4, 4, 8), 4 * 8)
    assert shortcut.multiply_adds == 4 * 8 * 4 * 4
    assert "stage0_block0/shortcut_conv" not in by_path


def test_the_table_fits_80_columns_and_ends_with_the_sums() -> None:
    spec = spec_of(shortcut="projection", layout="bottleneck", spatial_dropout=0.1)
    lines = format_layers(summarize(built(spec, (224, 224, 3)))).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["layer", "kind", "output", "params", "mult-adds"]
    assert re.fullmatch(r"[\d,]+ parameters, [\d,.]+ million multiply-adds", lines[-1])
    (row,) = [line for line in lines if line.startswith("stem_norm")]
    assert row.split() == ["stem_norm", "BatchNormalization", "224x224x4", "8"]


@pytest.mark.parametrize("source", ["cifar10", "shapes"])
def test_a_built_in_source_needs_no_images_to_be_described(source: str) -> None:
    assert expected_shape(DataConfig(source=source)) == ((32, 32, 3), 10)


def test_the_folders_of_a_directory_tell_the_number_of_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog", "owl", ".cache"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "train" / "notes.txt").touch()
    data = DataConfig(source="directory", path=str(tmp_path), image_size=(20, 30))
    assert expected_shape(data) == ((20, 30, 3), 3)


def test_a_directory_that_is_absent_is_named(tmp_path: Path) -> None:
    data = DataConfig(source="directory", path=str(tmp_path / "gone"), image_size=(20, 30))
    with pytest.raises(DataError, match="gone"):
        expected_shape(data)
