"""Callbacks of a training run: progress on the terminal, files of metrics, curves, images."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import nn

from opendetr.data import count_noun
from opendetr.evaluation import CLASS_PREFIX
from opendetr.files import json_value, write_atomically
from opendetr.training.checkpoint import CheckpointError, writing
from opendetr.training.events import (
    Callback,
    Evaluated,
    NonFiniteFound,
    PlanFixed,
    RunEnded,
    RunStarted,
    StepTaken,
)
from opendetr.training.schedule import Plan
from opendetr.visualize import StatusBar, contact_sheet, draw_curves, save_image

METRICS_FILE = "metrics.jsonl"
TABLE_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
_MAX_CLASSES = 12
_MAX_STEP_LINES = 5000


class Progress(Callback):
    """Prints the progress of a run: a progress bar on a terminal or in a notebook, else a line from time to time.

    Args:
        console: where to print. Default: standard error.
        interval: seconds between two lines without a progress bar.
        metric: the metric of the latest evaluation that the bar or the lines show.
        headline_metrics: the metrics to print after an evaluation.
        few_steps: a plan of fewer steps gets a warning.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        interval: float = 30.0,
        metric: str = "",
        headline_metrics: Sequence[str] = (),
        few_steps: int = 0,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._interval = interval
        self._metric = metric
        self._headline_metrics = headline_metrics
        self._few_steps = few_steps
        self._bar = StatusBar(self._console)
        self._speed = _Throughput()
        self._last_line = -math.inf  # time of the latest line
        self._is_running = False
        self._step = 0
        self._total_steps: int | None = None
        self._steps_per_epoch = 1
        self._plan: Plan | None = None
        self._evaluated = 0  # number of steps before the latest evaluation
        self._evaluation_seconds = 0.0  # its duration
        self._latest = ""  # the metric of the latest evaluation, and the step before it

    def on_start(self, event: RunStarted) -> None:
        """Print the start of the run, and start the progress bar."""
        self._is_running, self._step, self._total_steps = True, event.step, event.total_steps
        self._steps_per_epoch = event.steps_per_epoch
        self._note_metric(event.metrics, event.evaluated)
        start = f"resumed after {count_noun(event.step, 'step')}" if event.step else "training"
        length = f"{count_noun(event.steps_per_epoch, 'step')} per epoch"
        self._print(f"{start} on {event.device}, {length}, in {event.folder}")
        for note in event.notes:
            self._print(note)
        self._bar.update(event.step, event.total_steps, ["waiting for the first step"])
        self._bar.start()

    def on_plan(self, event: PlanFixed) -> None:
        """Print the plan of the run in one line. Later plans print only the new length."""
        steps, is_first = event.plan.total_steps, self._plan is None
        self._plan = event.plan
        if not is_first:
            enough = f"the time of the run is enough for {count_noun(steps, 'step')}"
            self._print(f"now {event.step_seconds:.2f} s per step: {enough}")
            return
        self._print(_plan_line(event, self._steps_per_epoch))
        if steps < self._few_steps:
            more = "more time or smaller images (--image-size)" if event.step_seconds else "more steps"
            self._print(f"warning: the model learns very little in {count_noun(steps, 'step')}; give the run {more}")

    def on_step(self, event: StepTaken) -> None:
        """Update the progress bar, or print a line when it is due."""
        self._step, self._total_steps = event.step, event.total_steps
        self._speed.add(event.num_images, event.seconds)
        left, epoch, loss = self._left(), f"epoch {event.step / self._steps_per_epoch:.1f}", f"loss {event.loss:.3f}"
        speed = f"{self._speed.images_per_second:.1f} images/s"
        losses = [f"{name} {layers[-1]:.3f}" for name, layers in event.losses.items()]
        self._show(left, self._latest, self._position(), loss, epoch, speed, *losses)
        if not self._bar.is_shown:
            self._say_if_due(epoch, self._position(), self._latest, left, speed, f"{loss} ({' '.join(losses)})")

    def show_evaluation(self, done: int, total: int) -> None:
        """Show the progress of an evaluation that runs.

        Args:
            done: number of evaluated images.
            total: number of images of the evaluation.
        """
        if not self._is_running:  # the events of a run reach only the main process
            return
        evaluating = f"evaluating {done}/{total} images" if done < total else "evaluating: computing the metrics"
        self._show(evaluating, self._latest, self._left(), self._position())
        if not self._bar.is_shown:
            self._say_if_due(evaluating, self._position())

    def on_evaluation(self, event: Evaluated) -> None:
        """Print the headline metrics."""
        self._note_metric(event.metrics, event.step)
        self._evaluation_seconds = event.seconds
        values = ((name, event.metrics.get(name)) for name in self._headline_metrics)
        shown = [f"{name} {value:.3f}" for name, value in values if isinstance(value, float)]
        notes = [_duration(event.seconds)]
        notes += [] if event.images is None else [count_noun(event.images, "image")]
        is_zero = round(event.metrics.get(self._metric, 1), 3) == 0
        notes += ["the best so far"] if event.best and event.step and not is_zero else []
        when = f"epoch {event.epoch:.1f}, step {event.step}" if event.step else "before training"
        self._print(f"{when}: {' '.join(shown)} ({', '.join(notes)})")
        self._show(self._left(), self._latest, self._position())  # other callbacks draw and save

    def on_end(self, event: RunEnded) -> None:
        """Remove the progress bar, and print how the run ended."""
        self._is_running = False
        self._bar.stop()
        outcomes = {
            "finished": "done",
            "early": "ended early, because the last evaluations gave no new best result",
            "failed": "stopped by an error",
        }
        if event.outcome in outcomes:  # the run itself says that it was interrupted, and how to continue
            steps = count_noun(event.step, "step")
            self._print(f"{outcomes[event.outcome]}: {steps} in {_duration(event.seconds)}")

    def _note_metric(self, metrics: Mapping[str, Any], step: int) -> None:
        """Remember the metric, with its step: it is that of an earlier state of the model."""
        value, self._evaluated = metrics.get(self._metric), step
        when = f"at step {step}" if step else "before training"
        self._latest = "" if value is None else f"{self._metric} {value:.3f} {when}"

    def _position(self) -> str:
        return f"step {self._step}" + (f"/{self._total_steps}" if self._total_steps else "")

    def _left(self) -> str:
        """The time that the remaining steps and evaluations take; empty if the length or the speed is unknown."""
        if not self._total_steps or not self._speed.is_known:
            return ""
        seconds = (self._total_steps - self._step) * self._speed.step_seconds
        if self._plan is not None:
            seconds += _evaluations_left(self._plan, self._step, self._evaluated) * self._evaluation_seconds
        return f"{_duration(seconds)} left"

    def _show(self, *parts: str) -> None:
        """Show the parts beside the progress bar, if there is one; a narrow terminal leaves out the last ones."""
        self._bar.update(self._step, self._total_steps, [part for part in parts if part])

    def _say_if_due(self, *parts: str) -> None:
        if time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            self._print(", ".join(part for part in parts if part))

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _evaluations_left(plan: Plan, step: int, evaluated: int) -> int:
    """The number of evaluations that a plan has left after `step` steps, if the latest was after `evaluated` steps."""
    due = plan.evaluates_after(step) and evaluated < step
    if step >= plan.total_steps:
        return int(due)
    return due + (plan.total_steps - 1) // plan.evaluate_every - step // plan.evaluate_every + 1


