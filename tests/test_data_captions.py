"""Data with captions: the authors' files, their faults, what augmentation does to spans, and batches."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from caption_files import SIZE, box, caption, read, write
from opendetr.cli.main import app
from opendetr.data import (
    ANSWER_WORDS,
    DataError,
    FaultKind,
    LabelledImage,
    encode_answer,
    open_data,
    text_of,
    train_loader,
)
from opendetr.data.captions import MakeSample, MirrorCaption
from opendetr.data.config import AugmentationConfig
from opendetr.data.formats import read_splits
from opendetr.data.spans import counts_bytes, has_token, mirrored
from opendetr.data.tools import check_data
from opendetr.data.tools.check import Demands
from opendetr.data.transforms import KeepingCrop
from opendetr.models.mdetr import ANSWER_HEADS
from opendetr.nn import new_tokenizer
from opendetr.presets import get_preset
from opendetr.structures import CaptionBatch
from opendetr.synthetic import ANSWERS, vocabulary, write_captioned_scenes
from opendetr.synthetic.described import DescribedConfig

DEMANDS = Demands(image_size=40, max_size=60, num_queries=10)


def faults(folder: Path) -> dict[FaultKind, list[str]]:
    report = check_data(folder, DEMANDS)
    return {kind: [fault.detail for fault in found] for kind, found in report.faults.items()}


# ------------------------------------------------------------------------------------------------------------- reading


def test_flickr(tmp_path: Path) -> None:
    text = "A man with two dogs ."
    dogs = [box([0, 0, 10, 10], tokens_positive=[[11, 19]]), box([20, 0, 10, 10], tokens_positive=[[11, 19]])]
    entry = caption(text, box(tokens_positive=[[0, 5]]), *dogs, sentence_id=3, original_img_id=7,
                    tokens_positive_eval=[[[0, 5]], [[11, 19]]], tokens_negative=[[0, 21]],
                    dataset_name="flickr")  # fmt: skip
    write(tmp_path, entry, file="final_flickr_separateGT_{}.json")
    write(tmp_path, entry, file="final_flickr_separateGT_{}.json", name="val")
    (image,) = open_data(tmp_path)["train"].images
    assert image.extras == {key: value for key, value in entry.items() if key != "boxes"} | {
        "tokens_positive_eval": [((0, 5),), ((11, 19),)]
    }
    assert [obj.extras["tokens_positive"] for obj in image.objects] == [((0, 5),), ((11, 19),), ((11, 19),)]


def test_mixed_images_of_two_sources(tmp_path: Path) -> None:
    entries = [caption("a dog", box(tokens_positive=[[2, 5]]), data_source=source, file_name="1.png")
               for source in ("coco", "vg")]  # fmt: skip
    write(tmp_path, *entries, file="final_mixed_{}.json")
    for source in ("coco", "vg"):
        (tmp_path / source).mkdir()
        shutil.copy(tmp_path / "train/1.png", tmp_path / source)
    (tmp_path / "train/1.png").unlink()
    data = read_splits(tmp_path)["train"]
    assert [data.file_name(image) for image in data.images] == ["coco/1.png", "vg/1.png"]
    assert data.images[0].extras["data_source"] == "coco"


def test_clevr_ref(tmp_path: Path) -> None:
    """It names spans "tokens" and says which boxes the caption as a whole refers to."""
    boxes = box(tokens=[[4, 8]], isfinal=1), box([30, 5, 9, 9], tokens=[[21, 25]], isfinal=0)
    data = read(write(tmp_path, caption("the cube left of the ball", *boxes)))
    (image,) = data.images
    assert [dict(obj.extras) for obj in image.objects] == [
        {"tokens_positive": ((4, 8),), "isfinal": True},
        {"tokens_positive": ((21, 25),), "isfinal": False},
    ]
    sample = MakeSample()(LabelledImage.from_record(image, np.zeros((*SIZE, 3), np.uint8), data.categories))
    assert sample.target.is_final is not None
    assert sample.target.is_final.tolist() == [True, False]
    assert sample.target.spans == (((4, 8),), ((21, 25),))


def test_clevr_answers(tmp_path: Path) -> None:
    answers = {"yes": {"type": 0, "binary": 1}, "cube": {"type": 1, "attr": 10}, "3": {"type": 2, "reg": 3}}
    data = read(write(tmp_path, *(caption("what?", answer=answer) for answer in answers)))
    assert [encode_answer("clevr", image.extras) for image in data.images] == list(answers.values())
    for answer, heads in answers.items():
        decoded = ANSWER_WORDS["clevr"].decode({"binary": 0, "attr": 0, "reg": 0, **heads})
        assert decoded == (answer, tuple(heads))
    assert encode_answer("none", data.images[0].extras) is None
    (number,) = read(write(tmp_path / "number", caption("how many?", answer=3))).images
    assert encode_answer("clevr", number.extras) == {"type": 2, "reg": 3} and text_of(number) == "how many? 3"
    with pytest.raises(DataError, match="the answer 'maybe' to 'what\\?' is not one of the questions 'clevr'"):
        encode_answer("clevr", {"caption": "what?", "answer": "maybe"})


def test_gqa_answers(tmp_path: Path) -> None:
    questions = [("attr", "red"), ("rel", "on"), ("cat", "never heard of")]
    asked = [caption("what?", question_type=type_, answer=answer, questionId="7") for type_, answer in questions]
    write(tmp_path, *asked, caption("a dog", box(tokens_positive=[[2, 5]])), file="finetune_gqa_{}_balanced.json")
    write(tmp_path, caption("a dog", box(tokens_positive=[[2, 5]])), file="finetune_gqa_{}_balanced.json", name="val")
    with pytest.raises(DataError, match=r"lists of answers are missing; download .* gqa_answer2id_by_type.json"):
        encode_answer("gqa", open_data(tmp_path)["train"].images[0].extras)
    by_type = {f"answer_{name}": {"unknown": 0} for name in ("obj", "attr", "rel", "global", "cat")}
    by_type["answer_attr"]["red"], by_type["answer_rel"]["on"] = 17, 4
    (tmp_path / "annotations/gqa_answer2id_by_type.json").write_text(json.dumps(by_type))
    (tmp_path / "annotations/gqa_answer2id.json").write_text(json.dumps({"unknown": 1, "red": 99}))
    images = open_data(tmp_path)["train"].images
    assert [encode_answer("gqa", image.extras) for image in images] == [
        {"type": 1, "attr": 17}, {"type": 2, "rel": 4}, {"type": 4, "cat": 0}, None
    ]  # fmt: skip
    with pytest.raises(DataError, match="the type 'count' of 'what\\?' is none of GQA's: obj, attr, rel, global, cat"):
        encode_answer("gqa", {"caption": "what?", "answer": "2", "question_type": "count"})
    assert [encode_answer("gqa-unified", image.extras) for image in images[:2]] == [{"total": 99}, {"total": 1}]


def test_phrasecut(tmp_path: Path) -> None:
    outline = [[2, 5, 22, 5, 22, 35, 2, 35]]
    entry = caption("wooden chair", box(tokens_positive=[[0, 12]], segmentation=outline), task_id="12__3")
    write(tmp_path, entry, name="val")
    write(tmp_path, entry)
    data = open_data(tmp_path, masks="instances")["train"]
    assert data.masks == "instances"
    assert data.images[0].extras["task_id"] == "12__3"


def test_the_format_is_recognised_beside_other_files(tmp_path: Path) -> None:
    """An instances file takes precedence: COCO itself has files with captions without objects."""
    entry = caption("a dog", box(tokens_positive=[[2, 5]]))
    write(tmp_path, entry)
    write(tmp_path, {key: value for key, value in entry.items() if key != "caption"}, file="instances_{}.json")
    assert "caption" not in read_splits(tmp_path)["train"].images[0].extras


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("spans", "kind", "detail"),
    [
        ([[2, 6]], FaultKind.SPAN_OUTSIDE, "[2, 6] of 5 characters"),
        ([[-1, 2]], FaultKind.SPAN_OUTSIDE, "[-1, 2] of 5 characters"),
        ([[4, 2]], FaultKind.SPAN_OUTSIDE, "[4, 2] of 5 characters"),
        ([[2, 2]], FaultKind.EMPTY_SPAN, "[2, 2] is ''"),
        ([[1, 2]], FaultKind.EMPTY_SPAN, "[1, 2] is ' '"),
        ([], FaultKind.NO_SPAN, ""),
    ],
)
def test_faulty_spans(tmp_path: Path, spans: list[list[int]], kind: FaultKind, detail: str) -> None:
    good = box([30, 5, 20, 30], tokens_positive=[[2, 5]])
    folder = write(tmp_path, caption("a dog", box(tokens_positive=spans), good))
    read(folder)
    if kind is FaultKind.EMPTY_SPAN and spans == [[1, 2]]:  # MDETR's rule moves the begin to the next word
        assert has_token((1, 4), "a dog")
    assert faults(folder)[kind] == [detail]
    (image,) = open_data(folder)["train"].images
    assert [obj.extras["tokens_positive"] for obj in image.objects] == [(), ((2, 5),)]


def test_faulty_spans_of_phrases(tmp_path: Path) -> None:
    """Those in "tokens_positive_eval", which name no object."""
    phrases = [[[2, 5]], [[2, 9], [0, 1]], [[1, 1]]]
    folder = write(tmp_path, caption("a dog", box(tokens_positive=[[2, 5]]), tokens_positive_eval=phrases))
    (image,) = read(folder).images
    assert image.extras["tokens_positive_eval"] == [((2, 5),), ((0, 1),), ()]
    outside, empty = image.faults
    assert (outside.kind, outside.at, outside.detail) == (FaultKind.SPAN_OUTSIDE, "images[0]", "[2, 9] of 5 characters")
    assert (empty.kind, empty.at, empty.detail) == (FaultKind.EMPTY_SPAN, "images[0]", "[1, 1] is ''")


def test_a_model_trains_on_data_with_faulty_spans(tmp_path: Path) -> None:
    data = read(write(tmp_path, caption("a dog", box(tokens_positive=[[2, 9]]), box([30, 5, 20, 30]))))
    batch = next(train_loader(data, get_preset("mdetr-tiny").data, batch_size=1, seed=0).epoch(0))
    token_map = batch.targets[0].token_map
    assert token_map is not None
    assert not token_map.any()


@pytest.mark.parametrize("spans", [[2, 5], [[2]], [["a", "b"]], [[2.5, 3]], "2-5", {"a": 1}])
def test_spans_that_are_not_pairs(tmp_path: Path, spans: Any) -> None:
    with pytest.raises(DataError, match=r"annotations\[0\] \(id 1\): its spans are .*; expected a list of"):
        read(write(tmp_path, caption("a dog", box(tokens_positive=spans))))


def test_an_image_without_a_caption(tmp_path: Path) -> None:
    plain = {"boxes": [box()]}
    with pytest.raises(DataError, match=r"images\[1\]: the key 'caption' is missing"):
        read(write(tmp_path, caption("a dog", box(tokens_positive=[[2, 5]])), plain))


def test_spans_that_count_bytes(tmp_path: Path) -> None:
    text = "the café left of the señora"
    as_bytes = [[4, 9], [len("the café left of the ".encode()), len(text.encode())]]
    boxes = (box(tokens_positive=[span]) for span in as_bytes)
    folder = write(tmp_path, caption(text, *boxes), caption("a dog", box(tokens_positive=[[2, 5]])))
    with pytest.raises(DataError, match=r"images\[0\]: the spans count bytes instead of characters \(caption 'the caf"):
        read(folder)
    assert FaultKind.BYTE_SPANS in faults(folder)
    result = CliRunner().invoke(app, ["data", "check", str(folder)])
    assert result.exit_code == 1
    assert "whose spans count bytes instead of characters" in result.output


def test_characters_outside_ascii_are_no_fault(tmp_path: Path) -> None:
    text = "the café left of the señora"
    boxes = (box(tokens_positive=[[4, 8]]), box([30, 5, 20, 30], tokens_positive=[[21, 27]]))
    folder = write(tmp_path, caption(text, *boxes))
    (image,) = read(folder).images
    assert [text[slice(*obj.extras["tokens_positive"][0])] for obj in image.objects] == ["café", "señora"]
    assert set(faults(folder)) <= {FaultKind.RARE_CLASS, FaultKind.COPY_IN_TRAINING}


def test_bytes_are_told_from_characters() -> None:
    assert counts_bytes("a dog", [(2, 5)]) == 0
    assert counts_bytes("né le chat", [(7, 11)]) > 0
    assert counts_bytes("né le chat", [(6, 10)]) < 0


# --------------------------------------------------------------------------------------------------- writing and tools


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "scenes"
    write_captioned_scenes(folder, counts={"train": 12, "val": 4}, config=DescribedConfig(size=64))
    return folder


def test_scenes_have_no_faults(scenes: Path) -> None:
    report = check_data(scenes, DEMANDS)
    assert set(report.faults) <= {
        FaultKind.NO_OBJECTS, FaultKind.SMALL_OBJECT, FaultKind.RARE_CLASS, FaultKind.UNSEEN_CLASS,
        FaultKind.UNUSED_CLASS, FaultKind.THIN_BOX,
    }  # fmt: skip
    assert report.counts["train"].images == 36


def test_convert_keeps_captions_in_coco_only(scenes: Path, tmp_path: Path) -> None:
    first = read_splits(scenes)
    result = CliRunner().invoke(app, ["data", "convert", str(scenes), str(tmp_path / "coco"), "--to", "coco"])
    assert result.exit_code == 0
    assert "not written" not in result.output
    again = read_splits(tmp_path / "coco")
    for split, data in first.items():
        for image, other in zip(data.images, again[split].images, strict=True):
            assert image.objects == other.objects
            assert image.extras == other.extras
    assert len(list((tmp_path / "coco").rglob("*.png"))) == 16
    result = CliRunner().invoke(app, ["data", "convert", str(scenes), str(tmp_path / "yolo"), "--to", "yolo"])
    assert "48 captions with its spans not written: the format does not support captions" in result.output


def test_splits_keep_the_captions_of_an_image_together(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "split"
    result = CliRunner().invoke(app, ["data", "split", str(scenes), str(out), "--fractions", "train=0.5,val=0.5"])
    assert result.exit_code == 0, result.output
    for data in read_splits(out).values():
        assert len(data) == 3 * len({image.path for image in data.images})
    (scenes / "annotations/captions_val.json").rename(tmp_path / "val.json")
    try:
        parts = open_data(scenes, val_fraction=0.3)
    finally:
        (tmp_path / "val.json").rename(scenes / "annotations/captions_val.json")
    paths = [{image.path for image in part.images} for part in parts.values()]
    assert not paths[0] & paths[1]


# -------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize(
    ("text", "flipped"),
    [
        ("the ring left of the star", "the ring right of the star"),
        ("Right: the leftmost man, RIGHT", "Left: the rightmost man, LEFT"),
        ("copyright of a lefty", "copyright of a lefty"),
    ],
)
def test_mirrored_captions(text: str, flipped: str) -> None:
    words = re.findall(r"\w+", text)
    spans = [((text.index(word), text.index(word) + len(word)),) for word in words]
    found, moved = mirrored(text, spans)
    assert found == flipped
    assert [found[begin:end] for ((begin, end),) in moved] == re.findall(r"\w+", flipped)
    assert mirrored(found, moved) == (text, spans)


def labelled(boxes: list[list[float]], **extras: Any) -> LabelledImage:
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    per_object = {"tokens_positive": np.array([((begin, begin + 1),) for begin in range(len(boxes))])} if boxes else {}
    return LabelledImage(
        pixels, np.array(boxes, dtype=float).reshape(-1, 4), np.zeros(len(boxes), np.int64), 0, SIZE,
        per_object=per_object, per_image={"caption": "left or right", **extras},
    )  # fmt: skip


def test_a_flip_exchanges_the_sides_of_boxes_and_words() -> None:
    image = labelled([[0, 0, 10, 10], [50, 0, 60, 10]])
    flipped = MirrorCaption().apply(image)
    assert flipped.boxes.tolist() == [[50, 0, 60, 10], [0, 0, 10, 10]]
    assert flipped.per_image["caption"] == "right or left"
    sample = MakeSample()(flipped)
    assert sample.extras["caption"] == "right or left"
    assert sample.target.spans is not None
    assert len(sample.target.spans) == 2
    assert MirrorCaption().apply(labelled([])).per_image["caption"] == "right or left"


def test_cautious_crops_keep_all_objects() -> None:
    """Wherever the boxes lie; the result has the planned aspect ratio."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        corners = rng.uniform(0, 1, (rng.integers(1, 5), 2)) * [50, 30]
        boxes = np.concatenate((corners, corners + rng.uniform(1, 10, corners.shape)), 1)
        crop = KeepingCrop(int(rng.integers(8, 40)), int(rng.integers(8, 60)), (rng.random(), rng.random()))
        image = labelled(boxes.tolist())
        cropped = crop.apply(image)
        height, width = cropped.pixels.shape[:2]
        fits = min(SIZE[0] / crop.height, SIZE[1] / crop.width)
        scale = max(height / crop.height, width / crop.width)
        assert 1 <= scale <= fits + 1 / 8  # of a pixel of the smallest window
        if scale < fits - 0.1:  # not limited by the image
            assert len(cropped.labels) == len(boxes)
    apart = labelled([[0, 0, 5, 5], [55, 35, 60, 40]])
    assert len(KeepingCrop(36, 54, (0.5, 0.5)).apply(apart).labels) == 2
    assert KeepingCrop(8, 8, (0.99, 0.99)).apply(labelled([])).pixels.shape == (8, 8, 3)


