"""What all verbs share: the application, its exit codes, and how a verb answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.errors import TrainerError
from trainer.run_dir import json_safe
from trainer.terminal import say

app = typer.Typer(
    name="trainer",
    help="Train Keras image classifiers from one YAML file and see where their gradients go.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Check, show or describe configs.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)]
RunPath = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key; can be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def main() -> None:
    """Run the command line; a user's error is one message and its exit code."""
    try:
        app()
    except TrainerError as error:
        if "--json" in sys.argv:
            print_json({"error": str(error), "exit_code": error.exit_code})
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == 130:
            # By a Ctrl-C where nothing was there yet to answer it.
            print("error: interrupted", file=sys.stderr)
        # What typer has told people about a wrong command line. Its exceptions have no public
        # name.
        message = getattr(end.__context__, "format_message", None)
        if message is not None and "--json" in sys.argv:
            print_json({"error": message(), "exit_code": end.code})
        raise


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object; NaN and infinities become null."""
    print(json.dumps(json_safe(value), indent=1))


def answer(value: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print a verb's result, for programs or for people."""
    if as_json:
        print_json(value)
    else:
        print(text())