def _plan_line(event: PlanFixed, steps_per_epoch: int) -> str:
    """The length of the run and the settings that depend on it and on the data."""
    plan, evaluations, recipe = event.plan, event.evaluations, event.recipe
    length = f"{count_noun(plan.total_steps, 'step')} ({plan.total_steps / steps_per_epoch:.1f} epochs)"
    parts = [f"{length} of {recipe.batch_size} images", f"learning rate {recipe.learning_rate:.3g}"]
    parts += [f"warm-up {count_noun(plan.warmup_steps, 'step')}"] if plan.warmup_steps else []
    parts += [f"EMA decay {_decay(plan.ema_decay)}"] if plan.ema_decay else []
    parts.append(count_noun(evaluations.count, "evaluation"))
    if evaluations.images is not None:
        last = " (the last one on all)" if evaluations.all_at_end else ""
        parts[-1] += f" on {evaluations.images} of {event.num_images} images{last}"
    speed = f"{event.step_seconds:.2f} s per step: " if event.step_seconds else ""
    return f"plan: {speed}{', '.join(parts)}"


def _decay(value: float) -> str:
    """A decay with three decimals, or as many as show how far it is from 1."""
    return f"{round(value, max(3, math.ceil(-math.log10(1 - value)))):g}"


class _Throughput:
    """Images per second and seconds per step, as exponentially weighted means over the steps."""

    _DECAY = 0.95  # each further step multiplies the weight of the earlier ones by this factor

    def __init__(self) -> None:
        self._steps = self._images = self._seconds = 0.0

    def add(self, num_images: int, seconds: float) -> None:
        self._steps = self._DECAY * self._steps + 1
        self._images = self._DECAY * self._images + num_images
        self._seconds = self._DECAY * self._seconds + seconds

    @property
    def is_known(self) -> bool:
        return self._steps > 0

    @property
    def images_per_second(self) -> float:
        return self._images / self._seconds

    @property
    def step_seconds(self) -> float:
        return self._seconds / self._steps


