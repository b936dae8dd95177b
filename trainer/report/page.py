"""The page of a run, from top to bottom."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

from trainer.config import dump_config
from trainer.diagnosis.finding import Finding
from trainer.gradient_log import GradientLog
from trainer.pages import (
    Figure,
    Html,
    Section,
    bullets,
    copyable,
    element,
    facts,
    legend,
    render_page,
    table,
)
from trainer.report.classes import classes_section
from trainer.report.columns import Columns
from trainer.report.curves import (
    CLIP_ANCHOR,
    LOSS_ANCHOR,
    clip_figure,
    loss_figure,
    speed_figure,
)
from trainer.report.finding_blocks import anchor_of, finding_blocks, mark_of
from trainer.report.picture import ANCHOR, picture_figure
from trainer.report.profile import profile_figure
from trainer.report.reading import RunFiles
from trainer.report.verdict import absences, figures, verdict

Blocks = list[str | Html | Figure]


def report_page(files: RunFiles) -> str:
    """Return the report of a run.

    Raises:
        MissingDependencyError: If plotly is not there.
    """
    log = files.log
    columns = None if log is None else Columns.of(log)
    findings = files.diagnosis.findings
    drawn = _drawn(files)
    marks = {
        anchor: {
            mark_of(index): finding
            for index, finding in enumerate(findings)
            if anchor_of(finding, drawn) == anchor
        }
        for anchor in (LOSS_ANCHOR, ANCHOR, CLIP_ANCHOR)
    }
    sections = [
        Section("Loss and accuracy", _curves_section(files, columns, marks[LOSS_ANCHOR])),
        *_gradient_sections(files, columns, marks),
        Section("Findings", _findings_section(files, drawn)),
        Section("Classes", classes_section(files)),
        Section("Speed and memory", _speed_section(files)),
        Section("Config", _config_section(files)),
        Section("Environment", _environment_section(files)),
        Section("Run it again", _commands_section(files)),
    ]
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return render_page(
        f"Report of {files.path.resolve().name}",
        verdict(files),
        sections,
        summary=[facts(figures(files)), _missing(files)],
        footer=f"Written {written} from {files.path}.",
    )


def _drawn(files: RunFiles) -> list[str]:
    """Return the anchors of the plots that there will be."""
    drawn = []
    if files.log is not None or files.history:
        drawn.append(LOSS_ANCHOR)
    if files.log is not None:
        drawn.append(ANCHOR)
        if files.log.header.clipping:
            drawn.append(CLIP_ANCHOR)
    return drawn


def _missing(files: RunFiles) -> Html | None:
    found = absences(files)
    if not found:
        return None
    items = bullets([element("b", name), f": {reason}"] for name, reason in found.items())
    return element("aside", element("h2", "What is missing"), items, class_="missing")


def _curves_section(files: RunFiles, columns: Columns | None, marks: dict[str, Finding]) -> Blocks:
    figure = loss_figure(files, columns, marks)
    if figure is None:
        return ["No epoch has ended, and no step was recorded: there is no curve to draw."]
    return [legend(figure.legend, scale=None), figure]


def _gradient_sections(
    files: RunFiles, columns: Columns | None, marks: dict[str, dict[str, Finding]]
) -> list[Section]:
    log = files.log
    if log is None or columns is None:
        reason = files.missing.get("log", "no gradients were recorded")
        return [Section("The gradient picture", [f"There is none: {reason}."])]
    return [
        Section("The gradient picture", _picture_section(log, columns, marks[ANCHOR])),
        Section("Profile by depth", _profile_section(log)),
        Section("Clipping", _clip_section(log, columns, marks[CLIP_ANCHOR])),
    ]


def _picture_section(log: GradientLog, columns: Columns, marks: dict[str, Finding]) -> Blocks:
    figure = picture_figure(log, columns, marks)
    entries = [
        ("thick", "var(--zero)", "exactly zero"),
        ("thick", "var(--bad)", "not finite"),
    ]
    spread = (
        "Activation spread: standard deviation of what the stem and each block put out."
        if log.header.activations
        else "Activations were not recorded."
    )
    reading = (
        "Gradient norm: L2 norm of the raw gradient, summed over replicas and before clipping. "
        f"Update ratio: norm of a step's change over norm of the weight. {spread} Each column is "
        f"the {_pooling(log, columns)}; it is drawn as not finite if any of its steps is not. "
        "What is blank was not recorded, or has no ratio because the weight is still zero. "
        "Drag to zoom, double-click to see all again."
    )
    return [
        "The first layer is at the top, the last one at the bottom; time runs to the right. "
        "Colours are powers of ten: where they are even, the signal arrives everywhere.",
        legend(entries, scale=("weak", "strong")),
        figure,
        element("p", reading, class_="soft small"),
    ]


def _pooling(log: GradientLog, columns: Columns) -> str:
    steps = log.header.window_steps
    if columns.windows_each == 1:
        return f"median of one window of up to {steps:,} recorded steps"
    return (
        f"median of the medians of up to {columns.windows_each} windows of {steps:,} recorded steps"
    )


def _profile_section(log: GradientLog) -> Blocks:
    figure = profile_figure(log)
    return [
        "What each kernel gets, from the first layer to the last: level is healthy, a slope of "
        "many powers of ten is a signal that dies or blows up on its way.",
        legend(figure.legend, scale=None),
        figure,
    ]


def _clip_section(log: GradientLog, columns: Columns, marks: dict[str, Finding]) -> Blocks:
    clipping = log.header.clipping
    if not clipping:
        return ["Nothing was clipped: the optimizer has no clipnorm, global_clipnorm or clipvalue."]
    bounds = ", ".join(f"{name} {value:g}" for name, value in clipping.items())
    figure = clip_figure(log, columns, marks)
    return [
        f"Clipped by {bounds}.",
        legend(figure.legend, scale=None),
        figure,
    ]


def _findings_section(files: RunFiles, drawn: Sequence[str]) -> Blocks:
    diagnosis = files.diagnosis
    blocks: Blocks = list(finding_blocks(diagnosis.findings, drawn))
    ran = f"{diagnosis.num_rules} rules looked at this run"
    if not blocks:
        blocks.append(f"No rule found anything; {ran}.")
    else:
        blocks.append(element("p", f"{ran}.", class_="soft"))
    if diagnosis.not_judged:
        reasons: dict[str, list[str]] = {}
        for rule, reason in diagnosis.not_judged.items():
            reasons.setdefault(reason, []).append(rule)
        listed = bullets(f"{', '.join(rules)}: {reason}" for reason, rules in reasons.items())
        count = len(diagnosis.not_judged)
        summary = element("summary", f"{count} could not judge")
        blocks.append(element("details", summary, listed))
    return blocks


def _speed_section(files: RunFiles) -> Blocks:
    figure = speed_figure(files)
    if figure is None:
        return ["No epoch has ended."]
    if any(each == each for each in files.column("memory_mib")):
        return [figure]
    return [figure, element("p", "This run has not recorded its memory.", class_="soft")]


def _config_section(files: RunFiles) -> Blocks:
    if files.config is None:
        return [f"There is none: {files.missing.get('config', 'this is no run directory')}."]
    return [copyable(dump_config(files.config), "The config in full, with every default")]


def _environment_section(files: RunFiles) -> Blocks:
    if not files.environment:
        return [f"It is not known: {files.missing.get('environment', 'this is no run directory')}."]
    rows = [[name, value] for name, value in _flat(files.environment) if name != "command"]
    return [table(["what", "value"], rows, label="Environment", prose=["value"])]


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{name}.")
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        else:
            rows.append((name, "none" if value is None else str(value)))
    return rows


def _commands_section(files: RunFiles) -> Blocks:
    if not files.is_run:
        return ["A gradient log does not say how it was made."]
    path = shlex.quote(str(files.path / "config.yaml"))
    blocks: Blocks = [copyable(f"trainer train {path}", "Repeat this run")]
    command = files.environment.get("command")
    if isinstance(command, list) and len(command) > 1:
        asked = shlex.join(["trainer", *map(str, command[1:])])
        blocks.append(copyable(asked, "How it was started"))
    return blocks
