"""Train the best config of a search once more, on all it may see, and ask the test set once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.checkpoint import list_checkpoints
from trainer.config import Config, load_config
from trainer.errors import RunDirectoryError, SearchError
from trainer.evaluate import Evaluation, evaluate
from trainer.run_dir import RunDir
from trainer.search.directory import SearchDir
from trainer.search.results import Results, write_best
from trainer.terminal import say
from trainer.train import resume, train


def retrain_best(
    search: SearchDir, overrides: Sequence[str], command: Sequence[str]
) -> tuple[RunDir, Evaluation]:
    """Train `best.yaml` with all its epochs on training and validation images together.

    The same config is trained once, and an interrupted training goes on. Whoever chooses
    between several of these by their test accuracy makes the test set a validation set.

    `best.yaml` is written anew from the trials: a search that was killed has none, or that of
    an earlier start.

    Args:
        search: With a trial that has a score of its own.
        overrides: As for `train`, such as `fit.epochs=40`.
        command: The command line, for `environment.json`.

    Raises:
        SearchError: If the search has no best config.
        TrainerError: As `train` and `evaluate` do.
    """
    if not write_best(search, Results.of(search.path, load_config(search.config))):
        raise SearchError(
            f"{search.path}: there is no best.yaml, because no trial has a score yet. "
            "Search first, without --retrain-best"
        )
    config = load_config(search.best, ["data.validation_split=0", *overrides])
    folder = search.path / "retrained"
    run = _same(folder, config)
    if run is None:
        run = train(config, runs_dir=folder, command=command)
    elif run.read_status()["state"] == "done":
        say(f"{run.path}: this config was trained before")
    else:
        resume(run, command=command)
    return run, evaluate(run)


def _same(folder: Path, config: Config) -> RunDir | None:
    """Return the newest run of this very config that is done or can go on."""
    for path in sorted(folder.glob("*/config.yaml"), reverse=True):
        run = RunDir(path.parent)
        with suppress(RunDirectoryError):
            is_useful = run.model.is_file() or list_checkpoints(run.checkpoints)
            if is_useful and load_config(path) == config:
                return run
    return None
