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
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Train so many trials at once, each in a process with its share of the cores "
            "and GPUs. 0, with --listen: leave them to workers that join.",
        ),
    ] = 1,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where workers can join this search; 127.0.0.1 and a free port if there are "
            "several workers. For other machines: an address that they reach, on a network that "
            "you trust, because nothing is encrypted.",
        ),
    ] = None,
    chief: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Join the search that listens there, as one more worker. Its folder must be "
            "visible here too, on a shared file system.",
        ),
    ] = None,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Run each trial in a process of its own, for flat memory."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search for the values of a config that train best, as its `search` section says.

    Exit code 0: done, 1: no trial has a score, 2: it cannot begin or go on, 130 or 143:
    interrupted by a signal, after the running trials were saved.
    """
    from trainer.config import load_config
    from trainer.quiet import import_tensorflow

    if resume + restart + retrain_best > 1:
        raise typer.BadParameter("give one of --resume, --restart and --retrain-best")
    if chief is not None and (resume or restart or retrain_best or listen or workers != 1):
        raise typer.BadParameter(
            "--chief joins a search of another process, which alone can --resume, --restart or "
            "--listen; for several workers give the command several times"
        )
    if workers == 0 and listen is None:
        raise typer.BadParameter("--workers 0 needs --listen, or nobody could ever train a trial")
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
    if chief is not None:
        import_tensorflow()
        from trainer.search.joining import join

        count = join(chief, path, loaded, isolate=isolate)
        answer({"search": str(path), "trials": count}, as_json, lambda: str(path))
        return
    from trainer.search.crew import Staff
    from trainer.search.searching import search

    staff = Staff(workers, listen, isolate)
    results = search(loaded, path, resume=resume, restart=restart, command=sys.argv, staff=staff)
    answer(results.as_json(), as_json, lambda: str(path))


@app.command(name="tune-worker", hidden=True)
def tune_worker(
    search: Path,
    name: Annotated[str, typer.Option()],
    parent: Annotated[int, typer.Option()],
    isolate: Annotated[bool, typer.Option("--isolate")] = False,
) -> None:
    """Train trials for the process that started this one."""
    from trainer.quiet import import_tensorflow

    import_tensorflow()
    from trainer.search.joining import join

    join(None, search, worker=name, parent=parent, isolate=isolate)


@app.command(name="tune-trial", hidden=True)
def tune_trial() -> None:
    """Train the trial that standard input describes, for the process that started this one."""
    from trainer.quiet import import_tensorflow

    import_tensorflow()
    from trainer.search.isolation import run_child

    run_child()


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
            "tune needs keras-tuner. Run: scripts/setup_env.sh search, or use scripts/tune.sh, "
            "which installs it"
        )
