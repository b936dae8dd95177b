"""The run directory: the names of its artifacts, and writes that cannot be torn.

It is the only bridge between what trains and what reads: `evaluate`, `predict` and
everything after them get a run directory and no live object.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import RunDirectoryError
from trainer.locks import is_locked

State = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class RunDir:
    """Paths of one run.

    Attributes:
        path: The directory itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config; training from it repeats the run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, devices, commit, command and seed."""
        return self.path / "environment.json"

    @property
    def history(self) -> Path:
        """One row an epoch."""
        return self.path / "history.csv"

    @property
    def gradients(self) -> Path:
        """The gradient log, see `gradient_log`."""
        return self.path / "gradients"

    @property
    def checkpoints(self) -> Path:
        """States to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model as a Keras file."""
        return self.path / "model.keras"

    @property
    def data(self) -> Path:
        """Class names, image shape and origin of the data, and what was measured of them."""
        return self.path / "data.json"

    @property
    def diagnosis(self) -> Path:
        """What `diagnose` found."""
        return self.path / "diagnosis.json"

    @property
    def health(self) -> Path:
        """What the live diagnosis said, and each recovery."""
        return self.path / "health.json"

    @property
    def train_digests(self) -> Path:
        """Eight bytes for each training image, sorted: what the run was trained on."""
        return self.path / "train_digests.npy"

    @property
    def evaluation(self) -> Path:
        """What `evaluate` found on the test set."""
        return self.path / "evaluation.json"

    @property
    def mistakes(self) -> Path:
        """Test images that `evaluate` found taken for another class, the most confident first."""
        return self.path / "mistakes.npz"

    @property
    def tensorboard(self) -> Path:
        """Event files, where the config asks for them."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """What `report` shows."""
        return self.path / "report.html"

    @property
    def saved_model(self) -> Path:
        """Exported versions, one folder each."""
        return self.path / "saved_model"

    @property
    def status(self) -> Path:
        """Whether the run goes on, and how it ended."""
        return self.path / "status.json"

    @classmethod
    def create(cls, root: Path, name: str) -> RunDir:
        """Make `<root>/<name>-<time>-<short id>/`.

        Raises:
            RunDirectoryError: If the directory cannot be made.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = root / f"{name}-{stamp}-{secrets.token_hex(2)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{path}: the run directory cannot be made ({error.strerror}). "
                "Choose another place with --runs-dir"
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Return an existing run directory.

        Raises:
            RunDirectoryError: If it is none; names the nearest runs that are.
        """
        path = Path(path)
        run = cls(path)
        if run.config.is_file():
            return run
        what = "is no run directory (no config.yaml in it)" if path.exists() else "does not exist"
        parent = path if path.is_dir() else path.parent
        runs = sorted(p.parent for p in parent.glob("*/config.yaml")) if parent.is_dir() else []
        hint = f". Runs in {parent}: {', '.join(p.name for p in runs[-5:])}" if runs else ""
        raise RunDirectoryError(f"{path}: {what}{hint}")

    def write_status(self, state: State, **details: Any) -> None:
        """Write `status.json`."""
        write_json(
            self.status,
            {
                "state": state,
                "pid": os.getpid(),
                "process": process_id(os.getpid()),
                "host": socket.gethostname(),
                "time": time.strftime("%FT%T%z"),
                **details,
            },
        )

    def read_status(self) -> dict[str, Any]:
        """Return `status.json`; a running state of a process that has ended is `killed`.

        The lock of the run tells, from other machines too. Where there is none, the process
        does, if it was of this machine; of another one a running state stays what it is.

        Raises:
            RunDirectoryError: If it is missing or damaged.
        """
        status = read_json(self.status)
        if status.get("state") == "running" and not self._is_running(status):
            # It may have ended well since: a run says so before it lets go of its lock.
            status = read_json(self.status)
            if status.get("state") == "running":
                status["state"] = "killed"
        return status

    def _is_running(self, status: Mapping[str, Any]) -> bool:
        is_held = is_locked(self.path)
        if is_held is not None:
            return is_held
        if status.get("host", socket.gethostname()) != socket.gethostname():
            return True
        pid = int(status.get("pid", 0))
        # After a reboot, or in the next container, the number may be another process'.
        return is_alive(pid) and status.get("process") in (None, process_id(pid))


def process_id(pid: int) -> str | None:
    """Return what tells a process from others of the same number; None if nothing does.

    That is the boot of the machine and the time since then at which the process began, on
    Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot}:{fields[19]}"
    except (OSError, IndexError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid > 0


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, and put it in place of `path` in one step.

    A reader sees the old file or the new one, whatever is killed when.

    Raises:
        RunDirectoryError: If the disk is full or the place cannot be written.
    """
    # The ending stays: Keras and NumPy choose the format by it.
    temporary = path.with_name(f".{secrets.token_hex(3)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "what was there before is untouched"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinities become null."""
    write_text(path, json.dumps(json_safe(value), indent=1) + "\n")


def json_safe(value: Any) -> Any:
    """Return `value` with NaN and infinities as None: bare NaN is no JSON."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    # Of NumPy, whose float64 alone is a float.
    if hasattr(value, "tolist") and not isinstance(value, float):
        return json_safe(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunDirectoryError: If the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: this artifact is missing from the run") from None
    except ValueError as error:
        raise RunDirectoryError(f"{path}: this artifact is damaged ({error})") from None
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path}: this artifact is damaged (no JSON object)")
    return value


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write `history.csv`: one row an epoch, columns in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of `history.csv`; an empty list if no epoch has ended.

    The values of `epoch` and `step` are integers.

    Raises:
        RunDirectoryError: If it is damaged.
    """

    def number(column: str, text: str) -> float:
        return int(float(text)) if column in ("epoch", "step") else float(text)

    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [
                {column: number(column, text) for column, text in row.items() if text}
                for row in csv.DictReader(file)
            ]
    except (ValueError, TypeError, OverflowError, csv.Error) as error:
        raise RunDirectoryError(f"{path}: this artifact is damaged ({error})") from None
