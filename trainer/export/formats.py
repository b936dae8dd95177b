"""Formats for other runtimes: LiteRT and ONNX, in full and in reduced precision.

Every file takes `images`, float32 of 0..255 (uint8 for `litert-int8`), any batch size, and
returns probabilities. All are made of a float32 model, whatever precision the run had.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import MissingDependencyError
from trainer.export.proof import Tolerance

_OPSET = 18


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: As it is asked for.
        kind: litert or onnx.
        modules: What must be installed, the extra of the same name as `kind`.
        convert: From the serving model in float32, and training images to calibrate with,
            to the content of the file.
        tolerance: What may differ; None asks for as much as of the SavedModel.
    """

    name: str
    kind: str
    modules: tuple[str, ...]
    convert: Callable[[keras.Model, np.ndarray], bytes]
    tolerance: Tolerance | None

    @property
    def file_name(self) -> str:
        """Within the directory of a version."""
        precision = self.name.partition("-")[2]
        ending = {"litert": "tflite", "onnx": "onnx"}[self.kind]
        return f"{self.kind}/model_{precision}.{ending}"


def _litert(serving: keras.Model, calibration: np.ndarray, *, quantize: str | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as folder, _silenced():
        archive = keras.export.ExportArchive()
        archive.track(serving)
        spec = tf.TensorSpec(serving.input_shape, tf.float32, name="images")
        archive.add_endpoint(
            "serving_default", lambda images: serving(images, training=False), [spec]
        )
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            converter.representative_dataset = lambda: (
                [image[None].astype(np.float32)] for image in calibration
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
        return converter.convert()


def _onnx(serving: keras.Model, calibration: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder, _silenced():
        path = Path(folder) / "model.onnx"
        spec = keras.InputSpec(shape=serving.input_shape, dtype="float32", name="images")
        serving.export(
            str(path), format="onnx", verbose=False, input_signature=[spec], opset_version=_OPSET
        )
        return path.read_bytes()


def _onnx_int8(serving: keras.Model, calibration: np.ndarray) -> bytes:
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(np.array_split(calibration, max(len(calibration) // 50, 1)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch.astype(np.float32)}

    with tempfile.TemporaryDirectory() as folder, _silenced():
        whole, prepared, quantized = (Path(folder) / f"{i}.onnx" for i in range(3))
        whole.write_bytes(_onnx(serving, calibration))
        quantization.quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(str(prepared), str(quantized), Images(), per_channel=True)
        return quantized.read_bytes()


def _litert_format(precision: str, tolerance: Tolerance | None, quantize: str | None) -> Format:
    def convert(serving: keras.Model, calibration: np.ndarray) -> bytes:
        return _litert(serving, calibration, quantize=quantize)

    return Format(f"litert-{precision}", "litert", ("ai_edge_litert",), convert, tolerance)


# Of an image on the border between two classes a probability may move a long way: integers
# are judged by the class that they lead to.
_OF_INTEGERS = Tolerance(max_difference=1.0, undecided=0.1, min_agreement=0.98)
_ONNX_MODULES = ("onnx", "tf2onnx", "onnxruntime")
FORMATS = {
    each.name: each
    for each in (
        _litert_format("float32", None, None),
        _litert_format("float16", Tolerance(max_difference=2e-2, undecided=4e-2), "float16"),
        _litert_format("dynamic", _OF_INTEGERS, "dynamic"),
        _litert_format("int8", _OF_INTEGERS, "int8"),
        Format("onnx-float32", "onnx", _ONNX_MODULES, _onnx, None),
        Format("onnx-int8", "onnx", _ONNX_MODULES, _onnx_int8, _OF_INTEGERS),
    )
}
"""By name."""


def chosen_formats(names: Sequence[str]) -> list[Format]:
    """Return the formats of some names; `litert` and `onnx` stand for all of their kind.

    Raises:
        MissingDependencyError: If a package that one of them needs is not installed.
        KeyError: If there is no such format; its argument is the name.
    """
    chosen: dict[str, Format] = {}
    for name in names:
        found = [f for f in FORMATS.values() if name in (f.name, f.kind)]
        if not found:
            raise KeyError(name)
        chosen |= {each.name: each for each in found}
    for each in chosen.values():
        missing = [m for m in each.modules if importlib.util.find_spec(m) is None]
        if missing:
            raise MissingDependencyError(
                f"{each.name} needs {', '.join(missing)}, which is not installed. "
                f"Install it: scripts/setup_env.sh {each.kind}"
            )
    return list(chosen.values())


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Hold back what converters print about themselves; an exception says what matters."""
    kept = [os.dup(1), os.dup(2)]
    levels = {name: logging.getLogger(name).level for name in ("", "tensorflow", "tf2onnx")}
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for descriptor in (1, 2):
                os.dup2(sink.fileno(), descriptor)
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                yield
        finally:
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
