"""The verbs that show: report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, answer, app

PngFolder = Annotated[
    Path | None,
    typer.Option(help="Folder to write each picture into as PNG too (needs matplotlib)."),
]
SvgFolder = Annotated[Path | None, typer.Option(help="The same as SVG (needs matplotlib).")]


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
    png: PngFolder = None,
    svg: SvgFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page about a run: curves, gradients, findings, config.

    Of a killed run too; what is missing is said on the page.
    """
    from trainer.report import write_report

    written = write_report(path, output, png=png, svg=svg)
    answer(written.as_json(), as_json, lambda: f"{written.verdict}\n{written.path}")


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Two to eight run directories; gradient logs of other trainings do too.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The file to write (default: comparison.html in the working directory)."),
    ] = None,
    png: PngFolder = None,
    svg: SvgFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page about several runs: what differs, and what came of it.

    Runs that differ only in seed are groups of the same thing; what is better is marked only
    where the seeds leave no doubt.
    """
    from trainer.compare import write_comparison
    from trainer.terminal import stdout_width

    written = write_comparison(runs, output, png=png, svg=svg)
    answer(written.as_json(), as_json, lambda: f"{written.as_text(stdout_width())}\n{written.path}")
