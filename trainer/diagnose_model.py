"""Train a saved model in memory for some steps, and judge its gradients.

The file stays as it is: what is trained is the copy that was loaded from it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.callbacks import GradientRecorder
from trainer.diagnosis.finding import Finding, Remedy
from trainer.diagnosis.judge import Diagnosis, diagnose
from trainer.errors import ConfigError, DataError, ModelFileError, RunDirectoryError, TrainerError
from trainer.gradient_log import VARIABLES_FILE
from trainer.keras_specs import build_loss, build_optimizer
from trainer.loss_checks import check_targets, loss_of_knowing_nothing, takes_logits_for_shares
from trainer.named_arrays import Arrays, first_non_finite, read_examples
from trainer.saved_models import import_user_code, load_saved_model, merged

# So many windows show a course, and the rules about the loss want several.
_WINDOWS = 10
_LARGEST_WINDOW = 50
# Enough to tell a dead unit from a rare one.
_PROBE_EXAMPLES = 64


@dataclass(frozen=True)
class Trial:
    """How a saved model is to be tried.

    Attributes:
        model: A `.keras` or `.h5` file.
        data: An npz file, see `named_arrays.read_examples`.
        loss: See `keras_specs.build_loss`; None is the one that the file names, with its
            weights.
        optimizer: See `keras_specs.build_optimizer`; None is the one that the file names,
            in its state before the first step.
        batch_size: Examples in a step; all, if there are fewer.
        steps: Of the optimizer.
        seed: Of the order of the examples, of those that stand for all, and of random layers.
        imports: Modules, or Python files, with code that the model needs.
        keep: Folder for the gradient log; None keeps none.
    """

    model: Path
    data: Path
    loss: str | None = None
    optimizer: str | None = None
    batch_size: int = 32
    steps: int = 100
    seed: int = 0
    imports: Sequence[str] = ()
    keep: Path | None = None


def diagnose_model(trial: Trial) -> Diagnosis:
    """Load, check, train and judge.

    Raises:
        ModelFileError: If the file is no model, or needs code that is not there.
        ConfigError: If there is no loss or no optimizer, or they do not exist.
        DataError: If the data do not fit the model or the loss.
        RunDirectoryError: If the log cannot be kept where it should.
    """
    _check_place(trial.keep)
    keras.utils.set_random_seed(trial.seed)
    model, loss, loss_weights, optimizer = _load(trial)
    output_names = _output_names(model, loss)
    inputs, targets = read_examples(trial.data, _input_names(model), output_names)
    _check_inputs(trial.data, model, inputs)
    batch_size = min(trial.batch_size, len(next(iter(targets.values()))))
    if found := first_non_finite({**inputs, **targets}):
        return Diagnosis((_not_finite(trial.data, *found),), {}, 1, {})
    outputs = _outputs(trial, model, inputs, batch_size)
    is_single = len(outputs) == len(targets) == 1
    nothing = None
    if is_single:
        [(name, target)] = targets.items()
        check_targets(trial.data, name, target, outputs[0], loss)
        nothing = loss_of_knowing_nothing(target, outputs[0], loss, trial.seed)
        added = sum(float(keras.ops.sum(each)) for each in model.losses)
        if nothing is not None and np.isfinite(added):
            # As the recorded loss has it: that of the data by its weight, and regularizers.
            nothing = nothing * _weight(loss_weights) + added
    with ExitStack() as stack:
        folder = trial.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Keras finds the losses of a dict by name, and a tuple's targets by place alone.
        keys = output_names if isinstance(loss, dict) and len(targets) > 1 else ()
        batches = _Batches(inputs, targets, batch_size, trial.steps, trial.seed, keys)
        recorder = _train(trial, model, loss, loss_weights, optimizer, batches, folder)
        diagnosis = diagnose(recorder.evidence(nothing))
    if is_single and takes_logits_for_shares(outputs[0], loss):
        found_loss = _wrong_loss(loss)
        return replace(diagnosis, findings=(found_loss, *diagnosis.findings))
    return diagnosis


def _check_place(keep: Path | None) -> None:
    if keep is None or not keep.exists():
        return
    if not keep.is_dir() or (any(keep.iterdir()) and not (keep / VARIABLES_FILE).is_file()):
        raise RunDirectoryError(
            f"--keep {keep}: the log needs a new folder, an empty one, or that of another log, "
            "which it replaces"
        )


def _load(trial: Trial) -> tuple[keras.Model, Any, Any, keras.optimizers.Optimizer]:
    """Return the model, its loss, the weights of its outputs' losses or None, the optimizer."""
    custom = merged(import_user_code(name) for name in trial.imports)
    loss = None if trial.loss is None else build_loss(trial.loss, custom)
    optimizer = None if trial.optimizer is None else build_optimizer(trial.optimizer, custom)
    is_complete = loss is not None and optimizer is not None
    model = load_saved_model(trial.model, custom, needs_compilation=not is_complete)
    loss_weights = None
    if loss is None:
        loss = getattr(model, "loss", None)
        loss_weights = (model.get_compile_config() or {}).get("loss_weights")
        if isinstance(loss, str):
            loss = build_loss(loss, custom)
    saved = getattr(model, "optimizer", None)
    if optimizer is None and saved is not None:
        # Without the state that it was saved in, whose schedule may have come to its end.
        config = keras.optimizers.serialize(saved)
        optimizer = keras.optimizers.deserialize(config, custom_objects=custom)
    missing = [
        option
        for option, is_there in (("--loss", loss), ("--optimizer", optimizer))
        if not is_there
    ]
    if missing:
        raise ConfigError(
            f"{trial.model}: the model was saved without its compilation. "
            f"Give {' and '.join(missing)}"
        )
    if not model.trainable_variables and model.built:
        raise ModelFileError(f"{trial.model}: nothing in this model is trainable")
    return model, loss, loss_weights, optimizer


