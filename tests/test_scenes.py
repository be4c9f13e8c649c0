"""The embedded dataset: its labels are exact, its shares are as promised, and it never changes."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from opendetr.inference import load
from opendetr.synthetic import (
    CATEGORIES,
    Scene,
    SceneConfig,
    Segment,
    draw_scene,
    mask_to_polygons,
    mask_to_rle,
    write_scenes,
)

EASY = SceneConfig(size=128, max_objects=6)
THING_IDS = {category["id"] for category in CATEGORIES if category["isthing"]}
STUFF_IDS = {category["id"] for category in CATEGORIES if not category["isthing"]}
FROZEN_LABELS = "348c18f88f0bfb639b0b92ab1f00aff3a1884593ce34f98213a9eae9b0f01c91"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """300 scenes of the default configuration."""
    return [draw_scene(index) for index in range(300)]


def all_objects(scenes: list[Scene], *, crowds: bool = False) -> list[Segment]:
    """Objects of all scenes, crowds left out unless asked for."""
    return [label for scene in scenes for label in scene.objects if crowds or not label.iscrowd]


def decode_polygons(polygons: list[list[int]], shape: tuple[int, ...]) -> np.ndarray:
    """Mask (H, W) bool that pycocotools makes of COCO polygons."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))).astype(bool)


def test_labels_are_those_of_the_segment_map(scenes: list[Scene]) -> None:
    """Boxes and areas are those of the visible pixels, and every pixel belongs to a segment."""
    for scene in scenes[:60]:
        labels = scene.objects + scene.stuff
        assert [label.id for label in labels] == list(range(1, len(labels) + 1))
        assert set(np.unique(scene.segments)) == {label.id for label in labels}
        for label in labels:
            rows, columns = np.nonzero(scene.segments == label.id)
            assert label.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert label.area == len(rows)
        assert {label.category_id for label in scene.objects} <= THING_IDS
        assert {label.category_id for label in scene.stuff} <= STUFF_IDS


