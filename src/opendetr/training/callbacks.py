"""What listens to a training run: progress on the terminal, a file of metrics, curves, images."""

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
from rich import progress as bars
from rich.console import Console
from torch import nn

from opendetr.evaluation.names import CLASS_PREFIX
from opendetr.files import write_atomically
from opendetr.training.checkpoint import CheckpointError, writing
from opendetr.training.events import (
    Evaluated,
    NonFiniteFound,
    Observer,
    PlanFixed,
    RunEnded,
    RunStarted,
    StepTaken,
)
from opendetr.visualize import contact_sheet, draw_curves, save_image

METRICS_FILE = "metrics.jsonl"
TABLE_FILE = "metrics.csv"
_MOST_CLASSES = 12
_MOST_STEP_LINES = 5000


class Progress(Observer):
    """Says on the terminal how the run goes: a line that is redrawn, or plain lines where there is no terminal.

    Args:
        console: where to write; standard error when omitted.
        seconds: between two plain lines.
        metric: of an evaluation, shown all the time.
        headlines: the metrics that are shown after an evaluation.
    """

    def __init__(
        self, console: Console | None = None, *, seconds: float = 30.0, metric: str = "", headlines: Sequence[str] = ()
    ) -> None:
        self._console = console or Console(stderr=True)
        self._seconds = seconds
        self._metric = metric
        self._headlines = headlines
        self._metrics: Mapping[str, Any] = {}
        self._speed = _Throughput()
        self._spoken = -math.inf
        self._steps_per_epoch = 1
        columns = (bars.SpinnerColumn(), bars.BarColumn(20), bars.TextColumn("{task.description}"))
        self._bar = bars.Progress(*columns, console=self._console, transient=True)
        self._line: bars.TaskID | None = None

    def on_start(self, event: RunStarted) -> None:
        """Say where the run stands."""
        self._metrics, self._steps_per_epoch = event.metrics, event.steps_per_epoch
        begins = f"resumed after {event.step} steps" if event.step else "training"
        self._say(f"{begins} on {event.device}, {event.steps_per_epoch} steps an epoch, in {event.folder}")
        for note in event.notes:
            self._say(note)
        if self._console.is_terminal:
            self._line = self._bar.add_task("waiting for the first step", total=event.total_steps, completed=event.step)
            self._bar.start()

    def on_plan(self, event: PlanFixed) -> None:
        """Say how long the run will be from now on."""
        epochs = event.plan.total_steps / self._steps_per_epoch
        self._say(
            f"{event.step_seconds:.2f} s a step: {event.plan.total_steps} steps ({epochs:.1f} epochs) fit the time"
        )

    def on_step(self, event: StepTaken) -> None:
        """Bring the line up to date, or write one when it is time."""
        self._speed.add(event.num_images, event.seconds)
        if self._line is not None:
            self._bar.update(
                self._line, total=event.total_steps, completed=event.step, description=self._description(event)
            )
        elif time.monotonic() - self._spoken >= self._seconds:
            self._spoken = time.monotonic()
            self._say(self._description(event))

    def on_evaluation(self, event: Evaluated) -> None:
        """Give the first scores."""
        self._metrics = event.metrics
        scores = ((name, event.metrics.get(name)) for name in self._headlines)
        numbers = [f"{name} {value:.3f}" for name, value in scores if isinstance(value, float)]
        best = ", the best so far" if event.best else ""
        self._say(f"epoch {event.epoch:.1f}, step {event.step}: {' '.join(numbers)} ({_clock(event.seconds)}{best})")

    def on_end(self, event: RunEnded) -> None:
        """Clear the line, and say why and when the run ended."""
        if self._line is not None:
            self._bar.stop()
        said = {
            "finished": "done",
            "early": "done early, as the scores no longer rise",
            "interrupted": "interrupted and saved; go on with --resume",
            "failed": "stopped by an error",
        }
        self._say(f"{said[event.outcome]}: {event.step} steps in {_clock(event.seconds)}")

    def _description(self, event: StepTaken) -> str:
        """What matters most first: a narrow terminal cuts the end off."""
        total = event.total_steps
        parts = [f"epoch {event.epoch + 1}, step {event.step}" + (f"/{total}" if total else "")]
        value = self._metrics.get(self._metric)
        if value is not None:
            parts.append(f"{self._metric} {value:.3f}")
        if total:
            parts.append(f"{_clock((total - event.step) * self._speed.step_seconds)} left")
        losses = " ".join(f"{name} {layers[-1]:.3f}" for name, layers in event.losses.items())
        parts += [f"{self._speed.images_a_second:.1f} images/s", f"loss {event.loss:.3f} ({losses})"]
        return ", ".join(parts)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Throughput:
    """Images a second and seconds a step, of the latest steps more than of those long ago."""

    _MEMORY = 0.95

    def __init__(self) -> None:
        self._steps = self._images = self._seconds = 0.0

    def add(self, num_images: int, seconds: float) -> None:
        self._steps = self._MEMORY * self._steps + 1
        self._images = self._MEMORY * self._images + num_images
        self._seconds = self._MEMORY * self._seconds + seconds

    @property
    def images_a_second(self) -> float:
        return self._images / self._seconds

    @property
    def step_seconds(self) -> float:
        return self._seconds / self._steps


