"""The command line: it parses, calls and prints, and nothing else.

Modules that need TensorFlow are imported inside the commands, so that help and
config errors answer at once.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.errors import InterruptedRun, TrainerError
from trainer.run_dir import RunDir, json_safe, read_history

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
            _print_json({"error": str(error), "exit_code": error.exit_code})
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(json_safe(value), indent=1))


def _answer(value: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    if as_json:
        _print_json(value)
    else:
        print(text())


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

    if run is not None:
        training.resume(run, command=sys.argv)
    elif loaded is not None:
        run = training.train(loaded, runs_dir=runs_dir, command=sys.argv)
    assert run is not None
    last = (read_history(run.history) or [{}])[-1]
    _answer({"run": str(run.path), "status": "done", **last}, as_json, lambda: str(run.path))


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
    _answer(value, as_json, lambda: f"{format_evaluation(evaluation)}\n\n{directory.path}")


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
    _answer(value, as_json, lambda: f"{format_diagnosis(diagnosis)}\n{directory.path}")
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)


@app.command()
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            help="A run directory, a SavedModel, a .tflite or an .onnx file.", show_default=False
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders of them, or - for standard input (an image, or paths)."
        ),
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 128,
    as_lines: Annotated[
        bool, typer.Option("--json-lines", help="Print a JSON object for each image, as it comes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Classify images; exit code 1 if one of them could not be read."""
    from trainer.classifiers import needs_tensorflow, open_classifier
    from trainer.predict import STANDARD_INPUT, format_prediction, sources_of
    from trainer.predict import predict as predict_images
    from trainer.quiet import import_tensorflow
    from trainer.terminal import progress_bar

    if as_json and as_lines:
        raise typer.BadParameter("give --json for one object or --json-lines, and not both")
    content = sys.stdin.buffer.read() if STANDARD_INPUT in images else b""
    sources = sources_of(images, content)
    if model.exists() and needs_tensorflow(model):
        import_tensorflow()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may be of another encoding than the terminal's.
        sys.stdout.reconfigure(errors="surrogateescape")
    predictions = []
    rows_are_seen = sys.stdout.isatty() and not as_json
    with progress_bar("classifying", len(sources), not rows_are_seen) as advance:
        for prediction in predict_images(open_classifier(model), sources, batch_size):
            predictions.append(prediction)
            if as_lines:
                print(json.dumps(json_safe(asdict(prediction))), flush=True)
            elif not as_json:
                print(format_prediction(prediction))
            advance()
    if as_json:
        _print_json({"model": str(model), "predictions": [asdict(p) for p in predictions]})
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(1)


@app.command()
def export(
    run: RunPath,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Another format too; can be repeated: litert or onnx for all of a kind, or "
            "litert-float32, litert-float16, litert-dynamic, litert-int8, onnx-float32, onnx-int8.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the versions; RUN/saved_model by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a SavedModel and prove it; exit code 1 if a format could not be had."""
    from trainer.quiet import import_tensorflow

    directory = RunDir.open(run)
    # The proof is about digits, which TensorFloat-32 would cost.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import_tensorflow()
    from trainer.export.exporting import export as export_run
    from trainer.export.exporting import format_export
    from trainer.export.formats import FORMATS, chosen_formats
    from trainer.terminal import say

    try:
        chosen = chosen_formats(formats or [])
    except KeyError as error:
        known = ", ".join(["litert", "onnx", *FORMATS])
        raise typer.BadParameter(f"--format must be one of {known}. Received: {error}") from None
    try:
        found = export_run(directory, chosen, output, say)
    except KeyboardInterrupt:
        raise InterruptedRun(
            signal.SIGINT, "interrupted: nothing was exported, older versions are untouched"
        ) from None
    value = {"export": str(found.path), **found.facts}
    _answer(value, as_json, lambda: f"{format_export(found)}\n\n{found.path}")
    if found.failures:
        raise typer.Exit(1)


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
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "layers": [asdict(layer) for layer in layers],
    }
    _answer(value, as_json, lambda: format_layers(layers))


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
    _answer(value, as_json, lambda: format_checks(checks))
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


@config_app.command()
def check(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a config; every error at once, with its line."""
    from trainer.config import load_config

    load_config(config, overrides or [])
    _answer({"config": str(config), "valid": True}, as_json, lambda: f"{config}: in order")


@config_app.command()
def show(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a config in full, with the base file, overrides and defaults worked in."""
    from trainer.config import dump_config, load_config

    loaded = load_config(config, overrides or [])
    _answer(loaded.model_dump(mode="json"), as_json, lambda: dump_config(loaded).rstrip())


@config_app.command()
def schema(
    output: Annotated[
        Path | None, typer.Argument(help="A file to write; standard output if missing.")
    ] = None,
) -> None:
    """Write the JSON schema that editors complete and check configs with."""
    from trainer.config.json_schema import config_json_schema
    from trainer.run_dir import write_text

    text = json.dumps(config_json_schema(), indent=1)
    if output is None:
        print(text)
    else:
        write_text(output, text + "\n")
