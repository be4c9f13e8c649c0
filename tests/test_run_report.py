"""The report that a run and `opendetr eval` leave, and its place in the time of a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from html_pages import Page
from miniature_runs import train_miniature, write_blocks
from opendetr.cli.main import app
from opendetr.evaluation import analyse_operation, dataset_detections, scores_of
from opendetr.inference import load
from opendetr.training import report as reports
from opendetr.training.events import Evaluated, ReportDue, RunEnded, RunStarted
from opendetr.training.report import REPORT_FILE, Report
from opendetr.weights import read_card

HEADINGS = ["Scores", "Metrics", "AP by class", "Confusion", "Thresholds", "Precision, recall and calibration"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("blocks"), train=8, val=4)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of 12 steps with 2 evaluations, and what it said."""
    return train_miniature(
        data, tmp_path_factory.mktemp("runs") / "run", "detr-tiny", steps=12, changes={"recipe": {"num_evaluations": 2}}
    )


def headings(page: Page) -> list[str]:
    return [word for word in page.words if word in {*HEADINGS, "Worst images", "Curves", "Dataset", "Settings"}]


def test_a_run_leaves_a_report_on_its_best_weights(trained):
    run, lines = trained
    text = (run.folder / REPORT_FILE).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and not any("report" in line for line in lines)
    expected = [*HEADINGS, "Worst images", "Curves", "Dataset", "Settings"]
    assert headings(page) == expected * 2  # the links, then the sections
    assert "val: 4 images, 4 objects, 2 classes" in " ".join(page.words)
    step = run.result.best["step"]
    assert any(word.startswith(f"step {step},") for word in page.words)
    assert f"{run.result.best['AP']:.3f}" in page.words
    assert (run.folder / "config.yaml").read_text().strip() in page.words
    assert not re.search(r"https?:|url\(|@import|<script|<link", text.split("Settings</h2>")[0])


def test_the_report_and_the_metrics_come_from_the_same_detections(trained, data):
    run, _ = trained
    detector = load(run.folder, device="cpu")
    split = detector.open_split(data)
    scores = detector.evaluate(split)
    detections = dataset_detections(scores, split)
    assert detections is not None and len(detections.found) == len(scores.results) > 0
    assert scores_of(detections, detections.found)[0] == pytest.approx(scores.metrics["AP"], abs=1e-12)
    points = analyse_operation(detections).points
    assert points.overall == scores.operating_points.overall
    assert points.thresholds == scores.operating_points.thresholds