def test_crops_are_spread_over_all_places_that_keep_the_objects() -> None:
    image = labelled([[20, 10, 30, 20]])
    starts = set()
    for place in np.linspace(0, 0.999, 30):
        cropped = KeepingCrop(20, 20, (place, place)).apply(image)
        starts.add(float(cropped.boxes[0, 0]))
        assert len(cropped.labels) == 1
    assert len(starts) > 10


def test_presets_are_cautious() -> None:
    """The published ones never flip; all of them keep the objects, and none may combine images."""
    options = get_preset("mdetr-r50").data.augmentation
    assert (options.flip, options.keep_objects, options.crop_sides) == (False, True, (384, 1333))
    assert get_preset("mdetr-tiny").data.augmentation.keep_objects
    data = get_preset("mdetr-tiny").data
    with pytest.raises(ValueError, match=r"data.augment: 'mosaic' makes captions wrong; give detr or colour"):
        replace(data, augment="mosaic")
    with pytest.raises(ValueError, match="flip_vertical: makes captions wrong"):
        replace(data, augmentation=AugmentationConfig(flip_vertical=True))


def test_clevr_has_the_sizes_of_its_authors() -> None:
    """Its images keep their size in evaluation."""
    config = get_preset("mdetr-r18-clevr").data
    assert config.evaluation_transform().output_shape(320, 480, np.random.default_rng(0)) == (320, 480)
    scaled = config.augmentation.scaled(config.image_size)
    assert scaled.scales == (256, 288, 320, 352, 384)
    assert (scaled.scales_before_crop, scaled.crop_sides) == ((320, 352, 384), (256, 512))