def _weight(loss_weights: Any) -> float:
    """Return the weight of the loss of a model with one output."""
    return 1.0 if loss_weights is None else float(keras.tree.flatten(loss_weights)[0])


def _input_names(model: keras.Model) -> list[str]:
    return [each.name for each in getattr(model, "inputs", None) or []]


def _output_names(model: keras.Model, loss: Any) -> list[str]:
    names = list(getattr(model, "output_names", None) or [])
    # What a dict of outputs calls them need not be what their layers are called.
    return list(loss) if isinstance(loss, dict) and set(loss) != set(names) else names


def _check_inputs(path: Path, model: keras.Model, inputs: Arrays) -> None:
    for wanted, (name, array) in zip(
        getattr(model, "inputs", None) or [], inputs.items(), strict=False
    ):
        fits = len(wanted.shape) == array.ndim and all(
            size is None or size == there
            for size, there in zip(wanted.shape[1:], array.shape[1:], strict=True)
        )
        # Keras adds and drops a last axis of one.
        if not fits and wanted.shape[1:] not in ((*array.shape[1:], 1), array.shape[1:-1]):
            raise DataError(
                f"{path}: {name} must have shape {_told(wanted.shape)} for the input "
                f"{wanted.name!r} of the model. Received: {_told((None, *array.shape[1:]))}"
            )


def _told(shape: Sequence[int | None]) -> str:
    sizes = ["examples", *("any" if size is None else str(size) for size in shape[1:])]
    return f"({', '.join(sizes)})"


