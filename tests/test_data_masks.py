"""Masks in data: read from outlines and panoptic maps, taken through the augmentation, given as they are annotated."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coder
from PIL import Image

from folders import coco_content, make_image, one_line, write_coco_folder
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.categories import Categories
from opendetr.data.augmentation import training_transform
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.faults import FaultKind
from opendetr.data.formats.recognise import Format, open_data, open_split, recognise
from opendetr.data.images import ImageError, read_map, read_record, write_map
from opendetr.data.loader import eval_loader, train_loader
from opendetr.data.masks import coco_truth, panoptic_truth, read_masks, require_scorable, thing_outlines
from opendetr.data.records import DataError, ImageRecord, ObjectRecord
from opendetr.data.resizing import resize_masks
from opendetr.data.tools.convert import convert
from opendetr.data.transforms import Crop, Flip, LabelledImage, Resize
from opendetr.synthetic import SceneConfig, mask_to_polygons, mask_to_rle, write_scenes

COCO128 = Path(os.environ.get("OPENDETR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "coco128"
CONFIG = DataConfig(image_size=64, max_size=107, num_workers=0, masks="auto")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks") / "scenes"
    write_scenes(folder, counts={"train": 8, "val": 4}, seed=3, config=replace(SceneConfig(), size=96))
    return folder


@pytest.fixture
def own_scenes(scenes, tmp_path):
    """A copy to break."""
    import shutil

    return shutil.copytree(scenes, tmp_path / "scenes")


def edited(folder: Path, change: Any, name: str = "panoptic_train.json") -> None:
    path = folder / "annotations" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def blob(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A mask of several parts, one with a hole."""
    noise = np.random.default_rng(seed).normal(size=(height // 8, width // 8))
    mask = np.array(Image.fromarray(noise.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)) > 0.2
    mask[4:30, 10:40] = True
    mask[10:20, 15:30] = False
    return mask


def outlines(mask: np.ndarray) -> dict[str, Any]:
    """The mask in all of COCO's spellings."""
    (rle,) = coder.encode(np.asfortranarray(mask[..., None].astype(np.uint8)))
    return {
        "polygons": mask_to_polygons(mask),
        "RLE": mask_to_rle(mask),
        "compressed": {"size": list(mask.shape), "counts": rle["counts"].decode()},
    }


def coco_with(segmentation: Any, folder: Path) -> Path:
    """A COCO folder of 64x48 images; all objects of the training images have this outline."""
    content = coco_content(4)
    for row in content["annotations"]:
        row["segmentation"] = segmentation
    return write_coco_folder(folder, {"train": content, "val": content})


# ------------------------------------------------------------------------------------------------------------ outlines


@pytest.mark.parametrize("spelling", ["polygons", "RLE", "compressed"])
def test_every_spelling_of_an_outline_is_the_same_mask(tmp_path, spelling):
    mask = blob()
    data = open_data(coco_with(outlines(mask)[spelling], tmp_path), masks="instances")["train"]
    assert data.masks == "instances" and data.num_objects == 8
    masks = read_masks(data.images[0], data.images[0].objects)
    assert masks.shape == (2, 48, 64) and masks.dtype == bool
    assert (masks == mask).all()


def test_yolo_polygons_are_masks(scenes, tmp_path):
    convert(scenes, tmp_path / "yolo", Format.YOLO)
    (tmp_path / "yolo" / "opendetr.json").unlink()  # which has the outlines that are no single polygon
    coco, yolo = open_data(scenes, masks="instances")["train"], open_data(tmp_path / "yolo", masks="instances")["train"]
    assert yolo.masks == "instances"
    for ours, theirs in zip(yolo.images, coco.images, strict=True):
        outlined = [thing for thing in theirs.objects if not thing.crowd]
        assert len(ours.objects) <= len(outlined)
        known = {thing.box: mask for thing, mask in zip(outlined, read_masks(theirs, outlined), strict=True)}
        for thing, mask in zip(ours.objects, read_masks(ours, ours.objects), strict=True):
            assert (mask == known[thing.box]).all()


@pytest.mark.parametrize(
    ("outline", "kind"),
    [
        ([[1, 1, 5, 5]], FaultKind.INVALID_OUTLINE),
        ([[1, 1, 9, 1, 9, 9], [1, 1, 5, 5]], FaultKind.INVALID_OUTLINE),
        ([[1, 1, 9, 1, 9, 9, 3]], FaultKind.INVALID_OUTLINE),
        ([[1, 1, 9, 1, 9, float("nan")]], FaultKind.INVALID_OUTLINE),
        ([[1, 1, 9, 1, 9, "9"]], FaultKind.INVALID_OUTLINE),
        ([[1, 1, 9, True, 9, 9]], FaultKind.INVALID_OUTLINE),
        ([1, 1, 9, 1, 9], FaultKind.INVALID_OUTLINE),
        ("1 1 9 1 9 9", FaultKind.INVALID_OUTLINE),
        ({"size": [64, 48], "counts": [0, 48 * 64]}, FaultKind.MASK_SIZE),
        ({"counts": [0, 48 * 64]}, FaultKind.MASK_SIZE),
        ({"size": [48, 64], "counts": [0, 48 * 63]}, FaultKind.INVALID_OUTLINE),
        ({"size": [48, 64], "counts": [-1, 48 * 64 + 1]}, FaultKind.INVALID_OUTLINE),
        ({"size": [48, 64], "counts": "not an RLE"}, FaultKind.INVALID_OUTLINE),
        ({"size": [48, 64], "counts": "\u00e4"}, FaultKind.INVALID_OUTLINE),
        ({"size": [48, 64]}, FaultKind.INVALID_OUTLINE),
        (None, FaultKind.NO_OUTLINE),
    ],
    ids=str,
)
def test_training_counts_and_skips_an_object_with_a_bad_outline(tmp_path, outline, kind):
    folder = coco_with([[4, 4, 20, 4, 20, 20]], tmp_path)
    edited(folder, lambda content: content["annotations"][2].update(segmentation=outline), "instances_train.json")
    data = open_data(folder, masks="auto")
    assert data["train"].num_objects == 7
    (entry,) = data["train"].fault_counts
    assert (entry.kind, entry.count) == (kind, 1)
    assert entry.first.endswith("1.png, annotation 20")
    assert "skipped by training with masks" in data["train"].summary()
    with pytest.raises(DataError, match=r"1\.png, annotation 20: 1 .*the metrics would be wrong"):
        coco_truth(data["train"])
    assert open_data(folder)["train"].num_objects == 8  # boxes alone
    assert coco_truth(data["val"])["annotations"][0]["segmentation"]


def test_boxes_alone_are_refused_in_one_line(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content(), "val": coco_content()})
    for masks in ("instances", "auto"):
        with pytest.raises(DataError, match="boxes but no outlines of objects; use a model without") as error:
            open_data(tmp_path, masks=masks)
        one_line(error.value)
    with pytest.raises(DataError, match="contains no panoptic annotations"):
        open_data(tmp_path, masks="panoptic")
    data = open_data(tmp_path)["train"]
    with pytest.raises(DataError, match="was read without masks"):
        train_loader(data, CONFIG, batch_size=2, seed=0)
    with pytest.raises(DataError, match="annotation 10: 1 object without an outline; open the data with masks"):
        read_masks(data.images[0], data.images[0].objects)


# ------------------------------------------------------------------------------------------------------- panoptic maps


def test_what_is_read_depends_on_what_is_asked_for(scenes):
    boxes, instances, panoptic = (open_data(scenes, masks=masks) for masks in ("none", "instances", "auto"))
    assert boxes["train"].images == instances["train"].images
    assert all(boxes["train"].categories.isthing) and all(image.panoptic_map is None for image in boxes["train"].images)
    assert [data["val"].masks for data in (boxes, instances, panoptic)] == ["none", "instances", "panoptic"]
    assert set(panoptic["train"].categories.isthing) == {True, False}
    assert open_data(scenes, masks="panoptic")["val"] == panoptic["val"] == open_split(scenes, "val", masks="auto")


def test_a_panoptic_split_is_its_maps(scenes):
    data = open_data(scenes, masks="panoptic")["train"]
    content = json.loads((scenes / "annotations" / "panoptic_train.json").read_text())
    for image, row in zip(data.images, content["annotations"], strict=True):
        pixels = np.array(Image.open(scenes / "annotations" / "panoptic_train" / row["file_name"])).astype(int)
        expected = pixels @ (1, 256, 65536)
        assert (read_map(image.panoptic_map) == expected).all()
        masks = read_masks(image, image.objects)
        assert [thing.segment for thing in image.objects] == [each["id"] for each in row["segments_info"]]
        for thing, mask in zip(image.objects, masks, strict=True):
            assert (mask == (expected == thing.segment)).all()
            y, x = np.nonzero(mask)
            corners = (x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min())
            assert thing.box == corners and thing.area == mask.sum()  # the last pixel is in the box
    assert any(thing.crowd for image in data.images for thing in image.objects) or data.num_objects > 8


def test_things_are_the_same_in_maps_and_outlines(scenes):
    maps, polygons = open_data(scenes, masks="panoptic")["val"], open_data(scenes, masks="instances")["val"]
    for of_map, of_outlines in zip(maps.images, polygons.images, strict=True):
        things = of_outlines.objects
        of_same_box = [next(each for each in of_map.objects if each.box == thing.box) for thing in things]
        assert (read_masks(of_map, of_same_box) == read_masks(of_outlines, things)).all()


def test_a_folder_with_maps_alone_is_boxes_of_things_and_stuff(own_scenes):
    for path in (own_scenes / "annotations").glob("instances_*.json"):
        path.unlink()
    data = open_data(own_scenes)
    assert recognise(own_scenes).format is Format.COCO
    assert data["train"].masks == "none" and not all(data["train"].categories.isthing)
    assert data["train"].num_objects == open_data(own_scenes, masks="auto")["train"].num_objects
    with pytest.raises(DataError, match="has panoptic maps and no outlines; set data"):
        open_data(own_scenes, masks="instances")


def test_boxes_and_areas_that_are_not_annotated_are_those_of_the_map(own_scenes):
    expected = [image.objects for image in open_data(own_scenes, masks="auto")["train"].images]

    def strip(content):
        for row in content["annotations"]:
            for segment in row["segments_info"]:
                del segment["bbox"], segment["area"]

    edited(own_scenes, strip)
    assert [image.objects for image in open_data(own_scenes, masks="auto")["train"].images] == expected


def test_the_layout_of_a_description(own_scenes, tmp_path):
    """Images beside the dataset, as a description says."""
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        (own_scenes / split).rename(tmp_path / "images" / split)
    parts = (
        f"{split}:\n  images: ../images/{split}\n  masks: annotations/panoptic_{split}\n"
        f"  annotations: annotations/panoptic_{split}.json\n"
        for split in ("train", "val")
    )
    description = own_scenes / "config.yaml"
    description.write_text("".join(parts))
    for source in (own_scenes, description):
        for masks in ("none", "auto"):
            data = open_data(source, masks=masks)
            assert {name: len(part) for name, part in data.items()} == {"train": 8, "val": 4}
            assert read_record(data["train"].images[0]).shape == (96, 96, 3)
    description.write_text(description.read_text().replace("../images/val", "../images/night"))
    with pytest.raises(DataError, match=r"config.yaml, 'val.images': there is no '../images/night'"):
        open_data(own_scenes)


def test_the_true_map_with_its_segments(scenes):
    data = open_data(scenes, masks="auto")["val"]
    for image in data.images:
        segments, info = panoptic_truth(image, data.categories)
        assert segments.shape == (96, 96) and segments.dtype == np.int32
        assert [each.area for each in info] == [(segments == each.id).sum() for each in info]
        labels = [data.categories.label_of_id(thing.category_id) for thing in image.objects]
        assert [each.label for each in info] == labels
        assert [each.crowd for each in info] == [thing.crowd for thing in image.objects]


def test_the_coco_truth_of_maps_is_run_lengths_of_things(scenes):
    data = open_data(scenes, masks="auto")["val"]
    truth = coco_truth(data)
    assert len(truth["categories"]) == sum(data.categories.isthing)
    rows = iter(truth["annotations"])
    for image in data.images:
        things = [thing for thing in image.objects if data.categories.isthing[_label(data, thing)]]
        outlines = thing_outlines(image, data.categories, panoptic_truth(image, data.categories)[0])
        for thing, outline, mask in zip(things, outlines, read_masks(image, things), strict=True):
            row = next(rows)
            assert (row["image_id"], row["bbox"]) == (image.id, list(thing.box)) and "segmentation" not in row
            assert outline == coder.encode(np.asfortranarray(mask.view(np.uint8)))
    assert next(rows, None) is None


def test_things_at_the_corners_of_a_map_have_run_lengths():
    segments = np.array([[1, 0, 2], [1, 2, 2], [3, 0, 4]], dtype=np.int32)
    things = tuple(ObjectRecord(id=n, category_id=1, box=(0, 0, 1, 1), area=1, segment=n) for n in (4, 1, 2, 3))
    image = ImageRecord(id=1, path=Path("a.png"), height=3, width=3, objects=things)
    outlines = thing_outlines(image, Categories(("cat",), (1,)), segments)
    for thing, outline in zip(things, outlines, strict=True):
        mask = segments == thing.segment
        assert outline == coder.encode(np.asfortranarray(mask.view(np.uint8)))
        assert (coder.decode(outline) == mask).all()


def _label(data, thing):
    return data.categories.label_of_id(thing.category_id)


def test_maps_are_written_as_they_are_read(tmp_path):
    segments = np.random.default_rng(0).integers(0, 2**24, (5, 7)).astype(np.int32)
    write_map(tmp_path / "map.png", segments)
    assert (read_map(tmp_path / "map.png") == segments).all()
    Image.fromarray(segments.astype(np.uint8)).save(tmp_path / "grey.png")
    assert (read_map(tmp_path / "grey.png") == segments.astype(np.uint8)).all()
    Image.fromarray(np.zeros((4, 4, 2), dtype=np.uint8)).save(tmp_path / "two.png")
    for name, content in (
        ("two.png", None),
        ("cut.png", (tmp_path / "map.png").read_bytes()[:-30]),
        ("empty.png", b""),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError) as error:
            read_map(tmp_path / name)
        assert error.value.fault.kind is FaultKind.UNREADABLE_MAP
        assert name in one_line(error.value)


# ------------------------------------------------------------------------------------------------------------- writing


def test_panoptic_data_are_written_as_they_are_read(own_scenes, tmp_path):
    for path in (own_scenes / "annotations").glob("instances_*.json"):
        path.unlink()
    assert convert(own_scenes, tmp_path / "copy", Format.COCO) == ()
    before, after = open_data(own_scenes, masks="auto"), open_data(tmp_path / "copy", masks="auto")
    for split in ("train", "val"):
        assert after[split].categories == before[split].categories
        for ours, theirs in zip(after[split].images, before[split].images, strict=True):
            assert (ours.id, ours.objects) == (theirs.id, theirs.objects)
            assert (read_map(ours.panoptic_map) == read_map(theirs.panoptic_map)).all()


def test_it_is_said_which_masks_a_format_has_no_place_for(own_scenes, tmp_path):
    assert "panoptic maps of the dataset were not written" in convert(own_scenes, tmp_path / "coco", Format.COCO)
    outlined = open_data(tmp_path / "coco", masks="instances")["train"]
    assert outlined.images[0].objects == open_data(own_scenes)["train"].images[0].objects
    for path in (own_scenes / "annotations").glob("instances_*.json"):
        path.unlink()
    for to in (Format.YOLO, Format.VOC):
        notes = convert(own_scenes, tmp_path / to, to)
        assert "12 panoptic maps not written: the format does not support panoptic maps" in notes
        assert open_data(tmp_path / to)["train"].num_objects == open_data(own_scenes)["train"].num_objects


# -------------------------------------------------------------------------------------------------------- bad maps


def _gone(folder: Path, content: dict[str, Any]) -> None:
    (folder / "annotations" / "panoptic_train" / content["annotations"][1]["file_name"]).unlink()


def _listed_twice(folder: Path, content: dict[str, Any]) -> None:
    content["annotations"][1]["segments_info"].append(dict(content["annotations"][1]["segments_info"][0]))


def _no_such_segment(folder: Path, content: dict[str, Any]) -> None:
    content["annotations"][1]["segments_info"][0]["id"] = 999_999


def _unlisted(folder: Path, content: dict[str, Any]) -> None:
    del content["annotations"][1]["segments_info"][0]


def _other_size(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "annotations" / "panoptic_train" / content["annotations"][1]["file_name"]
    write_map(path, read_map(path)[:-1])


def _broken(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "annotations" / "panoptic_train" / content["annotations"][1]["file_name"]
    path.write_bytes(path.read_bytes()[:200])


def _all_void(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "annotations" / "panoptic_train" / content["annotations"][1]["file_name"]
    write_map(path, np.zeros_like(read_map(path)))


@pytest.mark.parametrize(
    ("fault", "lost_images", "lost_objects", "message"),
    [
        (_gone, 1, 0, "panoptic_train/000001.png: 1 panoptic map that cannot be read: no such file"),
        (_listed_twice, 0, 0, r"panoptic_train.json, annotations\[1\].segments_info\[\d+\]: 1 segment with the number"),
        (_no_such_segment, 0, 1, "panoptic_train/000001.png, segment .*: 1 segment in the panoptic map"),
        (_unlisted, 0, 1, "panoptic_train/000001.png, segment .*: 1 segment in the panoptic map without an annotation"),
        (_other_size, 1, 0, "panoptic_train/000001.png: the map is 96x95, the image 96x96; resize the map"),
        (_broken, 1, 0, "panoptic_train/000001.png: the image cannot be read"),
        (_all_void, 0, None, "panoptic_train/000001.png, segment .*: 1 segment without pixels in the panoptic map"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_goes_on_without_and_scoring_refuses(
    own_scenes, fault, lost_images, lost_objects, message, num_workers
):
    whole = open_data(own_scenes, masks="auto")["train"]
    edited(own_scenes, lambda content: fault(own_scenes, content))
    data = open_data(own_scenes, masks="auto")["train"]
    plain = AugmentationConfig(flip=False, multi_scale=False, crop=False)
    config = replace(CONFIG, augmentation=plain, num_workers=num_workers)
    batches = list(train_loader(data, config, batch_size=1, seed=0).epoch(0))
    counts = {target.image_id: len(target) for batch in batches for target in batch.targets}
    trained = {image.id: sum(not thing.crowd for thing in image.objects) for image in whole.images}
    second = whole.images[1].id
    if lost_images:
        assert second not in counts
    else:
        assert counts[second] == (0 if lost_objects is None else trained[second] - lost_objects)
    others = {id_: count for id_, count in counts.items() if id_ != second}
    assert others == {id_: count for id_, count in trained.items() if id_ != second}
    with pytest.raises(DataError, match=message) as error:
        coco_truth(data)
        for image in data.images:
            panoptic_truth(image, data.categories)
    one_line(error.value)
    with pytest.raises(DataError, match=message):
        require_scorable(data)
    require_scorable(open_data(own_scenes, masks="auto")["val"])


def test_objects_without_a_pixel_are_named_once(own_scenes, caplog):
    edited(own_scenes, lambda content: _no_such_segment(own_scenes, content))
    loader = train_loader(open_data(own_scenes, masks="auto")["train"], CONFIG, batch_size=4, seed=0)
    for epoch in range(2):
        list(loader.epoch(epoch))
    ((image_id, message),) = loader.empty_masks.items()
    assert image_id == 1 and message.startswith("1 segment without pixels in the panoptic map (first: ")
    assert message.endswith("000001.png, segment 999999)")
    assert [record.message for record in caplog.records] == [f"skipped: {message}"]


def test_maps_that_are_nowhere_are_told_in_one_line(own_scenes):
    (own_scenes / "annotations" / "panoptic_train").rename(own_scenes / "elsewhere")
    with pytest.raises(DataError, match=r"its maps \(000000.png, ...\) are missing; put them into .*panoptic_train$"):
        open_data(own_scenes, masks="auto")
    assert open_data(own_scenes)["train"].num_objects


# -------------------------------------------------------------------------------------------------------- augmentation


def labelled(masks: np.ndarray, seed: int = 0) -> LabelledImage:
    """An image that shows its masks: the bits of its red are them."""
    pixels = make_image(*masks.shape[1:], seed)
    pixels[..., 0] = sum(mask.astype(np.uint8) << bit for bit, mask in enumerate(masks))
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    boxes = np.array(boxes, dtype=np.float64)
    labels = np.arange(len(masks))
    return LabelledImage(pixels, boxes, labels, 1, masks.shape[1:]).with_masks(masks)


def shown(image: LabelledImage) -> np.ndarray:
    """The masks that the image shows, of all labels."""
    return (image.pixels[..., 0] >> np.arange(8)[:, None, None] & 1).astype(bool)


def blobs() -> np.ndarray:
    small = np.zeros((48, 64), dtype=bool)
    small[2:5, 55:60] = True
    return np.stack([blob(seed=1), blob(seed=2)[::-1], small])


@pytest.mark.parametrize("step", [Flip(), Flip(vertical=True), Crop(5, 12, 30, 41)], ids=str)
def test_masks_stay_with_their_pixels(step):
    after = step.apply(labelled(blobs()))
    assert after.masks is not None and len(after.labels) == (2 if isinstance(step, Crop) else 3)
    assert (after.masks == shown(after)[after.labels]).all()
    for box, mask in zip(after.boxes, after.masks, strict=True):
        y, x = np.nonzero(mask)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_a_crop_keeps_what_is_seen_of_an_object():
    """Of an object like an L the corner of its box may be in the crop, and nothing of itself."""
    mask = np.zeros((1, 48, 64), dtype=bool)
    mask[0, :, :5] = mask[0, -5:] = True
    assert len(Crop(0, 20, 30, 40).apply(labelled(mask)).labels) == 0
    partly = Crop(0, 20, 46, 40).apply(labelled(mask))
    assert partly.boxes.tolist() == [[0, 43, 40, 46]]
    assert len(Crop(0, 20, 30, 40).apply(replace(labelled(mask), masks=None)).labels) == 1


@pytest.mark.parametrize("shape", [(96, 128), (24, 32), (31, 77), (48, 64), (1, 1)])
def test_resized_masks_take_the_nearest_centres(shape):
    masks = blobs()
    resized = resize_masks(masks, *shape)
    expected = torch.nn.functional.interpolate(torch.from_numpy(masks)[None].float(), shape, mode="nearest-exact")
    assert (resized == expected[0].bool().numpy()).all()
    after = Resize(*shape).apply(labelled(masks))
    assert after.masks is not None and after.masks.shape == (3, *shape)


def test_the_augmentation_moves_masks_and_boxes_alike():
    transform = training_transform(replace(CONFIG, image_size=96, max_size=160))
    seen = 0
    for seed in range(60):
        sample = transform(labelled(blobs()), np.random.default_rng(seed))
        pixels, target = sample.pixels, sample.target
        assert target.masks is not None and target.masks.shape == (len(target), *target.size)
        assert target.masks.dtype == torch.bool and pixels.shape[1:] == target.size
        corners = cxcywh_to_xyxy(target.boxes) * torch.tensor([target.size[1], target.size[0]] * 2)
        for box, mask in zip(corners, target.masks, strict=True):
            y, x = torch.nonzero(mask, as_tuple=True)
            around = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert (box - around).abs().max() < 4.1  # pixels as large as those before a resize
            seen += 1
    assert seen > 120


def test_what_puts_boxes_together_is_refused_with_masks():
    for augment in ("mosaic", "copy-paste", "strong"):
        with pytest.raises(ValueError, match="does not support masks; with masks give detr or colour") as error:
            replace(CONFIG, augment=augment)
        one_line(error.value)
    with pytest.raises(ValueError, match=r"data\.masks: expected one of none, auto, instances, panoptic, got 'all'"):
        replace(CONFIG, masks="all")


def test_colours_leave_masks_alone():
    transform = training_transform(replace(CONFIG, augment="colour", augmentation=AugmentationConfig(
        flip=False, multi_scale=False, crop=False), image_size=48, max_size=80))  # fmt: skip
    target = transform(labelled(blobs()), np.random.default_rng(0)).target
    assert (target.masks.numpy() == blobs()).all()


# ------------------------------------------------------------------------------------------------------------- batches


def batches_of(folder: Path, masks: str, num_workers: int = 0) -> list[Any]:
    data = open_data(folder, masks=masks)["train"]
    config = replace(CONFIG, masks=masks, num_workers=num_workers)
    return [batch for epoch in (0, 1) for batch in train_loader(data, config, batch_size=3, seed=5).epoch(epoch)]


@pytest.mark.parametrize("masks", ["panoptic", "instances"])
def test_batches_hold_the_masks_of_their_targets(scenes, masks):
    alone, with_processes = (batches_of(scenes, masks, num_workers) for num_workers in (0, 2))
    assert len(alone) == 4
    for batch, same in zip(alone, with_processes, strict=True):
        assert torch.equal(batch.images.pixels, same.images.pixels)
        for target, other in zip(batch.targets, same.targets, strict=True):
            assert target.masks.shape == (len(target), *target.size) and target.masks.dtype == torch.bool
            assert torch.equal(target.masks, other.masks) and torch.equal(target.boxes, other.boxes)
            assert target.masks.flatten(1).any(1).float().mean() > 0.9


def test_masks_change_nothing_else(scenes):
    """The same images, in the same batches, under the same crops."""
    for plain, with_masks in zip(batches_of(scenes, "none"), batches_of(scenes, "instances"), strict=True):
        assert torch.equal(plain.images.pixels, with_masks.images.pixels)
        assert all(target.masks is None for target in plain.targets)
        for target, other in zip(plain.targets, with_masks.targets, strict=True):
            assert len(other) <= len(target) and set(other.labels.tolist()) <= set(target.labels.tolist())


def test_evaluation_loads_no_masks(scenes):
    data = open_data(scenes, masks="auto")["val"]
    assert all(target.masks is None for batch in eval_loader(data, CONFIG, batch_size=2) for target in batch.targets)


# ----------------------------------------------------------------------------------------------------- real annotations

real = pytest.mark.skipif(not COCO128.is_dir(), reason="needs COCO images, which are not shipped")


@real
def test_coco_panoptic_opens_as_it_is():
    data = open_data(COCO128 / "panoptic_segmentation", masks="auto")
    assert {name: (len(part), part.num_objects) for name, part in data.items()} == {
        "train": (100, 1111),
        "val": (100, 1078),
    }
    categories = data["val"].categories
    assert (len(categories), sum(categories.isthing)) == (133, 80)
    for image in data["val"].images[:12]:
        segments, info = panoptic_truth(image, categories)
        assert segments.shape == read_record(image).shape[:2]
        assert [each.area for each in info] == [thing.area for thing in image.objects]
    batch = next(train_loader(data["train"], CONFIG, batch_size=2, seed=0).epoch(0))
    assert all(target.masks.flatten(1).any(1).any() for target in batch.targets)


@real
def test_yolo_polygons_of_coco_are_its_things():
    outlined = open_data(COCO128 / "instance_segmentation", masks="auto")["val"]
    maps = {
        image.path.name: image for image in open_data(COCO128 / "panoptic_segmentation", masks="auto")["val"].images
    }
    shares = []
    for image in outlined.images[:12]:
        if image.path.name in maps:
            theirs = maps[image.path.name]
            segments = read_masks(theirs, theirs.objects)
            for mask in read_masks(image, image.objects):
                shares.append((segments & mask).sum((1, 2)).max() / max(mask.sum(), 1))
    assert len(shares) > 20 and np.median(shares) > 0.9
