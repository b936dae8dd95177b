"""The command line as its user meets it: answers, exit codes, and nothing imported too early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainer import cli
from trainer.errors import DataError, NonFiniteError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "resnet20.yaml"


def call(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Call `main` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_help_lists_every_verb() -> None:
    output = CliRunner().invoke(cli.app, ["--help"]).output

    for verb in ("train", "evaluate", "predict", "model", "doctor", "config"):
        assert f" {verb} " in output


def test_what_keras_imports_for_nothing_is_left_out_and_can_be_imported_later(
    tmp_path: Path,
) -> None:
    for name in ("sklearn", "matplotlib", "scipy"):
        (tmp_path / f"{name}.py").write_text("pyplot = None\n")
    script = (
        "import sys; from trainer.quiet import import_tensorflow; import_tensorflow(); "
        "assert 'keras' in sys.modules; "
        "assert not {'sklearn', 'matplotlib', 'scipy'} & set(sys.modules); "
        "import sklearn, matplotlib, scipy"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_backend_of_keras_is_one_message_and_a_users_setting_does_not_matter(
    tmp_path: Path,
) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "trainer", "model", str(CONFIG)]
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    environment["KERAS_BACKEND"] = "jax"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the trainer needs Keras' TensorFlow backend.")


def test_help_and_config_errors_do_not_import_tensorflow(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from trainer import cli
        for arguments in (["--help"], ["config", "check", "nowhere.yaml"], ["evaluate", "nowhere"]):
            sys.argv = ["trainer", *arguments]
            try:
                cli.main()
            except SystemExit:
                pass
        assert "trainer.run_dir" in sys.modules
        print([name for name in ("tensorflow", "keras") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )

    assert done.stdout.endswith("[]\n")


def test_a_wrong_config_is_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call("config", "check", CONFIG, "--set", "fit.epoch=3", monkeypatch=monkeypatch)

    assert code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: --set fit.epoch=3: fit.epoch: unknown key. Did you mean")


def test_an_error_is_one_json_object_where_json_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call("train", "nowhere.yaml", "--json", monkeypatch=monkeypatch)

    assert code == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": "nowhere.yaml: no such file",
        "exit_code": 2,
    }


def test_a_wrong_command_line_is_one_json_object_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call("train", "--json", monkeypatch=monkeypatch)

    assert code == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 2
    assert "give a CONFIG to train, or --resume RUN" in answer["error"]


def test_every_verb_answers_in_json() -> None:
    verbs = [
        [each.name or each.callback.__name__]
        for each in cli.app.registered_commands
        if not each.hidden and each.callback is not None
    ]
    verbs += [["config", verb] for verb in ("check", "show", "schema")]
    assert len(verbs) > 12

    for verb in verbs:
        output = CliRunner().invoke(cli.app, [*verb, "--help"], env={"COLUMNS": "200"}).output
        assert "--json " in output, verb


@pytest.mark.parametrize(
    "arguments",
    [["train"], ["train", "a.yaml", "--resume", "runs/b"], ["nonsense"], ["evaluate"]],
)
def test_a_wrong_command_line_has_exit_code_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*arguments, monkeypatch=monkeypatch) == 2


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("no data"), 2), (NonFiniteError("step 3"), 3)]
)
def test_each_error_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("trainer.config.load_config", fail)

    assert call("config", "show", CONFIG, monkeypatch=monkeypatch) == code


def test_config_show_prints_a_config_that_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.config import load_config

    call("config", "show", CONFIG, "--set", "seed=7", monkeypatch=monkeypatch)
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)

    assert load_config(shown) == load_config(CONFIG, ["seed=7"])


def test_model_shows_the_parameters_of_resnet20(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call("model", CONFIG, "--json", monkeypatch=monkeypatch)
    answer = json.loads(capsys.readouterr().out)

    assert answer["parameters"] == 269_722
    assert answer["layers"][-1]["path"] == "head_logits"


def test_the_table_of_layers_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call("model", CONFIG, monkeypatch=monkeypatch)

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "269,722 parameters, 40.6 million multiply-adds"


def test_doctor_answers_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call("doctor", "--json", monkeypatch=monkeypatch)

    names = [check["name"] for check in json.loads(capsys.readouterr().out)["checks"]]
    assert "CPU" in names
    assert "data: shapes" in names


def test_ctrl_c_before_anything_was_there_to_answer_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.config.load_config", interrupted)

    assert call("train", CONFIG, monkeypatch=monkeypatch) == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")
