"""What a person sees of a training: while it runs, at the end of an epoch, and at its end."""

from __future__ import annotations

import io
import math
import re
import resource
from pathlib import Path

import pytest
from made_runs import make_run
from rich.console import Console
from tiny import write_tiny_config

from trainer import progress
from trainer.closing import closing_table
from trainer.config import load_config
from trainer.diagnosis import Evidence, Finding
from trainer.diagnosis.judge import Diagnosis, diagnose
from trainer.progress import Pace, fitting_words, format_epoch
from trainer.report.curves import speed_figure
from trainer.report.reading import RunFiles
from trainer.run_dir import RunDir, read_history
from trainer.terminal import duration
from trainer.train import train

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LOGS = {
    "loss": 1.23456,
    "accuracy": 0.5,
    "val_loss": 1.5,
    "val_accuracy": 0.45,
    "images_per_second": 12345.6,
}


def test_a_healthy_epoch_fits_into_80_columns() -> None:
    line = format_epoch(8, 200, LOGS, "healthy")

    assert line == (
        "epoch   9/200  loss 1.2346 acc 0.5000  val 1.5000 0.4500  12,346 img/s  healthy"
    )
    assert len(line) <= 80


def test_without_a_terminal_an_epoch_says_how_long_the_rest_takes() -> None:
    assert format_epoch(8, 200, LOGS, "healthy", 754.4).endswith("healthy  12:34 left")
    assert format_epoch(199, 200, LOGS, "healthy", 0.0).endswith("healthy")


def test_the_rest_is_reckoned_without_the_tracing_and_with_the_validations() -> None:
    pace = Pace(end_epoch=10, epoch_steps=100)
    pace.begin(0)
    for steps in range(51):
        # The first step takes half a minute, each other a tenth of a second.
        pace.note(steps, 1000.0 + (30.0 + 0.1 * (steps - 1) if steps else 0.0))

    assert pace.step_seconds == pytest.approx(0.1)
    assert pace.seconds_left(50) == pytest.approx(50 * 0.1 + 9 * 100 * 0.1)
    pace.note_rest(4.0)
    assert pace.seconds_left(100) == pytest.approx(9 * (100 * 0.1 + 4.0))


@pytest.mark.parametrize(
    ("seconds", "text"), [(6.6, "0:07"), (754, "12:34"), (3600, "1:00:00"), (11100, "3:05:00")]
)
def test_a_time_is_written_as_people_read_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_of_80_columns_moves_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "_DRAW_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_READ_SECONDS", 0.0)
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=80)
    )

    train(
        load_config(write_tiny_config(tmp_path), ["gradients.window_steps=3"]),
        runs_dir=tmp_path / "runs",
        command=["trainer", "train"],
    )

    lines = re.split(r"[\r\n]+", _ESCAPES.sub("", screen.getvalue()))
    assert max(map(len, lines)) <= 80
    assert any(
        re.fullmatch(
            r"epoch 3/3 \S+ +[0-9]/9 loss \d\.\d{4} acc \d\.\d{4} [\d,]+ img/s \S.* \d+:\d\d left",
            line.strip(),
        )
        for line in lines
    ), lines
    # The rest stands on the line that moves, and not in those that stay.
    said = capsys.readouterr().err
    assert "epoch 2/3" in said
    assert " left" not in said


def test_where_it_is_narrow_the_verdict_and_the_time_stay() -> None:
    words = {
        "steps": "1563/1563",
        "metrics": "loss 0.1234 acc 0.1234",
        "speed": "12,345 img/s",
        "health": "large_updates +1",
        "left": "1:23:45 left",
    }
    wide, narrow, narrowest = (fitting_words(words, room) for room in (120, 64, 52))

    assert wide == (
        "1563/1563 loss 0.1234 acc 0.1234 12,345 img/s [bold red]large_updates +1[/] 1:23:45 left"
    )
    assert "img/s" not in narrow and "1563" in narrow
    assert narrowest == "loss 0.1234 acc 0.1234 [bold red]large_updates +1[/] 1:23:45 left"


def test_a_training_records_its_memory(tmp_path: Path) -> None:
    run = train(
        load_config(write_tiny_config(tmp_path), ["fit.epochs=2"]),
        runs_dir=tmp_path / "runs",
        command=["trainer", "train"],
    )
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    first, second = (row["memory_mib"] for row in read_history(run.history))

    # A process with TensorFlow has more than this.
    assert 200 < first <= second <= now
    figure = speed_figure(RunFiles.read(run.path))
    assert figure is not None
    assert figure.data[1]["y"] == pytest.approx([first, second], rel=1e-3)


def test_the_end_names_the_best_epoch_and_the_last_and_what_to_do(tmp_path: Path) -> None:
    write_tiny_config(tmp_path)
    run = RunDir(make_run(tmp_path / "made", val_accuracy=(0.3, 0.6, 0.4)))

    text = closing_table(run, read_history(run.history), diagnose(Evidence.of_run(run)))

    lines = [line.split() for line in text.splitlines()]
    assert ["best", "1.4000", "0.6500", "1.5000", "0.6000", "epoch", "2", "by", "accuracy"] in lines
    assert ["last", "1.6000", "0.4500", "1.7000", "0.4000", "epoch", "3"] in lines
    assert "trained    3 epochs, 24 steps in 0:30 of training\nspeed      100 img/s\n" in text
    assert f"next       trainer report {run.path}" in text


def test_the_end_says_what_is_wrong_with_the_gradients(tmp_path: Path) -> None:
    write_tiny_config(tmp_path)
    norms = (1e-9, 1e-6, 1e-3, 1.0)
    run = RunDir(make_run(tmp_path / "made", val_accuracy=(0.1,) * 6, norms=norms))

    text = closing_table(run, read_history(run.history), diagnose(Evidence.of_run(run)))

    assert "gradients  vanishing (error)" in text
    assert f"what to do: trainer diagnose {run.path}" in text


def test_the_end_fits_into_80_columns_whatever_was_found() -> None:
    findings = tuple(
        Finding(rule, "error", "it is ill", (), (0, 1), {}, {}, remedies=())
        for rule in ("vanishing", "dead", "small_updates", "initialization", "plateau")
    )
    rows = [
        {"epoch": 0, "step": 1e6, "seconds": 1e5, "images_per_second": 1e5, "memory_mib": 5e4},
        {"epoch": 1, "step": 2e6, "seconds": 1e5, "images_per_second": 1e5, "memory_mib": 1e4},
    ]
    figures = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0}
    history = [
        {**rows[0], **figures, "val_accuracy": math.nan},
        {**rows[1], **figures, "val_accuracy": 0.25},
    ]

    text = closing_table(RunDir(Path("runs/r")), history, Diagnosis(findings, {}, 5, {}))

    assert max(map(len, text.splitlines())) <= 80
    assert "plateau (error)" in text
    # The most that any part of a resumed run had; and nothing is better than something.
    assert "50,000 MiB" in text
    assert "best         1.0000    0.5000    1.0000        0.2500  epoch 2 by accuracy" in text


def test_a_run_without_an_epoch_has_an_end_too(tmp_path: Path) -> None:
    write_tiny_config(tmp_path)
    run = RunDir(make_run(tmp_path / "made", val_accuracy=(), norms=None))

    text = closing_table(run, [], diagnose(Evidence.of_run(run)))

    assert "trained    no epoch to its end" in text
