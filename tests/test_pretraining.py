"""Pre-training on images without annotations: runs from start to end, and what is measured on the way.

This file is also the program that trains in two processes (`python test_pretraining.py IMAGES FOLDER`).
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import opendetr
from folders import one_line, write_image
from opendetr.boxes import xyxy_to_cxcywh
from opendetr.categories import patch_categories
from opendetr.cli.main import app
from opendetr.config import SettingError, replaced, to_dict
from opendetr.data.loader import eval_loader
from opendetr.data.patches import PatchDataConfig, PatchEvaluationBatch
from opendetr.data.records import DataError
from opendetr.evaluation import PATCH_METRICS, PatchEvaluator, describe_metric
from opendetr.losses.matcher import match, match_within_groups
from opendetr.models.up_detr import ControlledOutput
from opendetr.presets import build_model, build_task, get_preset, miniature
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import ImageBatch, Predictions, Target
from opendetr.synthetic import SceneConfig, write_scenes
from opendetr.training import events, pretrain, resume
from opendetr.training.callbacks import read_metrics
from opendetr.training.trainer import STATE
from test_processes import ENVIRONMENT, in_processes, needs_fork

_SMALL = to_dict(miniature("up-detr-tiny"))
SETTINGS = {
    "model": _SMALL["model"],
    "data": _SMALL["data"],
    "recipe": {"batch_size": 4, "num_evaluations": 1, "learning_rate": 1e-3, "warmup_steps": 1, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(12):
        write_image(folder / f"{seed % 3}" / f"{seed}.png", 48 + 16 * (seed % 2), 64, seed)
    (folder / "broken.jpg").write_text("no image")
    write_image(folder / "tiny.png", 10, 10)
    return folder


def run(images: Path, out: Path, *, steps: int = 3, **options: Any) -> opendetr.training.Run:
    options = {"say": lambda _line: None, "weights": "none", "device": "cpu", "changes": SETTINGS} | options
    return pretrain(images, model="up-detr-tiny", out=out, max_steps=steps, **options)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / STATE)


# ----------------------------------------------------------------------------------------------------------------- runs


class StopAfterOne(opendetr.Callback):
    """Asks for a stop after the first step, as Ctrl-C does."""

    def on_step(self, event: events.StepTaken) -> None:
        if event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of three steps, and what it said."""
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(images, folder, say=lines.append, ema=0.5)
    return folder, lines


def test_a_run_measures_found_patches_the_control_and_the_features(whole, capfd):
    folder, lines = whole
    train, val = lines[:2]
    assert train.startswith("train: 11 images; 1 image that cannot be read, skipped")
    assert "1 image with a side of 16 pixels or less" in train
    assert val == "val: 1 image"
    (row,) = csv.DictReader((folder / "metrics.csv").open())
    # One held-out image: there is no other one for the control.
    assert {name for name in PATCH_METRICS if row.get(name)} == set(PATCH_METRICS) - {"found_control"}
    assert {"loss class", "loss l1", "loss giou", "loss feature"} <= row.keys()
    assert (folder / "curves.png").is_file()
    detector = opendetr.load(folder, device="cpu")
    assert detector.preset.recipe.best_by == "auto" and detector.categories == patch_categories()


def test_more_held_out_images_have_a_control_and_the_progress_shows_it(images, tmp_path, capfd):
    run(images, tmp_path / "run", val_fraction=0.3, steps=2)
    text = capfd.readouterr().err
    (row,) = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "evaluation"]
    assert list(row["metrics"]) == list(PATCH_METRICS)
    for name, value in row["metrics"].items():
        assert f"{name} {value:.3f}" in text
        assert describe_metric(name)


