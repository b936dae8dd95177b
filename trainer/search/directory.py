"""The folder of a search: who may write it, and whether it is still the same search."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import locks
from trainer.config import Config, dump_config, load_config
from trainer.errors import SearchError
from trainer.locks import LOCK_FILE, HeldError, NoLocksError
from trainer.run_dir import write_text

# How far a search goes may change while it goes on; what it looks for may not.
_LIMITS = ("max_trials", "max_epochs", "max_hours")
# A process that was stopped, or lost the chief of its search, ends its step and saves.
ENDING_SECONDS = 120.0


@dataclass(frozen=True)
class SearchDir:
    """Paths of one search.

    Attributes:
        path: The folder itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config with its `search` section."""
        return self.path / "config.yaml"

    @property
    def oracle(self) -> Path:
        """State of the oracle, which the trials can replace."""
        return self.path / "oracle"

    @property
    def results(self) -> Path:
        """A row a trial, for programs."""
        return self.path / "trials.csv"

    @property
    def best(self) -> Path:
        """A complete config that `train` runs."""
        return self.path / "best.yaml"

    @property
    def page(self) -> Path:
        """What `tune` shows, in one file."""
        return self.path / "search.html"

    @property
    def workers(self) -> Path:
        """A log a worker."""
        return self.path / "workers"

    @classmethod
    def open(cls, path: Path) -> SearchDir:
        """Return an existing search.

        Raises:
            SearchError: If it is none.
        """
        search = cls(path)
        if search.config.is_file():
            return search
        what = "is no search (no config.yaml in it)" if path.exists() else "does not exist"
        raise SearchError(f"{path}: {what}. Begin one with: trainer tune CONFIG")


@contextmanager
def locked(path: Path, what: str = "search", patience: float = 0.0) -> Iterator[None]:
    """Hold a search, or a trial of it, for this process alone.

    Args:
        path: Its folder.
        what: It is, for people.
        patience: Seconds to wait for another process to let go of it.

    Raises:
        SearchError: If another process has it; names that one.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(path, patience))
        except HeldError as held:
            raise SearchError(
                f"{path}: this {what} is being run by another process (pid {held.holder}). "
                "Wait for it, or stop it"
            ) from None
        except NoLocksError as error:
            raise SearchError(
                f"{error}, and without them two processes could write the same files. "
                "Choose another folder"
            ) from None
        yield


def begin(path: Path, config: Config, *, resume: bool, restart: bool) -> SearchDir:
    """Make a search's folder ready, or take up the one that is there.

    Args:
        path: The folder, which this process holds.
        config: With a `search` section.
        resume: Go on with what is there.
        restart: Put aside what is there.

    Raises:
        SearchError: If there is a search and neither was said, or it is another one.
    """
    search = SearchDir(path)
    if search.config.exists() and not resume and not restart:
        raise SearchError(
            f"{path}: there is a search already. Go on with it: --resume. "
            "Put it aside and begin anew: --restart"
        )
    if restart and search.config.exists():
        _put_aside(path)
    if search.config.exists():
        changed = changes(path, config)
        if changed:
            raise SearchError(
                f"{path}: this search is another one: {'; '.join(changed)}. Undo the change, "
                "or begin anew with --restart, which puts the old one aside"
            )
    write_text(search.config, dump_config(config))
    return search


def changes(path: Path, config: Config) -> list[str]:
    """Return what a config says otherwise than that of a search; its limits may."""
    known = load_config(SearchDir(path).config)
    limits = {f"search.{limit}" for limit in _LIMITS}
    differences = _differences(_values(known), _values(config))
    return [text for key, text in differences if key not in limits]


def _put_aside(path: Path) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    old = path.with_name(f"{path.name}.until-{stamp}")
    # Workers that a `kill -9` of their chief has left would go on to write in the new search;
    # none of them gets another trial. A retraining does not hold its search, and may take hours.
    for folder, what, patience in (
        ("trials", "trial", ENDING_SECONDS),
        ("retrained", "retraining", 1.0),
    ):
        for lock in sorted(path.glob(f"{folder}/*/{LOCK_FILE}")):
            with locked(lock.parent, what, patience):
                pass
    old.mkdir(exist_ok=True)
    config = SearchDir(path).config
    kept = [each for each in path.iterdir() if each.name not in (LOCK_FILE, config.name)]
    # The config last: as long as it is there, it is a search, and can be put aside.
    for each in (*kept, config):
        shutil.move(str(each), old / each.name)


def _values(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    for key in dict.fromkeys([*old, *new]):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{name}.")
        elif before != after:
            yield name, f"{name} was {before!r} and is {after!r}"