class MetricsFile(Callback):
    """Writes `metrics.jsonl`: one JSON object per line, {"kind": "step" | "evaluation" | ...}.

    A run of more than 5000 steps writes only every second, third, ... step. A resumed run first removes the lines that
    were written after the checkpoint.
    """

    def __init__(self) -> None:
        self._path = Path()

    def on_start(self, event: RunStarted) -> None:
        """Start a new file, or keep the lines up to the checkpoint of a resumed run."""
        self._path = event.folder / METRICS_FILE
        # If the checkpoint was saved before the evaluation after its step, the resumed run repeats this evaluation.
        latest = {"evaluation": event.evaluated}
        rows = read_metrics(event.folder) if event.step or event.metrics else []
        kept = [row for row in rows if row["step"] <= latest.get(row["kind"], event.step)]
        with writing(self._path):
            event.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, "".join(map(_json_line, kept)))

    def on_plan(self, event: PlanFixed) -> None:
        """Write the length of a timed run."""
        if event.step_seconds is None:
            return
        self._write(
            {
                "kind": "plan",
                "step": event.step,
                "total_steps": event.plan.total_steps,
                "step_seconds": event.step_seconds,
            }
        )

    def on_step(self, event: StepTaken) -> None:
        """Write losses, learning rate and times of the step."""
        if event.step % max(math.ceil((event.total_steps or 0) / _MAX_STEP_LINES), 1):
            return
        self._write(
            {
                "kind": "step",
                "step": event.step,
                "epoch": event.epoch,
                "loss": event.loss,
                "losses": event.losses,
                "learning_rate": event.learning_rate,
                "gradient_norm": event.gradient_norm,
                "images": event.num_images,
                "seconds": event.seconds,
                "data_seconds": event.data_seconds,
            }
        )

    def on_evaluation(self, event: Evaluated) -> None:
        """Write the metrics."""
        self._write(
            {
                "kind": "evaluation",
                "step": event.step,
                "images": event.images,
                "epoch": event.epoch,
                "seconds": event.seconds,
                "best": event.best,
                "metrics": event.metrics,
            }
        )

    def on_nonfinite(self, event: NonFiniteFound) -> None:
        """Write the loss and the images of the step that was not finite."""
        self._write(
            {
                "kind": "nonfinite",
                "step": event.step + 1,
                "loss": event.loss,
                "gradient_norm": event.gradient_norm,
                "names": event.names,
            }
        )

    def _write(self, row: Mapping[str, Any]) -> None:
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_json_line(row))


class MetricsTable(Callback):
    """Writes `metrics.csv` after every evaluation: one row per evaluation, with mean losses since the previous one.

    It reads `metrics.jsonl`, so `MetricsFile` must come before it among the callbacks.
    """

    def __init__(self) -> None:
        self._folder = Path()

    def on_start(self, event: RunStarted) -> None:
        """Remember the run folder."""
        self._folder = event.folder

    def on_evaluation(self, event: Evaluated) -> None:
        """Write the whole table with the new row."""
        rows = _table_rows(read_metrics(self._folder))
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        path = self._folder / TABLE_FILE
        with writing(path):
            write_atomically(path, text.getvalue())


def _table_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per evaluation, with the mean losses of the steps since the previous evaluation."""
    table, steps = [], []
    for row in rows:
        if row["kind"] == "step":
            steps.append(row)
        elif row["kind"] == "evaluation":
            names = steps[-1]["losses"] if steps else ()
            final = {f"loss {name}": _mean(step["losses"][name][-1] for step in steps) for name in names}
            rate = {"learning rate": steps[-1]["learning_rate"]} if steps else {}
            loss = {"loss": _mean(step["loss"] for step in steps)}
            table.append({"step": row["step"], "epoch": row["epoch"], **loss, **final, **rate, **row["metrics"]})
            steps = []
    return table


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class Curves(Callback):
    """Draws `curves.png` after every evaluation and at the end: metrics, losses and learning rate.

    It reads `metrics.jsonl`, so `MetricsFile` must come before it among the callbacks.

    Args:
        metrics: names of the metrics to draw, the one that selects the best weights first.
    """

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self._metrics = metrics
        self._folder = Path()

    def on_start(self, event: RunStarted) -> None:
        """Remember the run folder."""
        self._folder = event.folder

    def on_evaluation(self, event: Evaluated) -> None:
        """Draw the curves again."""
        self._draw()

    def on_end(self, event: RunEnded) -> None:
        """Draw the curves again, but not after an error: on a full disk, drawing would fail too."""
        if event.outcome != "failed":
            self._draw()

    def _draw(self) -> None:
        rows = read_metrics(self._folder)
        if any(row["kind"] == "step" for row in rows):
            write_image(curves(rows, self._metrics), self._folder / CURVES_FILE)


class ValidationImages(Callback):
    """Draws the predictions for a few images after every evaluation, to `images/step-N-NAME.jpg` in the run folder.

    Args:
        draw: called with the deployed task (with the EMA weights, if there are any) in evaluation mode; returns the
            names and the drawn images.
    """

    def __init__(self, draw: Callable[[nn.Module], Iterable[tuple[str, Image.Image]]]) -> None:
        self._draw = draw
        self._folder = Path()

    def on_start(self, event: RunStarted) -> None:
        """Remember the folder for images."""
        self._folder = event.folder / "images"

    def on_evaluation(self, event: Evaluated) -> None:
        """Draw and save the images."""
        for name, image in self._draw(event.task):
            write_image(image, self._folder / f"step-{event.step:07d}-{name}.jpg")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of `metrics.jsonl` in a run folder. Skips an incomplete last line, which a killed run may leave.

    Raises:
        CheckpointError: a line before the last one is not JSON.
    """
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(_complete_rows(lines, path))


