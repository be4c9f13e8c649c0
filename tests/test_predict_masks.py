"""A detector with a mask head in use: masks for what is found alone, whatever else is in the batch; panoptic maps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as run_length_coder
from PIL import Image
from typer.testing import CliRunner, Result

from folders import make_image, write_image
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import ConfigError, to_dict
from opendetr.data import panoptic_truth, read_image
from opendetr.export.checkpoints import export_official
from opendetr.inference import comparisons
from opendetr.inference.predictor import Predictor, load
from opendetr.postprocess import instance_masks
from opendetr.presets import build_model, get_preset, miniature
from opendetr.results import Detections
from opendetr.scoring import Sigmoid
from opendetr.structures import ImageBatch
from opendetr.weights import ModelCard, WeightsError, save_weights

CATEGORIES = Categories(("cat", "dog", "sky", "sea"), (3, 7, 20, 30), isthing=(True, True, False, False))
SIZES = ((48, 64), (64, 48), (30, 90), (48, 64), (64, 64))


@pytest.fixture(scope="module")
def detector() -> Predictor:
    """Untrained, but its queries find all classes, each with a score of its own, and never "no object"."""
    torch.manual_seed(0)
    preset = miniature("detr-tiny-panoptic")
    model = build_model(preset, len(CATEGORIES)).eval()
    weight, bias = (model.get_parameter(name).data for name in model.class_rows)
    with torch.no_grad():
        queries = model(ImageBatch.from_images([torch.zeros(3, 64, 64)])).queries[-1, 0]
    weight.zero_()[:4] = 30 * (queries[:4] - queries.mean(0))
    bias.copy_(-weight @ queries.mean(0))[-1] = -30.0
    return Predictor(model, preset, CATEGORIES, device="cpu")


@pytest.fixture
def images() -> list[np.ndarray]:
    return [make_image(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


@pytest.fixture
def asked(detector, monkeypatch) -> list[int]:
    """How many masks the model was asked for, batch by batch."""
    numbers: list[int] = []
    masks = detector.model.masks

    def counted(output, image, query):
        numbers.append(len(query))
        return masks(output, image, query)

    monkeypatch.setattr(detector.model, "masks", counted)
    return numbers


# ---------------------------------------------------------------------------------------------------------- detections


def test_detections_have_masks_of_the_images_own_size(detector, images):
    for given, found in zip(images, detector.predict(images, min_score=0), strict=True):
        assert found.masks is not None
        assert found.masks.shape == (len(found), *given.shape[:2])
        assert found.masks.dtype == torch.bool
        assert len(found) > 0
        assert 0 < found.masks.float().mean() < 1


def test_masks_are_computed_for_what_is_found_alone(detector, asked):
    everything = detector.predict(make_image(), min_score=0)
    least = float(everything.scores[2])
    some = detector.predict(make_image(), min_score=least)
    assert asked == [len(everything), 3]
    assert torch.equal(some.masks, everything.masks[:3])
    label = int(everything.labels[0])
    by_class = detector.predict(make_image(), min_score=1, class_min_scores={CATEGORIES.names[label]: 0})
    assert asked[-1] == len(by_class) == int((everything.labels == label).sum()) > 0
    none = detector.predict(make_image(), min_score=1)
    assert none.masks.shape == (0, 48, 64)


@pytest.mark.parametrize("panoptic", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_neighbours_in_a_batch_change_nothing(detector, images, batch_size, panoptic):
    alone = [detector.predict(each, min_score=0, panoptic=panoptic) for each in images]
    together = list(detector.predict(images, min_score=0, panoptic=panoptic, batch_size=batch_size))
    for one, several in zip(alone, together, strict=True):
        a, b = (each.segments if panoptic else each.masks for each in (one, several))
        assert (a != b).float().mean() < 1e-3  # pixels where two masks, or both answers, are equally good
        assert len(one) == len(several)


def test_masks_are_brought_to_their_size_one_image_at_a_time(detector, monkeypatch):
    """Large masks of a whole batch need not be held at once."""
    made = 0

    def counted(*given, **options):
        nonlocal made
        made += 1
        return instance_masks(*given, **options)

    monkeypatch.setattr("opendetr.postprocess.finishing.instance_masks", counted)
    for number, _ in enumerate(detector.predict([make_image()] * 8, min_score=0, batch_size=4), 1):
        assert made == number


def test_a_model_without_mask_head_gives_neither():
    preset = miniature("detr-tiny")
    plain = Predictor(build_model(preset, len(CATEGORIES)), preset, CATEGORIES, device="cpu")
    assert plain.predict(make_image(), min_score=0).masks is None
    with pytest.raises(ConfigError, match="has no mask head"):
        plain.predict(make_image(), panoptic=True)


def test_detections_with_masks_can_be_chosen_written_and_handed_on(detector):
    found = detector.predict(make_image(), min_score=0)
    first = found[found.scores >= found.scores[1]]
    assert torch.equal(first.masks, found.masks[:2])
    assert torch.equal(found[[2, 0]].masks, found.masks[[2, 0]])
    assert found[1].masks.shape == (1, 48, 64)
    for row, mask in zip(found.to_coco(5), found.masks, strict=True):
        assert row["segmentation"]["size"] == [48, 64]
        np.testing.assert_array_equal(run_length_coder.decode(row["segmentation"]), mask.numpy())
    json.dumps(found.to_coco(5))
    assert found.to_supervision().mask.shape == (len(found), 48, 64)
    assert len(found[:0].to_supervision()) == 0
    assert isinstance(found.plot(), Image.Image)
    assert isinstance(found[:0].plot(), Image.Image)
    with pytest.raises(ValueError, match=r"Detections.masks: expected \(12, 48, 64\), got \(12, 64, 48\)"):
        Detections(found.boxes, found.scores, found.labels, CATEGORIES, (48, 64), masks=torch.zeros(12, 64, 48))


# -------------------------------------------------------------------------------------------------------- panoptic maps


def test_a_panoptic_map_covers_the_image(detector, images):
    for given, found in zip(images, detector.predict(images, panoptic=True, min_score=0), strict=True):
        assert found.size == given.shape[:2]
        assert len(found) > 1
        np.testing.assert_array_equal(found.image, given)
        assert sorted(found.segments.unique().tolist()) == [segment.id for segment in found.info]
        stuff = [segment.label for segment in found.info if not segment.isthing]
        assert len(stuff) == len(set(stuff))


@pytest.mark.parametrize(("name", "of_maps"), [("detr-tiny-panoptic", 0.85), ("deformable-detr-tiny-panoptic", 0.4)])
def test_what_is_kept_when_no_threshold_is_given(name, of_maps, monkeypatch):
    """Four queries score just above and just below both thresholds; each has a quarter of the map for itself."""
    preset = miniature(name)
    detector = Predictor(build_model(preset, len(CATEGORIES)), preset, CATEGORIES, device="cpu")
    scores = torch.tensor([of_maps + 0.01, of_maps - 0.01, 0.51, 0.49] + [0.001] * 8)
    forward, masks = detector.model.forward, detector.model.masks

    def scored(images):
        output = forward(images)
        rest = ((1 - scores[:, None]) / 4).log()  # of the other classes and of "no object"
        logits = torch.cat((scores[:, None].log(), rest.expand(-1, output.final.logits.shape[-1] - 1)), 1)
        if isinstance(output.final.scoring, Sigmoid):
            logits = torch.cat((scores[:, None].logit(), torch.full((12, 3), -9.0)), 1)
        return replace(output, layers=(replace(output.final, logits=logits[None]),))

    def quarters(output, image, query):
        logits = torch.full_like(masks(output, image, query), -9.0)
        for mask, number in zip(logits, query.tolist(), strict=True):
            mask[4 * number : 4 * number + 4] = 9.0
        return logits

    monkeypatch.setattr(detector.model, "forward", scored)
    monkeypatch.setattr(detector.model, "masks", quarters)

    def above(least: float) -> list[float]:
        return pytest.approx(sorted((each for each in scores.tolist() if each > least), reverse=True), abs=1e-4)

    assert detector.predict(make_image()).scores.tolist() == above(0.5)
    segments = detector.predict(make_image(), panoptic=True).info
    assert sorted((segment.score for segment in segments), reverse=True) == above(of_maps)


@pytest.mark.parametrize("merge", ["default", "published"])
def test_queries_below_the_threshold_have_no_part_in_a_map(detector, asked, merge):
    scores = detector.predict(make_image(), min_score=0).scores
    everything = detector.predict(make_image(), panoptic=True, merge=merge, min_score=0)
    least = float(scores.median())
    some = detector.predict(make_image(), panoptic=True, merge=merge, min_score=least)
    assert asked == [len(scores), len(scores), int((scores > least).sum())]
    assert 0 < len(some) < len(everything)
    assert min(segment.score for segment in everything.info) < least < min(segment.score for segment in some.info)
    for found in (everything, some):
        assert sum(segment.area for segment in found.info) == 48 * 64
    none = detector.predict(make_image(), panoptic=True, merge=merge, min_score=float(scores.max()))
    assert (len(none), int(none.segments.max())) == (0, 0)


def test_the_rules_differ(detector):
    default, published = (
        detector.predict(make_image(), panoptic=True, merge=merge, min_score=0).segments
        for merge in ("default", "published")
    )
    assert not torch.equal(default, published)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory, detector) -> Path:
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    save_weights(path, detector.model, ModelCard(to_dict(detector.preset), CATEGORIES, {}))
    return path


def predict(weights: Path, out: Path, *options: Any, code: int = 0) -> Result:
    given = ["predict", *map(str, options), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, given)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_masks_as_run_lengths(weights, tmp_path):
    write_image(tmp_path / "in" / "x.png")
    predict(weights, tmp_path / "out", tmp_path / "in", "--min-score", 0)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {tuple(row["segmentation"]["size"]) for row in content["annotations"]} == {(48, 64)}
    with Image.open(tmp_path / "out" / "x.png") as drawn:
        assert np.abs(np.asarray(drawn.resize((64, 48))).astype(int) - make_image()).mean() > 3


def test_the_command_writes_cocos_panoptic_format(weights, tmp_path):
    for name in ("x.png", "a/y.png"):
        write_image(tmp_path / "in" / name)
    result = predict(weights, tmp_path / "out", tmp_path / "in", "--panoptic", "--min-score", 0, "--json")
    out = tmp_path / "out"
    content = json.loads((out / "panoptic.json").read_text())
    assert [row["file_name"] for row in content["annotations"]] == ["a/y.png", "x.png"]
    assert content["categories"][2] == {
        "id": 20, "name": "sky", "isthing": 0, "color": list(CATEGORIES.colours[2])
    }  # fmt: skip
    for row in content["annotations"]:
        red, green, blue = np.asarray(Image.open(out / "panoptic" / row["file_name"])).astype(int).transpose(2, 0, 1)
        ids, areas = np.unique(red + 256 * green + 65536 * blue, return_counts=True)
        wanted = {segment["id"]: segment["area"] for segment in row["segments_info"]}
        assert dict(zip(ids.tolist(), areas.tolist(), strict=True)) == wanted
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "panoptic.json", "panoptic/x.png", "panoptic/a/y.png", "x.png", "a/y.png"
    }  # fmt: skip
    answer = json.loads(result.stdout)
    assert answer["annotations"] == content["annotations"]
    assert answer["failed"] == []


def test_ids_above_a_byte_become_colours(tmp_path):
    from opendetr.inference.writers.images import _save_map

    ids = torch.tensor([[0, 255, 256], [70_000, 65_536, 1]], dtype=torch.int32)
    _save_map(tmp_path / "map.png", ids)
    red, green, blue = np.asarray(Image.open(tmp_path / "map.png")).astype(int).transpose(2, 0, 1)
    np.testing.assert_array_equal(red + 256 * green + 65536 * blue, ids)


def test_options_that_do_not_go_together(weights, tmp_path):
    write_image(tmp_path / "x.png")
    line = predict(weights, tmp_path / "out", tmp_path / "x.png", "--panoptic", "--csv", code=2).stderr
    assert "leave them out with --panoptic" in line.replace("\n", " ").replace("│", "").replace("  ", " ")


def test_a_rule_of_maps_wants_maps(weights, tmp_path):
    write_image(tmp_path / "x.png")
    line = predict(weights, tmp_path / "out", tmp_path / "x.png", "--merge", "published", code=2).stderr
    assert "give --panoptic, too" in " ".join(line.replace("│", "").split())


def test_a_rule_of_maps_wants_maps_in_python(detector, images):
    with pytest.raises(ConfigError, match="set panoptic=True, too"):
        detector.predict(images[0], merge="published")


def test_an_official_file_of_other_classes_says_so(tmp_path):
    preset = get_preset("detr-tiny-panoptic")
    export_official(build_model(preset, len(CATEGORIES)), preset, tmp_path / "official.pth")
    write_image(tmp_path / "x.png")
    words = ["--model", "detr-tiny-panoptic"]
    line = predict(tmp_path / "official.pth", tmp_path / "out", tmp_path / "x.png", *words, code=1).stderr
    assert f"has {len(CATEGORIES)} classes but no class names" in line and line.count("\n") == 1
    assert load(tmp_path / "official.pth", model="detr-tiny-panoptic", categories=CATEGORIES).has_masks
    with pytest.raises(WeightsError, match="has 4 classes but no class names, and 2 are named"):
        load(tmp_path / "official.pth", model="detr-tiny-panoptic", categories=Categories.from_names(("cat", "dog")))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--masks", "instances"), "--masks"),
        (("--masks", "auto"), "--masks"),
        (("--merge", "published"), "--merge"),
        (("--panoptic-score", "0.2", "--merge", "published"), "--merge and --panoptic-score"),
    ],
)
def test_eval_refuses_what_a_detector_without_mask_head_has_no_use_for(tmp_path, words, named):
    preset = miniature("detr-tiny")
    plain = tmp_path / "plain.safetensors"
    save_weights(plain, build_model(preset, len(CATEGORIES)), ModelCard(to_dict(preset), CATEGORIES, {}))
    result = CliRunner().invoke(app, ["eval", str(tmp_path), "--weights", str(plain), *words])
    assert result.exit_code == 1
    assert result.stderr.endswith(f"has no mask head, only boxes are evaluated: leave out {named}\n")
    assert result.stderr.count("\n") == 1


def test_a_detector_without_mask_head_is_one_line(tmp_path):
    write_image(tmp_path / "x.png")
    preset = miniature("detr-tiny")
    plain = tmp_path / "plain.safetensors"
    save_weights(plain, build_model(preset, len(CATEGORIES)), ModelCard(to_dict(preset), CATEGORIES, {}))
    line = predict(plain, tmp_path / "out", tmp_path / "x.png", "--panoptic", code=1).stderr
    assert line.startswith("error: the detector has no mask head")
    assert not (tmp_path / "out").exists()


def test_the_demo_shows_maps_of_a_model_with_masks(tmp_path, monkeypatch):
    from opendetr.synthetic import CATEGORIES as SCENES

    torch.manual_seed(0)
    preset, categories = miniature("detr-tiny-panoptic"), Categories.from_coco(SCENES)
    shipped = Predictor(build_model(preset, len(categories)), preset, categories, device="cpu")
    monkeypatch.setattr("opendetr.inference.load", lambda *_given, **_options: shipped)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--images", "2"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "index.html").read_text()
    assert "PQ by class" in page
    assert "panoptic quality of things" in page
    assert page.count("<figure>") == 4
    assert "PQ 0.0" in result.stdout


@pytest.mark.parametrize("predicts_stuff", [True, False])
def test_the_ground_truth_shows_stuff_where_the_prediction_does(tmp_path, predicts_stuff):
    from opendetr.data.formats import open_split
    from opendetr.synthetic import CATEGORIES as SCENES
    from opendetr.synthetic import write_scenes

    write_scenes(tmp_path, counts={"val": 1}, seed=0)
    data = open_split(tmp_path, "val", masks="auto")
    preset, categories = miniature("detr-tiny-panoptic"), Categories.from_coco(SCENES)
    known = categories if predicts_stuff else categories.only_things
    known = replace(known, colours=((255, 0, 255),) * len(known))
    drawer = Predictor(build_model(preset, len(categories)), preset, known, device="cpu")
    ((_, images),) = comparisons(drawer, data, data.images)
    titles = [title for title, _ in images]
    assert titles == ["ground truth", "prediction", "ground truth, panoptic map", "prediction, panoptic map"]
    for _, image in images:  # both have the colours of the dataset
        assert not (np.asarray(image) == (255, 0, 255)).all(-1).any()
    drawn = np.asarray(images[0][1]).astype(int)
    pixels = np.asarray(Image.fromarray(read_image(data.images[0].path)).resize(drawn.shape[1::-1], Image.BICUBIC))
    segments, info = panoptic_truth(data.images[0], data.categories)
    stuff = np.isin(segments, [segment.id for segment in info if not data.categories.isthing[segment.label]])
    at = np.asarray(Image.fromarray(stuff).resize(drawn.shape[1::-1], Image.NEAREST))
    changed = np.abs(drawn - pixels).max(-1)[at] > 0
    assert changed.mean() > 0.95 if predicts_stuff else changed.mean() < 0.3
