"""Findings with their evidence, each with a link to its plot and its remedies to copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.yaml_nodes import dump
from trainer.diagnosis.finding import Finding, Remedy
from trainer.pages import Html, bullets, copyable, element, mark_link, table
from trainer.report import curves, picture
from trainer.report.scales import plain

_OF_CURVES = frozenset(
    {
        "diverging",
        "plateau",
        "oscillation",
        "overfitting",
        "memorizing",
        "evaluation_mode",
        "batch_statistics",
    }
)
_OF_CLIPPING = frozenset({"clipping"})
_MOST_LAYERS = 6
_WORDS = {"error": "bad", "warning": "warn", "note": "soft"}


def mark_of(index: int) -> str:
    """Return the id under which the plots mark a finding."""
    return f"finding-{index}"


def is_about_gradients(finding: Finding) -> bool:
    """Whether a finding is about the signal, and not about data or what was learned."""
    return finding.windows_seen > 0 and finding.rule not in _OF_CURVES


def anchor_of(finding: Finding, drawn: Sequence[str]) -> str | None:
    """Return the anchor of the plot that shows a finding, None if none does.

    Args:
        finding: To be shown.
        drawn: Anchors of the plots that are there.
    """
    if finding.rule in _OF_CURVES:
        wanted = [curves.LOSS_ANCHOR, picture.ANCHOR]
    elif finding.windows_seen == 0:
        # It was seen in the data, or in numbers that no plot shows.
        return None
    elif finding.rule in _OF_CLIPPING:
        wanted = [curves.CLIP_ANCHOR, picture.ANCHOR]
    else:
        wanted = [picture.ANCHOR, curves.LOSS_ANCHOR]
    return next((anchor for anchor in wanted if anchor in drawn), None)


def finding_blocks(findings: Sequence[Finding], drawn: Sequence[str]) -> list[Html]:
    """Return the findings for a page.

    Args:
        findings: The gravest first.
        drawn: Anchors of the plots that are there.
    """
    return [_block(index, finding, drawn) for index, finding in enumerate(findings)]


def _block(index: int, finding: Finding, drawn: Sequence[str]) -> Html:
    heading = element(
        "h3",
        element("span", finding.severity, class_=f"tag {_WORDS[finding.severity]}"),
        " ",
        finding.rule,
    )
    anchor = anchor_of(finding, drawn)
    if anchor is None:
        shown: Any = element("span", "Seen in no plot: it is about the data or the whole run.")
    else:
        shown = mark_link(
            "Show it in the plot",
            anchor,
            mark_of(index),
            f"{finding.rule}: {finding.message}.",
            is_marked=index == 0 and finding.severity == "error",
        )
    return element(
        "article",
        heading,
        element("p", f"{_sentence(finding.message)}."),
        element("p", _when(finding), shown, class_="soft"),
        _numbers(finding) if finding.numbers else None,
        _layers(finding.layers) if finding.layers else None,
        [_remedy(each, is_first=not i) for i, each in enumerate(finding.remedies)],
        class_="finding",
        id=mark_of(index),
    )


def _sentence(message: str) -> str:
    return message[:1].upper() + message[1:]


def _when(finding: Finding) -> str:
    if not finding.windows_seen:
        return ""
    first, last = finding.steps
    text = f"Steps {first:,} to {last:,}"
    if finding.windows_seen > 1:
        text += f", {finding.windows_fired} of {finding.windows_seen} windows"
    return f"{text}. "


def _numbers(finding: Finding) -> Html:
    return table(
        ["measured", "value", "bound"],
        [
            [
                name.replace("_", " "),
                plain(value),
                plain(finding.thresholds[name]) if name in finding.thresholds else "",
            ]
            for name, value in finding.numbers.items()
        ],
        label=f"Evidence of {finding.rule}",
        numbers=["value", "bound"],
    )


def _layers(layers: Sequence[str]) -> Html:
    listed = bullets(element("code", str(each)) for each in layers)
    if len(layers) <= _MOST_LAYERS:
        return element("div", listed, class_="layers")
    summary = f"{len(layers)} places, the worst is "
    head = element("summary", summary, element("code", str(layers[0])))
    return element("details", head, listed, class_="layers")


def _remedy(remedy: Remedy, *, is_first: bool) -> Html:
    lead = "Change first" if is_first else "Or"
    if not remedy.patch:
        return element("p", f"{lead}: {remedy.why}")
    return element(
        "div",
        element("p", element("b", lead), f": {_what(remedy)}, which {remedy.why}."),
        element(
            "div",
            copyable(patch_as_yaml(remedy.patch), "YAML patch"),
            copyable(remedy.options, "Options"),
            class_="pair",
        ),
        class_="remedy",
    )


def _what(remedy: Remedy) -> str:
    return " and ".join(
        f"{key} {'null' if value is None else value}" for key, value in remedy.patch.items()
    )


def patch_as_yaml(patch: Mapping[str, Any]) -> str:
    """Return values by dotted key as the piece of a config that sets them."""
    nested: dict[str, Any] = {}
    for key, value in patch.items():
        *sections, last = key.split(".")
        place = nested
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = value
    return dump(nested).rstrip()
