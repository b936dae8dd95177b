"""What a person sees while something takes its time, and what must stay out of its way."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

import pytest
from tiny import environment

from trainer.terminal import progress_bar, say

PROGRAM = """
import sys
from trainer.terminal import progress_bar, say
with progress_bar("counting", 2, is_shown={is_shown}) as advance:
    for row in ("first", "second"):
        print(row, flush=True)
        say("for people")
        advance()
print("last")
"""


def run_on_a_terminal(command: Sequence[str]) -> tuple[str, str]:
    """Run a command with a terminal for standard error alone.

    Returns:
        What went to standard output, and what the terminal got.
    """
    terminal, standard_error = pty.openpty()
    with tempfile.TemporaryFile("w+") as out:
        variables = {**environment(), "TERM": "xterm"}
        process = subprocess.Popen(command, stdout=out, stderr=standard_error, env=variables)
        os.close(standard_error)
        shown = b""
        # Linux ends a terminal whose other end is closed with an error.
        with suppress(OSError):
            while chunk := os.read(terminal, 4096):
                shown += chunk
        os.close(terminal)
        assert process.wait() == 0, shown
        out.seek(0)
        return out.read(), shown.decode()


def test_where_there_is_no_terminal_a_bar_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("counting", 2) as advance:
        advance()

    assert capfd.readouterr() == ("", "")


def test_a_line_for_people_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    say("a line")

    assert capfd.readouterr() == ("", "a line\n")


def test_a_bar_on_a_terminal_leaves_standard_output_to_its_rows() -> None:
    printed, shown = run_on_a_terminal([sys.executable, "-c", PROGRAM.format(is_shown=True)])

    assert printed == "first\nsecond\nlast\n"
    assert "counting" in shown
    assert "for people" in shown


def test_a_bar_that_rows_stand_for_is_not_drawn() -> None:
    printed, shown = run_on_a_terminal([sys.executable, "-c", PROGRAM.format(is_shown=False)])

    assert printed == "first\nsecond\nlast\n"
    assert shown == "for people\r\n" * 2


def test_a_bar_is_taken_away_by_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="halfway"), progress_bar("counting", 2):
        raise ValueError("halfway")

    assert capfd.readouterr() == ("", "")
