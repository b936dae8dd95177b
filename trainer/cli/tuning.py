"""The verb that searches: tune."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, ConfigPath, Overrides, answer, app
from trainer.errors import ConfigError


@app.command()
def tune(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Put the search that is there aside.")
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

    if resume and restart:
        raise typer.BadParameter("give --resume or --restart, not both")
    loaded = load_config(config, overrides or [])
    if loaded.search is None:
        raise ConfigError(
            f"{config}: has no `search` section, which says what to vary. "
            "configs/tune_resnet.yaml has one"
        )
    import_tensorflow()
    from trainer.search.searching import search

    path = searches_dir / loaded.name
    results = search(loaded, path, resume=resume, restart=restart, command=sys.argv)
    answer(results.as_json(), as_json, lambda: str(path))
