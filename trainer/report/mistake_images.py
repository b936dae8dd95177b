"""The most confident mistakes as images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from trainer.mistakes import Mistakes
from trainer.pages import Html, element

# Larger ones would make a large page, and are no clearer.
_MOST_PIXELS = 96


def mistake_images(mistakes: Mistakes, class_names: Sequence[str]) -> Html:
    """Return images with what they are and what they were taken for.

    Args:
        mistakes: At least one.
        class_names: Of all classes.
    """
    shown = [
        element(
            "figure",
            element(
                "img",
                src=_data_uri(image),
                alt=f"{class_names[label]} taken for {class_names[predicted]}",
                width=96,
                height=96,
            ),
            element(
                "figcaption",
                element("b", class_names[predicted]),
                f" {probability:.1%}",
                element("span", f"is {class_names[label]}", class_="under"),
            ),
        )
        for image, label, predicted, probability in zip(
            mistakes.images,
            mistakes.labels.tolist(),
            mistakes.predicted.tolist(),
            mistakes.probabilities.tolist(),
            strict=True,
        )
    ]
    return element("div", shown, class_="gallery")


def _data_uri(image: np.ndarray) -> str:
    pixels = image[:, :, 0] if image.shape[-1] == 1 else image[:, :, :3]
    drawn = Image.fromarray(np.ascontiguousarray(pixels))
    drawn.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    file = io.BytesIO()
    drawn.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
