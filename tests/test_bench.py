"""`opendetr bench`: what it measures with, and what it says."""

from __future__ import annotations

import json
import pkgutil

import pytest
import torch
from typer.testing import CliRunner

import opendetr.bench
from opendetr.bench import BENCHMARKS, load_benchmark
from opendetr.bench.figure import Figure
from opendetr.bench.measuring import in_fresh_process, interleaved, peak_bytes_above
from opendetr.cli.main import app

TOOLS = {"figure", "measuring"}


def test_contestants_take_turns():
    turns: list[str] = []
    seconds = interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, 3)
    assert turns == list("ab" * 4)  # the first round warms up
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_a_figure_of_seconds_compares_round_by_round():
    figure = Figure.of_seconds("x", {"opendetr": [1.0, 2.0, 4.0], "other": [3.0, 4.0, 20.0]}, expected=2.0)
    assert (figure.ours, figure.theirs, figure.peer) == (2.0, 4.0, "other")
    assert figure.factor == 3.0  # of 3, 2 and 5; the medians' own ratio is 2


def _grow(mebibytes: int) -> int:
    return peak_bytes_above(lambda: torch.ones(mebibytes << 18))


def test_peak_memory_is_that_of_the_work():
    peak = in_fresh_process(_grow, 64)
    assert 64 << 20 <= peak < 72 << 20


def test_every_benchmark_is_listed():
    modules = {module.name for module in pkgutil.iter_modules(opendetr.bench.__path__)} - TOOLS
    assert modules == {name.replace("-", "_") for name in BENCHMARKS}
    result = CliRunner().invoke(app, ["bench", "--list", "--json"])
    listed = json.loads(result.stdout)["benchmarks"]
    assert list(listed) == list(BENCHMARKS)
    assert all(listed.values())


def test_the_command_gives_figures_and_machine(monkeypatch):
    figure = Figure.of_bytes("a pass", 2 << 20, "other", 6 << 20, expected=3.0)
    name = BENCHMARKS[0]
    monkeypatch.setattr(load_benchmark(name), "measure", lambda repeats: iter([figure] * repeats))
    result = json.loads(CliRunner().invoke(app, ["bench", name, "--repeats", "2", "--json"]).stdout)
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert [row["factor"] for row in result["figures"]] == [3.0, 3.0]
    shown = CliRunner().invoke(app, ["bench", name, "--repeats", "1"]).stdout
    assert "2 MiB" in shown and "6 MiB" in shown and "at least 3.00" in shown


def test_a_peer_that_is_missing_is_one_line(monkeypatch):
    def measure(_repeats):
        raise ModuleNotFoundError("No module named 'peer'", name="peer")
        yield

    monkeypatch.setattr(load_benchmark(BENCHMARKS[0]), "measure", measure)
    result = CliRunner().invoke(app, ["bench", BENCHMARKS[0]])
    assert result.exit_code == 1
    assert "pip install peer" in result.stderr


@pytest.mark.parametrize("words", [["no-such"], ["deformable-attention", "no-such"]])
def test_an_unknown_name(words):
    result = CliRunner().invoke(app, ["bench", *words])
    assert result.exit_code == 2
    assert "'no-such'" in result.stderr and BENCHMARKS[0] in result.stderr
