"""The verb that searches: tune."""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, ConfigPath, Overrides, answer, app
from trainer.errors import ConfigError, MissingDependencyError


@app.command()
def tune(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Put the search that is there aside.")
    ] = False,
    retrain_best: Annotated[
        bool,
        typer.Option(
            "--retrain-best",
            help="Train the best config of a search with all its epochs on training and "
            "validation images, and evaluate it on the test set.",
        ),
    ] = False,
    searches_dir: Annotated[Path, typer.Option(help="Where searches are kept, by name.")] = Path(
        "searches"
    ),
    as_json: AsJson = False,
) -> None:
    """Search for the values of a config that train best, as its `search` section says.

    Exit code 0: done, 1: every trial failed, 2: it cannot begin or go on.
    """
    from trainer.config import load_config
    from trainer.quiet import import_tensorflow

    if resume + restart + retrain_best > 1:
        raise typer.BadParameter("give one of --resume, --restart and --retrain-best")
    loaded = load_config(config, overrides or [])
    if loaded.search is None:
        raise ConfigError(
            f"{config}: has no `search` section, which says what to vary. "
            "configs/tune_resnet.yaml has one"
        )
    path = searches_dir / loaded.name
    if retrain_best:
        _retrain(path, overrides or [], as_json)
        return
    _require_keras_tuner()
    import_tensorflow()
    from trainer.search.searching import search

    results = search(loaded, path, resume=resume, restart=restart, command=sys.argv)
    answer(results.as_json(), as_json, lambda: str(path))


def _retrain(path: Path, overrides: list[str], as_json: bool) -> None:
    from trainer.quiet import import_tensorflow
    from trainer.search.directory import SearchDir

    directory = SearchDir.open(path)
    import_tensorflow()
    from trainer.evaluate import format_evaluation
    from trainer.search.retraining import retrain_best

    run, evaluation = retrain_best(directory, overrides, sys.argv)
    value = {"run": str(run.path), **asdict(evaluation)}
    answer(value, as_json, lambda: f"{format_evaluation(evaluation)}\n\n{run.path}")


def _require_keras_tuner() -> None:
    if find_spec("keras_tuner") is None:
        raise MissingDependencyError(
            "tune needs keras-tuner. Run: pip install 'trainer[search]', or use scripts/tune.sh, "
            "which installs it"
        )
