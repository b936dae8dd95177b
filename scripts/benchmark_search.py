"""Measure what a search costs beside its trainings, and what workers and isolation change.

    python scripts/benchmark_search.py
    python scripts/benchmark_search.py --only overhead workers

Three tables, all of searches over equal small trainings of the embedded data set:

- overhead: in one process, in turn, the same trainings once one after the other and once as
  the trials of a search. The difference for each is the search's own; what a trial takes
  outside of its epochs' steps (data, model, validation), a training takes as well.
- workers: the wall time of whole searches with one worker and with two, in turn, one thread
  to each worker, from the command to its end.
- memory: the largest resident set after each of many trials, of the search's own process and,
  with `--isolate`, of each trial's.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark_report import describe_machine, table, write_report
from benchmarking import SCRIPTS, say

_NOTES = "Written by `scripts/benchmark_search.py`, whose docstring says how to read it.\n"
_CONFIG = """\
name: equal
seed: 0
data: {{source: shapes, train_size: {images}, test_size: 50}}
model:
  stem: {{filters: 8}}
  stages: [{{filters: 8, blocks: 1}}, {{filters: 16, blocks: 1, strides: 2}}]
optimizer: {{kind: sgd, learning_rate: 0.01}}
fit: {{epochs: {epochs}, batch_size: 50}}
runtime: {{devices: cpu}}
search:
  algorithm: grid
  prune: []
  space:
    optimizer.learning_rate: {{log_uniform: [0.01, 0.011], points: {trials}}}
"""
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def write_config(folder: Path, *, trials: int, images: int, epochs: int) -> Path:
    """Write a search of equal trials."""
    path = folder / "equal.yaml"
    path.write_text(_CONFIG.format(trials=trials, images=images, epochs=epochs))
    return path


def overhead(rounds: int, trials: int) -> str:
    """Return the table of what a trial costs beside its training."""
    from trainer.config import load_config
    from trainer.config.search_space import at_point
    from trainer.search.searching import search
    from trainer.search.trials import read_trials
    from trainer.train import train

    alone, searched, first_step = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = load_config(write_config(folder, trials=trials, images=2000, epochs=2))
        for number in range(-1, rounds):  # the first round warms up
            path = folder / f"search{number}"
            begin = time.perf_counter()
            search(config, path, resume=False, restart=False, command=["benchmark"])
            of_search = (time.perf_counter() - begin) / trials
            records = read_trials(path)
            begin = time.perf_counter()
            for record in records:
                point = at_point(config, record.point.values)
                train(point, runs_dir=folder / f"runs{number}", command=["benchmark"])
            of_trainings = (time.perf_counter() - begin) / trials
            say(f"  round {number}: a trial {of_search:.2f} s, a training {of_trainings:.2f} s")
            if number < 0:
                continue
            searched.append(of_search)
            alone.append(of_trainings)
            for record in records:
                assert record.outcome is not None
                inside = sum(row["seconds"] for row in record.history)
                first_step.append(record.outcome.seconds - inside)
    own = [a - b for a, b in zip(searched, alone, strict=True)]
    rows = [
        ["a training alone", *_spread(alone)],
        ["the same as a trial", *_spread(searched)],
        ["the search's own part", *_spread(own)],
        ["a trial outside of its epochs' steps", *_spread(first_step)],
    ]
    return table(["seconds", "median", "smallest", "largest"], rows)


def _spread(values: list[float]) -> list[str]:
    return [f"{f(values):.2f}" for f in (statistics.median, min, max)]


def workers(rounds: int, trials: int) -> str:
    """Return the table of whole searches with one worker and with two."""
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_config(folder, trials=trials, images=6000, epochs=3)
        for number in range(rounds):
            for count in sorted(seconds, reverse=bool(number % 2)):
                where = f"searches{number}-{count}"
                options = ["--searches-dir", where, *(["--workers", count] * (count != "1"))]
                seconds[count].append(_run(folder, options))
                say(f"  round {number}: {count} worker(s) {seconds[count][-1]:.1f} s")
    ratios = [two / one for one, two in zip(seconds["1"], seconds["2"], strict=True)]
    rows = [
        ["one worker", *_spread(seconds["1"])],
        ["two workers", *_spread(seconds["2"])],
        ["two over one", *_spread(ratios)],
    ]
    return table([f"seconds of {trials} equal trials", "median", "smallest", "largest"], rows)


def _run(folder: Path, options: list[str]) -> float:
    command = [sys.executable, "-m", "trainer", "tune", "equal.yaml", *options]
    begin = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **_ONE_THREAD, "PYTHONPATH": str(SCRIPTS.parent)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - begin


def memory(trials: int) -> str:
    """Return the table of resident sets over many trials."""
    rows = []
    for name, options in (("in one process", []), ("--isolate", ["--isolate"])):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_config(folder, trials=trials, images=500, epochs=1)
            peaks = _watch(folder, options)
        say(f"  {name}: {peaks}")
        early, late = peaks[4], peaks[-1]
        rows.append(
            [name, len(peaks), *(f"{mib:,.0f}" for mib in (early, late)), f"{late / early:.3f}"]
        )
    return table(["trials", "number", "MiB at the fifth", "MiB at the last", "ratio"], rows)


def _watch(folder: Path, options: list[str]) -> list[float]:
    """Run a search; return the largest resident set in MiB of each trial's process."""
    command = [sys.executable, "-m", "trainer", "tune", "equal.yaml", *options]
    env = {**os.environ, **_ONE_THREAD, "PYTHONPATH": str(SCRIPTS.parent)}
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peaks: list[float] = []
    largest = 0.0
    while process.poll() is None:
        time.sleep(0.05)
        largest = max(largest, _resident_mib(process.pid))
        ended = len(list(folder.glob("searches/equal/trials/*/outcome.json")))
        if ended > len(peaks):
            # Of a trial's own process the peak is its own; one process never gives back.
            peaks += [largest] * (ended - len(peaks))
            largest = 0.0
    assert process.returncode == 0
    return peaks


def _resident_mib(pid: int) -> float:
    """Resident memory of a process and its children."""
    total = 0.0
    pids = [pid]
    while pids:
        each = pids.pop()
        try:
            text = Path(f"/proc/{each}/statm").read_text()
            pids += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
        except (OSError, ValueError):
            continue
        total += int(text.split()[1]) * resource.getpagesize() / 2**20
    return total


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=("overhead", "workers", "memory"), default=("all",)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--memory-trials", type=int, default=30)
    parser.add_argument("--output", type=Path, default=SCRIPTS / "benchmark_search.md")
    arguments = parser.parse_args()
    parts = {
        "overhead": lambda: overhead(arguments.rounds, arguments.trials),
        "workers": lambda: workers(arguments.rounds, arguments.trials),
        "memory": lambda: memory(arguments.memory_trials),
    }
    body = []
    for name, measure in parts.items():
        if {"all", name} & set(arguments.only):
            say(name)
            body.append(f"## {name.capitalize()}\n\n{measure()}")
    facts = describe_machine([]) | {"rounds": f"{arguments.rounds} of {arguments.trials} trials"}
    write_report(arguments.output, "The cost of a search", _NOTES, facts, "\n\n".join(body))


if __name__ == "__main__":
    main()
