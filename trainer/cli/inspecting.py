"""The verbs that look and change nothing: runs, model, doctor, config."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, ConfigPath, Overrides, answer, app, config_app


@app.command()
def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs or of searches (default: runs, searches)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List run directories: state, epochs, accuracy, gradients."""
    from trainer.runs import find_runs, format_runs

    given = folders or [path for path in (Path("runs"), Path("searches")) if path.is_dir()]
    found = find_runs(given)
    answer({"runs": [run.as_json() for run in found]}, as_json, lambda: format_runs(found))


@app.command()
def model(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show layers, shapes, parameters and multiply-adds before anything is trained."""
    from trainer.config import load_config
    from trainer.quiet import import_tensorflow

    loaded = load_config(config, overrides or [])
    import_tensorflow()
    from trainer.model_summary import expected_shape, format_layers, summarize
    from trainer.models import build_model
    from trainer.pixels import PixelScaling

    image_shape, num_classes = expected_shape(loaded.data)
    scaling = PixelScaling.identity(image_shape[-1])
    layers = summarize(build_model(loaded.model, image_shape, num_classes, scaling))
    value = {
        "parameters": sum(layer.parameters for layer in layers),
        "frozen": sum(layer.frozen for layer in layers),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "layers": [asdict(layer) for layer in layers],
    }
    answer(value, as_json, lambda: format_layers(layers))


@app.command()
def doctor(
    data: Annotated[list[Path] | None, typer.Argument(help="Places to look for CIFAR-10.")] = None,
    as_json: AsJson = False,
) -> None:
    """Report versions, devices, memory, disk and data; exit code 1 if something is broken."""
    from trainer.quiet import import_tensorflow

    import_tensorflow()
    from trainer.doctor import examine, format_checks

    checks = examine(*(str(path) for path in data or []))
    value = {"checks": [asdict(check) for check in checks]}
    answer(value, as_json, lambda: format_checks(checks))
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


@config_app.command()
def check(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a config; every error at once, with its line."""
    from trainer.config import load_config

    load_config(config, overrides or [])
    answer({"config": str(config), "valid": True}, as_json, lambda: f"{config}: in order")


@config_app.command()
def show(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a config in full, with the base file, overrides and defaults worked in."""
    from trainer.config import dump_config, load_config

    loaded = load_config(config, overrides or [])
    answer(loaded.model_dump(mode="json"), as_json, lambda: dump_config(loaded).rstrip())


@config_app.command()
def schema(
    output: Annotated[
        Path | None, typer.Argument(help="A file to write; standard output if missing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the JSON schema that editors complete and check configs with."""
    from trainer.config.json_schema import config_json_schema
    from trainer.run_dir import write_text

    text = json.dumps(config_json_schema(), indent=1)
    if output is None:
        print(text)
    else:
        write_text(output, text + "\n")
        answer({"schema": str(output)}, as_json, lambda: str(output))
