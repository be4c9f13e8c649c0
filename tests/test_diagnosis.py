"""The diagnosis of runs that learned nothing: twelve planted causes are named, healthy runs get no diagnosis."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from miniature_runs import HEALTHY, facts_from_dict, train_healthy, train_miniature, write_blocks
from opendetr.cli.main import app
from opendetr.data import open_data
from opendetr.inference import load
from opendetr.training.callbacks import METRICS_FILE, read_metrics
from opendetr.training.diagnosis import CHECKS, SYMPTOMS, Cause, diagnose, report_lines
from opendetr.training.run import Run
from opendetr.training.run_facts import RunFacts, collect_facts
from opendetr.weights import read_card

RECORDED = Path(__file__).parent / "goldens" / "healthy_runs.json"
STEPS = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Run, Path, list[str]]:
    """A run that learned, its data, and what it printed."""
    root = tmp_path_factory.mktemp("healthy")
    data = write_blocks(root / "data", classes=3, val=16)
    run, lines = train_miniature(data, root / "run", "detr-tiny", steps=STEPS)
    return run, data, lines


@pytest.fixture
def spoilt(trained, tmp_path) -> Spoilt:
    return Spoilt(*trained[:2], tmp_path)


class Spoilt:
    """A copy of the run and its data, with AP 0, to plant a cause in."""

    def __init__(self, run: Run, data: Path, root: Path) -> None:
        self.folder, self.data = root / "run", root / "data"
        shutil.copytree(run.folder, self.folder, ignore=shutil.ignore_patterns("training.safetensors", "best"))
        shutil.copytree(data, self.data)
        self.config(lambda config: config["run"].update(data=str(self.data)))
        self.metrics(lambda row: row["metrics"].update(AP=0.0) if row["kind"] == "evaluation" else None)

    def config(self, change: Callable[[dict], Any]) -> None:
        path = self.folder / "config.yaml"
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))

    def recipe(self, **changes: Any) -> None:
        self.config(lambda config: config["recipe"].update(changes))

    def metrics(self, change: Callable[[dict], Any]) -> None:
        rows = read_metrics(self.folder)
        for row in rows:
            change(row)
        self.write_metrics(rows)

    def write_metrics(self, rows: list[dict]) -> None:
        (self.folder / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def annotations(self, change: Callable[[dict], Any], *splits: str) -> None:
        for split in splits or ("train", "val"):
            path = self.data / "annotations" / f"instances_{split}.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    def boxes(self, change: Callable[[list[float]], list[float]], *splits: str) -> None:
        def changed(content: dict) -> None:
            for row in content["annotations"]:
                row["bbox"] = change(row["bbox"])

        self.annotations(changed, *splits)

    def weights(self, change: Callable[[str, Any], Any]) -> None:
        path = self.folder / "last" / "model.safetensors"
        card = read_card(path)
        assert card is not None
        save_file({name: change(name, value) for name, value in load_file(path).items()}, path, card.to_metadata())


def unreadable(run: Spoilt) -> None:
    for path in list((run.data / "train").glob("*.png"))[:8]:
        path.write_bytes(path.read_bytes()[:40])


def other_names(run: Spoilt) -> None:
    def rename(content: dict) -> None:
        for row in content["categories"]:
            row.update(id=row["id"] + 10, name=row["name"].upper())
        for row in content["annotations"]:
            row["category_id"] += 10

    run.annotations(rename, "val")


def fractions(run: Spoilt) -> None:
    run.boxes(lambda box: [side / 64 for side in box])


def small_in_validation(run: Spoilt) -> None:
    run.boxes(lambda box: [side / 5 for side in box], "val")


def annotated_at_another_size(run: Spoilt) -> None:
    run.boxes(lambda box: [side * 3 for side in box])


def lines_for_boxes(run: Spoilt) -> None:
    run.boxes(lambda box: [*box[:3], 1])


def points_for_boxes(run: Spoilt) -> None:
    def collapse(content: dict) -> None:
        for row in content["annotations"][:-2]:
            row["bbox"][2] = 0

    run.annotations(collapse, "train")


def crowded(run: Spoilt) -> None:
    def repeat(content: dict) -> None:
        rows = content["annotations"]
        content["annotations"] = [{**row, "id": 100 * row["id"] + copy} for row in rows for copy in range(15)]

    run.annotations(repeat, "train")


def frozen(run: Spoilt) -> None:
    run.recipe(freeze=["backbone"])


def too_large(run: Spoilt) -> None:
    run.recipe(learning_rate=0.1)


def diverged(run: Spoilt) -> None:
    run.write_metrics([*read_metrics(run.folder), {"kind": "nonfinite", "step": STEPS + 1, "loss": None, "names": []}])


def too_small(run: Spoilt) -> None:
    run.recipe(learning_rate=1e-7)


def zero_head(run: Spoilt) -> None:
    run.weights(lambda name, value: value * 0 if "class_head" in name else value)


def exploded_head(run: Spoilt) -> None:
    run.weights(lambda name, value: value * 1e4 if "class_head" in name else value)


def shifted(run: Spoilt) -> None:
    def shift(content: dict) -> None:
        for row in content["annotations"]:
            row["category_id"] = row["category_id"] % 3 + 1

    run.annotations(shift, "val")


def flat_loss(run: Spoilt) -> None:
    step = next(row for row in read_metrics(run.folder) if row["kind"] == "step")
    evaluation = next(row for row in read_metrics(run.folder) if row["kind"] == "evaluation")
    rows = [{**step, "step": number, "loss": 9 + math.sin(number)} for number in range(1, 2001)]
    run.write_metrics([*rows, {**evaluation, "step": 2000}])


def nothing(run: Spoilt) -> None:
    """The run is short as it is."""


PLANTED = {
    unreadable: Cause.UNREADABLE_IMAGES,
    other_names: Cause.CLASS_NAMES,
    fractions: Cause.WRONG_SCALE,
    small_in_validation: Cause.WRONG_SCALE,
    annotated_at_another_size: Cause.WRONG_SCALE,
    lines_for_boxes: Cause.DEGENERATE_BOXES,
    points_for_boxes: Cause.DEGENERATE_BOXES,
    crowded: Cause.TOO_MANY_OBJECTS,
    frozen: Cause.FROZEN_RANDOM_BACKBONE,
    too_large: Cause.RATE_TOO_LARGE,
    diverged: Cause.RATE_TOO_LARGE,
    too_small: Cause.RATE_TOO_SMALL,
    zero_head: Cause.UNINITIALISED_HEAD,
    exploded_head: Cause.UNINITIALISED_HEAD,
    shifted: Cause.SHIFTED_LABELS,
    flat_loss: Cause.LOSS_NOT_FALLING,
    nothing: Cause.TOO_FEW_STEPS,
}


def test_every_cause_is_planted():
    assert set(PLANTED.values()) == set(Cause) and len(Cause) == 12
    assert len(CHECKS) + len(SYMPTOMS) == len(Cause)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_cause_is_named_first(spoilt, plant):
    plant(spoilt)
    facts = collect_facts(spoilt.folder, device="cpu")
    assert [diagnosis.cause for diagnosis in diagnose(facts)] == [PLANTED[plant]]
    (line,) = report_lines(facts)
    assert PLANTED[plant] in line and "\n" not in line


def test_the_command_names_the_cause(spoilt, trained):
    frozen(spoilt)

    def doctor(*arguments: object) -> str:
        return CliRunner().invoke(app, ["doctor", *map(str, arguments), "--device", "cpu"]).stdout

    assert "frozen random backbone" in doctor(spoilt.folder)
    record = json.loads(doctor(spoilt.folder, "--json"))
    assert record["best"] == 0 and [cause["cause"] for cause in record["causes"]] == ["frozen random backbone"]
    assert "the run has learned something" in doctor(trained[0].folder)


def test_training_names_the_cause_at_its_end(trained, tmp_path):
    rate = {"recipe": {"learning_rate": 1e-9, "backbone_learning_rate": 1e-9}}
    data = write_blocks(tmp_path / "data", train=4, val=2, sides=(5, 8))
    run, lines = train_miniature(data, tmp_path / "run", "detr-tiny", steps=2, changes=rate)
    assert run.result.best["AP"] < 0.01
    assert any("learning rate too small" in line for line in lines)
    assert not any("cause" in line for line in trained[2])


def test_a_selecting_metric_of_zero_is_no_failure(trained, tmp_path):
    """The run selects its weights by the AP of a class that it does not detect. It detects the others."""
    shutil.copytree(trained[1], tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        if row["category_id"] == 3:
            row.update(bbox=[0, 0, 4, 4], area=16)
    path.write_text(json.dumps(content))
    options = ["--max-steps", "1", "--best-by", "AP/blue", "--workers", "0", "--device", "cpu"]
    arguments = ["train", tmp_path / "data", "--weights", trained[0].folder, "--out", tmp_path / "run", *options]
    lines = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False).stderr.splitlines()
    assert "AP/blue: last 0.000, best 0.000 (step 1)" in lines and not any("cause" in line for line in lines)
    assert any("next:" in line for line in lines)


def test_the_deployed_weights_carry_their_thresholds(trained):
    run, data, _ = trained
    detector = load(run.folder, device="cpu")
    assert detector.thresholds is not None
    points = detector.evaluate(open_data(data)["val"], batch_size=4).operating_points
    assert detector.thresholds == points.thresholds
    assert points.overall.f1 is not None and points.overall.f1 > 0.5


# --------------------------------------------------------------------------------------------------------- healthy runs


def require_healthy(facts: RunFacts) -> None:
    """The run has learned, so it gets no diagnosis; nor does any check of a cause apply if the score is hidden."""
    assert facts.best is not None and facts.best >= 0.01
    assert diagnose(facts) == []
    assert [check(facts) for check in CHECKS if check(facts)] == []


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_gets_no_diagnosis(name):
    """From the recorded facts; the slow test trains the runs again."""
    facts = facts_from_dict(json.loads(RECORDED.read_text(encoding="utf-8"))[name])
    require_healthy(facts)
    assert [d.cause for d in diagnose(replace(facts, best=0.0))] == [Cause.TOO_FEW_STEPS]


def test_a_few_validation_images_may_have_objects_of_another_size():
    """Their sizes say nothing about the scale of the boxes, only those of many images do."""
    facts = facts_from_dict(json.loads(RECORDED.read_text(encoding="utf-8"))[next(iter(HEALTHY))])
    train = replace(facts.train, object_counts=(2,) * 90)
    for num_images, expected in ((1, Cause.TOO_FEW_STEPS), (9, Cause.TOO_FEW_STEPS), (10, Cause.WRONG_SCALE)):
        val = replace(facts.val, sides=train.sides / 5, object_counts=(2,) * num_images)
        assert diagnose(replace(facts, best=0.0, train=train, val=val))[0].cause is expected


def test_there_are_twenty_of_them():
    assert len(HEALTHY) == 20 and len({run.model for run in HEALTHY.values()}) >= 6


def test_the_trained_run_is_healthy(trained):
    require_healthy(collect_facts(trained[0].folder, device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_trained_again_gets_no_diagnosis(name, tmp_path):
    run, lines = train_healthy(name, tmp_path)
    require_healthy(collect_facts(run.folder, device="cpu"))
    assert not any("cause" in line for line in lines)
