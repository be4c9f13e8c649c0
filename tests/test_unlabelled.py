"""A folder of images without annotations: what is found, skipped and held out; the patches that are cut from it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from folders import make_image, one_line, write_coco_folder, write_image
from opendetr import open_images
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.config import replaced, to_dict
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.images import read_image
from opendetr.data.loader import eval_loader, sample_rng, train_loader
from opendetr.data.patches import PatchAugmentationConfig, PatchDataConfig, PatchEvaluationBatch, patch_boxes
from opendetr.data.records import DataError
from opendetr.data.resizing import normalise
from opendetr.data.transforms import LabelledImage
from opendetr.structures import PatchBatch

CONFIG = PatchDataConfig(num_workers=0, num_patches=4, patch_size=16).resized(64)


def names(folder: Path, split: str = "train", **options) -> list[str]:
    data = open_images(folder, **options)[split]
    return [data.file_name(image) for image in data.images]


def fault(folder: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        open_images(folder, **options)
    return one_line(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of all kinds in nested folders: 12 usable ones, and 5 that are not."""
    top = tmp_path_factory.mktemp("images")
    for seed in range(8):
        write_image(top / "cats" / "deep" / f"{seed}.png", 48, 64, seed)
    write_image(top / "dogs" / "b.JPG", 60, 40, 9)
    Image.fromarray(make_image(50, 70, 10)).convert("L").save(top / "grey.png")
    Image.fromarray(make_image(50, 70, 11)).convert("RGBA").save(top / "transparent.png")
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray(make_image(40, 90, 12)).save(top / "turned.jpg", exif=exif)
    write_image(top / "tiny.png", 16, 200)
    write_image(top / "dogs" / "narrow.png", 200, 9)
    (top / "dogs" / "text.jpg").write_text("no image")
    (top / "dogs" / "empty.png").touch()
    (top / "dogs" / "notes.txt").write_text("not an image, and not counted")
    write_image(top / ".thumbnails" / "1.png")
    write_image(top / "annotations" / "panoptic_train" / "1.png")  # a map
    content = (top / "cats" / "deep" / "0.png").read_bytes()
    (top / "cut.png").write_bytes(content[: len(content) // 2])  # its header can be read
    return top


# -------------------------------------------------------------------------------------------------------------- reading


def test_images_are_found_recursively_and_unusable_ones_are_counted(folder):
    splits = open_images(folder)
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "val": 1}
    found = sorted(names(folder) + names(folder, "val"))
    assert found == sorted(
        [f"cats/deep/{seed}.png" for seed in range(8)]
        + ["cut.png", "dogs/b.JPG", "grey.png", "transparent.png", "turned.jpg"]
    )
    counts = {entry.kind.value: entry.count for entry in splits["train"].fault_counts}
    assert counts == {"empty_file": 1, "unreadable_image": 1, "tiny_image": 2}
    text = splits["train"].summary()
    assert text.startswith("12 images; ") and "object" not in text
    assert "2 images with a side of 16 pixels or less, skipped by pre-training" in text
    sizes = {image.path.name: (image.height, image.width) for split in splits.values() for image in split.images}
    assert sizes["turned.jpg"] == (90, 40)  # after its EXIF rotation
    assert splits["train"].categories.names == ("N/A", "patch")


def test_strict_refuses_unreadable_images_but_not_small_ones(folder, tmp_path):
    assert "strict is set" in fault(folder, strict=True)
    for seed in range(3):
        write_image(tmp_path / f"{seed}.png", seed=seed)
    write_image(tmp_path / "small.png", 12, 12)
    assert len(open_images(tmp_path, strict=True)["train"]) == 2


def test_the_held_out_images_depend_on_names_and_seed_alone(tmp_path):
    for seed in range(20):
        write_image(tmp_path / "a" / f"{seed}.png", 20, 20, seed)
    held_out = names(tmp_path, "val", val_fraction=0.2)
    assert len(held_out) == 4 and not set(held_out) & set(names(tmp_path, val_fraction=0.2))
    assert names(tmp_path, "val", val_fraction=0.2, seed=1) != held_out
    (tmp_path / "a").rename(tmp_path / "b")
    assert [name.replace("b/", "a/") for name in names(tmp_path, "val", val_fraction=0.2)] == held_out


@pytest.mark.parametrize("layout", ["{}", "{}2017", "images/{}", "images/{}2017"])
def test_folders_named_as_splits_are_the_splits(tmp_path, layout):
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        for seed in range(count):
            write_image(tmp_path / layout.format(split) / "class" / f"{seed}.png", seed=seed)
    write_image(tmp_path / "unlabeled2017" / "more.png")
    splits = open_images(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "val": 2, "test": 1}
    assert [image.id for image in splits["train"].images] == [1, 2, 3, 4]
    assert len(open_images(tmp_path, val_split="test")["val"]) == 1
    assert "no split 'more'; it has" in fault(tmp_path, val_split="more")
    assert len(CONFIG.open_split(tmp_path, "test")) == 1
    with pytest.raises(DataError, match="no split 'extra'"):
        CONFIG.open_split(tmp_path, "extra")


def test_annotations_of_a_dataset_are_not_read(tmp_path):
    content = {"images": [{"id": 1, "file_name": f"{n}.png", "height": 48, "width": 64} for n in range(4)]}
    write_coco_folder(tmp_path, {"train": content})
    (tmp_path / "annotations" / "instances_train.json").write_text("{ broken")
    splits = open_images(tmp_path)
    assert (len(splits["train"]), len(splits["val"])) == (3, 1)
    assert not any(image.objects for image in splits["train"].images)


def test_links_to_folders_are_followed_once(tmp_path):
    for seed in range(4):
        write_image(tmp_path / "elsewhere" / f"{seed}.png", seed=seed)
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "top")
    splits = open_images(tmp_path / "top")
    assert len(splits["train"]) + len(splits["val"]) == 4


