"""What a right config means: scalars, bases, overrides, and the way back to YAML."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_configs import MODEL
from jsonschema import Draft202012Validator

from trainer.config import Config, dump_config, load_config
from trainer.config.json_schema import config_json_schema
from trainer.config.model_schema import BatchNormalizationSpec, InitializerSpec, WhiteningStem
from trainer.config.schema import SECTIONS_BY_KIND, SECTIONS_BY_NAME, Adam, Cutout, Sgd


def load(tmp_path: Path, text: str, *overrides: str, base: str | None = None) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    if base is not None:
        (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
    return load_config(path, overrides)


# Scalars


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), ("1E5", 100000.0), (".5", 0.5), ("5.", 5.0), ("+2", 2.0), ("0x10", 16.0)],
)
def test_a_number_is_read_as_yaml_1_2_writes_it(tmp_path: Path, text: str, number: float) -> None:
    config = load(tmp_path, MODEL + f"optimizer: {{kind: sgd, learning_rate: {text}}}\n")
    assert config.optimizer.learning_rate == number


def test_a_leading_zero_is_not_octal(tmp_path: Path) -> None:
    assert load(tmp_path, MODEL + "seed: 010\n").seed == 10


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "2026-01-01"])
def test_a_word_that_yaml_1_1_converts_stays_a_word(tmp_path: Path, word: str) -> None:
    assert load(tmp_path, MODEL + f"name: {word}\n").name == word


def test_jit_on_needs_no_quotes(tmp_path: Path) -> None:
    assert load(tmp_path, MODEL + "runtime: {jit: on}\n").runtime.jit == "on"


@pytest.mark.parametrize("null", ["null", "~", ""])
def test_null_is_written_in_any_of_three_ways(tmp_path: Path, null: str) -> None:
    assert load(tmp_path, MODEL + f"data:\n  path: {null}\n").data.path is None


def test_an_alias_repeats_its_anchor(tmp_path: Path) -> None:
    config = load(tmp_path, "model:\n  stages: [&a {filters: 8, blocks: 2}, *a]\n")
    assert config.model.stages[0] == config.model.stages[1]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (MODEL + "seed: 7\n").replace("\n", "\r\n").encode())
    assert load_config(path).seed == 7


# A base


def test_a_file_lays_its_mappings_over_those_of_its_base(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "extends: base.yaml\nfit: {epochs: 5}\n",
        base=MODEL + "fit: {epochs: 3, batch_size: 64}\nseed: 4\n",
    )
    assert (config.fit.epochs, config.fit.batch_size, config.seed) == (5, 64, 4)


def test_a_list_replaces_that_of_the_base(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "extends: base.yaml\ndata: {augment: [cutout]}\n",
        base=MODEL + "data: {augment: [horizontal_flip, mixup]}\n",
    )
    assert config.data.augment == (Cutout(),)


def test_the_path_of_a_base_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "small.yaml").write_text(MODEL + "seed: 9\n")
    assert load(tmp_path, "extends: bases/small.yaml\n").seed == 9


def test_a_base_may_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "first.yaml").write_text(
        MODEL + "seed: 1\nfit: {epochs: 1, batch_size: 64}\noptimizer: {kind: adam, beta_1: 0.8}\n"
    )
    config = load(
        tmp_path,
        "extends: base.yaml\nseed: 3\n",
        base="extends: bases/first.yaml\nseed: 2\nfit: {epochs: 2}\noptimizer: {kind: sgd}\n",
    )
    assert (config.seed, config.fit.epochs, config.fit.batch_size) == (3, 2, 64)
    assert config.optimizer == Sgd()


def test_another_kind_drops_the_options_of_the_base(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "extends: base.yaml\noptimizer: {kind: sgd}\n",
        base=MODEL + "optimizer: {kind: adam, learning_rate: 0.5, beta_1: 0.8}\n",
    )
    assert config.optimizer == Sgd()


@pytest.mark.parametrize("kind", ["", "kind: convolution, "])
def test_a_stem_of_another_kind_drops_the_options_of_one_written_without_a_kind(
    tmp_path: Path, kind: str
) -> None:
    stages = "stages: [{filters: 32, blocks: 1}]"
    config = load(
        tmp_path,
        "extends: base.yaml\nmodel: {stem: {kind: whitening}}\n",
        base=f"model: {{{stages}, stem: {{{kind}filters: 8}}}}\n",
    )
    assert config.model.stem == WhiteningStem(kind="whitening")


@pytest.mark.parametrize("kind", ["", "kind: adam, "])
def test_the_same_kind_keeps_the_options_of_the_base(tmp_path: Path, kind: str) -> None:
    config = load(
        tmp_path,
        f"extends: base.yaml\noptimizer: {{{kind}beta_1: 0.8}}\n",
        base=MODEL + "optimizer: {kind: adam, learning_rate: 0.5}\n",
    )
    assert config.optimizer == Adam(learning_rate=0.5, beta_1=0.8)


def test_turning_plain_blocks_into_residual_ones_keeps_everything_else(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "extends: base.yaml\nmodel: {block: {kind: residual}}\n",
        base="model:\n  stages: [{filters: 8, blocks: 1}]\n"
        "  block: {kind: plain, activation: elu}\n",
    )
    assert (config.model.block.kind, config.model.block.activation) == ("residual", "elu")


_BATCH = ("batch", "{batch: {momentum: 0.5}}", "{kind: batch, momentum: 0.5}", "{batch: }")


@pytest.mark.parametrize(("lower", "upper"), [*product(_BATCH, _BATCH[1:3])])
def test_every_spelling_of_a_kind_merges_with_every_other(
    tmp_path: Path, lower: str, upper: str
) -> None:
    block = "model: {{stages: [{{filters: 8, blocks: 1}}], block: {{normalization: {}}}}}\n"
    config = load(
        tmp_path,
        "extends: base.yaml\nmodel: {block: {normalization: " + upper + "}}\n",
        "model.block.normalization.epsilon=0.1",
        base=block.format(lower),
    )
    assert config.model.block.normalization == BatchNormalizationSpec(momentum=0.5, epsilon=0.1)


def test_another_initializer_drops_the_arguments_of_the_base(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "extends: base.yaml\nmodel: {block: {kernel_initializer: {orthogonal: {gain: 2}}}}\n",
        base="model:\n  stages: [{filters: 8, blocks: 1}]\n"
        "  block: {kernel_initializer: {random_normal: {stddev: 0.1}}}\n",
    )
    expected = InitializerSpec(kind="orthogonal", arguments={"gain": 2.0})
    assert config.model.block.kernel_initializer == expected


def test_every_section_with_kinds_is_known_to_start_afresh() -> None:
    schema = Config.model_json_schema()

    def walk(value: dict[str, Any], path: str) -> list[str]:
        if value.get("$ref"):
            value = schema["$defs"][value["$ref"].rpartition("/")[2]]
        if "discriminator" in value or value.get("title") == "InitializerSpec":
            return [path]
        if "items" in value:
            return walk(value["items"], f"{path}.*")
        children = value.get("properties", {}).items()
        return [found for key, child in children for found in walk(child, f"{path}.{key}")]

    found = {path.removeprefix(".") for path in walk(schema, "")}
    assert found == set(SECTIONS_BY_KIND) | SECTIONS_BY_NAME


# Overrides


@pytest.mark.parametrize("key", ["model.stages.1.filters", "model.stages[1].filters"])
def test_an_override_reaches_one_item_of_a_list(tmp_path: Path, key: str) -> None:
    text = "model:\n  stages: [{filters: 8, blocks: 1}, {filters: 16, blocks: 2}]\n"
    stages = load(tmp_path, text, f"{key}=32").model.stages
    assert [(stage.filters, stage.blocks) for stage in stages] == [(8, 1), (32, 2)]


@pytest.mark.parametrize(
    "item", ["random_shift", "{random_shift: {pixels: 2}}", "{kind: random_shift, pixels: 2}"]
)
@pytest.mark.parametrize("key", ["data.augment.0.pixels", "data.augment.0.random_shift.pixels"])
def test_an_override_reaches_an_option_in_every_spelling(
    tmp_path: Path, item: str, key: str
) -> None:
    config = load(tmp_path, MODEL + f"data: {{augment: [{item}]}}\n", f"{key}=6")
    assert config.data.augment[0].pixels == 6


def test_an_override_adds_what_the_file_does_not_mention(tmp_path: Path) -> None:
    assert load(tmp_path, MODEL, "fit.epochs=3").fit.epochs == 3


def test_an_override_may_be_any_yaml(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL, "data.augment=[cutout]", "optimizer={kind: sgd}")
    assert (config.data.augment, config.optimizer) == ((Cutout(),), Sgd())


def test_an_override_lies_over_the_base_and_the_file(tmp_path: Path) -> None:
    text = "extends: base.yaml\nseed: 2\n"
    assert load(tmp_path, text, "seed=3", base=MODEL + "seed: 1\n").seed == 3


def test_the_later_of_two_overrides_holds(tmp_path: Path) -> None:
    assert load(tmp_path, MODEL, "seed=3", "seed=4").seed == 4


@pytest.mark.parametrize("reverse", [False, True])
def test_overriding_the_kind_drops_the_options_of_the_file_alone(
    tmp_path: Path, reverse: bool
) -> None:
    overrides = ["optimizer.kind=sgd", "optimizer.momentum=0.5"]
    text = MODEL + "optimizer: {kind: adam, learning_rate: 0.5, beta_1: 0.8}\n"
    config = load(tmp_path, text, *sorted(overrides, reverse=reverse))
    assert config.optimizer == Sgd(momentum=0.5)


# Checks over the whole config


@pytest.mark.parametrize(
    "text",
    [
        "data: {augment: [{random_shift: {pixels: 31}}, {cutout: {size: 32}}]}",
        "data: {source: shapes, train_size: 10, test_size: 10, validation_split: 0}\n"
        "fit: {batch_size: 10}",
        "data: {source: shapes, train_size: 20, validation_split: 0.5}\nfit: {batch_size: 10}",
        "runtime: {logical_cpus: 2}",
        "schedule: {kind: cosine, warmup_epochs: 3}\nfit: {epochs: 3}",
        "schedule: {kind: cosine, warmup_steps: 351}\nfit: {epochs: 1}",
        "schedule: {kind: step, boundary_epochs: [1, 2.5]}\nfit: {epochs: 3}",
        "schedule: {kind: triangular}\nfit: {epochs: 1}",
        "runtime: {devices: 2, jit: on, precision: mixed_bfloat16}",
        "runtime: {devices: 1, jit: on, precision: mixed_float16}",
        "runtime: {steps_per_execution: 50}",
        "gradients: {record: false}\nruntime: {steps_per_execution: 51}",
    ],
)
def test_a_config_at_the_edge_of_a_check_is_fine(tmp_path: Path, text: str) -> None:
    load(tmp_path, MODEL + text + "\n")


def test_down_sampling_to_one_pixel_is_fine(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {stages: [{filters: 8, blocks: 1, strides: 32}]}\n")
    assert config.model.total_strides == 32


def test_a_source_that_the_user_registers_later_is_not_checked_here(tmp_path: Path) -> None:
    text = MODEL + "data: {source: mine}\nschedule: {kind: cosine, warmup_steps: 1000000}\n"
    assert load(tmp_path, text, "model.stem.strides=64").data.source == "mine"


# The way back

_SPELLINGS = {
    "data.augment": [
        "[]",
        "[horizontal_flip, {random_shift: {pixels: 4}}, {kind: cutout, size: 4}, {mixup: }]",
    ],
    "model.block.normalization": ["none", "{group: {groups: 4}}", "{kind: layer, epsilon: 1e-9}"],
    "model.block.kernel_initializer": [
        "orthogonal",
        "{variance_scaling: {scale: 2, mode: fan_out}}",
        "{kind: random_normal, stddev: 1e-20}",
    ],
    "optimizer": ["{kind: muon}", "{kind: sgd, clipnorm: 1, ema_momentum: 0.99}"],
    "schedule": ["{kind: cosine, warmup_steps: 10}", "{kind: step, boundary_epochs: [1, 2.5]}"],
}


@pytest.mark.parametrize("values", [*product(*_SPELLINGS.values())])
def test_a_dumped_config_loads_back_equal(tmp_path: Path, values: tuple[str, ...]) -> None:
    overrides = [f"{key}={value}" for key, value in zip(_SPELLINGS, values, strict=True)]
    config = load(tmp_path, MODEL, *overrides)
    assert load(tmp_path, dump_config(config)) == config


@pytest.mark.parametrize(
    "path", ["1e-3", "yes", "null", "~", "0o17", "a: b", " x", "<<", "\u00e9\n", "'", "a" * 300]
)
def test_a_path_that_looks_like_something_else_loads_back_equal(tmp_path: Path, path: str) -> None:
    config = load(tmp_path, MODEL)
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": path})})
    assert load(tmp_path, dump_config(config)).data.path == path


def test_another_yaml_reader_finds_the_same_words_in_a_dump(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL, "runtime.jit=on", "name=no")
    document = yaml.safe_load(dump_config(config))
    assert (document["runtime"]["jit"], document["name"]) == ("on", "no")


def test_a_dump_writes_every_default_and_the_kind_first(tmp_path: Path) -> None:
    document = yaml.safe_load(dump_config(load(tmp_path, MODEL)))
    # A config without a search does not speak of one.
    assert [*document, "search"] == list(Config.model_fields)
    assert set(document["fit"]) == {
        "epochs",
        "batch_size",
        "label_smoothing",
        "checkpoint_every_epochs",
        "tensorboard",
    }
    assert next(iter(document["optimizer"])) == "kind"


# The schema for editors


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    document = config_json_schema()
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


@pytest.mark.parametrize("values", [*product(*_SPELLINGS.values())])
def test_the_json_schema_accepts_every_spelling(
    tmp_path: Path, schema: Draft202012Validator, values: tuple[str, ...]
) -> None:
    overrides = [f"{key}={value}" for key, value in zip(_SPELLINGS, values, strict=True)]
    resolved = yaml.safe_load(dump_config(load(tmp_path, MODEL, *overrides)))
    assert not list(schema.iter_errors(resolved))
    for key, value in zip(_SPELLINGS, values, strict=True):
        section = resolved
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        # PyYAML would read 1e-9 as a word.
        section[last] = yaml.safe_load(value.replace("1e-", "1.0e-"))
    assert not list(schema.iter_errors(resolved))


@pytest.mark.parametrize(
    "document",
    [
        {"extends": "base.yaml"},
        {"extends": "base.yaml", "optimizer": {"learning_rate": 1}, "model": {"stem": {}}},
    ],
)
def test_the_json_schema_lets_a_file_inherit_what_it_needs(
    schema: Draft202012Validator, document: dict[str, Any]
) -> None:
    assert not list(schema.iter_errors(document))


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"extends": 3},
        {"extends": "base.yaml", "epochs": 3},
        {"extends": "base.yaml", "seed": 1.5},
        {"extends": "base.yaml", "fit": {"epochs": 0}},
        {"extends": "base.yaml", "data": {"validation_split": 1}},
        {"extends": "base.yaml", "data": {"augment": ["random_shft"]}},
        {"extends": "base.yaml", "data": {"augment": [{"random_shift": {"pixel": 4}}]}},
        {"extends": "base.yaml", "optimizer": {"kind": "adam", "momentum": 0.9}},
        {"extends": "base.yaml", "model": {"stages": [{"filters": 8}]}},
        {"extends": "base.yaml", "model": {"block": {"kernel_initializer": "he"}}},
        {"extends": "base.yaml", "model": {"block": {"kernel_initializer": {"zeros": {"a": 1}}}}},
    ],
)
def test_the_json_schema_refuses_a_broken_file(
    schema: Draft202012Validator, document: dict[str, Any]
) -> None:
    assert list(schema.iter_errors(document))
