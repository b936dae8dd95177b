"""`health.json`: what a training said of itself while it ran, and each recovery."""

from __future__ import annotations

from typing import Any

from trainer.errors import RunDirectoryError
from trainer.run_dir import RunDir, read_json, write_json


def add_event(run: RunDir, step: int, event: str, **details: Any) -> None:
    """Append an event to the run's `health.json`."""
    events = read_events(run)
    write_json(run.health, {"events": [*events, {"step": step, "event": event, **details}]})


def read_events(run: RunDir) -> list[dict[str, Any]]:
    """Return the events of a run, oldest first; none if nothing happened.

    Raises:
        RunDirectoryError: If `health.json` is damaged.
    """
    if not run.health.exists():
        return []
    events = read_json(run.health).get("events")
    if not isinstance(events, list) or not all(isinstance(each, dict) for each in events):
        raise RunDirectoryError(
            f"{run.health}: this artifact is damaged (no list of events). Without the file, the "
            "recoveries of the run are counted from 0"
        )
    return events


def num_recoveries(run: RunDir) -> int:
    """Return how often a run went back to a healthy checkpoint."""
    return sum(event.get("event") == "recovered" for event in read_events(run))


def recoveries_of(run: RunDir) -> tuple[tuple[int, float], ...]:
    """Return for each recovery the step it went on from, and its share of the schedule's rate.

    Raises:
        RunDirectoryError: If `health.json` is damaged.
    """
    events = [event for event in read_events(run) if event.get("event") == "recovered"]
    try:
        return tuple((int(e["step"]), float(e["learning_rate_factor"])) for e in events)
    except (KeyError, TypeError, ValueError):
        raise RunDirectoryError(
            f"{run.health}: this artifact is damaged (a recovery without step or factor)"
        ) from None
