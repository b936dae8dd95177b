"""A data source that is a Python file: the README's own, and files that fail."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny import run_trainer

from trainer.classifiers import open_classifier
from trainer.config import load_config
from trainer.config.schema import DataConfig
from trainer.data.sources import Part, Split, load_split
from trainer.errors import DataError, ExportError, ModelFileError
from trainer.export.exporting import export
from trainer.train import train

ROOT = Path(__file__).parents[1]
MODEL = """\
model: {stem: {filters: 4}, stages: [{filters: 4, blocks: 1}]}
fit: {epochs: 1, batch_size: 20}
runtime: {devices: cpu}
"""


def shipped_example() -> str:
    """The file of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [found] = re.findall(
        r"```python\n([^`]*\ndef load\(data, part, seed\):.*?)```", text, re.DOTALL
    )
    return found


def load(path: Path, part: Part = "train", seed: int = 0) -> Split:
    return load_split(DataConfig(source=str(path)), part, seed)


def test_the_example_of_the_readme_is_trained_on_and_evaluated_by_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("stripes.py").write_text(shipped_example())
    Path("mine.yaml").write_text("data: {source: stripes.py}\n" + MODEL)

    trained = run_trainer("train", "mine.yaml", "--json")
    assert trained.returncode == 0, trained.stderr
    run = Path(json.loads(trained.stdout)["run"])
    data = json.loads((run / "data.json").read_text())
    assert (data["source"], data["class_names"]) == ("stripes.py", ["across", "down"])
    described = run_trainer("model", "mine.yaml")
    assert described.returncode == 0, described.stderr
    assert "16x16x4" in described.stdout
    evaluated = run_trainer("evaluate", run, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["num_images"] == load(Path("stripes.py"), "test").num_images


def test_the_file_gets_the_config_the_part_and_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "from trainer.data.sources import Split\n"
        "def load(data, part, seed):\n"
        "    labels = np.array([0, 1], np.int32)\n"
        "    told = f'{data.train_size} {part} {seed}'\n"
        "    return Split(np.zeros((2, 3, 3, 1), np.uint8), labels, ('a', 'b'), told, False)\n"
    )
    split = load_split(DataConfig(source=str(path), train_size=9), "test", 5)
    assert split.origin == "9 test 5"
    np.testing.assert_array_equal(split.labels, [0, 1])


def test_the_file_may_hold_a_dataclass_and_be_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Own:\n"
        "    size: int = 3\n" + shipped_example()
    )
    assert load(Path("~/mine.py")).num_images == 200


def test_images_of_one_channel_are_trained_on_and_say_that_files_are_read_as_rgb(
    tmp_path: Path,
) -> None:
    source, config = tmp_path / "grey.py", tmp_path / "grey.yaml"
    source.write_text(shipped_example().replace("16, 16, 3", "16, 16, 1"))
    config.write_text(f"data: {{source: {source}}}\n" + MODEL)
    run = train(load_config(config), runs_dir=tmp_path, command=["trainer"])
    for verb, error in ((open_classifier, ModelFileError), (export, ExportError)):
        with pytest.raises(error, match="RGB, and this model takes images of 1 channels"):
            verb(run if verb is export else run.path)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "data.source: {path}: no such file"),
        (
            "x = 1\n",
            "data.source: {path}: must define a function load(data, part, seed) that returns a "
            "trainer.data.sources.Split",
        ),
        ("x = 1\nx +\n", "data.source: {path}:2: SyntaxError: invalid syntax (mine.py, line 2)"),
        (
            "import no_such_module\n",
            "data.source: {path}:1: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "def first():\n    return [][0]\n\ndef load(data, part, seed):\n    return first()\n",
            "data.source: {path}:2: IndexError: list index out of range",
        ),
        (
            "def load(data):\n    pass\n",
            "data.source: {path}: TypeError: load() takes 1 positional argument but 3 were given",
        ),
        (
            "def load(data, part, seed):\n    return 'nothing'\n",
            "source {path} must return a trainer.data.sources.Split. Received: str",
        ),
    ],
    ids=["missing", "no load", "syntax", "import", "fails", "arguments", "no split"],
)
def test_a_file_that_fails_says_what_and_where(
    text: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value) == message.replace("{path}", str(path))
