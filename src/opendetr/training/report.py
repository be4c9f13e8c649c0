"""The report of a run, `report.html`: the evaluation of its best weights, the labels of its data, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from opendetr.data import DetectionData
from opendetr.evaluation import (
    DatasetDetections,
    Evaluation,
    Scored,
    Section,
    chart_figure,
    dataset_detections,
    dataset_section,
    report_sections,
    settings_section,
    write_page,
)
from opendetr.training.callbacks import CURVES_FILE
from opendetr.training.events import Callback, Evaluated, ReportDue, RunEnded, RunStarted

REPORT_FILE = "report.html"


class _Best(NamedTuple):
    """The best evaluation. The rows of `scores.results`, which take a lot of memory, are dropped."""

    scores: Scored
    detections: DatasetDetections | None
    facts: dict[str, object]


class Report(Callback):
    """Writes `report.html` in the run folder: the evaluation of the best weights so far.

    It needs no predictions of its own. A report that cannot be written is a warning: it never ends a run. The file of
    `Curves` is part of it, so `Curves` must come before it among the callbacks.

    Args:
        model: name of the model.
        splits: the splits of the dataset by their roles; "val" is evaluated.
        settings: the file of settings in the run folder.
        say: called with a warning.

    Attributes:
        latest: the latest evaluation and its images; set by the run before `on_evaluation`.
    """

    def __init__(
        self, model: str, splits: Mapping[str, DetectionData], settings: str, say: Callable[[str], object]
    ) -> None:
        self.latest: tuple[Scored, DetectionData] | None = None
        self._model = model
        self._splits = splits
        self._settings = settings
        self._say = say
        self._folder = Path()
        self._best: _Best | None = None

    def on_start(self, event: RunStarted) -> None:
        """Remember the run folder."""
        self._folder = event.folder

    def on_evaluation(self, event: Evaluated) -> None:
        """Keep the evaluation if it is the best one."""
        if not event.best or self.latest is None:
            return
        scores, data = self.latest
        val = self._splits["val"]
        images = f"{len(data)} of its {len(val)} images" if len(data) < len(val) else data.size()
        facts: dict[str, object] = {
            "model": self._model,
            "best weights": f"step {event.step:,}, epoch {event.epoch:.1f}" if event.step else "the initial ones",
            "evaluated on": f"{data.folder.resolve().name}, {val.split}: {images}",
        }
        detections = dataset_detections(scores, data)
        self._best = _Best(replace(scores, results=[]) if isinstance(scores, Evaluation) else scores, detections, facts)

    def on_report(self, event: ReportDue) -> None:
        """Write the report."""
        self._write()

    def on_end(self, event: RunEnded) -> None:
        """Write the report of a run that was interrupted."""
        if event.outcome == "interrupted":
            self._write()

    @cached_property
    def _dataset(self) -> Section:
        return dataset_section(self._splits)

    def _write(self) -> None:
        """Write the report unless it is that of the best evaluation already."""
        if self._best is None:
            return
        path, (scores, detections, facts) = self._folder / REPORT_FILE, self._best
        self._best = None
        try:
            sections = [
                *report_sections(scores, detections),
                ("Curves", chart_figure(self._folder / CURVES_FILE, "Metrics, losses and learning rate")),
                self._dataset,
                settings_section((self._folder / self._settings).read_text(encoding="utf-8")),
            ]
            write_page(path, f"Training of {self._model}", sections, facts=facts)
        except Exception as error:
            self._say(f"warning: {path} was not written: {type(error).__name__}: {error}")
