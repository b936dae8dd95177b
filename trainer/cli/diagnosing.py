"""The verbs that judge: diagnose, diagnose-model, xray."""

from __future__ import annotations

import atexit
import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from trainer.cli.app import AsJson, ConfigPath, Overrides, answer, app
from trainer.errors import RunDirectoryError
from trainer.run_dir import RunDir

if TYPE_CHECKING:
    from trainer.diagnosis.judge import Diagnosis

T = TypeVar("T")
Rules = Annotated[list[Path] | None, typer.Option(help="A Python file with rules of your own.")]


@app.command()
def diagnose(
    path: Annotated[
        Path,
        typer.Argument(
            help="A run directory, or a folder that is just a gradient log.", show_default=False
        ),
    ],
    rules: Rules = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a run's gradients are in order, on what evidence, and what to change.

    Exit code 0: healthy, 1: unhealthy, 2: could not judge.
    """
    from trainer.diagnosis.evidence import Evidence
    from trainer.diagnosis.judge import diagnose as judge
    from trainer.diagnosis.judge import format_diagnosis
    from trainer.diagnosis.registry import load_rules

    evidence = Evidence.at(path)
    for file in rules or []:
        load_rules(file)
    diagnosis = judge(evidence)
    value = {"run": str(path), **diagnosis.as_json()}
    if evidence.config is not None:
        keep(RunDir(path), diagnosis)
    answer(value, as_json, lambda: f"{format_diagnosis(diagnosis)}\n{path}")
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)


def keep(run: RunDir, diagnosis: Diagnosis) -> None:
    """Write a run's `diagnosis.json`.

    Of someone else's run, or on a full disk, the answer is as good without it.
    """
    from trainer.diagnosis.judge import keep_diagnosis

    try:
        keep_diagnosis(run, diagnosis)
    except RunDirectoryError as error:
        typer.echo(f"warning: {error}", err=True)


@app.command("diagnose-model")
def diagnose_model(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            help="An npz file with x and y (or x_train and y_train; several inputs: x_0, x_1, "
            "or their names).",
            show_default=False,
        ),
    ],
    loss: Annotated[
        str | None,
        typer.Option(
            help="Such as mse, huber:delta=2 or categorical_crossentropy:from_logits; by default "
            "the one in the file."
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="Such as adam or sgd:learning_rate=0.1,momentum=0.9; by default the one in the "
            "file, in its state before the first step."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a step.")] = 32,
    steps: Annotated[int, typer.Option(min=20, help="Steps to train for.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the examples.")] = 0,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE_OR_FILE.py",
            help="Code with the model's own layers or losses; can be repeated.",
        ),
    ] = None,
    rules: Rules = None,
    keep: Annotated[Path | None, typer.Option(help="Folder to keep the gradient log in.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a copy of a saved Keras model for some steps in memory, and diagnose it.

    The file is not changed. Exit code 0: healthy, 1: unhealthy, 2: could not judge.
    """
    from trainer.diagnosis.judge import format_diagnosis
    from trainer.diagnosis.registry import load_rules
    from trainer.quiet import import_tensorflow

    for file in rules or []:
        load_rules(file)
    import_tensorflow()
    from trainer.diagnose_model import Trial
    from trainer.diagnose_model import diagnose_model as try_model

    diagnosis = try_model(
        Trial(
            model=model,
            data=data,
            loss=loss,
            optimizer=optimizer,
            batch_size=batch_size,
            steps=steps,
            seed=seed,
            imports=imports or (),
            keep=keep,
        )
    )
    value = {
        "model": str(model),
        "log": None if keep is None else str(keep),
        **diagnosis.as_json(),
    }
    answer(value, as_json, lambda: f"{format_diagnosis(diagnosis)}\n{keep or model}")
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)


@app.command()
def xray(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look at a config's model before it is trained: both passes, and ten real steps.

    Exit code 0: healthy, 1: unhealthy, 2: could not judge.
    """
    from trainer.config import load_config
    from trainer.data.splits import load_training_data
    from trainer.quiet import import_tensorflow

    loaded = load_config(config, overrides or [])
    # The process is short, and what graphs are made of is a million objects that are kept.
    gc.disable()
    atexit.register(gc.freeze)
    data = _in_background(lambda: load_training_data(loaded))
    import_tensorflow()
    from trainer.diagnosis.xray_report import format_xray, judge_xray, xray_as_json
    from trainer.xray import take_xray

    found = take_xray(loaded, data.result().train)
    diagnosis = judge_xray(found)
    value = {"config": str(config), **diagnosis.as_json(), **xray_as_json(found)}
    answer(value, as_json, lambda: format_xray(found, diagnosis))
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Begin work in a thread that Ctrl-C does not wait for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
