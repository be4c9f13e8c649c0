"""UP-DETR beyond its goldens: groups of queries, random draws, detectors from pre-trained weights, one-shot search."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import opendetr
from inputs import batch_for, further_inputs
from opendetr.categories import Categories, coco_categories, patch_categories
from opendetr.cli.main import app
from opendetr.config import ConfigError, SettingError, parse_assignment, replaced, to_dict
from opendetr.data import DataError
from opendetr.export import export_official
from opendetr.inference import Predictor, load
from opendetr.losses import DenseConfig, FeatureReconstruction, Normaliser, PatchSupervision, ReconstructionConfig
from opendetr.models import UPDETR
from opendetr.presets import (
    Preset,
    build_model,
    build_task,
    fine_tuning,
    get_preset,
    miniature,
    registry,
    trained_from_nothing,
)
from opendetr.presets.up_detr import PretrainingPreset
from opendetr.structures import FeatureMap, ImageBatch, Target
from opendetr.synthetic import SceneConfig, write_scenes
from opendetr.training.settings import set_up
from opendetr.training.starting_weights import load_start, load_transferred
from opendetr.weights import ModelCard, WeightsError, load_weights, read_state, save_weights, transfer_pretrained

NEW = Categories.from_names(["cat", "dog", "patch"])


def pretraining(name: str = "up-detr-tiny") -> PretrainingPreset:
    preset = miniature(name)
    assert isinstance(preset, PretrainingPreset)
    return preset


def model_of(preset: Preset, num_classes: int = 2, seed: int = 0) -> UPDETR:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(preset, num_classes)


def images(count: int = 2) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, 64, 48, generator=generator) for _ in range(count)])


def targets(num_patches: int, count: int = 2) -> list[Target]:
    generator = torch.Generator().manual_seed(2)
    boxes = [0.2 + 0.3 * torch.rand(num_patches, 4, generator=generator) for _ in range(count)]
    return [Target(torch.ones(num_patches, dtype=torch.int64), each, (64, 48), (64, 48), 0) for each in boxes]


# --------------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(("num_patches", "num_queries"), [(20, 100), (10, 10), (3, 12)])
def test_more_patches_than_queries_of_a_patch(num_patches, num_queries):
    """The original gives NaN here, because it builds too few groups."""
    preset = pretraining()
    model = model_of(replaced(preset, {"model": {"num_patches": num_patches, "num_queries": num_queries}})).eval()
    patches = torch.randn(1, num_patches, 3, 32, 32)
    with torch.no_grad():
        output = model(images(1), patches)
    assert output.final.boxes.shape == (1, num_queries, 4)
    assert output.final.logits.isfinite().all()


@torch.no_grad()
def test_queries_see_only_their_own_patch():
    model = model_of(pretraining()).eval()
    patches = torch.randn(1, 2, 3, 32, 32)
    other = patches.clone()
    other[:, 1] = torch.randn(3, 32, 32)
    one, two, alone = model(images(1), patches), model(images(1), other), model(images(1), patches[:, :1])
    assert torch.equal(one.final.boxes[:, :6], two.final.boxes[:, :6])
    assert not torch.equal(one.final.boxes[:, 6:], two.final.boxes[:, 6:])
    torch.testing.assert_close(alone.final.boxes, one.final.boxes[:, :6], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "patches",
    [None, torch.zeros(2, 3, 3, 8, 8), torch.zeros(1, 2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(2, 0, 3, 8, 8)],
    ids=["none", "too many", "of another batch", "no axis", "no patch"],
)
def test_other_patches_are_one_line(patches):
    with pytest.raises(ValueError, match="patches") as caught:
        model_of(pretraining())(images(), patches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.num_queries=55", "55 queries cannot be divided equally among 50 patches"),
        ("model.num_patches=0", "at least 1"),
        ("model.query_dropout=1", "below 1"),
        ("reconstruction.weight=-1", "at least 0"),
        ("masks.enabled=true", "set masks.enabled for detr-tiny instead"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(assignment, message):
    with pytest.raises(SettingError, match=message) as caught:
        replaced(get_preset("up-detr-tiny"), parse_assignment(assignment))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- draws


def test_draws_depend_on_the_seed_of_the_image_alone():
    model = model_of(replaced(pretraining(), {"model": {"query_shuffle": True, "query_dropout": 0.5}}))
    kept, order = model.draw([7, 2**62, 7])
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(order[0], order[2])
    assert not torch.equal(kept[0], kept[1])
    assert [sorted(row) for row in order.tolist()] == [list(range(12))] * 3
    many, _ = model.draw(range(400))
    assert many.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_dropped_queries_do_not_get_their_patch_and_none_is_drawn_in_evaluation():
    model = model_of(replaced(pretraining(), {"model": {"query_dropout": 0.5}}))
    features = torch.randn(1, 2, 256)
    kept = torch.arange(12) % 3 > 0
    queries, plain = model.patch_queries(model.query_content(features, kept[None])), model.queries.weight
    assert torch.equal((queries[0] == plain).all(-1), ~kept)
    order = torch.arange(12).flip(0)[None]
    assert torch.equal(model.patch_queries(torch.zeros(1, 12, plain.shape[1]), order)[0], plain.flip(0))
    task = build_task(pretraining(), model, 2)
    batch = batch_for(model, images(), targets(2))
    losses = [task.train(mode)(batch)["class"] for mode in (True, True, False)]
    without = replace(batch, sample_seeds=None)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert torch.equal(task.eval()(without)["class"], losses[2])


@torch.no_grad()
def test_the_content_of_a_query_starts_with_its_patch_or_with_zeros():
    given = []
    for patch_content in (True, False):
        model = model_of(replaced(pretraining(), {"model": {"patch_content": patch_content}})).eval()
        model.decoder.layers[0].register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
        features, kept = torch.randn(2, 2, 256), torch.arange(12).expand(2, -1) % 3 > 0
        memory, _ = model.encode_images(images())
        model.locate(features, memory, kept=kept)
        model.locate(features[:, :1], memory)
        assert torch.equal(given[0], model.query_content(features, kept)) == patch_content
        assert not given[0][~kept].any() and bool(given[0][kept].any()) == patch_content
        assert given[1].shape == (2, 6, 32) and bool(given[1].any()) == patch_content
        given.clear()


# ------------------------------------------------------------------------------------------------- patch norm and dense


def test_the_patch_norm_standardises_in_training_and_keeps_its_statistics_for_evaluation():
    model = model_of(trained_from_nothing(pretraining()))
    batch = images(8)
    patches = torch.randn(8, 2, 3, 32, 32) * torch.rand(8, 2, 3, 1, 1)
    model.train()
    for _ in range(80):  # until the running statistics are those of this batch
        with torch.no_grad():
            features = model(batch, patches).patch_features
    torch.testing.assert_close(features.mean((0, 1)), torch.zeros(256), atol=1e-4, rtol=0)
    standard_deviation = features.flatten(0, 1).std(0, unbiased=False)
    assert ((standard_deviation - 1).abs() < 0.05).float().mean() > 0.9  # the others hardly vary
    model.eval()
    with torch.no_grad():
        one, two = model.encode_patches(patches), model.encode_patches(patches[:1])
    torch.testing.assert_close(one[:1], two, atol=1e-4, rtol=1e-4)  # whatever else is in the batch
    assert (one.std() - 1).abs() < 0.2
    before = model.patch_norm.running_mean.clone()
    alone = model.train()(images(1), patches[:1, :1]).patch_features  # a single patch has no statistics of its own
    assert alone.isfinite().all() and torch.equal(model.patch_norm.running_mean, before)
    assert model.patch_norm.training
    for dtype in (torch.bfloat16, torch.float64):
        features = model.to(dtype).eval().encode_patches(patches.to(dtype))
        assert features.dtype == torch.promote_types(dtype, torch.float32) and features.isfinite().all()


def test_the_pairs_of_an_image_are_those_of_its_own_patches_one_after_another():
    supervision = PatchSupervision(DenseConfig(weight=1.0), 8, 16)
    generator = torch.Generator().manual_seed(0)
    memory, features = torch.randn(2, 8, 3, 4, generator=generator), torch.randn(2, 3, 16, generator=generator)
    padding = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding[1, :, 3:] = True
    pairs = supervision.pairs(FeatureMap(memory, padding), features)
    assert pairs.values.shape == (6, 8, 3, 4) and torch.equal(pairs.padding, padding.repeat_interleave(3, 0))
    for image, patch in ((0, 2), (1, 0)):
        alone = supervision.pairs(FeatureMap(memory[[image]]), features[[image], patch : patch + 1])
        torch.testing.assert_close(pairs.values[3 * image + patch], alone.values[0])


@pytest.mark.parametrize("count", [3, 2, 0])
def test_the_dense_loss_of_patches_sums_over_the_patches(count):
    """A patch without an object is nowhere: its cells predict that, and no box."""
    supervision = PatchSupervision(DenseConfig(weight=2.0), 8, 16)
    output = SimpleNamespace(memory=(FeatureMap(torch.randn(2, 8, 3, 4)),), patch_features=torch.randn(2, 3, 16))
    truth = targets(count)
    loss = supervision(output, truth, None, Normaliser(5.0, 1.0))["dense"]
    assert loss.shape == (1,)
    expected = 0.0
    for image, patch in [(image, patch) for image in range(2) for patch in range(3)]:
        pair = supervision.pairs(
            FeatureMap(output.memory[0].values[[image]]), output.patch_features[[image], patch : patch + 1]
        )
        box = truth[image].boxes[patch : patch + 1]
        own = Target(torch.zeros(len(box), dtype=torch.int64), box, (64, 48), (64, 48), 0)
        expected += supervision.dense.loss(pair, [own], 5.0)
    torch.testing.assert_close(loss[0], expected)


def test_dense_supervision_reaches_the_backbone_through_images_and_patches():
    preset = trained_from_nothing(pretraining())
    model = model_of(preset)
    task = build_task(preset, model, 2)
    output = model(images(), *further_inputs(model, 2))
    loss = task.losses(output, targets(2))["dense"]
    assert task.dense.weights == {"dense": 1.0}
    for tensor in (output.patch_features, output.memory[0].values, model.backbone.body.conv1.weight):
        assert torch.autograd.grad(loss.sum(), tensor, retain_graph=True)[0].any()
    assert "dense" not in build_task(pretraining(), model, 2).terms


# ------------------------------------------------------------------------------------------------------- reconstruction


@pytest.mark.parametrize("detached", [False, True])
def test_the_reconstruction_target_can_be_detached(detached):
    model = model_of(trained_from_nothing(pretraining()))
    output = model(images(), *further_inputs(model, 2))
    task = build_task(pretraining(), model, 2)
    term = FeatureReconstruction(ReconstructionConfig(detach_target=detached))
    fixed = replace(output, reconstruction=output.reconstruction.detach())
    loss = term(fixed, targets(2), task.match(output, targets(2)), task.normaliser([2, 2]))["feature"].sum()
    assert loss.requires_grad != detached
    assert torch.autograd.grad(output.reconstruction.sum(), output.patch_features)[0].any()  # as part of the queries


def test_from_nothing_the_backbone_is_trained_and_the_target_detached():
    published, tiny = get_preset("up-detr-r50"), get_preset("up-detr-tiny")
    assert isinstance(published, PretrainingPreset) and isinstance(tiny, PretrainingPreset)
    assert not any(p.requires_grad for p in build_on_meta(published).backbone.parameters())
    assert not published.reconstruction.detach_target
    assert (published.data.patch_size, tiny.data.patch_size) == (128, 64)
    for preset in (trained_from_nothing(published), trained_from_nothing(tiny)):
        assert all(p.requires_grad for p in build_on_meta(preset).parameters())
        assert preset.reconstruction.detach_target
        assert preset.dense.weight == 1 and preset.model.patch_norm
    for preset in (published, tiny):
        assert preset.dense.weight == 0 and not preset.model.patch_norm


def build_on_meta(preset: Preset) -> UPDETR:
    with torch.device("meta"):
        return build_model(preset, 2)


# --------------------------------------------------------------------------------------------- from pre-trained weights


def without_class_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if "class_head" not in name}


@pytest.mark.parametrize("layout", ["opendetr", "official"])
@pytest.mark.parametrize("name", ["up-detr-r50", "up-detr-tiny"])
def test_a_detector_keeps_everything_but_the_class_head(name, layout, tmp_path):
    preset = pretraining(name)
    source = model_of(preset)
    state = source.state_dict()
    if layout == "official":
        export_official(source, preset, tmp_path / "official.pth")
        state = torch.load(tmp_path / "official.pth")["model"]
    detector = model_of(fine_tuning(preset), num_classes=3, seed=1)
    before = detector.state_dict()["class_head.weight"].clone()
    report = transfer_pretrained(detector, state, NEW)
    after = detector.state_dict()
    assert torch.equal(after["class_head.weight"], before)
    for tensor, value in without_class_head(after).items():
        assert torch.equal(value, source.state_dict()[tensor]), tensor
    assert "pre-trained: backbone, project, encoder, queries, decoder, box_head; new and random: class_head" in str(
        report
    )
    assert "skipped: " in str(report) and len(report.left_out) == 2


def test_a_decoder_of_one_query_per_patch_is_not_transferred(tmp_path):
    several = pretraining("up-detr-tiny")
    single = replace(several, model=replace(several.model, num_patches=several.model.num_queries))
    assert get_preset("up-detr-tiny").untransferred and not get_preset("up-detr-r50").untransferred
    for preset, is_kept in ((several, True), (single, False)):
        path = saved(preset, tmp_path / str(is_kept) / "model.safetensors")
        detector, source = model_of(fine_tuning(preset), num_classes=3, seed=1), read_state(path)
        line = load_transferred(detector, path, fine_tuning(preset), NEW)
        after = detector.state_dict()
        assert torch.equal(
            after["encoder.layers.0.feed_forward.linear1.weight"],
            source["encoder.layers.0.feed_forward.linear1.weight"],
        )
        for name in ("queries.weight", "decoder.layers.0.feed_forward.linear1.weight", "box_head.layers.0.weight"):
            assert torch.equal(after[name], source[name]) == is_kept, name
        random = "class_head" if is_kept else "queries, decoder, class_head, box_head"
        assert f"new and random: {random}" in line


def test_a_model_with_a_mask_head_starts_from_pre_trained_weights():
    preset = pretraining()
    with_masks = replace(get_preset("detr-tiny-panoptic"), model=preset.model.detector())
    model = build_model(with_masks, 3)
    source = model_of(preset).state_dict()
    report = transfer_pretrained(model, source, NEW)
    assert torch.equal(model.state_dict()["detector.box_head.layers.0.weight"], source["box_head.layers.0.weight"])
    assert report.new_parts == ("class_head", "attention", "head")


def test_weights_of_pre_training_are_not_a_detector():
    detector = model_of(fine_tuning(pretraining()), num_classes=2)
    with pytest.raises(WeightsError, match="those of a pre-training model; train a detector from them"):
        load_weights(detector, model_of(pretraining()).state_dict())


def saved(preset: Preset, path: Path) -> Path:
    path.parent.mkdir(parents=True)
    save_weights(path, model_of(preset), ModelCard(to_dict(preset), patch_categories(), {}))
    return path


def test_training_continues_with_the_detector(tmp_path):
    """With the architecture of the weights, and the recipe of a detector that was not trained yet."""
    plain = trained_from_nothing(pretraining())
    path = saved(plain, tmp_path / "run" / "model.safetensors")
    setup, origin = set_up(tmp_path, None, path, None, freeze_detector=False)
    assert setup.preset == trained_from_nothing(replace(get_preset("detr-tiny"), model=plain.model.detector()))
    assert not setup.starts_from_detector and setup.is_pretrained
    with_masks, _ = set_up(tmp_path, "detr-tiny-panoptic", path, None, freeze_detector=False)
    assert with_masks.preset.has_masks and with_masks.preset.model == setup.preset.model
    again, _ = set_up(tmp_path, "up-detr-tiny", path, None, freeze_detector=False)
    assert isinstance(again.preset, PretrainingPreset) and not again.is_pretrained
    model = build_model(setup.preset, len(NEW))
    assert "new and random: class_head" in load_start(model, origin, setup.preset, NEW)
    with pytest.raises(ConfigError, match="holds up-detr-tiny, not detr-r50"):
        set_up(tmp_path, "detr-r50", path, None, freeze_detector=False)
    frozen = replace(with_masks.preset, freeze_detector=True)
    with pytest.raises(ConfigError, match="has no detector to freeze"):
        load_start(build_model(frozen, 3), origin, frozen, NEW)


def test_the_published_backbone_is_trained_after_pre_training(tmp_path):
    preset = pretraining("up-detr-r50")
    path = saved(preset, tmp_path / "run" / "model.safetensors")
    setup, _ = set_up(tmp_path, None, path, None, freeze_detector=False)
    published = get_preset("up-detr-r50-finetuned")
    assert setup.preset.name == published.name and setup.preset.recipe == published.recipe
    assert (preset.model.backbone.frozen_stages, setup.preset.model.backbone.frozen_stages) == (5, 2)
    assert setup.preset.data == published.data and setup.preset.dense.weight == 0


def test_official_files_name_no_model_and_load_as_either(tmp_path):
    preset = pretraining("up-detr-r50")
    file = tmp_path / "up-detr.pth"
    export_official(model_of(preset), preset, file)
    setup, origin = set_up(tmp_path, "up-detr-r50-finetuned", file, None, freeze_detector=False)
    assert setup.is_pretrained and setup.preset == get_preset("up-detr-r50-finetuned")
    small = replace(setup.preset, model=preset.model.detector())
    assert "new and random: class_head" in load_start(build_model(small, 91), origin, small, coco_categories())
    again, _ = set_up(tmp_path, "up-detr-r50", file, None, freeze_detector=False)
    assert not again.is_pretrained


def test_official_files_in_the_cache_are_published_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path))
    preset = pretraining("up-detr-r50")
    monkeypatch.setitem(registry._PRESETS, preset.name, lambda: preset)  # the full size takes seconds
    model = model_of(preset)
    export_official(model, preset, tmp_path / "up-detr-pre-training-60ep-imagenet.pth")
    setup, _ = set_up(tmp_path, None, "up-detr-r50", None, freeze_detector=False)
    assert setup.preset == get_preset("up-detr-r50-finetuned") and setup.is_pretrained
    assert load("up-detr-r50", device="cpu").categories == patch_categories()
    continued, origin = set_up(tmp_path, "up-detr-r50", "published", None, freeze_detector=False)
    assert continued.preset.name == "up-detr-r50" and continued.starts_from_detector
    assert "classes: 2 kept" in load_start(model, origin, continued.preset, patch_categories())


def test_a_run_continues_from_pre_trained_weights_and_remembers_it(tmp_path):
    write_scenes(tmp_path / "data", counts={"train": 4, "val": 2}, config=SceneConfig(size=64))
    weights, lines = saved(trained_from_nothing(pretraining()), tmp_path / "run" / "model.safetensors"), []
    run = opendetr.train(
        tmp_path / "data", weights=weights, out=tmp_path / "fine", max_steps=1, batch_size=2, image_size=64,
        workers=0, device="cpu", say=lines.append,
    )  # fmt: skip
    assert any("pre-trained: backbone, project, encoder" in line for line in lines)
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert settings["name"] == "detr-tiny" and settings["run"]["pretrained"]
    assert settings["dense"]["weight"] == 1 and settings["model"]["backbone"]["norm"] == "batch"
    (run.folder / "metrics.jsonl").unlink()
    shutil.rmtree(run.folder / "last")
    lines.clear()
    opendetr.resume(run.folder, device="cpu", say=lines.append)
    assert any("pre-trained: backbone" in line for line in lines)
    assert (run.folder / "last").exists()


def test_missing_published_weights_say_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path))
    for name, file in (
        ("up-detr-r50", "up-detr-pre-training-60ep-imagenet.pth"),
        ("up-detr-r50-finetuned", "up-detr-coco-fine-tuned-300ep.pth"),
    ):
        with pytest.raises(WeightsError, match=rf"download it from https://drive.*and put it at {tmp_path}/{file}"):
            set_up(tmp_path, None, name, None, freeze_detector=False)


# ------------------------------------------------------------------------------------------------------ one-shot search


@pytest.fixture(scope="module")
def detector() -> Predictor:
    preset = pretraining()
    return Predictor(model_of(preset), preset, patch_categories(), device="cpu")


def photo(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_each_patch_is_located_by_the_best_query_of_its_group(detector):
    crops = [photo(20, 30, seed=1), photo(30, 10, seed=2)]
    found = detector.predict(photo(), patches=crops)
    assert found.labels.tolist() == [0, 1]
    assert found.categories.names == ("patch 1", "patch 2")
    data = detector.preset.data
    inputs = torch.stack([data.patch_input(crop) for crop in crops])
    pixels = data.evaluation_transform().pixels(photo())
    with torch.no_grad():
        final = detector.model(ImageBatch.from_images([pixels]), inputs[None]).final
    scores = final.logits.softmax(-1)[0, :, :-1].amax(-1)
    for patch, group in enumerate(scores.split(6)):
        assert found.scores[patch].item() == pytest.approx(group.max().item(), abs=1e-5)
        x, y, w, h = final.boxes[0, 6 * patch + int(group.argmax())].tolist()
        corners = [(x - w / 2) * 80, (y - h / 2) * 60, (x + w / 2) * 80, (y + h / 2) * 60]
        assert found.boxes[patch].tolist() == pytest.approx(corners, abs=1e-2)
    (first,) = detector.predict(photo(), patches=crops, min_score=found.scores.max().item())
    assert first.labels == found.scores.argmax()


def test_patches_are_given_in_any_form_and_encoded_once(detector, tmp_path, monkeypatch):
    Image.fromarray(photo(20, 30, seed=1)).save(tmp_path / "crop.png")
    for index in range(3):
        Image.fromarray(photo(60, 80 + 16 * index, seed=index)).save(tmp_path / f"photo{index}.png")
    expected = detector.predict(photo(), patches=[photo(20, 30, seed=1)])
    assert expected.categories.names == ("patch",)
    for crop in (tmp_path / "crop.png", str(tmp_path / "crop.png"), Image.open(tmp_path / "crop.png")):
        assert torch.equal(detector.predict(photo(), patches=crop).boxes, expected.boxes)
    calls, encode = [], UPDETR.encode_patches
    monkeypatch.setattr(UPDETR, "encode_patches", lambda *args: calls.append(args) or encode(*args))
    results = list(detector.predict(str(tmp_path / "photo*.png"), patches=tmp_path / "crop.png", batch_size=2))
    assert len(results) == 3 and len(calls) == 1
    torch.testing.assert_close(results[0].boxes, expected.boxes)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (None, "up-detr-tiny: locates patches, and needs at least one: --patch"),
        ([], "1 to 2 patches at a time, got 0"),
        ([photo(9, 9)] * 3, "1 to 2 patches at a time, got 3"),
        ([photo(61, 20)], "image: 80x60 pixels, less than patch with 20x61"),
        (["not-there.png"], "not-there.png: no such file"),
        ([3], "3: not one image"),
        (str(Path(__file__).parent), "tests: not one image; give each patch as an image"),
    ],
    ids=["none", "empty", "too many", "larger than the image", "missing", "a number", "a folder"],
)
def test_wrong_patches_are_one_line(detector, patches, message):
    with pytest.raises((ConfigError, DataError), match=re.escape(message)) as caught:
        detector.predict(photo(), patches=patches)
    assert "\n" not in str(caught.value)


def test_options_of_panoptic_maps_do_not_apply_to_patches(detector):
    with pytest.raises(ConfigError, match="merge='published' applies to panoptic maps, not to patches: leave it out"):
        detector.predict(photo(), patches=[photo(9, 9)], merge="published")


def test_a_detector_takes_no_patches():
    preset = miniature("detr-tiny")
    plain = Predictor(build_model(preset, 3), preset, NEW, device="cpu")
    with pytest.raises(ConfigError, match="patches: detr-tiny takes none; leave them out"):
        plain.predict(photo(), patches=[photo(9, 9)])


def test_the_command_locates_patches_and_skips_smaller_images(detector, tmp_path):
    weights = saved(detector.preset, tmp_path / "run" / "model.safetensors")
    for name, size in (("photos/large.png", (60, 80)), ("photos/small.png", (10, 12)), ("crop.png", (20, 30))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo(*size)).save(tmp_path / name)
    crop = ["--patch", str(tmp_path / "crop.png")]
    arguments = ["predict", str(tmp_path / "photos"), "--weights", str(weights), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, *crop])
    assert result.exit_code == 3, result.output
    assert "small.png: 12x10 pixels, less than" in result.stderr
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [category["name"] for category in record["categories"]] == ["patch"]
    assert len(record["annotations"]) == 1
    for options, code in (([], 2), ([*crop, "--panoptic"], 2), ([*crop, "--text", "a disc"], 2)):
        refused = CliRunner().invoke(app, [*arguments, "--overwrite", *options])
        assert refused.exit_code == code
        assert "--patch" in refused.stderr


def test_train_refers_to_pretrain(tmp_path):
    write_scenes(tmp_path / "data", counts={"train": 4, "val": 2}, config=SceneConfig(size=64))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(get_preset("up-detr-tiny"))))
    advice = "up-detr-tiny is trained on images without annotations: opendetr pretrain IMAGES --model up-detr-tiny"
    for chosen in ({"model": "up-detr-tiny"}, {"config": tmp_path / "config.yaml"}):
        with pytest.raises(ConfigError, match=advice):
            opendetr.train(tmp_path / "data", **chosen, out=tmp_path / "run")
    result = CliRunner().invoke(app, ["train", str(tmp_path / "data"), "--model", "up-detr-tiny"])
    assert result.exit_code == 2
    assert advice in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()