def test_a_folder_without_images_is_one_line(tmp_path):
    assert "no such folder" in fault(tmp_path / "nothing")
    (tmp_path / "sub").mkdir()
    assert "contains no images" in fault(tmp_path)
    assert ".jpg" in fault(tmp_path)
    write_image(tmp_path / "sub" / "tiny.png", 16, 16)
    (tmp_path / "sub" / "bad.png").write_text("text")
    line = fault(tmp_path)
    assert "none of its images can be used: 1 image that cannot be read" in line.replace("images that", "image that")
    assert "1 image with a side of 16 pixels or less" in line
    write_image(tmp_path / "sub" / "one.png")
    assert "too few" in fault(tmp_path)
    assert "a file, not a folder" in fault(tmp_path / "sub" / "one.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path):
    write_image(tmp_path / "sub" / "one.png")
    (tmp_path / "sub").chmod(0)
    assert "cannot be read" in fault(tmp_path)


# -------------------------------------------------------------------------------------------------------------- patches


def test_patches_have_the_published_sizes_and_places():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([patch_boxes(40, 90, 10, rng) for _ in range(3000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (widths.min(), widths.max(), heights.min(), heights.max()) == (8, 82, 8, 32)
    assert boxes.min() == 0
    assert (boxes[:, 2].max(), boxes[:, 3].max()) == (89, 39)  # the last place is excluded
    counts = Counter(widths.tolist())
    assert len(counts) == 75 and max(counts.values()) < 1.3 * len(boxes) / 75  # uniform
    wide = boxes[widths == 82]
    assert set(wide[:, 0].tolist()) == set(range(8))
    assert abs(np.corrcoef(widths, heights)[0, 1]) < 0.02
    assert patch_boxes(17, 17, 5, rng).shape == (5, 4)  # the smallest image


def labelled(pixels: np.ndarray, index: int = 0) -> LabelledImage:
    nothing = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    return LabelledImage(pixels, *nothing, index + 1, pixels.shape[:2], index=index)


def test_a_training_patch_shows_what_is_in_its_box():
    unchanged = PatchAugmentationConfig(jitter=0, grey=0, blur=0)
    config = replace(CONFIG, patch_augmentation=unchanged, patch_size=24)
    pixels = make_image(80, 120)
    sample = config.training_transform()(labelled(pixels), sample_rng(0, 0, 0))
    assert sample.extras["patches"].shape == (4, 3, 24, 24) and sample.extras["patches"].dtype == torch.uint8
    assert sample.target.labels.tolist() == [1] * 4
    corners = (cxcywh_to_xyxy(sample.target.boxes.double()) * torch.tensor([120, 80] * 2)).round().int()
    for patch, (left, top, right, bottom) in zip(sample.extras["patches"], corners.tolist(), strict=True):
        cut = Image.fromarray(pixels[top:bottom, left:right]).resize((24, 24), Image.Resampling.BILINEAR)
        assert np.abs(patch.permute(1, 2, 0).numpy().astype(int) - np.array(cut)).max() <= 1
    shape = config.training_transform().output_shape(80, 120, sample_rng(0, 0, 0))
    assert sample.pixels.shape[-2:] == shape == sample.target.size


def test_patches_and_draws_are_a_function_of_seed_epoch_and_index():
    transform, image = CONFIG.training_transform(), labelled(make_image())
    first = transform(image, sample_rng(3, 1, 5))
    same = transform(image, sample_rng(3, 1, 5))
    assert torch.equal(first.extras["patches"], same.extras["patches"])
    assert torch.equal(first.target.boxes, same.target.boxes) and first.extras["seed"] == same.extras["seed"]
    for other in (sample_rng(4, 1, 5), sample_rng(3, 2, 5), sample_rng(3, 1, 6)):
        changed = transform(image, other)
        assert not torch.equal(changed.target.boxes, first.target.boxes)
        assert changed.extras["seed"] != first.extras["seed"]


def test_the_published_sizes_of_the_image():
    config = PatchDataConfig()
    transform = config.training_transform()
    shapes = {transform.output_shape(500, 600, sample_rng(0, 0, index)) for index in range(200)}
    assert {min(shape) for shape in shapes} == {320, 336, 352, 368, 400, 416, 432, 448, 464, 480}
    assert transform.output_shape(500, 2000, sample_rng(0, 0, 0)) == (150, 600)
    assert config.evaluation_transform().output_shape(500, 600, sample_rng(0, 0, 0)) == (480, 576)
    assert config.resized(240).max_size == 300
    assert transform.largest_shape == (480, 600)


def test_colours_of_patches_change_and_those_of_the_image_do_not():
    image = labelled(make_image(64, 64))
    config = replace(CONFIG, augmentation=AugmentationConfig(flip=False, crop=False, multi_scale=False))
    changed = [config.training_transform()(image, sample_rng(0, 0, index)) for index in range(20)]
    assert all(torch.equal(each.pixels, changed[0].pixels) for each in changed)
    patches = torch.cat([each.extras["patches"] for each in changed]).float()
    grey = (patches[:, 0] == patches[:, 1]).all(2).all(1)
    assert 0.05 < grey.float().mean() < 0.4
    always = PatchAugmentationConfig(jitter=0, grey=0, blur=1, blur_radius=(3, 3))
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert always.apply(noise, np.random.default_rng(0)).std() < 0.3 * noise.std()


def test_the_patches_of_an_evaluation_depend_on_the_image_alone(tmp_path):
    for seed in range(5):
        write_image(tmp_path / "val" / f"{seed}.png", 48 + 8 * (seed % 2), 64, seed)
        write_image(tmp_path / "train" / f"{seed}.png", seed=seed)
    val = CONFIG.open_splits(tmp_path)["val"]
    whole = {name: batch for batch in eval_loader(val, CONFIG, batch_size=3) for name in batch.names}
    some = list(eval_loader(val.subset(val.images[1:4:2], "val"), CONFIG, batch_size=1))
    for batch in some:
        assert isinstance(batch, PatchEvaluationBatch) and batch.sample_seeds is None
        of_whole = whole[batch.names[0]]
        position = of_whole.names.index(batch.names[0])
        assert torch.equal(batch.patches[0], of_whole.patches[position])
        assert torch.equal(batch.targets[0].boxes, of_whole.targets[position].boxes)
    images = {image.id: image for image in val.images}
    batch = whole[str(images[2].path)]
    following = whole[str(images[3].path)]
    own = following.patches[following.names.index(str(images[3].path))]
    assert torch.equal(batch.control[batch.names.index(str(images[2].path))], own)  # of the next image


def test_batches_do_not_depend_on_loader_processes_and_unreadable_images_are_replaced(folder):
    train = CONFIG.open_splits(folder)["train"]
    loaders = [train_loader(train, replace(CONFIG, num_workers=n), batch_size=4, seed=0) for n in (0, 2)]
    first, second = (list(loader.epoch(0)) for loader in loaders)
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, PatchBatch) and one.patches.shape == (4, 4, 3, 16, 16)
        assert torch.equal(one.patches, other.patches) and one.sample_seeds == other.sample_seeds
        assert torch.equal(one.images.pixels, other.images.pixels)
    cut = [image.id for image in train.images if image.path.name == "cut.png"]
    assert list(loaders[0].unreadable) == list(loaders[1].unreadable) == cut


def test_pixels_of_patches_are_normalised_like_those_of_images(tmp_path):
    for seed in range(3):
        Image.new("RGB", (40, 40), (200, 100, 50)).save(tmp_path / f"{seed}.png")
    config = replace(CONFIG, patch_augmentation=PatchAugmentationConfig(jitter=0, grey=0, blur=0))
    batch = next(train_loader(config.open_splits(tmp_path)["train"], config, batch_size=2, seed=0).epoch(0))
    colour = normalise(torch.from_numpy(read_image(tmp_path / "0.png")).permute(2, 0, 1))[:, :1, :1]
    torch.testing.assert_close(batch.patches, colour.expand_as(batch.patches))


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_patches": 0}, "data.num_patches: expected at least 1, got 0"),
        ({"patch_size": 0}, "data.patch_size: expected at least 1, got 0"),
        ({"augmentation": {"flip": True}}, "data.augmentation.flip: patches do not change"),
        ({"augmentation": {"crop": True}}, "data.augmentation.crop: patches do not change"),
        ({"augment": "mosaic"}, "data.augment: .* got 'mosaic'"),
        ({"masks": "auto"}, "data.masks: .* got 'auto'"),
        ({"patch_augmentation": {"grey": 2}}, "data.patch_augmentation.grey: .* got 2"),
        ({"patch_augmentation": {"hue": 0.7}}, "data.patch_augmentation.hue: .* got 0.7"),
        ({"patch_augmentation": {"blur_radius": [2, 1]}}, "smaller radius first"),
        ({"val_fraction": 0}, "val_fraction: expected a fraction"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        replaced(CONFIG, changes)
    one_line(caught.value)


def test_settings_survive_a_round_trip():
    assert replaced(PatchDataConfig(), to_dict(CONFIG)) == CONFIG
    assert not isinstance(DataConfig().resized(64), PatchDataConfig)
