"""The score of boxes, masks and maps together, of a detector that says what is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from folders import write_image
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import to_dict
from opendetr.data import masks as data_masks
from opendetr.data.formats.recognise import open_split
from opendetr.data.images import write_map
from opendetr.data.loader import eval_loader
from opendetr.data.masks import panoptic_truth
from opendetr.data.records import DataError, DetectionData
from opendetr.evaluation import DetectionEvaluator, Evaluation
from opendetr.inference.predictor import Predictor
from opendetr.models import ImageSession, MaskedDetector
from opendetr.presets import Preset, build_model, miniature
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import ImageBatch, LazyMasks, Output, Predictions, Target
from opendetr.weights import ModelCard, save_weights

SIZES = ((64, 96), (96, 64), (64, 64), (40, 96))
RECORDS = (("cat", 3, 1), ("dog", 7, 1), ("sky", 20, 0), ("sea", 30, 0))
ROWS = [{"id": id_, "name": name, "isthing": isthing} for name, id_, isthing in RECORDS]
CATEGORIES = Categories.from_coco(ROWS)


def true_map(height: int, width: int) -> np.ndarray:
    """Sky (1) above the sea (2), and before them a cat (3) and a dog (4)."""
    segments = np.ones((height, width), dtype=np.int32)
    segments[height // 2 :] = 2
    segments[height // 4 : height * 3 // 4, width // 8 : width // 2] = 3
    segments[height // 8 : height // 2, width * 5 // 8 : width * 7 // 8] = 4
    return segments


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A panoptic dataset of four images of different shapes."""
    root = tmp_path_factory.mktemp("data")
    maps = root / "annotations" / "panoptic_val"
    maps.mkdir(parents=True)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES, 1):
        write_image(root / "val" / f"{number}.png", height, width, number)
        segments = true_map(height, width)
        Image.fromarray(np.stack((segments, 0 * segments, 0 * segments), -1).astype(np.uint8)).save(
            maps / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        info = [_segment(segments, id_, category) for id_, category in ((1, 20), (2, 30), (3, 3), (4, 7))]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": info})
    content = {"images": images, "annotations": annotations, "categories": ROWS}
    (root / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    return root


def _segment(segments: np.ndarray, id_: int, category: int) -> dict:
    rows, columns = np.nonzero(segments == id_)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
    return {"id": id_, "category_id": category, "bbox": box, "area": len(rows), "iscrowd": 0}


class Oracle(MaskedDetector):
    """Says of each image what the data says; labels are moved on by `shift`."""

    def __init__(self, data: DetectionData, shift: int = 0) -> None:
        nn.Module.__init__(self)
        self.scoring = SoftmaxNoObject()
        self.truths = {image.id: panoptic_truth(image, CATEGORIES) for image in data.images}
        self.shift = shift
        self.targets: Sequence[Target] = ()
        self.padded = (0, 0)

    def forward(self, images: ImageBatch) -> Output:
        self.padded = tuple(images.pixels.shape[-2:])
        logits = torch.full((len(images), 5, 5), -9.0)
        logits[:, 4, 4] = 9.0  # one query finds nothing
        for index, target in enumerate(self.targets):
            logits[index, torch.arange(4), (target.labels + self.shift) % 4] = 9.0
        boxes = torch.stack([F.pad(target.boxes, (0, 0, 0, 1), value=0.5) for target in self.targets])
        output = Output((Predictions(logits, boxes, self.scoring),), torch.zeros(1, 1, 1, 1), (), ())
        return replace(output, masks=LazyMasks(partial(self.masks, output), images.shape))

    def masks(self, output: Output, image: Tensor, query: Tensor) -> Tensor:
        logits = []
        for index, number in zip(image.tolist(), query.tolist(), strict=True):
            target = self.targets[index]
            segments, info = self.truths[target.image_id]
            mask = torch.zeros(self.padded)
            if number < len(info):
                true = torch.from_numpy(segments == info[number].id).float()[None, None]
                mask[: target.size[0], : target.size[1]] = F.interpolate(true, target.size)[0, 0]
            logits.append(F.avg_pool2d(mask[None], 4)[0] * 20 - 10)
        return torch.stack(logits) if logits else torch.zeros(0, self.padded[0] // 4, self.padded[1] // 4)


def score(
    data: DetectionData,
    oracle: Oracle,
    categories: Categories = CATEGORIES,
    padded: tuple[int, int] | None = None,
    **options,
) -> Evaluation:
    evaluator = DetectionEvaluator(categories, data, has_masks=True, **options)
    session = ImageSession(oracle)
    sizes = {"image_size": 96, "max_size": 160, "side_multiple": 1}
    config = replace(miniature("detr-tiny-panoptic").data, **sizes, num_workers=0)
    loader = eval_loader(data, config, batch_size=4)
    for batch in loader:
        oracle.targets = batch.targets
        images = batch.images.pad_to(*padded) if padded else batch.images
        evaluator.update(batch, evaluator.results(session.step(images), images, batch))
    evaluator.leave_out(loader.unreadable)
    evaluator.gather()
    return evaluator.evaluation(unreadable=loader.unreadable.values())


@pytest.fixture
def data(folder) -> DetectionData:
    return open_split(folder, "val", masks="panoptic")


def test_what_is_there_scores_high_and_what_is_not_scores_nothing(data):
    right = score(data, Oracle(data))
    assert right.metrics["AP"] == pytest.approx(1.0)
    assert right.metrics["mask_AP"] > 0.7
    assert right.metrics["PQ"] > 0.9
    assert right.metrics["PQ_things"] > 0.85
    assert set(right.per_class) == set(right.mask_per_class) == {"cat", "dog"}  # stuff has neither
    assert right.panoptic_per_class["sea"]["PQ"] > 0.9
    wrong = score(data, Oracle(data, shift=2))
    assert (wrong.metrics["AP"], wrong.metrics["mask_AP"], wrong.metrics["PQ"]) == (0, 0, 0)


def test_padding_spoils_the_published_rule_alone(data):
    """The rule of the original depends on the padding; ours does not. Evaluation itself never pads."""
    default, published = (
        score(data, Oracle(data), padded=(144, 160), merge=merge).metrics for merge in ("default", "published")
    )
    assert default["PQ"] > 0.9
    assert published["PQ"] < 0.75
    assert published["mask_AP"] != default["mask_AP"]  # instances follow the rule, too


def test_the_threshold_of_maps_is_theirs_alone(data):
    metrics = score(data, Oracle(data), panoptic_score=1.0).metrics
    assert metrics["PQ"] == 0
    assert metrics["AP"] == pytest.approx(1.0)


def test_results_have_boxes_and_masks(data):
    rows = score(data, Oracle(data)).results
    assert {row["category_id"] for row in rows} == {3, 7}
    assert all(row["segmentation"]["size"] == list(SIZES[row["image_id"] - 1]) for row in rows)


def test_classes_are_paired_by_name(data):
    """The detector counts its classes in another order, and knows one more."""
    theirs = Categories(("sea", "cow", "cat", "dog", "sky"), (1, 2, 3, 4, 5), isthing=(False, True, True, True, False))
    names = dict(enumerate(CATEGORIES.names))

    class Reordered(Oracle):
        def forward(self, images: ImageBatch) -> Output:
            output = super().forward(images)
            logits = torch.full((len(images), 5, 6), -9.0)
            for label, name in names.items():
                logits[..., theirs.names.index(name)] = output.final.logits[..., label]
            logits[..., -1] = output.final.logits[..., -1]
            return replace(output, layers=(replace(output.final, logits=logits),))

    assert score(data, Reordered(data), theirs).metrics["PQ"] > 0.9
    pigs = Categories(("sea", "cow", "cat", "pig", "sky"), (1, 2, 3, 4, 5), isthing=(False, True, True, True, False))
    without_dogs = score(data, Reordered(data), pigs).panoptic_per_class
    assert without_dogs["dog"]["PQ"] == 0  # what is found in its place is called a pig, which the data does not know
    assert without_dogs["cat"]["PQ"] > 0.8
    with pytest.raises(DataError, match="no class in common"):
        score(data, Oracle(data), Categories.from_names(("a", "b")))


def test_an_image_that_cannot_be_read_is_one_with_nothing_found(data, tmp_path):
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"no image")
    first, *others = data.images
    broken = replace(data, images=(replace(first, path=gone), *others))
    scores = score(broken, Oracle(broken))
    assert len(scores.unreadable) == 1
    assert scores.panoptic_per_class["sea"]["RQ"] == pytest.approx(3 / 3.5)


def test_a_predictor_leaves_out_images_that_cannot_be_read(data, tmp_path, monkeypatch):
    """They count as ones in which nothing was found, in boxes, masks and maps; the oracle is told what it looks at."""
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"no image")
    first, *others = data.images
    broken = replace(data, images=(replace(first, path=gone), *others))
    oracle = Oracle(broken)

    def told(preset, batch):
        oracle.targets = batch.targets

    monkeypatch.setattr(Preset, "prompt", told)
    preset = miniature("detr-tiny-panoptic")
    preset = replace(preset, data=replace(preset.data, image_size=96, max_size=160, side_multiple=1))
    predictor = Predictor(oracle, preset, CATEGORIES, device="cpu")
    whole, scores = predictor.evaluate(data), predictor.evaluate(broken)
    assert [score.panoptic_per_class["sea"]["RQ"] for score in (whole, scores)] == pytest.approx([1, 3 / 3.5])
    assert [score.metrics["AR100"] for score in (whole, scores)] == pytest.approx([1, 3 / 4])
    assert whole.metrics["mask_AR100"] > scores.metrics["mask_AR100"] > 0
    (line,) = scores.unreadable
    assert "gone.png" in line and whole.unreadable == ()


@pytest.fixture
def maps_read(monkeypatch) -> list[Path]:
    """The files of the maps that are read, each as often as it is."""
    files: list[Path] = []
    read = data_masks.read_map

    def counted(path):
        files.append(path)
        return read(path)

    monkeypatch.setattr(data_masks, "read_map", counted)
    return files


def test_every_map_is_read_once_when_its_image_is_scored(data, tmp_path, maps_read):
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"no image")
    broken = replace(data, images=(replace(data.images[0], path=gone), *data.images[1:]))
    oracle = Oracle(broken)
    maps_read.clear()
    evaluator = DetectionEvaluator(CATEGORIES, broken, has_masks=True)
    assert maps_read == []
    evaluator.gather()
    assert evaluator.compute()["mask_AP"] == 0  # nothing was found in images that nobody has scored
    assert len(maps_read) == len(data)
    maps_read.clear()
    assert 0 < score(broken, oracle).metrics["mask_AP"] < score(data, oracle).metrics["mask_AP"]
    assert sorted(maps_read) == sorted([image.panoptic_map for image in data.images] * 2)


