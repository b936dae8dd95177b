"""Saved models and arrays that are not ours: what is found, and how a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from saved_models import NUM_CLASSES, NUM_EXAMPLES, NUM_FEATURES, blobs, dense, save, save_arrays
from tiny import run_trainer

from trainer.diagnose_model import Trial, diagnose_model
from trainer.diagnosis.evidence import Evidence
from trainer.errors import ConfigError, DataError, ModelFileError, RunDirectoryError, TrainerError
from trainer.gradient_log import GradientLog
from trainer.keras_specs import build_loss, build_optimizer

LOGITS = "sparse_categorical_crossentropy:from_logits"
# Keras itself warns of how HDF5 is going out of use, on writing.
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

CUSTOM = """\
import keras

class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x

def far_off(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_pred - 5.0), axis=-1)
"""

OWN_OPTIMIZER = """\
import keras
import tensorflow as tf

@keras.saving.register_keras_serializable("tests")
class OwnOptimizer(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.head = keras.layers.Dense(4)
        self.own = keras.optimizers.SGD(0.01)

    def build(self, input_shape):
        self.head.build(input_shape)
        self.own.build(self.head.trainable_variables)

    def call(self, x, training=False):
        return self.head(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.head.trainable_variables
        self.own.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}
"""


def tried(model: Path, data: Path, **options: Any) -> Any:
    options = {"loss": LOGITS, "optimizer": "adam:learning_rate=0.01", **options}
    return diagnose_model(Trial(model, data, **options))


def rules_of(diagnosis: Any, severity: str = "error") -> list[str]:
    return [each.rule for each in diagnosis.findings if each.severity == severity]


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_healthy_file_is_called_healthy_and_stays_as_it_is(name: str, tmp_path: Path) -> None:
    model = save(tmp_path, dense("relu", "relu"), name)
    before = model.read_bytes()
    diagnosis = tried(model, save_arrays(tmp_path))
    assert rules_of(diagnosis) == []
    assert diagnosis.exit_code == 0
    assert model.read_bytes() == before


def test_the_loss_and_the_optimizer_in_the_file_are_the_default(tmp_path: Path) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = save(tmp_path, dense("relu"), loss=loss, optimizer=keras.optimizers.SGD(0.025))
    log = tmp_path / "log"
    tried(model, save_arrays(tmp_path), loss=None, optimizer=None, keep=log, steps=20)
    steps = GradientLog.read(log).steps
    np.testing.assert_allclose(steps["learning_rate"], 0.025)
    assert len(steps) == 20


def test_a_schedule_begins_anew(tmp_path: Path) -> None:
    rate = keras.optimizers.schedules.PolynomialDecay(0.1, 40)
    model = dense("relu")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    model.fit(*blobs(), epochs=4, verbose=0)
    path = save(tmp_path, model)
    log = tmp_path / "log"
    tried(path, save_arrays(tmp_path), loss=None, optimizer=None, keep=log, steps=20)
    assert GradientLog.read(log).steps["learning_rate"][0] == pytest.approx(0.1)


def test_the_kept_log_gives_the_diagnosis_again(tmp_path: Path) -> None:
    model = save(tmp_path, dense(*["sigmoid"] * 12))
    log = tmp_path / "log"
    diagnosis = tried(model, save_arrays(tmp_path), keep=log, optimizer="sgd")
    assert "vanishing" in rules_of(diagnosis)
    answer = run_trainer("diagnose", log, "--json")
    assert answer.returncode == 1, answer.stderr
    again = [each["rule"] for each in json.loads(answer.stdout)["findings"]]
    assert "vanishing" in again
    with pytest.raises(RunDirectoryError, match="needs a new folder"):
        tried(model, save_arrays(tmp_path), keep=tmp_path)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    model, data = save(tmp_path, dense("relu")), save_arrays(tmp_path)
    losses = []
    for seed in (1, 1, 2):
        log = tmp_path / f"log{len(losses)}"
        tried(model, data, keep=log, steps=20, seed=seed)
        losses.append(GradientLog.read(log).steps["loss"])
    np.testing.assert_array_equal(losses[0], losses[1])
    assert (losses[0] != losses[2]).any()


def test_a_trained_model_that_cannot_get_better_is_not_ill(tmp_path: Path) -> None:
    # Some noise in the labels: a floor that is not 0.
    x, y = blobs()
    y = np.where(np.arange(len(y)) % 7 == 0, (y + 1) % NUM_CLASSES, y)
    model = dense("relu")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, epochs=8, batch_size=20, verbose=0)
    diagnosis = tried(save(tmp_path, model), save_arrays(tmp_path, x=x, y=y))
    assert rules_of(diagnosis) == []


def test_a_fall_to_what_a_constant_reaches_is_nothing_learned(tmp_path: Path) -> None:
    x, y = blobs()
    y = np.random.default_rng(1).permutation(y)
    loud = keras.initializers.RandomNormal(stddev=1.0, seed=0)
    model = dense(kernel_initializer=loud)
    model.get_layer("head").kernel.assign(loud((NUM_FEATURES, NUM_CLASSES)))
    log = tmp_path / "log"
    data = save_arrays(tmp_path, x=x, y=y)
    diagnosis = tried(save(tmp_path, model), data, keep=log, optimizer="adam:learning_rate=0.03")
    losses = GradientLog.read(log).steps["loss"]
    assert losses[:5].mean() > 1.5 * losses[-20:].mean()
    assert losses[-20:].mean() > 0.95 * np.log(NUM_CLASSES)
    assert "plateau" in rules_of(diagnosis)


def test_logits_that_are_taken_for_probabilities_come_first(tmp_path: Path) -> None:
    data = save_arrays(tmp_path)
    diagnosis = tried(save(tmp_path, dense("relu")), data, loss="SparseCategoricalCrossentropy")
    assert rules_of(diagnosis)[0] == "loss"
    assert "sparse_categorical_crossentropy:from_logits" in str(diagnosis)
    softmax = save(tmp_path, dense("relu", last="softmax"))
    healthy = tried(softmax, data, loss="SparseCategoricalCrossentropy")
    assert rules_of(healthy) == []


def test_values_that_are_not_finite_are_a_finding_and_nothing_is_trained(tmp_path: Path) -> None:
    x, y = blobs()
    x[17, 3] = np.nan
    x[20, 0] = np.inf
    diagnosis = tried(save(tmp_path, dense("relu")), save_arrays(tmp_path, x=x, y=y))
    assert (rules_of(diagnosis), diagnosis.exit_code) == (["data"], 1)
    assert "x has 2 values that are not finite, the first in example 17" in str(
        diagnosis.findings[0].message
    )


def test_several_inputs_are_found_by_number_or_by_name(tmp_path: Path) -> None:
    left, right = (keras.Input((4,), name=name) for name in ("left", "right"))
    joined = keras.layers.Concatenate()([left, keras.layers.Dense(4, "relu")(right)])
    model = save(tmp_path, keras.Model([left, right], keras.layers.Dense(NUM_CLASSES)(joined)))
    x, y = blobs()
    losses = []
    for names in (("x_0", "x_1"), ("left", "right")):
        arrays = dict(zip(names, (x[:, :4], x[:, 4:]), strict=True))
        log = tmp_path / names[0]
        tried(model, save_arrays(tmp_path, **arrays, y=y), keep=log, steps=20)
        losses.append(GradientLog.read(log).steps["loss"])
    np.testing.assert_array_equal(*losses)
    with pytest.raises(DataError, match=r"2 inputs, .* x_0 to x_1, .*\(left, right\).* x \(400, 8"):
        tried(model, save_arrays(tmp_path, x=x, y=y))


@pytest.mark.parametrize("has_dict", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_targets_meet_the_losses_that_have_their_names(
    has_dict: bool, named: bool, tmp_path: Path
) -> None:
    # Not in the order of the alphabet, by which Keras flattens a dict.
    inputs = keras.Input((NUM_FEATURES,))
    outputs = [
        keras.layers.Dense(1, kernel_initializer="zeros", name=n)(inputs) for n in ("zed", "abe")
    ]
    made = dict(zip(("last", "first"), outputs, strict=True)) if has_dict else outputs
    names = ["last", "first"] if has_dict else ["zed", "abe"]
    loss = {names[1]: "mean_absolute_error", names[0]: "mean_squared_error"}
    model = save(tmp_path, keras.Model(inputs, made), loss=loss, optimizer="sgd")
    x, _ = blobs()
    ones = np.ones((len(x), 1), "float32")
    # Without names they come in the order of the losses, where that of the outputs is unknown.
    order = names if named or not has_dict else list(loss)
    wanted = {names[0]: 2 * ones, names[1]: 5 * ones}
    keys = order if named else ["y_0", "y_1"]
    targets = {key: wanted[name] for key, name in zip(keys, order, strict=True)}
    log = tmp_path / "log"
    data = save_arrays(tmp_path, x=x, **targets)
    tried(model, data, loss=None, optimizer=None, keep=log, steps=20)
    assert GradientLog.read(log).steps["loss"][0] == pytest.approx(2**2 + 5)


def test_an_optimizer_of_the_train_steps_own_is_told_of(tmp_path: Path) -> None:
    code = tmp_path / "own_step.py"
    code.write_text(OWN_OPTIMIZER)
    from trainer.saved_models import import_user_code

    built = import_user_code(str(code))["OwnOptimizer"]()
    built(np.zeros((1, NUM_FEATURES)))
    model = save(tmp_path, built)
    diagnosis = tried(model, save_arrays(tmp_path), imports=[str(code)], keep=tmp_path / "log")
    assert diagnosis.exit_code == 2
    assert "the optimizer that the model is compiled with" in diagnosis.not_judged["vanishing"]


def test_a_log_that_cannot_be_kept_is_no_matter_of_the_loss(tmp_path: Path) -> None:
    model, data = save(tmp_path, dense("relu")), save_arrays(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"file/log/windows\.bin: cannot be written"):
        tried(model, data, keep=tmp_path / "file" / "log")


def test_a_model_of_custom_code_needs_its_import(tmp_path: Path) -> None:
    code = tmp_path / "my_layers.py"
    code.write_text(CUSTOM)
    from trainer.saved_models import import_user_code

    twice = import_user_code(str(code))["Twice"]
    inputs = keras.Input((8,))
    model = save(tmp_path, keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(twice()(inputs))))
    data = save_arrays(tmp_path)
    answer = run_trainer(
        "diagnose-model", model, "--data", data, "--loss", LOGITS, "--optimizer", "adam"
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: {model}: the model needs 'Twice'"), answer.stderr
    assert "--import MODULE_OR_FILE.py" in answer.stderr
    diagnosis = tried(model, data, imports=[str(code)])
    assert rules_of(diagnosis) == []
    far = tried(model, data, imports=[str(code)], loss="far_off", steps=20)
    assert far.num_rules


def test_the_verb_answers_in_json_with_the_code_of_the_verdict(tmp_path: Path) -> None:
    model, data = save(tmp_path, dense("relu", "relu")), save_arrays(tmp_path)
    options = ["--data", data, "--loss", LOGITS, "--optimizer", "sgd:learning_rate=1e-9", "--json"]
    answer = run_trainer("diagnose-model", model, *options)
    assert answer.returncode == 1, answer.stderr
    value = json.loads(answer.stdout)
    assert value["verdict"] == "unhealthy"
    [remedies] = [f["remedies"] for f in value["findings"] if f["rule"] == "small_updates"]
    assert remedies[0] == {
        "why": "a learning rate of 1e-08: takes larger steps",
        "patch": {},
        "options": "",
    }


X, Y = blobs()
ONE_HOT = np.eye(NUM_CLASSES)[Y]
WRONG: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "no arrays": ({"a": X}, {}, r"named x or x_train.* There are: a \(400, 8\)"),
    "no targets": ({"x": X}, {}, "1 output, whose arrays must be named y or y_train"),
    "lengths": ({"x": X, "y": Y[:7]}, {}, "equally many examples. Received: x 400, y 7"),
    "shape": ({"x": X[:, :5], "y": Y}, {}, r"shape \(examples, 8\).*Received: \(examples, 5\)"),
    "objects": ({"x": np.array([{}] * 3), "y": Y}, {}, "Objects are not read"),
    "labels": ({"x": X, "y": Y + 1}, {}, "whole numbers from 0 to 2.*Received: y from 1 to 3"),
    "fractions": ({"x": X, "y": Y + 0.5}, {}, "whole numbers"),
    "one-hot": ({"x": X, "y": ONE_HOT}, {}, "take --loss categorical_crossentropy"),
    "sparse": (
        {"x": X, "y": Y},
        {"loss": "categorical_crossentropy:from_logits"},
        "for labels take --loss sparse_categorical_crossentropy",
    ),
    "mse": ({"x": X, "y": Y}, {"loss": "mse"}, "mean_squared_error compares y with outputs of"),
    "binary": ({"x": X, "y": 2 * ONE_HOT}, {"loss": "binary_crossentropy"}, "from 0 to 1"),
    "text": ({"x": X, "y": Y.astype(str)}, {}, "y must be numbers"),
}


@pytest.mark.parametrize(("arrays", "options", "message"), WRONG.values(), ids=WRONG)
def test_data_that_do_not_fit_are_one_message(
    arrays: dict[str, np.ndarray], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        tried(save(tmp_path, dense("relu")), save_arrays(tmp_path, **arrays), **options)


def not_a_model(folder: Path, kind: str) -> Path:
    path = folder / ("model.h5" if kind.endswith("h5") else "model.keras")
    if kind == "text":
        path.write_text("no model")
    elif kind == "a cut file":
        save(folder, dense("relu"))
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "weights in h5":
        path = folder / "model.weights.h5"
        dense("relu").save_weights(path)
    elif kind == "renamed weights in h5":
        dense("relu").save_weights(folder / "model.weights.h5")
        (folder / "model.weights.h5").rename(path)
    elif kind == "a folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "does not exist"),
        ("a folder", "is a folder"),
        ("text", "no Keras model"),
        ("a cut file", "no Keras model"),
        ("weights in h5", "weights alone"),
        ("renamed weights in h5", "weights alone"),
    ],
)
def test_a_file_that_is_no_model_is_one_message(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        tried(not_a_model(tmp_path, kind), save_arrays(tmp_path))


def test_without_compilation_in_the_file_both_options_are_asked_for(tmp_path: Path) -> None:
    model, data = save(tmp_path, dense("relu")), save_arrays(tmp_path)
    with pytest.raises(ConfigError, match="Give --loss and --optimizer"):
        tried(model, data, loss=None, optimizer=None)
    with pytest.raises(ConfigError, match="Give --optimizer"):
        tried(model, data, optimizer=None)


@pytest.mark.parametrize(
    ("build", "text", "message"),
    [
        (
            build_loss,
            "sparse_categorical_crossentropi",
            "Did you mean SparseCategoricalCrossentropy",
        ),
        (build_loss, "mse:delta=2", "takes reduction, name"),
        (build_loss, "huber:delta=", "must be a name, or name:key=value"),
        (build_optimizer, "adm", "Did you mean Adam"),
        (build_optimizer, "sgd:rate=0.1", "takes learning_rate, momentum"),
    ],
)
def test_a_wrong_loss_or_optimizer_names_what_there_is(build: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(text, {})


def test_losses_and_optimizers_take_options_by_name() -> None:
    huber = build_loss("huber:delta=2", {})
    assert float(huber(np.zeros((1, 1)), np.full((1, 1), 6.0))) == pytest.approx(2 * (6 - 1))
    optimizer = build_optimizer("sgd:learning_rate=1e-3,momentum=0.9,nesterov", {})
    config = optimizer.get_config()
    assert (config["learning_rate"], config["momentum"]) == (pytest.approx(1e-3), 0.9)
    assert config["nesterov"] is True


def test_code_that_fails_is_one_message(tmp_path: Path) -> None:
    code = tmp_path / "broken.py"
    code.write_text("raise RuntimeError('no')")
    with pytest.raises(TrainerError, match=r"cannot be imported \(RuntimeError: no\)"):
        tried(tmp_path / "model.keras", tmp_path / "data.npz", imports=[str(code)])


def test_a_folder_that_is_neither_run_nor_log_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory"):
        Evidence.at(tmp_path)


def test_every_step_takes_other_examples_until_all_were_seen(tmp_path: Path) -> None:

    from trainer.diagnose_model import _Batches

    x = np.arange(NUM_EXAMPLES)
    batches = _Batches({"x": x}, {"y": x}, 32, 25, 0)
    seen = np.concatenate([batches[index][0] for index in range(25)])
    assert sorted(seen[:NUM_EXAMPLES]) == list(range(NUM_EXAMPLES))
    assert sorted(seen[NUM_EXAMPLES:]) == list(range(NUM_EXAMPLES))
