"""A search with workers: start some here, let others come, and see all of them to the end."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trainer.errors import SearchError
from trainer.search.chief import Chief, Event
from trainer.search.crew import Hand
from trainer.search.directory import SearchDir
from trainer.search.interruption import interruptible
from trainer.search.oracles import LastingOracle
from trainer.search.trial import OutOfTime

LOOPBACK = "127.0.0.1:0"
# A trial that takes its process with it is given up at the fourth start of it.
_MOST_DEATHS = 5
_TICK_SECONDS = 0.2
# To import TensorFlow and say that it is there.
_START_SECONDS = 180.0
# For workers that were told that there is nothing more to do.
_FAREWELL_SECONDS = 3.0
# For workers that were told to stop: a step, or the validation after an epoch.
_STOP_SECONDS = 150.0
_LONELY_SECONDS = 3600.0


def lead(
    oracle: LastingOracle,
    directory: SearchDir,
    hands: list[Hand],
    listen: str | None,
    *,
    command: Sequence[str],
    deadline: float | None,
    tell: Callable[[str], None],
    after_trial: Callable[[], None] = lambda: None,
) -> None:
    """Have workers run a search to its end, or to its limits.

    Args:
        oracle: Chooses the points.
        directory: Of the search, which this process holds.
        hands: The workers of this machine, started; those that have ended are taken out.
        listen: `HOST:PORT` for workers that come by themselves; None for the loopback.
        command: The command line, for the trials' `environment.json`.
        deadline: As `time.time()`; see `TrialRequest`.
        tell: Prints a line for people.
        after_trial: Is called when a trial has been reported.

    Raises:
        OutOfTime: At the deadline.
        InterruptedRun: After a signal; the workers have saved their trials.
        SearchError: If the workers die again and again, or none comes.
        TrainerError: What every trial of this machine would meet.
    """
    with Chief(oracle, directory.path, listen or LOOPBACK, command, deadline) as chief:
        tell(
            f"chief on {chief.post.address}; another worker that sees {directory.path} can join: "
            f"trainer tune CONFIG --chief {chief.post.address}"
        )
        try:
            _Lead(chief, hands, listen, deadline, tell, after_trial).see_to_the_end()
        except BaseException:
            # A second signal ends the wait.
            with interruptible():
                tell("the workers save their trials and stop (Ctrl-C to stop them at once)")
                _stop(chief, hands)
            raise
    if chief.is_closed:
        raise OutOfTime("the search has reached search.max_hours")


def _stop(chief: Chief, crew: Sequence[Hand]) -> None:
    """Have all workers save a checkpoint and end."""
    chief.stop()
    for hand in crew:
        if not hand.has_joined:
            hand.kill()
    end = time.monotonic() + _STOP_SECONDS
    while not all(hand.has_ended for hand in crew) and time.monotonic() < end:
        time.sleep(_TICK_SECONDS)
    # Others are told as well, but their checkpoints are not waited for: it is their trial
    # folder, and nobody else has it.
    end = time.monotonic() + _FAREWELL_SECONDS
    names = {hand.name for hand in crew}
    while set(chief.members) - names and time.monotonic() < end:
        time.sleep(_TICK_SECONDS)


@dataclass
class _Lead:
    """Looks after the workers until there is nothing more to do."""

    chief: Chief
    crew: list[Hand]
    listen: str | None
    deadline: float | None
    tell: Callable[[str], None]
    after_trial: Callable[[], None] = lambda: None

    def see_to_the_end(self) -> None:
        chief = self.chief
        last_seen = time.monotonic()
        farewell: float | None = None
        while True:
            # Looked for before the events are read: a worker says why it goes, and then ends.
            ended = [hand for hand in self.crew if hand.has_ended]
            for event in _events(chief):
                self._hear(event)
            if self.deadline is not None and time.time() > self.deadline:
                chief.close()
            self._look_after_silent()
            for hand in ended:
                self._look_after(hand)
            now = time.monotonic()
            if self.crew or chief.members:
                last_seen = now
            elif chief.is_done or chief.is_closed:
                return
            elif self.listen is None:
                raise SearchError("no worker is left, and there are trials to do")
            elif now - last_seen > _LONELY_SECONDS:
                raise SearchError(
                    f"there was no worker for {_LONELY_SECONDS / 60:.0f} minutes. "
                    "Go on with --resume when one can come"
                )
            if chief.is_done:
                farewell = farewell or now + _FAREWELL_SECONDS
                if now > farewell or not chief.members:
                    # Who has not asked by now finds in the folder that nothing is left.
                    return

    def _hear(self, event: Event) -> None:
        hand = next((each for each in self.crew if each.name == event.worker), None)
        if event.kind == "failed" and self.chief.error is not None:
            raise self.chief.error
        if event.kind == "left" and event.exit_code and hand is not None:
            error = SearchError(event.reason)
            error.exit_code = event.exit_code
            raise error
        if event.kind == "joined" and hand is not None:
            hand.has_joined = True
        elif event.kind == "joined":
            self.tell(f"worker {event.worker} has come")
        elif event.kind == "ended":
            self.after_trial()
            if hand is not None:
                hand.deaths = 0
        elif event.kind == "left" and hand is None:
            self.tell(f"worker {event.worker} has gone: {event.reason or 'it has no more to do'}")

    def _look_after_silent(self) -> None:
        for name in self.chief.silent():
            self.tell(f"worker {name} gives no sign of life{self._hand_on(name)}")
            for hand in self.crew:
                if hand.name == name:
                    hand.kill()
        for hand in self.crew:
            if not hand.has_joined and hand.seconds > _START_SECONDS:
                hand.kill()

    def _look_after(self, hand: Hand) -> None:
        """Start a worker again that has ended, if there is something left to do."""
        handed_on = self._hand_on(hand.name)
        if self.chief.is_done or self.chief.is_closed:
            self.crew.remove(hand)
            return
        hand.deaths += 1
        text = f"worker {hand.name} has ended ({hand.ending}){handed_on}"
        if hand.deaths < _MOST_DEATHS:
            self.tell(f"{text}. It is started again")
            hand.start()
            return
        self.crew.remove(hand)
        text = f"{text}. It did so {hand.deaths} times in a row; its last words are in {hand.log}"
        if not self.crew and not self.chief.members:
            raise SearchError(text)
        self.tell(text)

    def _hand_on(self, name: str) -> str:
        trial = self.chief.drop(name)
        return "" if trial is None else f"; trial {int(trial)} goes to another one"


def _events(chief: Chief) -> Iterator[Event]:
    """Wait a little for something to happen, and give all that has."""
    try:
        yield chief.events.get(timeout=_TICK_SECONDS)
        while True:
            yield chief.events.get_nowait()
    except queue.Empty:
        return
