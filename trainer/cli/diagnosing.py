"""The verbs that judge: diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, RunPath, answer, app
from trainer.run_dir import RunDir


@app.command()
def diagnose(
    run: RunPath,
    rules: Annotated[
        list[Path] | None, typer.Option(help="A Python file with rules of your own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a run's gradients are in order, on what evidence, and what to change.

    Exit code 0: healthy, 1: unhealthy, 2: could not judge.
    """
    from trainer.diagnosis.evidence import Evidence
    from trainer.diagnosis.judge import diagnose as judge
    from trainer.diagnosis.judge import format_diagnosis
    from trainer.diagnosis.registry import load_rules

    directory = RunDir.open(run)
    for path in rules or []:
        load_rules(path)
    diagnosis = judge(Evidence.of_run(directory))
    value = {"run": str(directory.path), **diagnosis.as_json()}
    answer(value, as_json, lambda: f"{format_diagnosis(diagnosis)}\n{directory.path}")
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)
