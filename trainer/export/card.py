"""The model card: what a person who serves the model must know, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LIMITS = """\
- `serve_bytes` decodes PNG, JPEG and GIF (the first frame). Grey becomes RGB, 16 bits become 8,
  transparency is put on black, and any other size is resized with an anti-aliased bilinear
  filter. An EXIF orientation is not followed.
- TensorFlow's decoder fails a **whole request** for one image that it cannot decode (truncated,
  or no image). Send doubtful images one at a time, or use `trainer predict`, which treats each
  file alone.
- Pixels are decoded in the memory of the server: an image of 8000 x 8000 takes 450 MB, and
  over two gigabytes with transparency. Bound the size of requests in front of it.
- Every image gets one of the classes above, also one that shows none of them."""


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the card of an export.

    Args:
        facts: As `export.json` holds them.
    """
    height, width, _ = facts["image_shape"]
    data, signatures = facts["data"], facts["signatures"]
    drawn = " (SYNTHETIC, drawn images)" if data["synthetic"] else ""
    first = signatures["serving_default"]
    parts = [
        f"# {facts['model']}, version {facts['version']}",
        f"An image classifier of {len(facts['class_names'])} classes for RGB images of "
        f"{height}x{width}: {', '.join(facts['class_names'])}.",
        "## Figures",
        _table(
            ["split", "images", "accuracy"],
            (
                [name, f"{parity['num_images']:,}", f"{parity['accuracy']:.4f}"]
                for name, parity in first["parity"].items()
            ),
        ),
        f"Each answer averages `{facts['views']}` views of the image."
        if facts["views"] != "single"
        else "",
        "## Proof",
        "Asked by a process that imports neither Keras nor the package that trained the model, "
        "on every image. `difference` is the largest of any probability from the trained "
        "model's; `same class` the share of images on which both say the same, or on which "
        "the trained model is undecided within what is allowed.",
        _proof_table(facts),
        *_failures(facts["formats"]),
        "## Signatures",
        _signature_table(signatures),
        "`class_index` counts the classes as listed above, from 0. An empty batch gets an "
        "empty answer.",
        "## Limits",
        _LIMITS,
        "## Training",
        _training(facts, drawn),
        "## Gradients of the run",
        _gradients(facts["gradients"]),
        "`export.json` beside this file holds all of it for programs, and the SHA-256 of every "
        "file.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _proof_table(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in {**facts["signatures"], **facts["formats"]}.items():
        size = facts["bytes"] if name in facts["signatures"] else entry["bytes"]
        for split, parity in entry.get("parity", {}).items():
            rows.append(
                [
                    f"`{name}`",
                    split,
                    f"{parity['max_difference']:.1e}",
                    f"{parity['agreement']:.2%}",
                    f"{parity['accuracy']:.4f}",
                    f"{entry['images_per_second']:,.0f}",
                    "-" if size is None else f"{size / 1e6:.2f}",
                ]
            )
    header = ["what", "split", "difference", "same class", "accuracy", "images/s", "MB"]
    return _table(header, rows)


def _failures(formats: Mapping[str, Any]) -> list[str]:
    failed = {name: entry["problem"] for name, entry in formats.items() if entry["problem"]}
    return [
        "Not exported:\n" + "\n".join(f"- `{name}`: {why}" for name, why in failed.items())
        if failed
        else ""
    ]


def _signature_table(signatures: Mapping[str, Any]) -> str:
    rows = [
        [f"`{name}`", kind, f"`{key}`", dtype, _shape(shape)]
        for name, entry in signatures.items()
        for kind in ("inputs", "outputs")
        for key, (dtype, shape) in entry[kind].items()
    ]
    return _table(["signature", "", "name", "dtype", "shape"], rows)


def _shape(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("batch" if size is None else str(size) for size in shape) + ")"


def _training(facts: Mapping[str, Any], drawn: str) -> str:
    data, training = facts["data"], facts["training"]
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    last = facts["history"][-1] if facts["history"] else {}
    lines = [
        f"- run: `{facts['run']}`, seed {training['seed']}, {training['precision']}",
        f"- data: {data['source']}{drawn}, {data['num_train']:,} training and "
        f"{data['num_validation']:,} validation images",
        f"- epochs: {last['epoch'] + 1:.0f}; last loss {last['loss']:.4f}, training accuracy "
        f"{last['accuracy']:.4f}"
        if last
        else "",
        f"- versions: {versions}",
        f"- commit: {(training.get('git') or {}).get('commit', 'unknown')}"
        if isinstance(training.get("git"), Mapping)
        else "",
        f"- command: `{' '.join(training['command'])}`",
    ]
    return "\n".join(line for line in lines if line)


def _gradients(health: Mapping[str, Any] | None) -> str:
    if health is None:
        return "They were not recorded."
    ratio = health["first_to_last_ratio"]
    return "\n".join(
        [
            f"- steps recorded: {health['recorded_steps']:,}, of which "
            f"{health['nonfinite_steps']:,} not finite and {health['skipped_steps']:,} skipped",
            f"- clipping shortened the gradient in {health['clipped_fraction']:.1%} of them",
            f"- last window: median norm {health['raw_norm_median']:.3g} before clipping; first "
            f"kernel over last kernel {ratio:.3g} (near 1: the signal reaches the first layer; "
            "below 1e-3: it vanishes on the way)",
        ]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
