"""A run from a folder of data to a folder with a detector: assembled, resumed, fine-tuned, read back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from folders import one_line, write_voc_folder
from opendetr.categories import Categories
from opendetr.config import ConfigError, to_dict
from opendetr.data.formats.recognise import open_data
from opendetr.data.images import read_map, write_map
from opendetr.data.records import DataError
from opendetr.inference.predictor import load
from opendetr.presets import build_model, get_preset, miniature, preset_from_dict
from opendetr.synthetic import write_scenes
from opendetr.training import run as training
from opendetr.training import starting_weights
from opendetr.training.trainer import Trainer
from opendetr.weights import ModelCard, WeightsError, save_weights

# A model and images so small that a step takes a few milliseconds; fp32, for comparisons to the last bit.
SMALL: dict[str, Any] = {
    "model": {
        "transformer": {"width": 32, "num_heads": 4, "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 2},
        "num_queries": 20,
    },
    "data": {"image_size": 64, "max_size": 96, "num_workers": 0},
    "recipe": {"batch_size": 4, "epochs": 2, "num_evaluations": 2, "warmup_steps": 2, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"train": 12, "val": 4})
    return folder


def run(data: Path, out: Path, *changes: Any, weights: str | Path = "none", **options: Any) -> training.Run:
    options.setdefault("say", lambda line: None)
    return training.train(data, weights=weights, out=out, changes=[SMALL, *changes], device="cpu", **options)


def weights_of(run_folder: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run_folder / checkpoint / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory) -> training.Run:
    return run(scenes, tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_folder_holds_all_of_it(whole, scenes):
    names = {path.relative_to(whole.folder).as_posix() for path in whole.folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.jsonl", "curves.png", "best/model.safetensors", "last/model.safetensors"} <= names
    assert {"labels.png", "images/batch.jpg"} <= names
    assert any(name.startswith("images/step-0000006-") for name in names)
    assert whole.result.step == 6
    assert set(whole.result.metrics) >= {"AP", "AP50", "AR100"}
    record = yaml.safe_load((whole.folder / "config.yaml").read_text())
    about = record.pop("run")
    assert about["data"] == str(scenes.resolve())
    assert about["weights"] == "none"
    preset = preset_from_dict(record)
    assert preset.model.num_queries == 20
    assert preset.model.backbone.norm == "batch"
    assert preset.recipe.backbone_learning_rate == preset.recipe.learning_rate


def test_the_run_folder_opens_as_a_detector(whole, scenes):
    detector = load(whole.folder, device="cpu")
    assert detector.categories.names[:2] == ("disc", "ring")
    data = open_data(scenes)["val"]
    scores = detector.evaluate(data).metrics
    best = {name: value for name, value in whole.result.best.items() if name in scores}
    assert scores == pytest.approx(best, abs=1e-6)
    of_classes = {name for name in whole.result.best if name.startswith("AP/")}
    assert of_classes and of_classes <= {f"AP/{name}" for name in data.categories.names}


def test_its_config_makes_the_same_run_again(whole, scenes, tmp_path):
    options = {"config": whole.folder / "config.yaml", "device": "cpu", "say": lambda line: None}
    again = training.train(scenes, out=tmp_path / "again", **options)
    assert same(weights_of(again.folder), weights_of(whole.folder))
    other = training.train(scenes, out=tmp_path / "other", seed=7, **options)
    assert not same(weights_of(other.folder), weights_of(whole.folder))


class _KilledError(Exception):
    pass


def killed(monkeypatch, at_step: int, *call: Any, **options: Any) -> None:
    """Call `run`, which fails hard before the given step, as a kill would."""
    step = Trainer._step

    def stepping(self, batch, waiting):
        if self.state.step == at_step:
            raise _KilledError
        step(self, batch, waiting)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stepping)
        with pytest.raises(_KilledError):
            run(*call, **options)


@pytest.mark.parametrize("at_step", [1, 5], ids=["before the first checkpoint", "in the middle of an epoch"])
def test_a_resumed_run_is_the_run_that_never_stopped(whole, scenes, tmp_path, monkeypatch, at_step):
    killed(monkeypatch, at_step, scenes, tmp_path / "run")
    resumed = training.resume(tmp_path / "run", device="cpu", say=lambda line: None)
    assert resumed.result.step == whole.result.step
    assert same(weights_of(resumed.folder), weights_of(whole.folder))


def test_resume_refuses_other_data(scenes, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    killed(monkeypatch, 4, data, tmp_path / "run")
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="has changed"):
        training.resume(tmp_path / "run", say=lambda line: None)
    with pytest.raises(ConfigError, match="no such folder"):
        training.resume(tmp_path / "nothing", say=lambda line: None)


def _other_outline(data: Path) -> None:
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = content["annotations"][1]["segmentation"]
    path.write_text(json.dumps(content))


def _other_map(data: Path) -> None:
    path = sorted((data / "annotations" / "panoptic_train").iterdir())[0]
    segments = read_map(path)
    write_map(path, np.where(segments == segments[0, 0], segments[-1, -1], segments))


@pytest.mark.parametrize(("masks", "change"), [("instances", _other_outline), ("panoptic", _other_map)])
def test_resume_notices_masks_where_they_are_learned(scenes, tmp_path, masks, change):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)

    def fingerprint(of: str) -> str:
        return training._fingerprint(open_data(data, masks=of))

    before, boxes = fingerprint(masks), fingerprint("none")
    assert fingerprint(masks) == before
    change(data)
    assert fingerprint(masks) != before
    assert fingerprint("none") == boxes


# ---------------------------------------------------------------------------------------------------------- the weights


def test_classes_are_fitted_by_name(whole, scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"] = [row for row in content["categories"] if row["name"] != "disc"]
        for row in content["categories"]:
            row["id"] = 100 - row["id"]  # other ids, in another order
            row["name"] = "wheel" if row["name"] == "gear" else row["name"]
        kept = [row for row in content["annotations"] if row["category_id"] != 1]
        content["annotations"] = [row | {"category_id": 100 - row["category_id"]} for row in kept]
        path.write_text(json.dumps(content))
    lines: list[str] = []
    still = {"recipe": {"learning_rate": 1e-30, "backbone_learning_rate": 1e-30, "ema_decay": 0.0}}
    tuned = run(data, tmp_path / "tuned", still,
                weights=whole.folder, epochs=1, say=lines.append)  # fmt: skip
    (line,) = (line for line in lines if "10 kept" in line)
    assert "1 new (wheel)" in line and "2 dropped (disc, gear)" in line
    before, after = weights_of(whole.folder, "best"), weights_of(tuned.folder)
    names = load(tuned.folder).categories.names
    row = "class_heads.0.weight"
    assert torch.equal(after[row][names.index("star")], before[row][8])
    assert torch.equal(after["proposal_class_head.weight"][0], before["proposal_class_head.weight"][0])
    assert after[row].shape[0] == len(names) == 11
    assert torch.equal(after["level_embedding"], before["level_embedding"])


def test_the_weights_keep_their_architecture(whole, scenes, tmp_path):
    tuned = training.train(
        scenes, weights=whole.folder, out=tmp_path / "tuned", epochs=1, changes={"data": SMALL["data"]}, device="cpu",
        say=lambda line: None,
    )  # fmt: skip
    record = yaml.safe_load((tuned.folder / "config.yaml").read_text())
    assert record["model"]["num_queries"] == 20
    assert record["model"]["backbone"]["norm"] == "batch"
    recipe = get_preset("deformable-detr-tiny").recipe  # for few images: half of the batch size
    assert record["recipe"]["batch_size"] == recipe.batch_size // 2
    assert record["recipe"]["learning_rate"] == pytest.approx(recipe.learning_rate / 2**0.5)


def test_a_detector_without_a_description(scenes, tmp_path):
    """An official file: names of another layout, COCO's 91 rows, and no word about either."""
    preset = replace(miniature("detr-r50"), name="detr-r50")
    model = build_model(preset, 91)
    torch.save({"model": model.state_dict()}, tmp_path / "detector.pth")
    small = {"model": to_dict(preset)["model"], "data": {"image_size": 64, "max_size": 96, "num_workers": 0},
             "recipe": {"epochs": 1}}  # fmt: skip
    lines: list[str] = []
    training.train(scenes, model="detr-r50", weights=tmp_path / "detector.pth", changes=small, out=tmp_path / "run",
                   device="cpu", say=lines.append)  # fmt: skip
    assert any("0 kept, 12 new" in line for line in lines)
    torch.save(build_model(preset, 5).state_dict(), tmp_path / "five.pth")
    with pytest.raises(WeightsError, match="5 classes but no class names"):
        training.train(scenes, model="detr-r50", weights=tmp_path / "five.pth", changes=small, out=tmp_path / "no",
                       say=lines.append)  # fmt: skip
    assert not (tmp_path / "no").exists()


