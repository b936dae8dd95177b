"""The page of a search says what its trials' folders say, whatever became of them."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from html_pages import ReadPage, dumped, needs_chromium
from made_searches import MadeSearch
from tiny import run_trainer, write_tiny_config

from trainer.pages.figures import compressed_plotly
from trainer.search import results as results_module
from trainer.search.display import one_line
from trainer.search.page import verdict
from trainer.search.results import Results, keep_page, write_page, write_results

ADAM = {"optimizer.learning_rate": 1e-2, "optimizer.kind": "adam"}
SGD = {"optimizer.learning_rate": 1.0, "optimizer.kind": "sgd", "optimizer.momentum": 0.9}
SLOW = {"optimizer.learning_rate": 1e-4, "optimizer.kind": "adam"}
WILD = "</script><script>alert('x')</script> <b>&amp;"
FAILED: dict[str, Any] = {"score": 0.0, "state": "failed", "cause": "memory", "reason": WILD}
PRUNED: dict[str, Any] = {
    "score": 0.3,
    "state": "pruned",
    "cause": "vanishing",
    "reason": "vanishing: 1e-9",
    "health": "vanishing",
}


@pytest.fixture
def made(tmp_path: Path) -> MadeSearch:
    """One trial of each fate; the first one is the best."""
    search = MadeSearch(tmp_path)
    search.add(ADAM, 0.75)
    search.add(SGD, **FAILED, curve=(math.nan,))
    search.add(SLOW, **PRUNED, curve=(0.2, 0.3))
    search.add({**ADAM, "optimizer.learning_rate": 0.1}, None, curve=(0.4,))
    return search


def page_of(search: MadeSearch) -> ReadPage:
    write_results(search.directory, search.config)
    return ReadPage(search.directory.page.read_text(encoding="utf-8"))


def lines_of(page: ReadPage) -> list[dict[str, Any]]:
    """Return the lines of the parallel coordinates, the best last."""
    data: list[dict[str, Any]] = page.figures[0]["wide"]["data"]
    return data


def test_the_verdict_names_the_best_and_counts_every_fate(made: MadeSearch) -> None:
    assert verdict(made.results) == (
        "Trial 0 is the best: val_accuracy 0.75, with learning_rate 0.01, kind adam; of 4 trials, "
        "1 trained to its end, 1 stopped early (1 vanishing), 1 failed (1 memory) and "
        "1 has not ended."
    )
    assert page_of(made).words.count(verdict(made.results)) == 1


def test_a_search_without_a_score_says_why_there_is_none(tmp_path: Path) -> None:
    search = MadeSearch(tmp_path)
    assert verdict(search.results) == "No trial has begun yet."
    page_of(search)

    search.add(SGD, **FAILED)

    assert verdict(search.results) == (
        "No trial has a score of its own: of 1 trial, 1 failed (1 memory)."
    )
    assert "best.yaml" not in page_of(search).words


def test_the_best_may_have_been_stopped_early(tmp_path: Path) -> None:
    search = MadeSearch(tmp_path)
    search.add(SLOW, **PRUNED, curve=(0.2, 0.3))

    assert "val_accuracy 0.3 before it was stopped early, with" in verdict(search.results)


def test_every_trial_is_linked_to_its_own_folder(made: MadeSearch) -> None:
    page = page_of(made)

    folders = {each.resolve() for each in (made.path / "trials").iterdir()}
    linked = {(made.path / each).resolve() for each in page.addresses() if each[0] != "#"}
    assert linked == folders
    assert len(folders) == 4


def test_a_null_that_was_tried_is_told_from_a_key_that_was_not_used(tmp_path: Path) -> None:
    space = "    optimizer.clipnorm: {choice: [null, 1.0]}\n"
    search = MadeSearch(tmp_path, space=space)
    search.add({"optimizer.clipnorm": None})

    assert "clipnorm null" in verdict(search.results)
    assert lines_of(page_of(search))[0]["y"][0] == pytest.approx(0.0, abs=0.03)
    search.add({}, 0.9)
    assert lines_of(page_of(search))[-1]["y"][0] < -0.1  # below the axis
    cells = [a.get("data-key") for name, a in page_of(search).elements if name == "td"]
    assert "null" in cells


def test_the_page_asks_for_nothing_from_outside(made: MadeSearch) -> None:
    assert all(each.startswith(("#", "./trials/")) for each in page_of(made).addresses())


def test_reasons_are_told_in_full_and_as_they_were_written(made: MadeSearch) -> None:
    page = page_of(made)

    assert page.words.count(WILD) == 2  # among the failures and among the trials
    assert len(page.scripts) == 4  # two figures, the library, and what draws


def test_values_that_look_like_html_are_shown_as_they_are(tmp_path: Path) -> None:
    space = "    model.block.activation: {choice: [relu, tanh]}\n"
    search = MadeSearch(tmp_path, space=space)
    search.add({"model.block.activation": "relu"}, **{**FAILED, "cause": "<i>"})

    page = page_of(search)

    assert "&lt;i&gt;" in lines_of(page)[0]["text"]
    assert page.words.count("<i>") >= 2


def test_the_score_that_a_failed_trial_has_for_the_oracle_is_not_shown(made: MadeSearch) -> None:
    page = page_of(made)

    (failed,) = [line for line in lines_of(page) if line["line"]["dash"] == "dot"]
    assert failed["y"][-1] < 0  # below the axis
    assert "failed: memory" in failed["text"]
    assert "val_accuracy" not in failed["text"]


def test_a_trial_that_was_stopped_before_an_epoch_has_no_score_to_show(tmp_path: Path) -> None:
    search = MadeSearch(tmp_path, "objective: val_loss")
    search.add(SLOW, **{**PRUNED, "score": 0.2}, curve=())
    assert verdict(search.results) == (
        "No trial has a score of its own: of 1 trial, 1 stopped early (1 vanishing)."
    )
    search.add(ADAM, 0.7)

    page = page_of(search)

    assert "Trial 1 is the best: val_loss 0.7" in verdict(search.results)
    (stopped,) = [line for line in lines_of(page) if line["line"]["dash"] == "dash"]
    assert stopped["y"][-1] < 0  # below the axis
    assert "pruned: vanishing" in stopped["text"] and "val_loss" not in stopped["text"]
    keys = [a.get("data-key") for name, a in page.elements if name == "td"]
    assert "0.7" in keys and "0.2" not in keys
    assert "0.2000" not in one_line(search.results.trials[0], search.config)
    with open(search.directory.results, newline="") as file:
        assert [row["score"] for row in csv.DictReader(file)] == ["", "0.7"]


def test_each_value_lies_on_its_own_scale(made: MadeSearch) -> None:
    best = lines_of(page_of(made))[-1]

    assert "trial 0" in best["text"]
    rate, kind, momentum, score = best["y"]
    assert rate == pytest.approx(0.5)  # 1e-2 on a logarithmic scale from 1e-4 to 1
    assert kind == pytest.approx(0.0, abs=0.03)  # the first choice
    assert momentum < 0  # not used: below the axis
    assert score == 1.0


def test_a_narrow_screen_gets_the_same_lines_from_top_to_bottom(made: MadeSearch) -> None:
    figure = page_of(made).figures[0]

    for wide, narrow in zip(figure["wide"]["data"], figure["narrow"]["data"], strict=True):
        assert narrow["x"] == wide["y"]
        assert narrow["y"] == [-place for place in wide["x"]]


def test_a_smaller_loss_is_further_up_and_logarithmic_if_it_must(tmp_path: Path) -> None:
    search = MadeSearch(tmp_path, "objective: val_loss")
    for index, loss in enumerate((100.0, 1.0, 0.01)):
        search.add({**ADAM, "optimizer.learning_rate": 0.1 + index / 10}, loss)

    page = page_of(search)

    places = {line["text"].split("<br>")[0]: line["y"][-1] for line in lines_of(page)}
    assert list(places.values()) == pytest.approx([0.0, 0.5, 1.0])
    assert "val_loss 0.01" in lines_of(page)[-1]["text"]
    assert page.figures[1]["wide"]["layout"]["yaxis"]["type"] == "log"


def test_a_curve_has_every_epoch_and_a_gap_where_it_was_not_finite(made: MadeSearch) -> None:
    made.add({**ADAM, "optimizer.learning_rate": 0.5}, 0.6, curve=(0.1, math.nan, 0.6))

    curves = [curve["y"] for curve in page_of(made).figures[1]["wide"]["data"]]

    assert sorted(curves, key=str) == [[0.1, 0.75], [0.1, None, 0.6], [0.2, 0.3], [0.4], [None]]
    assert curves[-1] == [0.1, 0.75]  # the best, on top


def test_best_yaml_and_the_commands_are_there_to_copy(made: MadeSearch) -> None:
    page = page_of(made)

    assert " ".join(made.directory.best.read_text().split()) in page.words
    assert f"trainer train {made.directory.best}" in page.words
    assert "trainer tune 'my search.yaml'" in page.words
    buttons = [a for name, a in page.elements if name == "button" and a.get("class") == "copy"]
    assert len(buttons) == 4


def test_too_few_trials_for_an_importance_are_said_to_be_too_few(made: MadeSearch) -> None:
    assert "is not known: 2 parameters need at least 8 ended trials to tell" in page_of(made).words


def test_the_importance_is_drawn_once_there_are_enough_trials(tmp_path: Path) -> None:
    search = MadeSearch(tmp_path, "direction: max")
    for index in range(24):
        rate = 10 ** (-4 + index / 6)
        values = {**(ADAM if index % 2 else SGD), "optimizer.learning_rate": rate}
        search.add(values, index / 24)

    page = page_of(search)

    assert "Told from chance by 24 trials: learning_rate" in page.words
    (drawn, *_) = page.figures[1]["wide"]["data"]
    assert drawn["y"] == ["learning_rate"]


def test_without_scikit_learn_its_section_says_so(
    made: MadeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(9):
        made.add({**ADAM, "optimizer.learning_rate": 0.2 + index / 20}, 0.5 + index / 100)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)

    assert "needs scikit-learn" in page_of(made).words


def test_without_plotly_the_search_still_has_its_results(
    made: MadeSearch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    compressed_plotly.cache_clear()

    results = write_results(made.directory, made.config)

    assert results.best is not None
    assert made.directory.best.exists()
    assert made.directory.results.exists()
    assert not made.directory.page.exists()
    message = capsys.readouterr().err
    assert message.count("warning:") == 1
    assert "search.html was left out" in message
    assert "scripts/setup_env.sh report" in message


def test_a_killed_search_has_its_page_too(made: MadeSearch) -> None:
    write_page(made.directory, made.results, is_over=False)

    page = ReadPage(made.directory.page.read_text(encoding="utf-8"))

    assert "1 has not ended" in page.words
    assert "This is worked out when the search stops." in page.words


def test_a_damaged_trial_does_not_spoil_the_page(made: MadeSearch) -> None:
    folders = sorted((made.path / "trials").iterdir())
    (folders[2] / "history.csv").write_text("epoch,val_accuracy\n0,what?\n")
    (folders[3] / "trial.json").write_text('{"numb')

    assert "of 3 trials," in page_of(made).words


def test_while_a_search_runs_the_page_is_written_once_a_minute(
    made: MadeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(results_module.time, "monotonic", lambda: now[0])
    after_trial = keep_page(made.directory, made.config)
    written = []
    for now[0] in (130.0, 161.0, 190.0, 222.0):
        made.directory.page.unlink(missing_ok=True)
        after_trial()
        written.append(made.directory.page.exists())

    assert written == [False, True, False, True]


def test_a_page_that_cannot_be_written_is_mentioned_once_and_ends_no_search(
    made: MadeSearch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(results_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(results_module, "search_page", lambda *args, **more: 1 / 0)
    after_trial = keep_page(made.directory, made.config)
    for now[0] in (200.0, 300.0):
        after_trial()

    assert capsys.readouterr().err.count("was left out: ZeroDivisionError") == 1


def test_a_large_search_stays_small_and_quick(tmp_path: Path) -> None:
    search = MadeSearch(tmp_path)
    curve = tuple(0.123456789 + i / 1000 for i in range(300))
    for index in range(400):
        values = {**SGD, "optimizer.momentum": index / 500}
        search.add(values, curve[-1] - index / 1e6, curve=curve)
    results = Results.of(search.path, search.config)
    began = time.process_time()

    write_page(search.directory, results, is_over=False)

    assert search.directory.page.stat().st_size < 5e6
    assert time.process_time() - began < 5


@needs_chromium
def test_a_browser_draws_the_page_without_a_word(made: MadeSearch, tmp_path: Path) -> None:
    write_results(made.directory, made.config)

    page, console = dumped(made.directory.page, tmp_path)

    assert console == ""
    assert ("html", {"lang": "en", "data-plots": "drawn"}) in page.elements
    lines = [a for _, a in page.elements if "js-line" in (a.get("class") or "")]
    assert len(lines) >= 3 + 3  # trials that have ended, and curves of more than a point
    assert "not used" in page.words


@pytest.mark.slow
def test_a_search_that_ran_has_its_page(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    space = "{optimizer.kind: {choice: [adam, sgd]}}"
    config.write_text(
        config.read_text().replace("epochs: 3", "epochs: 1")
        + f"search: {{algorithm: grid, space: {space}}}\n"
    )

    process = run_trainer("tune", config, "--searches-dir", tmp_path)

    assert process.returncode == 0, process.stderr
    page = ReadPage((tmp_path / "tiny" / "search.html").read_text(encoding="utf-8"))
    assert "of 2 trials, 2 trained to their end." in page.words
    assert f"trainer tune {config} --searches-dir {tmp_path}" in page.words