class MetricsFile(Observer):
    """Writes `metrics.jsonl`: a JSON object a line, {"kind": "step" | "evaluation" | ...}, every step of it once.

    A run of more than 5000 steps has a line for every second, third, ... step. When a run is resumed, the lines that a
    killed one wrote after its last checkpoint are cut.
    """

    def __init__(self) -> None:
        self._path = Path()

    def on_start(self, event: RunStarted) -> None:
        """Keep the lines up to the checkpoint, and begin a new file in a new run."""
        self._path = event.folder / METRICS_FILE
        latest = {"evaluation": event.evaluated}
        rows = read_metrics(event.folder) if event.step else []
        kept = [row for row in rows if row["step"] <= latest.get(row["kind"], event.step)]
        with writing(self._path):
            event.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, "".join(map(_as_line, kept)))

    def on_plan(self, event: PlanFixed) -> None:
        """Note the length of a timed run."""
        self._write(
            {
                "kind": "plan",
                "step": event.step,
                "total_steps": event.plan.total_steps,
                "step_seconds": event.step_seconds,
            }
        )

    def on_step(self, event: StepTaken) -> None:
        """Note losses, rate and time."""
        if event.step % (1 + (event.total_steps or 0) // _MOST_STEP_LINES):
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
        """Note the scores."""
        self._write(
            {
                "kind": "evaluation",
                "step": event.step,
                "epoch": event.epoch,
                "seconds": event.seconds,
                "metrics": event.metrics,
            }
        )

    def on_nonfinite(self, event: NonFiniteFound) -> None:
        """Note the step that was refused, and its images."""
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
            file.write(_as_line(row))


class MetricsTable(Observer):
    """Rewrites `metrics.csv` after every evaluation: a row each, with the means of the steps since the one before.

    It reads what `MetricsFile` wrote, which therefore stands before it among the observers.
    """

    def __init__(self) -> None:
        self._folder = Path()

    def on_start(self, event: RunStarted) -> None:
        """Note the folder."""
        self._folder = event.folder

    def on_evaluation(self, event: Evaluated) -> None:
        """Rewrite."""
        rows = _table_rows(read_metrics(self._folder))
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        path = self._folder / TABLE_FILE
        with writing(path):
            write_atomically(path, text.getvalue())


def _table_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations, each with the mean losses of the steps since the one before."""
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


class TensorBoard(Observer):
    """Writes what TensorBoard reads, `tensorboard/` in the run folder: losses, rate and speed of steps, and scores."""

    def __init__(self) -> None:
        self._writer: Any = None

    def on_start(self, event: RunStarted) -> None:
        """Open the files; what a killed run wrote after its checkpoint is no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        folder = event.folder / "tensorboard"
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=event.step + 1 if event.step else None)

    def on_step(self, event: StepTaken) -> None:
        """Write the numbers of a step."""
        numbers = {f"loss/{name}": layers[-1] for name, layers in event.losses.items()}
        numbers |= {"loss/total": event.loss, "training/learning rate": event.learning_rate}
        numbers |= {"training/gradient norm": event.gradient_norm, "training/seconds a step": event.seconds}
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, event.step)

    def on_evaluation(self, event: Evaluated) -> None:
        """Write the scores."""
        for name, value in event.metrics.items():
            of_class = name.startswith(CLASS_PREFIX)
            self._writer.add_scalar(f"classes/{name}" if of_class else f"validation/{name}", value, event.step)
        self._writer.flush()

    def on_end(self, event: RunEnded) -> None:
        """Close the files."""
        self._writer.close()