def test_offline_one_line_names_the_choices(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENDETR_OFFLINE", "1")
    for options in ({"model": "detr-r50"}, {"model": "detr-r18"}, {"model": "detr-r101", "weights": "imagenet"}):
        with pytest.raises(WeightsError) as caught:
            training.train(scenes, out=tmp_path / "run", say=lambda line: None, **options)
        line = one_line(caught.value)
        for word in (str(tmp_path / "cache"), "choose other weights: none", "OPENDETR_OFFLINE is set"):
            assert word in line
    assert not (tmp_path / "run").exists()


def test_a_cached_file_is_compared_with_its_hash(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path))
    (tmp_path / "detr-r50-e632da11.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="not the published file"):
        training.train(scenes, model="detr-r50", out=tmp_path / "run", say=lambda line: None)


def test_imagenet_weights_go_into_the_backbone(scenes, tmp_path, monkeypatch):
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    monkeypatch.setattr(starting_weights, "download", lambda url: tmp_path / url.rpartition("/")[2])
    result = run(scenes, tmp_path / "run", weights="imagenet", model="detr-r18", epochs=1)
    after = weights_of(result.folder)
    assert torch.equal(after["backbone.body.conv1.weight"], state["conv1.weight"])  # frozen
    assert torch.equal(after["backbone.body.layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])
    with pytest.raises(WeightsError, match="no ImageNet weights for its ResNet-18 of half width"):
        run(scenes, tmp_path / "tiny", weights="imagenet", model="detr-tiny")


# ---------------------------------------------------------------------------------------------- nothing is half-written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changes": ["model.num_querys=1"]}, "did you mean"),
        ({"model": "detr-r5"}, "not a model of the catalogue"),
        ({"time": "soon"}, "is not a duration"),
        ({"time": "5m", "epochs": 3}, "not more than one"),
        ({"image_size": 0}, "image_size"),
        ({"batch_size": 0}, "at least 1"),
        ({"device": "cuda:99"}, "this machine has none"),
        ({"weights": "nowhere.safetensors"}, "no such file"),
        ({"config": "nowhere.yaml"}, "no such file"),
        ({"changes": ["name=detr-r50"]}, "'name' is the name of the model"),
    ],
)
def test_nothing_is_written_for_a_run_that_cannot_begin(scenes, tmp_path, options, message):
    if "cuda" in options.get("device", "") and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=message) as caught:
        training.train(scenes, out=tmp_path / "run", say=lambda line: None, **{"weights": "none", **options})
    one_line(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_left_alone(whole, scenes, tmp_path):
    with pytest.raises(ConfigError, match="holds a run already"):
        run(scenes, whole.folder)
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="not an empty folder"):
        run(scenes, tmp_path)


