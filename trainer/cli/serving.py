"""The verbs that use a trained model: predict, export."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, RunPath, answer, app, print_json
from trainer.errors import InterruptedRun
from trainer.run_dir import RunDir, json_safe


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
        print_json({"model": str(model), "predictions": [asdict(p) for p in predictions]})
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
    answer(value, as_json, lambda: f"{format_export(found)}\n\n{found.path}")
    if found.failures:
        raise typer.Exit(1)
