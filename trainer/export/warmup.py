"""Warm-up requests, which TensorFlow Serving sends to a model before anyone else does.

Without them the first request pays for what a graph does once. The file is a TFRecord of
`PredictionLog` messages (tensorflow.org/tfx/serving/saved_model_warmup); the few fields
needed are encoded here, because the package that defines them pins its own TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"

# Numbers of fields in prediction_log.proto, predict.proto and model.proto.
_PREDICT_LOG = 6
_REQUEST = 1
_MODEL_SPEC, _INPUTS = 1, 2
_NAME, _SIGNATURE_NAME = 1, 3
_KEY, _VALUE = 1, 2


def write_warmup_requests(
    directory: Path, model_name: str, requests: Mapping[str, Mapping[str, tf.Tensor]]
) -> None:
    """Write the requests into a SavedModel's directory.

    Args:
        directory: Of one version.
        model_name: As the server will call it; it takes requests of another name too.
        requests: Inputs by name, by signature.
    """
    path = directory / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            writer.write(prediction_log(model_name, signature, inputs))


def prediction_log(model_name: str, signature: str, inputs: Mapping[str, tf.Tensor]) -> bytes:
    """Return a `PredictionLog` message that holds one `PredictRequest`."""
    spec = _field(_NAME, model_name.encode()) + _field(_SIGNATURE_NAME, signature.encode())
    request = _field(_MODEL_SPEC, spec)
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, payload: bytes) -> bytes:
    """Encode a field of bytes, or of a message: tag, length, content."""
    length_delimited = 2
    return _varint(number << 3 | length_delimited) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
