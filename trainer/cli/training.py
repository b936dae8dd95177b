"""The verbs that make and measure a run: train, evaluate."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, Overrides, RunPath, answer, app
from trainer.cli.diagnosing import keep
from trainer.run_dir import RunDir, read_history
from trainer.terminal import say


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML file.", show_default=False)] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a stopped run.")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train from a config, or go on with a stopped run."""
    from trainer.config import load_config
    from trainer.quiet import import_tensorflow

    if (config is None) == (resume is None):
        raise typer.BadParameter("give a CONFIG to train, or --resume RUN, and not both")
    if resume is not None and overrides:
        raise typer.BadParameter("a resumed run keeps its config; --set needs a new run")
    run = None if resume is None else RunDir.open(resume)
    loaded = None if config is None else load_config(config, overrides or [])
    import_tensorflow()
    from trainer import train as training
    from trainer.closing import closing_table
    from trainer.diagnosis.evidence import Evidence
    from trainer.diagnosis.judge import diagnose

    if run is not None:
        training.resume(run, command=sys.argv)
    elif loaded is not None:
        run = training.train(loaded, runs_dir=runs_dir, command=sys.argv)
    assert run is not None
    history = read_history(run.history)
    diagnosis = diagnose(Evidence.of_run(run))
    keep(run, diagnosis)
    say(closing_table(run, history, diagnosis))
    value = {
        "run": str(run.path),
        "status": "done",
        "verdict": diagnosis.as_json()["verdict"],
        "findings": [each.rule for each in diagnosis.findings],
        **(history or [{}])[-1],
    }
    answer(value, as_json, lambda: str(run.path))


@app.command()
def evaluate(run: RunPath, as_json: AsJson = False) -> None:
    """Evaluate a run on the whole test set."""
    from trainer.quiet import import_tensorflow

    directory = RunDir.open(run)
    import_tensorflow()
    from trainer.evaluate import evaluate as evaluate_run
    from trainer.evaluate import format_evaluation

    evaluation = evaluate_run(directory)
    value = {"run": str(directory.path), **asdict(evaluation)}
    answer(value, as_json, lambda: f"{format_evaluation(evaluation)}\n\n{directory.path}")