def test_weights_of_another_model_are_refused(scenes, tmp_path):
    preset, categories = miniature("detr-r18"), Categories.from_names(["a"])
    path = tmp_path / "other.safetensors"
    save_weights(path, build_model(preset, 1), ModelCard(to_dict(preset), categories, {}))
    with pytest.raises(ConfigError, match="holds detr-r18, not detr-tiny"):
        run(scenes, tmp_path / "run", weights=path, model="detr-tiny")


# ---------------------------------------------------------------------------------------------------------- VOC as COCO


def test_the_same_data_in_either_format_trains_the_same(tmp_path):
    """As Pascal VOC, and written as COCO: identical weights and scores."""
    names = [f"image_{index}" for index in range(12)]
    voc = write_voc_folder(tmp_path / "voc", 12, {"train": names[:9], "val": names[9:]})
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split, data in open_data(voc).items():
        content = data.to_coco()
        for row in content["images"]:
            row["file_name"] = Path(row["file_name"]).name
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    shutil.copytree(voc / "JPEGImages", coco / "images")
    first, second = run(voc, tmp_path / "run-voc"), run(coco, tmp_path / "run-coco")
    assert same(weights_of(first.folder), weights_of(second.folder))
    assert first.result.metrics == second.result.metrics
    assert first.result.metrics["AR100"] is not None