def _outputs(trial: Trial, model: keras.Model, inputs: Arrays, batch_size: int) -> list[np.ndarray]:
    """What the model says before it is trained, of the first batch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = model(_fed({k: v[:batch_size] for k, v in inputs.items()}), training=False)
    # A model's code may raise anything on what it was not made for.
    except Exception as error:
        raise DataError(
            f"{trial.data}: the model cannot be called with these inputs ({_first_line(error)})"
        ) from error
    return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(outputs)]


def _train(
    trial: Trial,
    model: keras.Model,
    loss: Any,
    loss_weights: Any,
    optimizer: keras.optimizers.Optimizer,
    batches: _Batches,
    folder: Path,
) -> GradientRecorder:
    window_steps = max(1, min(_LARGEST_WINDOW, trial.steps // _WINDOWS))
    recorder = GradientRecorder(
        folder,
        window_steps=window_steps,
        moments_every_steps=max(1, window_steps // 2),
        activations_every_steps=max(1, window_steps // 2),
        probe=batches.probe(_PROBE_EXAMPLES),
        warn=lambda message: None,
    )
    try:
        with warnings.catch_warnings():
            # The findings say it, with the name of the variable.
            warnings.filterwarnings("ignore", message="Gradients do not exist")
            model.compile(
                optimizer=optimizer, loss=loss, loss_weights=loss_weights, jit_compile=False
            )
            model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=[recorder])
    except TrainerError:  # Of the log, which cannot be written.
        raise
    # A user's layers and losses may raise anything.
    except Exception as error:
        raise DataError(
            f"{trial.model}: the model cannot be trained with {trial.data} and this loss "
            f"({_first_line(error)})"
        ) from error
    return recorder


class _Batches(keras.utils.PyDataset):
    """As many batches as there are steps; every example comes once before one comes again.

    Args:
        inputs: Of all examples, in the order of the model's.
        targets: The same; they go by place, or by `keys` where there are some.
        batch_size: Examples in a step.
        steps: Of the optimizer.
        seed: Of the order.
        keys: What the losses of the targets are called.
    """

    def __init__(
        self,
        inputs: Arrays,
        targets: Arrays,
        batch_size: int,
        steps: int,
        seed: int,
        keys: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._inputs, self._targets, self._keys = inputs, targets, keys
        random = np.random.default_rng(seed)
        count = len(next(iter(inputs.values())))
        rounds = -(-steps * batch_size // count)
        orders = [random.permutation(count) for _ in range(rounds)]
        self._rows = np.concatenate(orders)[: steps * batch_size].reshape(steps, batch_size)
        self._first_order = orders[0]

    def probe(self, count: int) -> Any:
        """Return the inputs of some examples from all over the file, which may be sorted."""
        rows = self._first_order[:count]
        return _fed({name: values[rows] for name, values in self._inputs.items()})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rows = self._rows[index]
        picked = [{k: v[rows] for k, v in part.items()} for part in (self._inputs, self._targets)]
        if self._keys:
            return _fed(picked[0]), dict(zip(self._keys, picked[1].values(), strict=True))
        return _fed(picked[0]), _fed(picked[1])


def _fed(arrays: Arrays) -> Any:
    """What Keras takes for arrays in the order of a model's inputs or outputs."""
    values = list(arrays.values())
    return values[0] if len(values) == 1 else tuple(values)


def _not_finite(path: Path, name: str, count: int, row: int) -> Finding:
    return Finding(
        "data",
        "error",
        f"{path}: {name} has {count:,} values that are not finite, the first in example {row:,}; "
        "the model was not trained",
        (name,),
        numbers={"values": float(count)},
        thresholds={"values": 0.0},
        remedies=(Remedy("leave these examples out, or fill them in", {}),),
    )


def _wrong_loss(loss: Any) -> Finding:
    return Finding(
        "loss",
        "error",
        "the loss takes the model's outputs for probabilities, and they are not: they leave "
        "0 to 1, or do not add up to 1",
        remedies=(
            Remedy(f"--loss {_snake(loss)}:from_logits, or a softmax or sigmoid at the end", {}),
        ),
    )


def _snake(loss: Any) -> str:
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", "LOSS"))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    line = next((line for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:300]}"
