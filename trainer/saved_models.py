"""Open a saved Keras model that is not ours, and the code that it needs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras

from trainer.errors import ConfigError, ModelFileError

_HDF5 = (".h5", ".hdf5")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What Keras 3.15 says of a class or a function that it does not have.
_UNKNOWN_NAME = re.compile(
    r"(?:Could not locate (?:class|function|object)|Unknown [a-z ]+:|Could not deserialize class)"
    r" '?(?:\w+>)?(\w+)'?"
)


def import_user_code(name: str) -> dict[str, Any]:
    """Import a module, or a Python file, and return its classes and functions by name.

    Args:
        name: Path of a file that ends in `.py`, or a module's name; the working directory
            is looked through too.

    Raises:
        ConfigError: If it is missing or fails.
    """
    try:
        module = _from_file(Path(name)) if name.endswith(".py") else _from_path(name)
    except ConfigError:
        raise
    # The code may raise anything.
    except Exception as error:
        raise ConfigError(
            f"--import {name}: the code cannot be imported ({type(error).__name__}: {error})"
        ) from error
    return {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--import {path}: no such file")
    module = importlib.util.module_from_spec(spec)
    # A saved model names the module of each class.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _from_path(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return importlib.import_module(name)


def load_saved_model(
    path: Path, custom_objects: dict[str, Any] | None = None, needs_compilation: bool = True
) -> keras.Model:
    """Load a `.keras` or `.h5` file, which is not changed by it.

    Args:
        path: The file.
        custom_objects: Classes and functions by name, that Keras does not have.
        needs_compilation: Whether to load the loss and the optimizer too.

    Returns:
        The model; compiled, if that is asked for and the file says how.

    Raises:
        ModelFileError: If the file is missing, no model, damaged, or needs code that is not
            there.
    """
    _check_kind(path)
    try:
        with warnings.catch_warnings():
            # That the optimizer's state is not as expected, or absent: it is not used.
            warnings.simplefilter("ignore")
            model = keras.saving.load_model(
                path, custom_objects=custom_objects, compile=needs_compilation
            )
    # Keras raises nearly anything on a damaged file or a missing class.
    except Exception as error:
        raise ModelFileError(f"{path}: {_why(error, needs_compilation)}") from error
    if not isinstance(model, keras.Model):
        raise ModelFileError(f"{path}: holds a {type(model).__name__}, and no Keras model")
    return model


def _check_kind(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path}: the model must be a .keras or .h5 file, and this {what}")
    with open(path, "rb") as file:
        is_hdf5 = file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    if path.name.endswith(".weights.h5"):
        raise ModelFileError(
            f"{path}: holds weights alone. Save the whole model: model.save('model.keras')"
        )
    if not (is_hdf5 if path.suffix in _HDF5 else path.suffix == ".keras" and _is_model_zip(path)):
        raise ModelFileError(
            f"{path}: this is no Keras model. It must be a .keras file as `model.save` of Keras 3 "
            "writes it, or an .h5 file with a whole model"
        )


def _is_model_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "config.json" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _why(error: Exception, needs_compilation: bool) -> str:
    text = " ".join(str(error).split())
    if found := _UNKNOWN_NAME.search(text):
        return (
            f"the model needs {found[1]!r}, which is not of Keras. Load the code that has it: "
            "--import MODULE_OR_FILE.py"
        )
    if "No model config found" in text:
        return "holds weights alone. Save the whole model: model.save('model.keras')"
    if "unsafe" in text and "ambda" in text:
        return (
            "the model has a Lambda layer, whose stored code would run on loading; it is "
            "refused. Save the model with a registered layer in its place"
        )
    what = "model or its loss and optimizer" if needs_compilation else "model"
    return f"the {what} cannot be loaded ({type(error).__name__}: {text[:300]})"


def merged(objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the names of several modules as one dict; the last one counts."""
    return {key: value for each in objects for key, value in each.items()}