def test_a_resumed_run_equals_an_uninterrupted_one(images, whole, tmp_path, capfd):
    folder, _ = whole
    lines: list[str] = []
    first = run(images, tmp_path / "run", callbacks=[StopAfterOne()], ema=0.5, say=lines.append)
    assert (first.result.step, first.result.interrupted) == (1, True)
    command = f"opendetr pretrain --resume {tmp_path / 'run'}"
    assert lines[-1] == f"error: interrupted after 1 step, and saved; continue with `{command}`"
    assert "interrupted" not in capfd.readouterr().err, "said twice"
    second = resume(tmp_path / "run", device="cpu", say=lambda _line: None)
    assert second.result.step == 3
    ours, theirs = tensors_of(tmp_path / "run"), tensors_of(folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [[row for row in read_metrics(at) if row["kind"] == "evaluation"] for at in (folder, tmp_path / "run")]
    assert rows[0][0]["metrics"] == rows[1][0]["metrics"]


@needs_fork
def test_two_processes_equal_one(images, tmp_path):
    subprocess.run([sys.executable, __file__, str(images), str(tmp_path)], check=True, env=ENVIRONMENT)
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert first["kind"] == second["kind"]
        values = [
            {name: row[name] for name in ("loss", "gradient_norm") if name in row} | row.get("metrics", {})
            for row in (first, second)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-5)


def train_in_processes(images: Path, folder: Path) -> None:
    """Two steps of one process, and of two."""

    def work(name: str) -> None:
        run(images, folder / name, steps=2, val_fraction=0.3)

    work("one")
    assert in_processes(2, lambda: work("two")) == [0, 0]


def test_the_command_pretrains_and_says_what_comes_next(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[opendetr.training.Run.__module__], "FAILED_BELOW", -1)  # one step learns nothing
    small = [f"--set={branch}={{{_flow(SETTINGS[branch])}}}" for branch in ("model", "data", "recipe")]
    arguments = ["pretrain", str(images), "--out", str(tmp_path / "run"), "--max-steps", "1", *small]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "run")
    assert f"opendetr train DATA --weights {tmp_path / 'run'}" in result.stderr
    again = CliRunner().invoke(app, ["pretrain", "--resume", str(tmp_path / "run")])
    assert again.exit_code == 0 and "had already ended after 1 step; to train longer" in again.stderr.splitlines()[0]


def test_a_pretrained_model_is_evaluated_by_the_command(images, whole, tmp_path):
    folder, _ = whole
    result = CliRunner().invoke(app, ["eval", str(images), "--weights", str(folder), "--json"])
    assert result.exit_code == 0, result.stderr
    (row,) = [row for row in read_metrics(folder) if row["kind"] == "evaluation"]
    metrics = json.loads(result.stdout)["metrics"]
    assert {name: value for name, value in metrics.items() if value is not None} == pytest.approx(
        row["metrics"], abs=1e-6
    )
    text = CliRunner().invoke(app, ["eval", str(images), "--weights", str(folder)]).stdout
    assert "fraction of the patches that are located" in text and "seconds per image" in text
    for options, words in ((["--layers"], "layers: "), (["--predictions", str(tmp_path / "a.json")], "predictions: ")):
        refused = CliRunner().invoke(app, ["eval", str(images), "--weights", str(folder), *options])
        assert refused.exit_code == 1 and words in refused.stderr
        assert refused.stderr.splitlines()[-1].startswith("error: ")