class Curves(Observer):
    """Redraws `curves.png` after every evaluation and at the end: the loss, and the scores if there are any.

    It reads what `MetricsFile` wrote, which therefore stands before it among the observers.

    Args:
        metrics: names of the scores to draw.
    """

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self._metrics = metrics
        self._folder = Path()

    def on_start(self, event: RunStarted) -> None:
        """Note the folder."""
        self._folder = event.folder

    def on_evaluation(self, event: Evaluated) -> None:
        """Redraw."""
        self._draw()

    def on_end(self, event: RunEnded) -> None:
        """Redraw, unless an error is on its way, perhaps of a full disk."""
        if event.outcome != "failed":
            self._draw()

    def _draw(self) -> None:
        rows = read_metrics(self._folder)
        if any(row["kind"] == "step" for row in rows):
            _save_image(curves(rows, self._metrics), self._folder / "curves.png")


class ValidationImages(Observer):
    """Keeps images of every evaluation, `images/step-N-name.jpg`: the same images, as the model sees them by then.

    Args:
        draw: the deployed task, in evaluation mode -> names and images.
    """

    def __init__(self, draw: Callable[[nn.Module], Iterable[tuple[str, Image.Image]]]) -> None:
        self._draw = draw
        self._folder = Path()

    def on_start(self, event: RunStarted) -> None:
        """Note the folder."""
        self._folder = event.folder / "images"

    def on_evaluation(self, event: Evaluated) -> None:
        """Draw and keep."""
        for name, image in self._draw(event.task):
            _save_image(image, self._folder / f"step-{event.step:07d}-{name}.jpg")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's `metrics.jsonl`; a last line that a kill cut off is left out."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(_whole_rows(lines, path))


def _whole_rows(lines: list[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise CheckpointError(f"{path}: line {number} is no JSON; fix it or remove the file") from error


def curves(rows: Iterable[Mapping[str, Any]], metrics: Sequence[str] = ()) -> Image.Image:
    """Losses and, below them, scores over steps, from the rows of `read_metrics`, among them one step at least."""
    rows = list(rows)
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    total = {"loss": [(row["step"], _number(row["loss"])) for row in steps]}
    final = {name: [(row["step"], _number(row["losses"][name][-1])) for row in steps] for name in steps[0]["losses"]}
    charts = [
        draw_curves(total, x_label="step", y_label="weighted sum over all decoder layers"),
        draw_curves(final, x_label="step", y_label="final decoder layer, unweighted"),
    ]
    scores = {
        name: [(row["step"], _number(row["metrics"][name])) for row in evaluations]
        for name in metrics
        if evaluations and all(name in row["metrics"] for row in evaluations)
    }
    if scores:
        charts.append(draw_curves(scores, x_label="step", y_label="validation"))
    classes = _class_scores(evaluations)
    if classes:
        charts.append(draw_curves(classes, x_label="step", y_label=f"validation, AP of {_classes_shown(evaluations)}"))
    return contact_sheet(charts, columns=1)


def _class_scores(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The AP of each class over steps; of many classes those that are found best and worst in the end."""
    last = evaluations[-1]["metrics"] if evaluations else {}
    names = sorted((name for name in last if name.startswith(CLASS_PREFIX)), key=lambda name: -_number(last[name]))
    if len(names) > _MOST_CLASSES:
        names = names[: _MOST_CLASSES // 2] + names[-(_MOST_CLASSES // 2) :]
    return {
        name.removeprefix(CLASS_PREFIX): [(row["step"], _number(row["metrics"].get(name))) for row in evaluations]
        for name in names
    }


def _classes_shown(evaluations: Sequence[Mapping[str, Any]]) -> str:
    count = sum(name.startswith(CLASS_PREFIX) for name in evaluations[-1]["metrics"])
    half = _MOST_CLASSES // 2
    return "each class" if count <= _MOST_CLASSES else f"the {half} best and the {half} worst of {count} classes"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _as_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_strict(row), allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save_image(picture: Image.Image, path: Path) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(picture, path)


def _clock(seconds: float) -> str:
    """Seconds as 12 s, 3:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
