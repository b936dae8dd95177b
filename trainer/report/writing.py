"""Write the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.pages.drawing import Ending
from trainer.report.drawings import draw_files
from trainer.report.page import report_page
from trainer.report.reading import RunFiles
from trainer.report.verdict import absences, verdict
from trainer.run_dir import RunDir, write_text


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        run: What it is about.
        path: Its file.
        verdict: Its first sentence.
        missing: What it cannot show, and why.
        findings: Ids of the rules that found something, the gravest first.
        pictures: Files of single pictures, where they were asked for.
    """

    run: Path
    path: Path
    verdict: str
    missing: Mapping[str, str]
    findings: tuple[str, ...]
    pictures: tuple[Path, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "run": str(self.run),
            "report": str(self.path),
            "bytes": self.path.stat().st_size,
            "verdict": self.verdict,
            "findings": list(self.findings),
            "missing": dict(self.missing),
            "pictures": [str(path) for path in self.pictures],
        }


def write_report(
    path: Path | str,
    output: Path | None = None,
    *,
    png: Path | None = None,
    svg: Path | None = None,
) -> Report:
    """Write the report of a run directory, or of a folder that is just a gradient log.

    Args:
        path: Of the folder; a killed or damaged run does too.
        output: The file to write; `report.html` in the folder if missing.
        png: Folder to write each picture into, as PNG.
        svg: The same as SVG.

    Raises:
        RunDirectoryError: If the folder is neither, or the file cannot be written.
        MissingDependencyError: If plotly is not there, or matplotlib for single pictures.
    """
    files = RunFiles.read(path)
    target = RunDir(files.path).report if output is None else output
    asked: tuple[tuple[Path | None, Ending], ...] = ((png, "png"), (svg, "svg"))
    pictures = [
        each
        for folder, ending in asked
        if folder is not None
        for each in draw_files(files, folder, ending)
    ]
    write_text(target, report_page(files))
    return Report(
        run=files.path,
        path=target,
        verdict=verdict(files),
        missing=absences(files),
        findings=tuple(finding.rule for finding in files.diagnosis.findings),
        pictures=tuple(pictures),
    )