def _flow(values: dict[str, Any]) -> str:
    """Nested settings as YAML in one line, without braces."""
    import yaml

    return yaml.safe_dump(values, default_flow_style=True, width=10_000).strip()[1:-1]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "detr-tiny"}, "detr-tiny: is trained on annotated images"),
        ({"model": "detr-tiny"}, "choose up-detr-r50 or up-detr-tiny"),
        ({"model": "no-such-model"}, "not a model of the catalogue"),
        ({"freeze_detector": True}, "freeze_detector: applies to annotated images"),
        ({"augment": "mosaic"}, "augment: applies to annotated images"),
        ({"num_queries": 51}, "51 queries cannot be divided equally among 50 patches"),
        ({"changes": ["data.num_patches=51"]}, "51 patches of an image are more than the 50"),
        ({"changes": ["data.patch_size=300"]}, "patches of 300 pixels are larger than the images"),
        ({"changes": ["data.masks=auto"]}, "data.masks: images without annotations support 'none' only"),
        ({"best_by": "AP"}, "no metric of the validation data is called 'AP'"),
    ],
)
def test_options_that_cannot_work_are_one_line(images, tmp_path, options, words):
    with pytest.raises(SettingError, match=words) as caught:
        pretrain(images, out=tmp_path / "run", say=lambda _line: None, **options)
    one_line(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_images_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(DataError) as caught:
            pretrain(folder, out=tmp_path / "run")
        one_line(caught.value)
        result = CliRunner().invoke(app, ["pretrain", str(folder)])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert CliRunner().invoke(app, ["pretrain"]).exit_code == 2


# ----------------------------------------------------------------------------------------------------------- evaluation


def batch_of(boxes: list[list[list[float]]]) -> PatchEvaluationBatch:
    """A batch of images with these patches, xyxy in 0..1."""
    targets = tuple(
        Target(torch.ones(len(own), dtype=torch.int64), xyxy_to_cxcywh(torch.tensor(own)), (8, 8), (8, 8), index)
        for index, own in enumerate(boxes)
    )
    patches = torch.zeros(len(boxes), len(boxes[0]), 3, 4, 4)
    images = ImageBatch.from_images([torch.zeros(3, 8, 8)] * len(boxes))
    return PatchEvaluationBatch(images, targets, patches=patches, control=patches)


def predictions(scores: list[float], boxes: list[list[float]]) -> Predictions:
    """Predictions for one image: the logit of "patch" and the box, xyxy in 0..1, of each query."""
    logits = torch.zeros(1, len(scores), 3)
    logits[0, :, 1] = torch.tensor(scores)
    return Predictions(logits, xyxy_to_cxcywh(torch.tensor([boxes])), SoftmaxNoObject())


def test_a_patch_is_found_by_the_best_query_of_its_own_group():
    left, right, other = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.1, 0.1]
    batch = batch_of([[left, right]])
    # The best query of the first group has the box; that of the second has it too, but with a lower score.
    output = _output(
        predictions([2, 1, 3, 5], [left, other, right, other]), predictions([0, 1, 5, 0], [left, *[right] * 3])
    )
    (result,) = PatchEvaluator(_Images(2)).results(output, batch.images, batch)
    assert result.ious.tolist() == pytest.approx([1, 0.0])
    assert result.control_ious.tolist() == pytest.approx([0, 1])
    evaluator = PatchEvaluator(_Images(2))
    evaluator.update(batch, [result])
    evaluator.gather()
    metrics = evaluator.compute()
    assert (metrics["found"], metrics["found_control"], metrics["patch_iou"]) == (0.5, 0.5, pytest.approx(0.5))
    alone = PatchEvaluator(_Images(1))
    alone.update(batch, [result])
    assert alone.compute()["found_control"] is None
    assert set(PatchEvaluator(_Images(0)).compute().values()) == {None}


def test_equal_features_have_no_variance_whatever_their_length():
    box = [0.0, 0.0, 1.0, 1.0]
    for features, variance in {
        ((1.0, 2.0), (2.0, 4.0)): 0.0,
        ((1.0, 0.0), (0.0, 3.0)): 0.5,
        ((1.0, 0.0), (-1.0, 0.0)): 1.0,
    }.items():
        batch = batch_of([[box, box]])
        same = predictions([0, 0], [box, box])
        evaluator = PatchEvaluator(_Images(2))
        evaluator.update(batch, evaluator.results(_output(same, same, features), batch.images, batch))
        assert evaluator.compute()["feature_variance"] == pytest.approx(variance, abs=1e-6)


