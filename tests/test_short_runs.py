"""Settings that follow from the length of a run and from its data; short runs do not make a detector worse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miniature_runs import train_miniature, write_blocks
from opendetr.categories import Categories
from opendetr.config import ConfigError
from opendetr.presets import get_preset, shipped_weights
from opendetr.synthetic import SceneConfig, write_scenes
from opendetr.training import Callback, PlanFixed, load_checkpoint, train
from opendetr.training.callbacks import read_metrics
from opendetr.training.settings import Setup, fit_to_data
from opendetr.training.starting_weights import predicts_classes

SCENES = SceneConfig(size=160, min_objects=1, max_objects=3, min_scale=0.3)
DATA = {"data": {"num_workers": 0}}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Few scenes, evaluated on the images that are learned: only a recipe that does harm can lower their score."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"train": 8, "val": 8}, config=SCENES)
    annotations = folder / "annotations"
    for kind in ("instances", "panoptic"):
        shutil.copy(annotations / f"{kind}_train.json", annotations / f"{kind}_val.json")
    for images in ("", "annotations/panoptic_"):
        shutil.rmtree(folder / f"{images}val")
        shutil.copytree(folder / f"{images}train", folder / f"{images}val")
    return folder


@pytest.mark.parametrize(
    "steps", [50, pytest.param(150, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.slow)]
)
def test_a_short_run_ends_no_worse_than_it_starts(scenes, tmp_path, steps):
    run = train(scenes, out=tmp_path / "run", max_steps=steps, image_size=160, changes=DATA, device="cpu",
                say=lambda line: None)  # fmt: skip
    first, *_, last = [row for row in read_metrics(run.folder) if row["kind"] == "evaluation"]
    assert (first["step"], last["step"]) == (0, steps)
    assert last["metrics"]["AP"] > first["metrics"]["AP"]
    assert run.result.best["AP"] >= max(first["metrics"]["AP"], last["metrics"]["AP"])


@pytest.mark.slow
def test_a_run_of_5000_steps_ends_no_worse_than_it_starts(tmp_path):
    """A miniature, with the settings that a run of this length has by itself; it starts from a detector."""
    data = write_blocks(tmp_path / "blocks", train=8, val=1)
    start, _ = train_miniature(data, tmp_path / "start", "detr-tiny", steps=60, val_split="train")
    run = train(data, weights=start.folder, out=tmp_path / "run", max_steps=5000, batch_size=1, val_split="train",
                changes=DATA, device="cpu", say=lambda line: None)  # fmt: skip
    first, *_, last = [row for row in read_metrics(run.folder) if row["kind"] == "evaluation"]
    assert (first["step"], last["step"]) == (0, 5000)
    assert 0.1 < first["metrics"]["AP"] < last["metrics"]["AP"]
    assert run.result.best["AP"] >= last["metrics"]["AP"]


def test_the_initial_weights_are_deployed_if_nothing_is_better(scenes, tmp_path):
    """A rate that destroys the weights, but for the ones of the start."""
    run = train(scenes, out=tmp_path / "run", max_steps=4, lr=1.0, image_size=160, changes=DATA,
                device="cpu", say=lambda line: None)  # fmt: skip
    assert run.result.best["step"] == 0 and run.result.best["AP"] > run.result.metrics["AP"]
    assert load_checkpoint(run.folder / "best").facts["step"] == 0


def fitted(num_images: int, weights: str, name: str = "deformable-detr-tiny", **given: Any) -> Any:
    preset = get_preset(name)
    preset = replace(preset, recipe=replace(preset.recipe, **given))
    return fit_to_data(Setup(preset, Path("data"), weights, frozenset(given)), num_images).preset.recipe


def test_settings_follow_the_number_of_images():
    tuned, learned = fitted(160, "runs/one"), fitted(160, "none")
    assert (tuned.epochs, tuned.batch_size, tuned.learning_rate) == (50, 4, 5e-4)
    assert (learned.epochs, learned.batch_size) == (200, 4)
    large = fitted(100_000, "runs/one")
    assert (large.epochs, large.batch_size) == (2, 8)
    assert large.learning_rate == pytest.approx(5e-4 * 2**0.5) == large.backbone_learning_rate
    few = fitted(12, "runs/one")
    assert (few.epochs, few.batch_size) == (183, 2)
    assert fitted(1, "none").epochs == 300


def test_given_settings_stay():
    recipe = fitted(100_000, "runs/one", epochs=7, learning_rate=3e-4)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (7, 8, 3e-4)
    assert fitted(12, "runs/one", batch_size=6).batch_size == 6


def test_published_recipes_stay():
    assert fitted(12, "imagenet", "detr-r50") == get_preset("detr-r50").recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "lr: 0 changes no weight"), ({"image_size": 10}, "at least 32")],
)
def test_hopeless_settings_are_refused(scenes, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        train(scenes, out=tmp_path / "run", device="cpu", say=lambda line: None, **options)
    assert not (tmp_path / "run").exists()


def test_too_few_queries_and_too_few_steps_are_named(scenes, tmp_path, capfd):
    lines: list[str] = []
    train(scenes, out=tmp_path / "run", max_steps=2, num_queries=2, image_size=64, changes=DATA, device="cpu",
          say=lines.append)  # fmt: skip
    (line,) = [line for line in lines if "queries" in line and line.startswith("warning")]
    assert "--num-queries " in line
    assert "warning: the model learns very little in 2 steps" in capfd.readouterr().err


class StoppedError(Exception):
    pass


class StoppedAtPlan(Callback):
    def on_plan(self, event: PlanFixed) -> None:
        raise StoppedError


@pytest.mark.parametrize(("weights", "steps", "is_warned"), [("none", 199, True), ("none", 200, False),
                                                             ("published", 50, False)])  # fmt: skip
def test_from_random_weights_few_steps_are_more(scenes, tmp_path, capfd, weights, steps, is_warned):
    with pytest.raises(StoppedError):
        train(scenes, out=tmp_path / "run", weights=weights, max_steps=steps, image_size=64, changes=DATA,
              device="cpu", callbacks=[StoppedAtPlan()], say=lambda line: None)  # fmt: skip
    assert (f"warning: the model learns very little in {steps} steps; give" in capfd.readouterr().err) == is_warned


@pytest.mark.parametrize(
    ("weights", "known", "given", "size"),
    [
        ("published", True, (), 320),  # the weights of the package
        ("published", False, (), 256),
        ("deformable-detr-tiny-panoptic", False, (), 256),
        ("published", False, ("image_size",), 320),
        ("runs/one", False, (), 320),
        ("https://example.org/one.safetensors", False, (), 320),
    ],
)
def test_weights_of_the_catalogue_set_the_image_size_if_a_class_is_kept(weights, known, given, size):
    preset = get_preset("deformable-detr-tiny")
    preset = replace(preset, data=preset.data.resized(320), recipe=replace(preset.recipe, fit_to_data=True))
    fitted = fit_to_data(Setup(preset, Path("data"), weights, frozenset(given), predicts_classes=known), 160)
    assert fitted.preset.data.image_size == size
    assert fitted.preset.data.max_size == preset.data.resized(size).max_size


def test_weights_predict_classes_that_they_share_with_the_dataset(tmp_path):
    detector, path = get_preset("deformable-detr-tiny"), shipped_weights("deformable-detr-tiny")
    shared, other = Categories.from_names(["cat", "disc"]), Categories.from_names(["cat"])
    assert path is not None
    assert predicts_classes(path, detector, shared) and not predicts_classes(path, detector, other)
    assert not predicts_classes("none", detector, shared)
    assert predicts_classes(path, get_preset("mdetr-tiny"), other)  # its classes are the tokens of the captions


def test_initial_weights_without_a_class_of_the_dataset_are_not_evaluated(scenes, tmp_path):
    renamed = tmp_path / "data"
    shutil.copytree(scenes, renamed)
    for path in renamed.rglob("*.json"):
        record = json.loads(path.read_text())
        for number, category in enumerate(record.get("categories", ())):
            category["name"] = f"class {number}"
        path.write_text(json.dumps(record))
    lines: list[str] = []
    run = train(
        renamed, out=tmp_path / "run", max_steps=1, val_split="train", changes=DATA, device="cpu", say=lines.append
    )
    assert sum("validation images that are training images too: 8, such as " in line for line in lines) == 1
    assert [row["step"] for row in read_metrics(run.folder) if row["kind"] == "evaluation"] == [1]
