"""Load exported files in a process of their own and answer with them: no Keras, no trainer.

Run by `proof.py`, not by hand: `python -I probe.py FOLDER FIRST_TASK`. The folder holds
`tasks.json`, a list of {path, kind, signature} in which kind is saved_model, litert or onnx,
and the inputs `images.npy` (uint8) and `encoded.npz` (PNG files, one after the other, and
their ends). For each task from the first on it writes `<index>.npz` with the answers, and
prints a line of JSON: what was found out, or the error.

It stands alone, so that what it proves does not rest on this package: Keras and trainer
are not to be found by whatever it loads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLOCKED = ("keras", "tf_keras", "trainer")
_BATCH_SIZE = 128
Answers = dict[str, np.ndarray]


def open_saved_model(task: dict[str, Any]) -> tuple[Callable[..., Answers], dict[str, Any]]:
    """Return what answers with a signature, and its inputs and outputs."""
    import tensorflow as tf

    loaded = tf.saved_model.load(task["path"])
    signature = loaded.signatures[task["signature"]]
    [(name, spec)] = signature.structured_input_signature[1].items()
    outputs = signature.structured_outputs
    facts = {
        "inputs": {name: [spec.dtype.name, spec.shape.as_list()]},
        "outputs": {key: [o.dtype.name, o.shape.as_list()] for key, o in outputs.items()},
        "signatures": sorted(loaded.signatures),
    }

    def answer(batch: np.ndarray) -> Answers:
        # `loaded` must outlive the signature, which only borrows its variables.
        values = loaded.signatures[task["signature"]](**{name: tf.constant(batch)})
        return {key: _as_array(value.numpy()) for key, value in values.items()}

    return answer, facts


def _as_array(value: np.ndarray) -> np.ndarray:
    # Strings come as objects, which only a pickle could hold.
    return np.array([text.decode() for text in value], str) if value.dtype == object else value


def open_litert(task: dict[str, Any]) -> tuple[Callable[..., Answers], dict[str, Any]]:
    """Return what answers with a LiteRT file, and its inputs and outputs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(task["path"], num_threads=os.cpu_count())
    [inputs], [outputs] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()

    def answer(batch: np.ndarray) -> Answers:
        if list(batch.shape) != list(interpreter.get_input_details()[0]["shape"]):
            interpreter.resize_tensor_input(inputs["index"], batch.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(inputs["index"], _quantized(batch, inputs))
        interpreter.invoke()
        probabilities = interpreter.get_tensor(outputs["index"])
        scale, zero = outputs["quantization"]
        if scale:
            probabilities = (probabilities.astype(np.float32) - zero) * np.float32(scale)
        return {"probabilities": probabilities}

    def described(details: dict[str, Any]) -> list[Any]:
        shape = [None if size < 0 else int(size) for size in details["shape_signature"]]
        return [np.dtype(details["dtype"]).name, shape]

    return answer, {
        "inputs": {inputs["name"]: described(inputs)},
        "outputs": {outputs["name"]: described(outputs)},
    }


def _quantized(batch: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero = details["quantization"]
    if not scale:
        return batch.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    levels = np.round(batch / np.float32(scale)) + zero
    return np.clip(levels, limits.min, limits.max).astype(details["dtype"])


def open_onnx(task: dict[str, Any]) -> tuple[Callable[..., Answers], dict[str, Any]]:
    """Return what answers with an ONNX file, and its inputs and outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(task["path"], providers=["CPUExecutionProvider"])
    [inputs], [outputs] = session.get_inputs(), session.get_outputs()

    def answer(batch: np.ndarray) -> Answers:
        [probabilities] = session.run(None, {inputs.name: batch.astype(np.float32)})
        return {"probabilities": probabilities}

    def described(value: Any) -> list[Any]:
        shape = [size if isinstance(size, int) else None for size in value.shape]
        return [value.type.removeprefix("tensor(").removesuffix(")"), shape]

    return answer, {
        "inputs": {inputs.name: described(inputs)},
        "outputs": {outputs.name: described(outputs)},
    }


OPENERS = {"saved_model": open_saved_model, "litert": open_litert, "onnx": open_onnx}


def take(task: dict[str, Any], inputs: np.ndarray) -> tuple[Answers, dict[str, Any]]:
    """Answer for all inputs.

    Returns:
        The answers, and the facts: inputs, outputs, and images a second without the first
        batch, which pays for what a graph does once.
    """
    answer, facts = OPENERS[task["kind"]](task)
    batches = [inputs[i : i + _BATCH_SIZE] for i in range(0, len(inputs), _BATCH_SIZE)]
    answer(batches[0])
    started = time.perf_counter()
    parts = [answer(batch) for batch in batches]
    facts["images_per_second"] = len(inputs) / (time.perf_counter() - started)
    if task["kind"] == "saved_model":
        # An empty batch is a batch.
        facts["empty"] = {key: list(value.shape) for key, value in answer(inputs[:0]).items()}
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, facts


def read_encoded(path: Path) -> np.ndarray:
    """Return the files in `encoded.npz`, an array of bytes objects."""
    with np.load(path) as file:
        data, ends = file["data"], file["ends"]
    starts = [0, *ends][:-1]
    files = [data[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]
    return np.array([*files, None], object)[:-1]


def main(arguments: Sequence[str]) -> None:
    """Take the tasks of a folder from some number on."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    # What a library prints must not get between the replies.
    os.dup2(2, 1)
    # As if they were not installed.
    sys.modules.update(dict.fromkeys(BLOCKED))  # type: ignore[arg-type]
    folder = Path(arguments[0])
    images = np.load(folder / "images.npy")
    encoded = read_encoded(folder / "encoded.npz")
    tasks = json.loads((folder / "tasks.json").read_text())
    for index, task in list(enumerate(tasks))[int(arguments[1]) :]:
        inputs = encoded if task.get("takes_bytes") else images
        try:
            answers, facts = take(task, inputs)
            np.savez(folder / f"{index}.npz", **answers)  # type: ignore[arg-type]
        # One format that fails must not cost the others their proof.
        except Exception as error:
            facts = {"error": f"{type(error).__name__}: {error}"}
        facts["blocked_modules"] = [name for name in BLOCKED if sys.modules[name] is not None]
        replies.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