def test_a_report_that_fails_is_a_warning(data, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("no chart today")

    monkeypatch.setattr(reports, "write_page", fail)
    run, lines = train_miniature(data, tmp_path / "run", "detr-tiny", steps=2)
    path = run.folder / REPORT_FILE
    assert f"warning: {path} was not written: RuntimeError: no chart today" in lines
    assert run.result.step == 2 and not run.result.interrupted and not path.exists()


class Writes:
    """A report that counts how often it is written instead."""

    def __init__(self, data, monkeypatch) -> None:
        self.steps: list[str] = []
        monkeypatch.setattr(
            reports, "write_page", lambda _path, _title, _sections, *, facts: self.steps.append(facts["best weights"])
        )
        self.report = Report("detr-tiny", {"train": data, "val": data}, "config.yaml", print)
        self.report.on_start(RunStarted(Path(data.folder), 0, 1, 9, "cpu", 0, {}))
        (Path(data.folder) / "config.yaml").write_text("name: detr-tiny")

    def evaluated(self, scores, data, step: int, *, best: bool) -> None:
        self.report.latest = scores, data
        self.report.on_evaluation(Evaluated(step, step / 2, scores.metrics, best, None, 1.0, nn.Identity()))


def test_a_report_is_written_once_for_each_best_evaluation(trained, data, monkeypatch):
    detector = load(trained[0].folder, device="cpu")
    split = detector.open_split(data)
    scores = detector.evaluate(split)
    writes = Writes(split, monkeypatch)
    writes.report.on_report(ReportDue(0))
    assert writes.steps == []
    writes.evaluated(scores, split, 2, best=True)
    writes.report.on_report(ReportDue(2))
    writes.evaluated(scores, split, 4, best=False)
    writes.report.on_report(ReportDue(4))
    writes.evaluated(scores, split, 6, best=True)
    assert writes.steps == ["step 2, epoch 1.0"]
    writes.report.on_end(RunEnded(6, "failed", 1.0))
    assert writes.steps == ["step 2, epoch 1.0"]
    writes.report.on_end(RunEnded(6, "interrupted", 1.0))
    writes.report.on_end(RunEnded(6, "finished", 1.0))
    assert writes.steps == ["step 2, epoch 1.0", "step 6, epoch 3.0"]


def test_images_that_have_gone_are_left_out_of_the_report(trained, data, tmp_path):
    detector = load(trained[0].folder, device="cpu")
    copy = write_blocks(tmp_path / "blocks", train=1, val=4)
    split = detector.open_split(copy)
    detections = dataset_detections(detector.evaluate(split), split)
    for image in (copy / "val").iterdir():
        image.unlink()
    sections = dict(reports.report_sections(detector.evaluate(detector.open_split(data)), detections))
    assert sections["Worst images"] == "" and sections["Confusion"]


# ------------------------------------------------------------------------------------------------------- opendetr eval


def evaluate(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments), "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


def test_eval_leaves_its_report_in_the_run_folder(trained, data):
    run, _ = trained
    code, output, _ = evaluate(data, "--weights", run.folder)
    path = run.folder / "report-val.html"
    assert code == 0 and output.splitlines()[-1] == f"report: {path}"
    page = Page(path.read_text(encoding="utf-8"))
    assert headings(page)[: len(HEADINGS)] == HEADINGS and "Curves" not in page.words
    assert {"Dataset", "Settings", "Evaluation of run"} <= set(page.words)


def test_eval_of_other_weights_writes_a_report_only_if_asked(trained, data, tmp_path):
    weights = trained[0].folder / "best" / "model.safetensors"
    before = sorted(weights.parent.iterdir())
    code, output, error = evaluate(data, "--weights", weights, "--json")
    assert code == 0, error
    assert json.loads(output)["report"] is None and sorted(weights.parent.iterdir()) == before
    path = tmp_path / "new" / "page.html"
    code, output, error = evaluate(data, "--weights", weights, "--json", "--report", path)
    assert code == 0, error
    assert json.loads(output)["report"] == str(path) and path.stat().st_size > 10_000


def test_a_run_folder_that_cannot_be_written_is_a_warning(trained, data, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opendetr.evaluation.write_page", full)
    path = trained[0].folder / "report-val.html"
    code, output, error = evaluate(data, "--weights", trained[0].folder)
    assert code == 0 and "report:" not in output
    assert f"warning: {path} was not written: No space left on device" in error


# --------------------------------------------------------------------------------------------- predict --min-score auto


def predict(data: Path, out: Path, *arguments: object) -> tuple[int, str, list[float]]:
    result = CliRunner().invoke(app, ["predict", str(data / "val"), "--out", str(out), "--no-draw", "--device", "cpu",
                                      *map(str, arguments)])  # fmt: skip
    file = out / "predictions.json"
    rows = json.loads(file.read_text())["annotations"] if file.exists() else []
    return result.exit_code, result.stderr, [row["score"] for row in rows]


def test_auto_is_the_stored_thresholds(trained, data, tmp_path):
    folder = trained[0].folder
    thresholds = load(folder, device="cpu").thresholds
    assert thresholds is not None, "the run has stored some"
    _, said, found = predict(data, tmp_path / "auto", "--weights", folder, "--min-score", "auto")
    _, said_by_default, by_default = predict(data, tmp_path / "default", "--weights", folder)
    assert found == by_default and said == said_by_default and "stored with the model" in said
    assert found and min(found) >= np.float32(min(thresholds.default, *thresholds.by_class.values()))


def test_auto_says_that_no_thresholds_are_stored(trained, data, tmp_path):
    weights = tmp_path / "model.safetensors"
    stored = trained[0].folder / "best" / "model.safetensors"
    card = read_card(stored)
    assert card is not None
    save_file(load_file(stored), weights, replace(card, thresholds=None).to_metadata())
    code, said, _ = predict(data, tmp_path / "none", "--weights", weights, "--min-score", "auto")
    assert code == 0 and "score thresholds: none are stored with the model; 0.5 for every class" in said
    _, said, _ = predict(data, tmp_path / "default", "--weights", weights)
    assert "score thresholds" not in said


@pytest.mark.parametrize("others", [("--min-score", "0.3"), ("--panoptic",), ("--text", "a cat"), ("--patch", "x.png")])
def test_auto_is_refused_where_it_means_nothing(data, tmp_path, others):
    code, said, _ = predict(data, tmp_path / "out", "--min-score", "auto", *others)
    assert code == 2 and "auto" in said and "Traceback" not in said