def test_labels_never_change() -> None:
    """Published numbers refer to these labels, on any machine."""
    labels = [
        [[label.category_id, label.box, label.area, label.iscrowd] for label in scene.objects + scene.stuff]
        for scene in map(draw_scene, range(8))
    ]
    canonical = json.dumps(labels, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == FROZEN_LABELS


def test_same_key_same_bytes_and_no_other() -> None:
    """A scene depends on seed, split and index, and on nothing else."""
    first, again = draw_scene(5, seed=3), draw_scene(5, seed=3)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.segments.tobytes() == again.segments.tobytes()
    assert (first.objects, first.stuff) == (again.objects, again.stuff)
    others = [draw_scene(5, seed=3, split="val"), draw_scene(5, seed=4), draw_scene(6, seed=3)]
    assert len({scene.image.tobytes() for scene in [first, *others]}) == 1 + len(others)


def test_counts(scenes: list[Scene]) -> None:
    """1 to 16 objects, few more often than many, never more than 13 of a class, all classes about equally often."""
    counts = [len(scene.objects) for scene in scenes]
    assert min(counts) == 1
    assert max(counts) == 16
    assert 0.35 < np.mean(np.array(counts) <= 3) < 0.65
    assert max(max(Counter(label.category_id for label in scene.objects).values()) for scene in scenes) <= 13
    shares = Counter(label.category_id for label in all_objects(scenes))
    assert set(shares) == THING_IDS
    assert max(shares.values()) < 2 * min(shares.values())


def test_shares_of_small_and_of_occluded_objects(scenes: list[Scene]) -> None:
    """A fifth or more are small by the COCO rule, a quarter or more are occluded by a tenth or more."""
    objects = all_objects(scenes)
    assert np.mean([label.area < 32**2 for label in objects]) >= 0.20
    assert np.mean([label.occlusion >= 0.1 for label in objects]) >= 0.25


def test_sizes_are_log_uniform() -> None:
    """Objects alone in their scene fill 6 to 70 % of the image evenly on a logarithmic scale, but for clipped ones."""
    alone = [draw_scene(index, config=SceneConfig(size=128, max_objects=1)).objects[0] for index in range(300)]
    scales = np.array([max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in alone]) / 128
    assert 0.05 < scales.min() < 0.08
    assert 0.60 < scales.max() < 0.72
    thirds, _ = np.histogram(np.log(scales), bins=np.linspace(np.log(0.05), np.log(0.72), 4))
    assert thirds.min() > 0.25 * len(scales)


def test_crowds_are_the_objects_hardly_visible(scenes: list[Scene]) -> None:
    """An object is marked crowd where less than a fifth of it is visible, and stuff never is."""
    objects = all_objects(scenes, crowds=True)
    assert any(label.iscrowd for label in objects)
    for label in objects:
        assert label.iscrowd == (round(1 - label.occlusion, 9) < 0.2)
        assert 0 <= label.occlusion < 1
    assert not any(label.iscrowd for scene in scenes for label in scene.stuff)


def test_colour_does_not_tell_the_class(scenes: list[Scene]) -> None:
    """The nearest class mean colour is hardly better than chance on other scenes."""

    def colours_and_classes(part: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [
            (scene.image[scene.segments == o.id].mean(axis=0), o.category_id) for scene in part for o in scene.objects
        ]
        return np.array([colour for colour, _ in pairs]), np.array([category_id for _, category_id in pairs])

    colours, classes = colours_and_classes(scenes[:150])
    means = np.array([colours[classes == category_id].mean(axis=0) for category_id in sorted(THING_IDS)])
    colours, classes = colours_and_classes(scenes[150:])
    nearest = np.linalg.norm(colours[:, None] - means, axis=2).argmin(axis=1)
    assert np.mean(np.array(sorted(THING_IDS))[nearest] == classes) < 2 / len(THING_IDS)


def test_stuff_has_the_colours_of_its_paint(scenes: list[Scene]) -> None:
    """Else a drawn mask of sand could look like grass."""
    colours = {category["id"]: category["color"] for category in CATEGORIES if not category["isthing"]}
    for category_id in STUFF_IDS:
        stuff = ((scene, part) for scene in scenes[:60] for part in scene.stuff if part.category_id == category_id)
        painted = np.mean([scene.image[scene.segments == part.id].mean(0) for scene, part in stuff], axis=0)
        assert min(colours, key=lambda other: np.linalg.norm(painted - colours[other])) == category_id


def test_the_shipped_detector_has_the_same_colours() -> None:
    categories = load("deformable-detr-tiny-panoptic", device="cpu").categories
    assert [list(categories.colours[categories.label_of_id(id_)]) for id_ in sorted(STUFF_IDS)] == [
        category["color"] for category in CATEGORIES if not category["isthing"]
    ]


def test_hard_scenes() -> None:
    """Up to 40 objects, and smaller ones."""
    hard = [draw_scene(index, config=SceneConfig.hard()) for index in range(60)]
    assert 25 < max(len(scene.objects) for scene in hard) <= 40
    smallest = min(max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in all_objects(hard) if o.occlusion == 0)
    assert smallest < 0.06 * 256


def test_polygons_give_back_the_mask(scenes: list[Scene]) -> None:
    """Objects in several parts and with holes included."""
    for scene in scenes[:30]:
        for label in scene.objects + scene.stuff:
            mask = scene.segments == label.id
            assert np.array_equal(decode_polygons(mask_to_polygons(mask), mask.shape), mask)


def test_polygons_of_any_mask() -> None:
    """Noise has all there is: parts that touch diagonally, single pixels, nested holes, pixels on the border."""
    rng = np.random.default_rng(0)
    for density in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        mask = rng.random((23, 31)) < density
        polygons = mask_to_polygons(mask)
        assert np.array_equal(decode_polygons(polygons, mask.shape), mask)
        covered = sum(decode_polygons([polygon], mask.shape).astype(int) for polygon in polygons)
        assert np.array_equal(covered, mask), "polygons overlap or have holes"
    shifted = mask_to_polygons(np.ones((1, 1), bool), origin=(7, 3))
    assert shifted == [[7, 3, 8, 3, 8, 4, 7, 4]]


def test_run_lengths_give_back_the_mask() -> None:
    """Run lengths start with the zeros even where there are none."""
    rng = np.random.default_rng(0)
    for density in (0.0, 0.5, 1.0):
        mask = rng.random((5, 7)) < density
        run_lengths = coco_mask.frPyObjects(mask_to_rle(mask), 5, 7)
        assert np.array_equal(coco_mask.decode(run_lengths).astype(bool), mask)


def test_written_files_say_what_was_drawn(tmp_path: Path) -> None:
    """Images, instances and panoptic segments read back from disk are those of the scenes."""
    calls: list[tuple[int, int]] = []
    write_scenes(tmp_path, counts={"train": 6, "val": 2}, config=EASY, progress=lambda *call: calls.append(call))
    assert calls == [(done, 8) for done in range(1, 9)]
    annotations = tmp_path / "annotations"
    coco = COCO(annotations / "instances_train.json")
    panoptic = json.loads((annotations / "panoptic_train.json").read_text())
    assert {category["id"] for category in panoptic["categories"]} == THING_IDS | STUFF_IDS
    assert set(coco.getCatIds()) == THING_IDS
    for index, record in enumerate(panoptic["annotations"]):
        scene = draw_scene(index, config=EASY)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "train" / record["file_name"])), scene.image)
        colours = np.asarray(Image.open(annotations / "panoptic_train" / record["file_name"])).astype(int)
        assert np.array_equal(colours @ [1, 256, 65536], scene.segments)
        assert [entry["id"] for entry in record["segments_info"]] == np.unique(scene.segments).tolist()
        for label, instance in zip(scene.objects, coco.imgToAnns[index], strict=True):
            x, y, width, height = instance["bbox"]
            assert (x, y, x + width, y + height) == label.box
            assert (instance["category_id"], instance["iscrowd"]) == (label.category_id, label.iscrowd)
            assert np.array_equal(coco.annToMask(instance), scene.segments == label.id)


