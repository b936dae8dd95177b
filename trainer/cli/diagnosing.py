"""The verbs that judge: diagnose, xray."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, ConfigPath, Overrides, RunPath, answer, app
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


@app.command()
def xray(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look at a config's model before it is trained: both passes, and ten real steps.

    Exit code 0: healthy, 1: unhealthy, 2: could not judge.
    """
    from trainer.config import load_config
    from trainer.quiet import import_tensorflow

    loaded = load_config(config, overrides or [])
    # The process is short, and making graphs makes much that is kept.
    gc.disable()
    import_tensorflow()
    from trainer.diagnosis.xray_report import format_xray, judge_xray, xray_as_json
    from trainer.xray import take_xray

    found = take_xray(loaded)
    diagnosis = judge_xray(found)
    value = {"config": str(config), **diagnosis.as_json(), **xray_as_json(found)}
    answer(value, as_json, lambda: format_xray(found, diagnosis))
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)
