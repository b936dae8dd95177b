"""Every error that a user can cause, each with the exit code of the process.

A message states the rule, what was received and the fix. `cli` prints it
without a traceback and exits with `exit_code`; anything that is not a
`TrainerError` is a bug and keeps its traceback.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all errors that a user can cause and mend."""

    exit_code = 2


class ConfigError(TrainerError):
    """The YAML file, an override, or their combination is wrong."""


class DataError(TrainerError):
    """The data are missing, damaged, or not what the config says."""


class RuntimeSetupError(TrainerError):
    """The machine cannot do what the `runtime` section asks for."""


class RunDirectoryError(TrainerError):
    """A run directory is missing, in use, or lacks an artifact."""


class ModelFileError(TrainerError):
    """A model file is missing, damaged, or of no known kind."""


class MissingDependencyError(TrainerError):
    """An optional package is needed for what was asked."""


class ExportError(TrainerError):
    """An exported file does not answer like the trained model."""

    exit_code = 1


class NonFiniteError(TrainerError):
    """Training met a NaN or an infinity and was told to stop."""

    exit_code = 3


class UnhealthyError(TrainerError):
    """The diagnosis of a running training found an error and was told to stop."""

    exit_code = 1


class SearchError(TrainerError):
    """A search cannot begin or go on as it was asked to."""


class FruitlessSearchError(TrainerError):
    """A search has ended without a single trial that could be scored."""

    exit_code = 1


class StoppedEarly(TrainerError):
    """Whoever looks after a training has seen enough of it; it could go on."""

    exit_code = 1


class InterruptedRun(TrainerError):
    """A signal ended the work before its end; what was saved before is whole.

    Args:
        signal_number: The signal, 2 (SIGINT) or 15 (SIGTERM).
        message: What there is, and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