def test_a_map_that_does_not_fit_its_annotation_is_one_line(data, tmp_path):
    drawn = tmp_path / "other.png"
    write_map(drawn, np.where(true_map(*SIZES[0]) == 3, 2, true_map(*SIZES[0])))
    oracle = Oracle(data)
    with pytest.raises(DataError, match=r"other.png, segment 3: 1 segment without pixels in the panoptic map; the"):
        score(replace(data, images=(replace(data.images[0], panoptic_map=drawn), *data.images[1:])), oracle)


def test_masks_are_scored_where_both_have_them(folder, data):
    boxes = score(open_split(folder, "val"), Oracle(data))
    assert not [name for name in boxes.metrics if name.startswith(("mask", "PQ"))]
    assert boxes.mask_per_class == boxes.panoptic_per_class == {}
    assert boxes.metrics["AP"] == pytest.approx(1.0)


def test_the_command_prints_all_scores(folder, tmp_path):
    torch.manual_seed(0)
    preset = miniature("detr-tiny-panoptic")
    path = tmp_path / "detector.safetensors"
    save_weights(path, build_model(preset, len(CATEGORIES)), ModelCard(to_dict(preset), CATEGORIES, {}))

    def run(*options: str, code: int = 0) -> str:
        given = ["eval", str(folder), "--weights", str(path), "--device", "cpu", *options]
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.stderr if code else result.stdout

    table = run("--merge", "published", "--panoptic-score", "0.1")
    for word in (
        "mask_AP50 ",
        "PQ_stuff ",
        "panoptic quality of stuff",
        "class        objects  AP     mask AP  PQ     SQ     RQ",
    ):
        assert word in table
    answer = json.loads(run("--json", "--layers"))
    assert {"AP", "mask_AP", "PQ"} <= set(answer["metrics"])
    assert set(answer["panoptic_per_class"]["sea"]) == {"PQ", "SQ", "RQ"}
    assert "mask_AP" not in run("--masks", "none")
    assert "read without masks, only boxes are evaluated" in run("--masks", "none", "--merge", "published", code=1)
    assert "read without panoptic maps" in run("--masks", "none", "--panoptic-score", "0.2", code=1)