# ------------------------------------------------------------------------------------------------------------- batches


def test_batches_have_tokens_and_token_maps(scenes: Path) -> None:
    preset = get_preset("mdetr-tiny")
    config = replace(preset, model=replace(preset.model, questions="scenes")).data
    data = open_data(scenes)["train"]
    answered = 0
    for batch in train_loader(data, replace(config, num_workers=0), batch_size=6, seed=1).epoch(0):
        assert isinstance(batch, CaptionBatch)
        for index, (text, target) in enumerate(zip(batch.captions, batch.targets, strict=True)):
            assert target.spans is not None and target.token_map is not None
            assert target.token_map.shape == (len(target), batch.tokens.num_tokens)
            for spans, row in zip(target.spans, target.token_map, strict=True):
                words = " ".join(text[begin:end] for begin, end in spans).split()
                places = batch.tokens.spans[index][row].tolist()
                assert sorted(text[begin:end] for begin, end in places) == sorted(words)
            answered += target.answers is not None
    assert answered == 12


def test_images_without_captions_are_refused(tmp_path: Path, scenes: Path) -> None:
    data = open_data(scenes)["train"]
    plain = replace(data, images=tuple(replace(image, extras={}) for image in data.images))
    with pytest.raises(DataError, match="has no caption; this model needs images with captions"):
        next(train_loader(plain, replace(get_preset("mdetr-tiny").data, num_workers=0), batch_size=2, seed=0).epoch(0))


def test_the_words_of_scenes_are_in_the_vocabulary_of_the_package() -> None:
    words = [word for word in (*vocabulary(), *ANSWERS) if word.isalpha()]
    ids = new_tokenizer("words")(words).ids[:, 1]
    unknown = new_tokenizer("words")(["qqqq"]).ids[0, 1]
    assert not torch.any(ids == unknown)


def test_all_answers_of_scenes_fit_the_heads() -> None:
    sizes = {head.name: max(head.num_answers, 2) for head in ANSWER_HEADS["scenes"]}
    for answer in ANSWERS:
        heads = encode_answer("scenes", {"caption": "?", "answer": answer})
        assert heads is not None
        assert all(index < sizes[name] for name, index in heads.items())
        assert ANSWER_WORDS["scenes"].decode({"binary": 0, "attr": 0, "reg": 0, **heads}) == (answer, tuple(heads))
