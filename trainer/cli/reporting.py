"""The verbs that show: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, answer, app


@app.command()
def report(
    path: Annotated[
        Path,
        typer.Argument(
            help="A run directory, or a folder that is just a gradient log.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The file to write (default: report.html in the run directory)."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Folder to write each picture into as PNG too (needs matplotlib)."),
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="The same as SVG (needs matplotlib).")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page about a run: curves, gradients, findings, config.

    Of a killed run too; what is missing is said on the page.
    """
    from trainer.report import write_report

    written = write_report(path, output, png=png, svg=svg)
    answer(written.as_json(), as_json, lambda: f"{written.verdict}\n{written.path}")