class _Images:
    """Stands for a split of some number of images."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


def _output(own: Predictions, control: Predictions, features=((1.0, 0.0), (0.0, 1.0))) -> ControlledOutput:
    queries = torch.zeros(1, 1, own.logits.shape[1], 4)
    return ControlledOutput(
        (own,), queries, (), (), patch_features=torch.tensor([features]), reconstruction=None, control=control
    )


def test_the_control_is_the_output_for_the_other_patches(images):
    preset = miniature("up-detr-tiny")
    model = build_model(preset, 2).eval()
    val = PatchDataConfig(num_patches=2, patch_size=32, num_workers=0, val_fraction=0.3).resized(64).open_splits(images)
    batch = next(iter(eval_loader(val["val"], preset.data, batch_size=3)))
    output = preset.session(model).step(batch.images, preset.prompt(batch))
    with torch.inference_mode():
        own, other = model(batch.images, batch.patches), model(batch.images, batch.control)
    torch.testing.assert_close(output.final.boxes, own.final.boxes)
    torch.testing.assert_close(output.control.boxes, other.final.boxes)
    torch.testing.assert_close(output.patch_features, own.patch_features)


# -------------------------------------------------------------------------------------------- matching and batch norms


def test_a_match_within_groups_is_the_cheapest_one_of_all_that_respect_the_groups():
    counts = [3, 0, 2]  # patches of the images, with 4 queries each
    costs = torch.rand(sum(counts), 2, 12, generator=torch.Generator().manual_seed(0))
    forbidden = costs.clone()
    for row, patch in enumerate(patch for count in counts for patch in range(count)):
        forbidden[row, :, : 4 * patch] += 100
        forbidden[row, :, 4 * patch + 4 :] += 100
    targets = [
        Target(torch.ones(count, dtype=torch.int64), torch.zeros(count, 4), (1, 1), (1, 1), 0) for count in counts
    ]
    ours, expected = match_within_groups(costs, targets, 4), match(forbidden, counts)
    for name in ("layer", "image", "query", "target"):
        assert torch.equal(getattr(ours, name), getattr(expected, name))
    assert ours.per_layer == expected.per_layer


def test_patches_leave_the_running_statistics_to_the_images_and_have_gradients(images):
    preset = miniature("up-detr-tiny").trained_from_nothing()
    model = build_model(preset, 2)
    task = build_task(preset, model, 2).train()
    batch = next(
        opendetr.data.train_loader(preset.data.open_splits(images)["train"], preset.data, batch_size=2, seed=0).epoch(0)
    )
    twin = build_model(preset, 2).train()
    twin.load_state_dict(model.state_dict())
    twin.backbone(batch.images)
    task.total(task(batch)).backward()
    buffers, expected = dict(model.backbone.named_buffers()), dict(twin.backbone.named_buffers())
    assert any("running_mean" in name for name in buffers)
    assert all(torch.equal(buffers[name], expected[name]) for name in buffers)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    norms = [part for part in model.backbone.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training for norm in norms)


@pytest.mark.slow
def test_the_tiny_model_learns_to_locate_the_patches_of_eight_images(tmp_path):
    """By what the patches show: those of other images are not located. A fixed box locates a quarter of the patches."""
    write_scenes(tmp_path, counts={"train": 8, "val": 1}, config=SceneConfig(size=96))
    sizes = {"image_size": 96, "max_size": 96, "num_patches": 5, "patch_size": 32, "num_workers": 0}
    preset = replaced(get_preset("up-detr-tiny"), {"data": sizes}).trained_from_nothing()
    torch.manual_seed(0)
    model = build_model(preset, 2)
    task = build_task(preset, model, 2).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=preset.recipe.learning_rate)
    loader = opendetr.data.train_loader(preset.data.open_splits(tmp_path)["train"], preset.data, batch_size=8, seed=0)
    batch = next(loader.epoch(0))
    for _ in range(150):
        optimizer.zero_grad()
        task.total(task(batch)).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), preset.recipe.clip_norm)
        optimizer.step()
    with torch.no_grad():
        output = model.eval().controlled(batch.images, batch.patches, batch.patches.roll(1, 0))
    evaluator = PatchEvaluator(_Images(8))
    evaluator.update(batch, evaluator.results(output, batch.images, batch))
    metrics = evaluator.compute()
    assert metrics["found"] > 0.8 and metrics["found_control"] < 0.5


def test_the_presets():
    assert get_preset("up-detr-tiny").own_queries and not get_preset("up-detr-r50").own_queries
    assert get_preset("up-detr-r50").data == PatchDataConfig()
    assert get_preset("up-detr-r50").dense.weight == 0
    tiny = get_preset("up-detr-tiny")
    assert tiny.data.patch_size == 64 and not tiny.data.augmentation.multi_scale and tiny.model.patch_content


if __name__ == "__main__":
    train_in_processes(Path(sys.argv[1]), Path(sys.argv[2]))