def _complete_rows(lines: list[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise CheckpointError(f"{path}: line {number} is not JSON; fix it or remove the file") from error


def curves(rows: Iterable[Mapping[str, Any]], metrics: Sequence[str] = ()) -> Image.Image:
    """Draw metrics, losses and the learning rate over steps. A vertical line marks the step of the best weights.

    Args:
        rows: rows of `read_metrics`, at least one of a step.
        metrics: names of the metrics to draw, the one that selects the best weights first.
    """
    rows = list(rows)
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    best = [row["step"] for row in evaluations if row.get("best")]
    mark = (best[-1], f"best {(*metrics, 'result')[0]}: step {best[-1]:,}") if best else None
    last = max(row["step"] for row in (*steps, *evaluations))

    def chart(lines: Mapping[str, Sequence[tuple[float, float]]], y_label: str, *, smooth: bool = True) -> Image.Image:
        return draw_curves(lines, x_label="step", y_label=y_label, x_range=(0, last), mark=mark, smooth=smooth)

    scores = _curves_of(metrics, evaluations)
    classes = _class_curves(evaluations)
    final = {
        name: [(row["step"], _nan_if_none(row["losses"][name][-1])) for row in steps] for name in steps[0]["losses"]
    }
    total = {"loss": [(row["step"], _nan_if_none(row["loss"])) for row in steps]}
    rate = {"learning rate": [(row["step"], row["learning_rate"]) for row in steps]}
    charts = []
    if scores:
        charts.append(chart(scores, f"validation{_images_used(evaluations)}"))
    charts.append(chart(total, "weighted sum over all decoder layers"))
    if classes:
        charts.append(chart(classes, f"validation, AP of {_classes_shown(evaluations)}"))
    charts.append(chart(final, "final decoder layer, unweighted"))
    charts.append(chart(rate, "of all parts except the backbone", smooth=False))
    return contact_sheet(charts, columns=2)


def _curves_of(names: Iterable[str], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The metrics over steps; without those that no evaluation has."""
    return {
        name: [(row["step"], _nan_if_none(row["metrics"].get(name))) for row in evaluations]
        for name in names
        if any(name in row["metrics"] for row in evaluations)
    }


def _images_used(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The number of images of the evaluations, if some did not use all."""
    parts = {row["images"] for row in evaluations if row.get("images") is not None}
    if not parts:
        return ""
    last = "" if evaluations[-1].get("images") is not None else ", the last on all"
    return f", on {max(parts)} of the images{last}"


def _class_curves(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The AP of each class over steps; of many classes only the best and the worst of the last evaluation."""
    last = evaluations[-1]["metrics"] if evaluations else {}
    names = sorted((name for name in last if name.startswith(CLASS_PREFIX)), key=lambda name: -_nan_if_none(last[name]))
    if len(names) > _MAX_CLASSES:
        names = names[: _MAX_CLASSES // 2] + names[-(_MAX_CLASSES // 2) :]
    lines = _curves_of(names, evaluations)
    return {name.removeprefix(CLASS_PREFIX): line for name, line in lines.items()}


def _classes_shown(evaluations: Sequence[Mapping[str, Any]]) -> str:
    count = sum(name.startswith(CLASS_PREFIX) for name in evaluations[-1]["metrics"])
    half = _MAX_CLASSES // 2
    return "each class" if count <= _MAX_CLASSES else f"the {half} best and the {half} worst of {count} classes"


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(json_value(row), allow_nan=False) + "\n"


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image of a run folder. Raises CheckpointError if the disk is full or cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, path)


def _duration(seconds: float) -> str:
    """Format seconds as 12 s, 3:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
