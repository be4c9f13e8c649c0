"""The progress bar: on terminals and in notebooks alone, and gone at the end."""

from __future__ import annotations

import io
import re
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from opendetr.recipe import Recipe
from opendetr.training import Evaluated, RunEnded, StepTaken
from opendetr.training.callbacks import Progress, _decay
from opendetr.training.events import PlanFixed, RunStarted
from opendetr.training.schedule import Evaluations, Plan
from opendetr.visualize import StatusBar, progress, progress_bar

LOSSES = dict.fromkeys(("class", "l1", "giou", "proposal_class", "proposal_l1", "proposal_giou"), (0.5, 0.25))


@pytest.mark.parametrize(("in_bytes", "shown"), [(False, "2048/4096"), (True, "2.0/4.0 KiB")])
def test_a_terminal_shows_what_is_done(monkeypatch, capsys, in_bytes, shown):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("reading", in_bytes=in_bytes) as advance:
        advance(0, None)
        advance(2048, 4096)
    said = capsys.readouterr()
    assert "reading" in said.err and shown in said.err
    assert said.err.endswith("\x1b[2K")  # the line is cleared
    assert said.out == ""


def test_a_terminal_shows_the_speed(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("tracking", rate_of="frames") as advance:
        for done in range(3):
            advance(done, 10)
            time.sleep(0.02)
    assert re.search(r"[1-9][\d.]* frames/s", capsys.readouterr().err)


def test_a_file_shows_nothing(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    with progress_bar("reading") as advance:
        advance(1, 2)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


# ----------------------------------------------------------------------------------------------------- a training run


class Screen:
    """The lines of a console that a `Progress` prints to, as far as it was told."""

    def __init__(self, width: int | None) -> None:
        self._file = io.StringIO()
        is_terminal = width is not None
        console = Console(file=self._file, force_terminal=is_terminal, width=width or 80, _environ={"TERM": "xterm"})
        self.progress = Progress(console, interval=0, metric="AP", headline_metrics=["AP"])

    def start(self, *, step: int = 0, evaluated: int = 0, metrics: dict | None = None) -> None:
        self.progress.on_start(RunStarted(Path("runs/mine"), step, 500, 5000, "cpu", evaluated, metrics or {}))

    def evaluate(self, step: int, seconds: float = 0.0) -> None:
        self.progress.on_evaluation(Evaluated(step, step / 500, {"AP": 0.523}, True, None, seconds, None))

    def step(self, step: int) -> None:
        self.progress.on_step(StepTaken(step, step // 500, 5000, 18.2, LOSSES, 1e-4, 1.0, 4, 0.4, 0.1))

    def lines(self) -> list[str]:
        """What the console shows at the end, without control codes."""
        self.progress.on_end(RunEnded(777, "finished", 100.0))
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._file.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]

    def line(self, part: str) -> str:
        """The last line with this part."""
        return next(line for line in reversed(self.lines()) if part in line)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_bar_time_and_metric_survive_in_a_narrow_terminal(width):
    screen = Screen(width)
    screen.start()
    screen.step(1)
    screen.evaluate(500)
    screen.step(777)
    line = screen.line("AP 0.523 at")
    assert "━" in line and "28:09 left, AP 0.523 at step 500, step 777/5000" in line
    assert len(line) <= width and "…" not in line
    assert ("loss 18.200" in line) == (width >= 80)
    assert ("l1 0.250" in line) == (width == 200)
    assert "proposal_giou" not in line  # 200 columns are too few for all losses


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_bar_says_that_an_evaluation_runs(width):
    screen = Screen(width)
    screen.start(step=900, evaluated=500, metrics={"AP": 0.523})
    screen.step(1000)
    screen.progress.show_evaluation(120, 300)
    line = screen.line("evaluating")
    assert "━" in line and "evaluating 120/300 images, AP 0.523 at step 500" in line and len(line) <= width
    assert ("26:40 left" in line) == (width >= 80)


def test_without_a_terminal_lines_are_whole():
    screen = Screen(None)
    screen.start()
    screen.progress.show_evaluation(8, 300)  # before the first step, when the speed is unknown
    screen.evaluate(0)
    screen.step(1)
    screen.evaluate(500)
    screen.step(777)
    screen.progress.show_evaluation(120, 300)
    losses = " ".join(f"{name} 0.250" for name in LOSSES)
    assert screen.lines() == [
        "training on cpu, 500 steps per epoch, in runs/mine",
        "evaluating 8/300 images, step 0/5000",
        "before training: AP 0.523 (0 s)",
        f"epoch 0.0, step 1/5000, AP 0.523 before training, 33:20 left, 10.0 images/s, loss 18.200 ({losses})",
        "epoch 1.0, step 500: AP 0.523 (0 s, the best so far)",
        f"epoch 1.6, step 777/5000, AP 0.523 at step 500, 28:09 left, 10.0 images/s, loss 18.200 ({losses})",
        "evaluating 120/300 images, step 777/5000",
        "done: 777 steps in 1:40",
    ]


@pytest.mark.parametrize(("step", "left"), [(1, "50:00"), (1000, "41:40"), (4700, "3:40"), (5000, "1:40")])
def test_the_time_left_includes_evaluations(step, left):
    screen = Screen(None)
    screen.start()
    plan = Plan(5000, evaluate_every=500)
    screen.progress.on_plan(PlanFixed(0, plan, Evaluations(10), 300, Recipe(), None))
    screen.evaluate(0, seconds=100.0)
    screen.step(step)
    assert f", {left} left" in screen.line(f"step {step}/")


def test_a_process_without_events_shows_no_evaluation():
    screen = Screen(None)
    screen.progress.show_evaluation(120, 300)
    assert screen.lines() == ["done: 777 steps in 1:40"]


# --------------------------------------------------------------------------------------------------------- notebooks

CELL = """
import time
from opendetr.visualize import StatusBar, progress_bar
bar = StatusBar()
bar.start()
for step in range(5):
    bar.update(step, 5, [f"step {step}", "AP 0.5"])
    time.sleep(0.3)
print("of the user")
"""


def test_a_notebook_without_widgets_gets_lines(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    bar = StatusBar(Console(force_jupyter=True))
    bar.start()
    assert not bar.is_shown
    bar.update(1, 2, ["half"])
    bar.stop()


def test_a_notebook_shows_a_widget():
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    end = "bar.stop()\nwith progress_bar('reading') as progress:\n    progress(1, 2)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (CELL, end)])
    client = nbclient.NotebookClient(notebook, timeout=60, store_widget_state=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's connection
        client.execute()
    first, second = notebook.cells
    assert "application/vnd.jupyter.widget-view+json" in first.outputs[0]["data"]
    assert first.outputs[1]["text"] == "of the user\n" and len(first.outputs) == 2
    shown = [str(state.get("outputs")) for state in client.widget_state.values()]
    assert any("step 4, AP 0.5" in text and "━" in text for text in shown)
    assert any("reading" in text for text in shown)
    assert [output["output_type"] for output in second.outputs] == ["display_data"]  # that of `progress_bar`


@pytest.mark.parametrize(
    ("decay", "shown"), [(0.5, "0.5"), (0.9921, "0.992"), (0.9998, "0.9998"), (0.99995, "0.99995")]
)
def test_a_decay_close_to_1_is_not_shown_as_1(decay, shown):
    assert _decay(decay) == shown
