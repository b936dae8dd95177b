"""What a run comes to, in one sentence and a few figures."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.diagnosis.finding import Remedy
from trainer.gradient_log import first_to_last_ratio
from trainer.pages import Html, element
from trainer.pages.html import Child
from trainer.report.finding_blocks import is_about_gradients
from trainer.report.reading import RunFiles

_ENDS = {
    "done": "trained for",
    "running": "is still training, after",
    "killed": "was killed after",
    "interrupted": "was interrupted after",
    "failed": "failed after",
}

_STOPS = {
    "running": "it is still training",
    "killed": "its process is gone, and it never said that it was done",
    "interrupted": "a signal ended it",
    "failed": "it failed",
}


def verdict(files: RunFiles) -> str:
    """Return what was trained, how well, whether its gradients are in order, what to change."""
    parts = [f"{_subject(files)} {_end(files)}"]
    result = _result(files)
    if result:
        parts.append(f" and {result}")
    parts.append(f"; {_gradients(files)}")
    remedy = first_remedy(files)
    if remedy is not None:
        change = ", ".join(f"{key} to {_value(value)}" for key, value in remedy.patch.items())
        # Without a config, what to try comes before what it does.
        what, _, _ = remedy.why.partition(": ")
        parts.append(f". Change first: {change or what}")
    return f"{''.join(parts)}."


def _value(value: object) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _subject(files: RunFiles) -> str:
    config = files.config
    if config is None:
        return "A training" if not files.is_run else files.name
    blocks = sum(stage.blocks for stage in config.model.stages)
    return (
        f"{files.name}, a {config.model.block.kind} network of {blocks} "
        f"block{'s' if blocks != 1 else ''} on {config.data.source},"
    )


def _end(files: RunFiles) -> str:
    if not files.is_run:
        steps = 0 if files.log is None else len(files.log.steps)
        return f"has {_counted(steps, 'recorded step')}"
    done = len(files.history)
    asked = "" if files.config is None else f" of {files.config.fit.epochs}"
    if files.state == "done" and files.config is not None and done == files.config.fit.epochs:
        asked = ""
    total = done if not asked or files.config is None else files.config.fit.epochs
    epochs = f"{done}{asked} epoch{'s' if total != 1 else ''}"
    return f"{_ENDS.get(files.state, 'has')} {epochs}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def accuracy(files: RunFiles) -> tuple[float, str] | None:
    """Return the best founded accuracy of a run, and of which images it is."""
    value = files.evaluation.get("accuracy")
    if isinstance(value, int | float):
        return float(value), "test"
    for row in reversed(files.history[-1:]):
        for name, images in (("val_accuracy", "validation"), ("accuracy", "training")):
            if row.get(name) == row.get(name) and name in row:
                return row[name], images
    return None


def _result(files: RunFiles) -> str:
    found = accuracy(files)
    if found is None:
        return ""
    value, images = found
    return f"gets {percent(value)} of the {images} images right"


def percent(share: float) -> str:
    """Return a share for people."""
    return f"{100 * share:.2f}\u00a0%"


def _gradients(files: RunFiles) -> str:
    if files.log is None:
        return "its gradients were not recorded"
    if files.diagnosis.exit_code == 2:
        return "its gradients could not be judged"
    findings = files.diagnosis.findings
    if files.diagnosis.exit_code == 1:
        subject = "its gradients are" if is_about_gradients(findings[0]) else "it is"
        return f"{subject} not in order: {findings[0].message}"
    warnings = [each for each in findings if each.severity == "warning"]
    if not warnings:
        return "its gradients are in order"
    return f"nothing is wrong with its gradients, but {warnings[0].message}"


def first_remedy(files: RunFiles) -> Remedy | None:
    """Return what to change first: the first remedy of the gravest finding that has one."""
    for finding in files.diagnosis.findings:
        if finding.severity != "note" and finding.remedies:
            return finding.remedies[0]
    return None


def figures(files: RunFiles) -> Mapping[str, Child]:
    """Return what is read at a glance, by what it is."""
    found: dict[str, Child] = {}
    test = files.evaluation.get("accuracy")
    if isinstance(test, int | float):
        found["test accuracy"] = percent(test)
    last = files.history[-1] if files.history else {}
    for name, what in (("val_accuracy", "validation accuracy"), ("accuracy", "training accuracy")):
        if last.get(name) == last.get(name) and name in last:
            found[what] = percent(last[name])
    if files.log is not None:
        ratio = first_to_last_ratio(files.log.stat("raw_norm/median")[-1:], files.log.kernels)
        found["gradient, first over last layer"] = "unknown" if ratio != ratio else f"{ratio:.2g}"
        found["recorded steps"] = f"{len(files.log.steps):,}"
    found["diagnosis"] = _health(files)
    seconds = sum(each for each in files.column("seconds") if each == each)
    if seconds:
        found["time in epochs"] = _duration(seconds)
    return found


def _health(files: RunFiles) -> Html:
    if files.log is None:
        return element("span", "not possible", class_="soft")
    kind, word = {0: ("good", "in order"), 1: ("bad", "not in order")}.get(
        files.diagnosis.exit_code, ("soft", "not judged")
    )
    return element("span", word, class_=kind)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def absences(files: RunFiles) -> dict[str, str]:
    """Return what the report cannot show, and why."""
    found = dict(files.missing)
    if files.is_run and files.state != "done" and "how it ended" not in found:
        reason = files.status.get("reason")
        what = _STOPS.get(files.state, f"the run's state is {files.state}")
        found["the end of the run"] = f"{what}: {reason}" if reason else what
    if files.is_run and not files.history and "history" not in found:
        found["loss and accuracy by epoch"] = "no epoch has ended"
    if files.history and not any("val_accuracy" in row for row in files.history):
        found["validation"] = "the run held no images back (data.validation_split)"
    if files.log is not None and not files.log.header.has_loss:
        found["loss of steps"] = "the train step passes no loss on to the recorder"
    return found
