"""The benchmarks' arithmetic and turns; what they measure is no matter of a test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmark_depth import line_through  # noqa: E402
from benchmark_recorder import split_epochs  # noqa: E402
from benchmark_report import table  # noqa: E402
from benchmark_step import ratio_rows  # noqa: E402
from benchmarking import (  # noqa: E402
    NETWORKS,
    Contestant,
    LeftOutError,
    Turn,
    choose_steps,
    compete,
    load_network,
    ratios,
    rotated,
    total_ratio,
)
from operator_profile import TensorFlowProfile  # noqa: E402

# Trains nothing, one step a millisecond, and notes whose turn it is.
FAKE = """
import sys, time
sys.path.insert(0, {scripts!r})
from turns import Turns, TurnsOver
turns = Turns()
print("a library says something")
if "reason" in turns.spec:
    turns.decline(turns.spec["reason"])
turns.ready(device="none")
taken = 0
try:
    while True:
        turns.before_step(lambda: None)
        if taken == turns.spec.get("fails_at"):
            raise RuntimeError("out of cheese")
        taken += 1
        time.sleep(0.001)
        with open(turns.spec["diary"], "a") as diary:
            diary.write(turns.spec["name"])
except TurnsOver:
    turns.leave(taken=taken)
"""


class Fakes:
    def __init__(self, folder: Path) -> None:
        self.diary = folder / "diary"
        self._program = folder / "fake.py"
        self._program.write_text(textwrap.dedent(FAKE.format(scripts=str(SCRIPTS))))
        self._made: list[Contestant] = []

    def make(self, name: str, **spec: object) -> Contestant:
        command = [sys.executable, str(self._program)]
        self._made.append(
            Contestant(name, command, {"name": name, "diary": str(self.diary), **spec})
        )
        return self._made[-1]

    def stop(self) -> None:
        for contestant in self._made:
            contestant.stop()


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    made = Fakes(tmp_path)
    yield made
    made.stop()


def with_turns(name: str, *wall_seconds: float) -> Contestant:
    turns = [Turn(10, seconds, 2 * seconds, 100.0) for seconds in wall_seconds]
    return Contestant(name, [], {}, turns=turns)


def test_each_round_another_contestant_begins() -> None:
    orders = ["".join(rotated("ABC", number)) for number in range(4)]
    assert orders == ["ABC", "BCA", "CAB", "ABC"]


def test_ratios_are_taken_within_a_round() -> None:
    # The second round is ten times slower for both; a ratio of medians would not be 0.5.
    ours, theirs = with_turns("ours", 1.0, 10.0, 1.5), with_turns("theirs", 2.0, 20.0, 2.0)
    assert ratios(ours, theirs, lambda turn: turn.wall_seconds) == (0.5, 0.5, 0.75)


def test_the_ratio_of_all_turns_has_an_interval_that_holds_it() -> None:
    generator = np.random.default_rng(0)
    # The machine is slower now and then, for both; one takes 5 % longer, and varies by 2 %.
    slowness = generator.lognormal(0, 0.3, 60)
    ours, theirs = (
        Contestant("", [], {}, turns=[Turn(10, each, 0, 0) for each in seconds])
        for seconds in (1.05 * slowness * generator.normal(1, 0.02, 60), slowness)
    )

    ratio, low, high = total_ratio(ours, theirs, lambda turn: turn.wall_seconds)

    totals = [sum(turn.wall_seconds for turn in each.turns) for each in (ours, theirs)]
    assert ratio == pytest.approx(totals[0] / totals[1])
    assert 1.04 < low < ratio < high < 1.06
    assert low < 1.05 < high


def test_every_pair_of_three_contestants_is_compared() -> None:
    rows = ratio_rows("net", [with_turns(name, 1.0) for name in "abc"])
    assert [row[1] for row in rows] == ["a/b", "a/c", "b/c"]


@pytest.mark.parametrize(
    ("step_seconds", "steps"), [(0.01, 250), (0.12, 30), (0.26, 10), (0.5, 5), (9.0, 1)]
)
def test_a_turn_has_whole_tens_of_steps_where_it_is_that_long(
    step_seconds: float, steps: int
) -> None:
    assert choose_steps(step_seconds, turn_seconds=2.5, multiple=10) == steps


def test_the_line_through_depths_gives_the_slope_and_the_largest_distance() -> None:
    slope, residual = line_through([1, 2, 3], [10.0, 20.0, 30.0])
    assert slope == pytest.approx(10) and residual == pytest.approx(0, abs=1e-12)
    # By hand: the line through these is 10 x + 1, and 22 lies 1 above its 21 at 2.
    _, residual = line_through([1, 2, 3], [10.5, 22.0, 30.5])
    assert residual == pytest.approx(1 / 21)


def test_the_very_first_step_belongs_to_no_epoch() -> None:
    first, others = split_epochs([99.0, 1.0, 5.0, 1.0, 6.0, 1.0], epoch_steps=2)
    assert (first, others) == ([5.0, 6.0], [1.0, 1.0, 1.0])


def test_a_table_is_aligned_markdown() -> None:
    assert table(["name", "ms"], [["a", 5], ["long name", 12]]).splitlines() == [
        "| name      | ms |",
        "|-----------|---:|",
        "| a         |  5 |",
        "| long name | 12 |",
    ]


def test_contestants_train_one_after_the_other_in_rotated_order(fakes: Fakes) -> None:
    present = compete([fakes.make("A"), fakes.make("B")], rounds=3, steps=2)
    measured = fakes.diary.read_text()[-12:]
    assert measured == "AABB" + "BBAA" + "AABB"
    assert [each.results["taken"] for each in present] == [1 + 12 + 6] * 2
    assert all(turn.wall_seconds >= 0.002 for each in present for turn in each.turns)


def test_a_contestant_that_declines_is_left_out_with_its_reason(
    fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    present = compete([fakes.make("A"), fakes.make("B", reason="no shoes")], rounds=1, steps=1)
    assert [each.name for each in present] == ["A"]
    assert "B is left out: no shoes" in capsys.readouterr().err


def test_a_contestant_that_fails_shows_its_last_lines(fakes: Fakes) -> None:
    with pytest.raises(RuntimeError, match=r"process of A ended early:\n(.*\n)*.*out of cheese"):
        compete([fakes.make("A", fails_at=5)], rounds=1, steps=1)


def test_an_interpreter_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    contestant = Contestant("torch", [str(tmp_path / "no-python")], {})
    with pytest.raises(LeftOutError, match="no-python"):
        contestant.start()
    contestant.stop()


def test_without_torch_the_peer_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    contestant = Contestant("torch", [sys.executable, str(SCRIPTS / "torch_peer.py")], {})
    with pytest.raises(LeftOutError) as caught:
        contestant.start()
    contestant.stop()
    assert "cannot import torch" in str(caught.value)
    assert "pip install" in str(caught.value)
    assert "--torch-python" in str(caught.value)


def test_the_torch_peer_knows_what_it_can_train() -> None:
    from torch_peer import unsupported

    for name in NETWORKS:
        assert unsupported(load_network(name, []).model_dump(mode="json")) == []
    other = load_network("resnet20", ["model.block.activation=gelu"]).model_dump(mode="json")
    assert unsupported(other) == ["model.block.activation=gelu"]
    for override in ("optimizer.weight_decay=0.1", "model.block.stochastic_depth=0.2"):
        other = load_network("resnet20", [override]).model_dump(mode="json")
        assert unsupported(other) == [override]


def test_a_profile_tells_convolutions_from_the_rest() -> None:
    import tensorflow as tf

    kernel = tf.Variable(tf.ones((3, 3, 8, 8)))

    @tf.function
    def step(images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            pooled = tf.nn.max_pool2d(tf.nn.conv2d(images, kernel, 1, "SAME"), 2, 2, "SAME")
            loss = tf.reduce_sum(pooled**3)
        return tape.gradient(loss, kernel)

    images = tf.ones((32, 32, 32, 8))
    step(images)
    profile = TensorFlowProfile()
    profile.start()
    step(images)
    seconds = profile.stop()

    for group in ("convolutions, forward", "convolutions, backward", "max-pooling"):
        assert 0 < seconds[group] < 10, group
    assert "normalization" not in seconds


@pytest.mark.parametrize(
    "name",
    [
        "benchmark_step",
        "benchmark_recorder",
        "benchmark_depth",
        "benchmark_xray",
        "benchmark_fast",
        "profile_fast",
    ],
)
def test_a_benchmark_explains_itself_without_importing_tensorflow(name: str) -> None:
    program = f"import runpy, sys; sys.argv = ['x', '--help']; sys.path.insert(0, {str(SCRIPTS)!r})"
    program += f"\ntry: runpy.run_module({name!r}, run_name='__main__')"
    program += "\nfinally: assert 'tensorflow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python scripts/{name}.py" in done.stdout