def test_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    """Every file, byte by byte, and also when it replaces a larger set."""
    write_scenes(tmp_path / "a", counts={"val": 5}, config=EASY)
    for folder in ("a", "b"):
        write_scenes(tmp_path / folder, counts={"val": 3}, config=EASY)
    first, second = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("a", "b")
    )
    assert first == second


def test_interrupted_write_does_not_look_finished(tmp_path: Path) -> None:
    """No JSON file stays or appears when a write stops half way."""

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    write_scenes(tmp_path, counts={"val": 2}, config=EASY)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, counts={"val": 2}, config=EASY, progress=interrupt)
    assert not list((tmp_path / "annotations").glob("*.json"))


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    """Nothing is written where something else lies."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not scenes: choose a folder that is empty"):
        write_scenes(tmp_path, counts={"val": 1})
    with pytest.raises(ValueError, match="is a file"):
        write_scenes(tmp_path / "thesis.txt", counts={"val": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_only_the_classes_asked_for_are_drawn_and_listed(tmp_path: Path) -> None:
    """Their ids stay, stuff stays, and the default draws what it always drew."""
    config = SceneConfig(size=64, classes=("star", "disc"))
    write_scenes(tmp_path, counts={"val": 12}, config=config)
    content = json.loads((tmp_path / "annotations" / "panoptic_val.json").read_text())
    assert [each["name"] for each in content["categories"]] == ["disc", "star", "sky", "grass", "water", "sand"]
    seen = {segment["category_id"] for each in content["annotations"] for segment in each["segments_info"]}
    assert {category_id for category_id in seen if category_id < 20} == {1, 9} == set(config.category_ids)


@pytest.mark.parametrize("counts", [{"annotations": 1}, {"a/b": 1}, {"val": -1}])
def test_bad_counts_are_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    """Split names become file names, counts are not negative."""
    with pytest.raises(ValueError, match="counts"):
        write_scenes(tmp_path, counts=counts)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 8},
        {"min_objects": 0},
        {"max_objects": 157},
        {"min_objects": 5, "max_objects": 4},
        {"min_scale": 0.8},
        {"max_scale": 1.5},
        {"clustering": 2.0},
        {"crowd_visibility": -0.1},
        {"classes": ("disc", "cat")},
        {"classes": ()},
        {"classes": ("disc", "disc")},
        {"max_objects": 27, "classes": ("disc", "star")},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    """The message names the setting."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        SceneConfig(**settings)  # type: ignore[arg-type]
