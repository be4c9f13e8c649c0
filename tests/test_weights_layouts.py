"""Weights of other implementations, read and written, against the installed transformers and by brute force."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import opendetr
from golden import Golden, rule
from golden_scaled import close
from opendetr.categories import Categories, coco_panoptic_categories
from opendetr.config import ConfigError
from opendetr.export.checkpoints import (
    export_huggingface,
    export_official,
    huggingface_difference,
    huggingface_unsupported_reason,
)
from opendetr.inference.predictor import Predictor
from opendetr.models.detector import Detector
from opendetr.models.detr import DETR
from opendetr.models.masks import MaskedDetector, MaskHeadConfig
from opendetr.postprocess import detect
from opendetr.presets import Preset, build_model, detector_alone, get_preset, list_models, miniature
from opendetr.structures import ImageBatch
from opendetr.weights import (
    WeightsError,
    detr,
    family,
    load_weights,
    read_card,
    read_state,
    register_family,
    transfer,
    weights_file,
)
from opendetr.weights.family import layout_of
from opendetr.weights.name_maps import their_names

CLASSES = Categories.from_names(("cat", "dog", "red fox"))


def small(name: str, **backbone: Any) -> Preset:
    """A miniature wide enough for the group norm of transformers."""
    preset = miniature(name)
    model: Any = preset.model
    return replace(
        preset,
        model=replace(
            model,
            transformer=replace(model.transformer, width=64),
            backbone=replace(model.backbone, **({"dilation": False} | backbone)),
        ),
    )


def filled(preset: Preset, num_classes: int = len(CLASSES)) -> Detector:
    """A model in evaluation whose every tensor is another one."""
    model = build_model(preset, num_classes).eval()
    state = {name: rule(name, list(value.shape)) for name, value in model.state_dict().items() if value.ndim}
    model.load_state_dict(state | {name: value for name, value in model.state_dict().items() if not value.ndim})
    return model


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


SMALL = {
    "detr": small("detr-r50"),
    "detr, half width": small("detr-tiny"),
    "conditional": small("conditional-detr-r50"),
    "single scale": small("deformable-detr-r50-single-scale"),
    "levels": small("deformable-detr-r50"),
    "refine": small("deformable-detr-r50-refine"),
    "two stages": small("deformable-detr-r50-two-stage"),
    "bottlenecks": small("deformable-detr-r50-single-scale", depth=50),
    "batch norm": small("detr-r50", norm="batch", half_width=False),
}
each = pytest.mark.parametrize("kind", SMALL)


# ------------------------------------------------------------------------------------------------------------- official


@each
def test_official_there_and_back(tmp_path, kind):
    model = filled(SMALL[kind])
    export_official(model, SMALL[kind], tmp_path / "official.pth")
    state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    assert layout_of(state) == "official"
    again = build_model(SMALL[kind], len(CLASSES))
    assert load_weights(again, tmp_path / "official.pth").layout == "official"
    counts = {name: value for name, value in model.state_dict().items() if not value.ndim}
    assert same(again.state_dict() | counts, model.state_dict())


ORIGINALS = {
    "detr-r50": "detr/detr_resnet50-sharp",
    "conditional-detr-r50": "conditional/resnet50",
    "deformable-detr-r50-single-scale": "deformable/single_scale",
    "deformable-detr-r50": "deformable/standard",
    "deformable-detr-r50-refine": "deformable/refine",
    "deformable-detr-r50-two-stage": "deformable/two_stage",
    "detr-r50-panoptic": "detr/detr_resnet50_panoptic-sharp",
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_official_names_are_those_of_the_original(tmp_path, name):
    """Those of a head under its second name, too; the golden lists the original's state dict."""
    golden, preset = Golden(ORIGINALS[name]), get_preset(name)
    preset = replace(preset, model=replace(preset.model, num_queries=10))
    with torch.device("meta"):
        model = build_model(preset, golden["num_classes"])
    export_official(model.to_empty(device="cpu"), preset, tmp_path / "official.pth")
    state = torch.load(tmp_path / "official.pth", weights_only=True, mmap=True)["model"]
    written = {theirs: list(value.shape) for theirs, value in state.items()}
    expected = dict(golden.record.get("state_dict") or golden["keys"])
    for shapes in (written, expected):
        for queries in ("query_embed.weight", "detr.query_embed.weight"):  # some goldens have fewer
            shapes.pop(queries, None)
    assert written == expected


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "as torch 1.5 wrote it"])
def test_a_training_checkpoint_of_the_original(tmp_path, is_zip):
    """Options in a namespace, an optimizer and a schedule lie beside the weights."""
    model = filled(SMALL["detr"])
    export_official(model, SMALL["detr"], tmp_path / "official.pth")
    state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    options = argparse.Namespace(lr=1e-4, masks=False, frozen_weights=None, dataset_file="coco", nested=[1, (2, 3)])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 200)
    torch.save(
        {"model": state, "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 3,
         "args": options},
        tmp_path / "checkpoint.pth",
        _use_new_zipfile_serialization=is_zip,
    )  # fmt: skip
    again = build_model(SMALL["detr"], len(CLASSES))
    load_weights(again, tmp_path / "checkpoint.pth")
    other = build_model(SMALL["detr"], len(CLASSES))
    load_weights(other, state)
    assert same(again.state_dict(), other.state_dict())


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["model", "args", "inside the namespace"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, place):
    bomb = _Bomb(tmp_path / "exploded")
    content = {"model": {"a": torch.zeros(1)}, "args": argparse.Namespace()}
    if place == "inside the namespace":
        content["args"] = argparse.Namespace(bomb=bomb)
    else:
        content[place] = bomb
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="could run code") as caught:
        read_state(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "exploded").exists()  # it would have


# ----------------------------------------------------------------------------------------------------------- detectron2


def test_detectron2_wrapper(tmp_path):
    """Renamed as the wrapper's own converter does, and with what its training adds."""
    preset = small("detr-r50", depth=50)
    model = filled(preset)
    export_official(model, preset, tmp_path / "official.pth")
    official = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    theirs = {f"detr.{_detectron2_name(name)}": value for name, value in official.items()}
    theirs["criterion.empty_weight"] = torch.ones(len(CLASSES) + 1)
    torch.save({"model": theirs, "iteration": 5}, tmp_path / "model_final.pth")
    again = build_model(preset, len(CLASSES))
    assert load_weights(again, tmp_path / "model_final.pth").layout == "detectron2"
    assert same(again.state_dict(), model.state_dict())
    with pytest.raises(WeightsError, match="the detectron2 layout of weights is not supported for deformable-detr"):
        load_weights(build_model(SMALL["levels"], 3), theirs)


def _detectron2_name(name: str) -> str:
    if not name.startswith("backbone.0.body."):
        return name
    name = name.removeprefix("backbone.0.body.")
    if "layer" not in name:
        name = f"stem.{name}"
    for stage in range(1, 5):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for index in range(1, 4):
        name = name.replace(f"bn{index}", f"conv{index}.norm")
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return f"backbone.0.backbone.{name}"


# --------------------------------------------------------------------------------------------------------- hugging face


def _theirs(folder: Path, pixels: np.ndarray) -> tuple[Any, Any, dict[str, Tensor]]:
    """A model of transformers, what it says about an image, and what its post-processing makes of that."""
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    inputs = processor(images=pixels, return_tensors="pt")
    with torch.no_grad():
        output = model.eval()(**inputs)
    sizes = torch.tensor([pixels.shape[:2]])
    return model, output, processor.post_process_object_detection(output, threshold=-1, target_sizes=sizes)[0]


def _make_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@each
def test_transformers_reads_what_is_written(tmp_path, kind):
    """Through its own image processor and its own post-processing: the same boxes, scores and names."""
    model, preset = filled(SMALL[kind]), SMALL[kind]
    export_huggingface(model, preset, CLASSES, tmp_path / "out")
    pixels = _make_image(64, 96)  # of the size that the model sees
    theirs, raw, found = _theirs(tmp_path / "out", pixels)
    detector = opendetr.load(tmp_path / "out", device="cpu")
    assert detector.preset.data.image_size == preset.data.image_size
    assert detector.categories == CLASSES
    assert theirs.config.id2label == dict(enumerate(CLASSES.names))
    counts = {name: value for name, value in detector.model.state_dict().items() if not value.ndim}
    assert same(detector.model.state_dict(), _frozen(model.state_dict()) | counts)
    check_same(detector, pixels, raw, found)


def check_same(detector: Predictor, pixels: np.ndarray, raw: Any, found: dict[str, Tensor]) -> None:
    """Query by query before the post-processing; after it in any order, since scores may be as good as equal."""
    batch = ImageBatch.from_images([detector.prepare(pixels).input])
    with torch.no_grad():
        output = detector.model(batch)
    close(output.final.logits, raw.logits)
    close(output.final.boxes, raw.pred_boxes)
    ours = detector.predict(pixels, min_score=0)
    assert torch.equal(ours.labels.sort().values, found["labels"].sort().values)
    close(ours.scores.sort().values, found["scores"].sort().values)
    close(ours.boxes.sort(0).values / max(pixels.shape), found["boxes"].sort(0).values / max(pixels.shape))


@each
def test_labels_that_are_never_predicted_never_win_in_transformers(tmp_path, kind):
    """A detector gives the same detections here and there, although some of its rows stand for no class."""
    preset = SMALL[kind]
    model = filled(preset)
    some = replace(CLASSES, used=(True, False, *CLASSES.used[2:]))
    row = model.get_parameter(model.class_rows[1])
    with torch.no_grad():
        row[1] = row.max() + 3  # of all scores the best
    export_huggingface(model, preset, some, tmp_path / "out")
    pixels = _make_image(64, 96)
    theirs, _, found = _theirs(tmp_path / "out", pixels)
    assert theirs.config.id2label[1] == "N/A"
    visible = found["scores"] > 1e-6
    assert visible.any() and 1 not in found["labels"][visible]
    for detector in (opendetr.load(tmp_path / "out", device="cpu"), Predictor(model, preset, some, device="cpu")):
        ours = detector.predict(pixels, min_score=0)
        if theirs.config.model_type == "detr" and detector.model is model:
            continue  # here the row takes a part of the softmax
        count = min(int(visible.sum()), len(ours))
        close(ours.scores.sort(descending=True).values[:count], found["scores"].sort(descending=True).values[:count])


SIZES = [(100, 130), (97, 301), (301, 97), (480, 640), (1080, 1920), (333, 334), (64, 640), (50, 50), (1, 9)]


def test_the_image_processor_gives_inputs_of_the_same_size(tmp_path):
    transformers = pytest.importorskip("transformers")
    for preset in (SMALL["detr"], replace(SMALL["detr"], data=replace(SMALL["detr"].data, side_multiple=32))):
        folder = tmp_path / str(preset.data.side_multiple)
        export_huggingface(filled(preset), preset, CLASSES, folder)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        detector = opendetr.load(folder, device="cpu")
        sizes = {}
        for size in SIZES:
            pixels = np.zeros((*size, 3), dtype=np.uint8)
            theirs = processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
            sizes[size] = theirs["pixel_values"].shape[-2:], detector.prepare(pixels).input.shape[-2:]
        said = huggingface_difference(preset)
        if preset.data.side_multiple > 1:
            height, width = sizes[480, 640][0]
            assert f"640x480 becomes {width}x{height} there" in said
            continue
        for size, (theirs, ours) in sizes.items():
            ratio = max(size) / min(size)
            is_limited = ratio > preset.data.max_size / preset.data.image_size
            allowed = ratio / 2 + 1 if is_limited else 0
            assert max(abs(there - here) for there, here in zip(theirs, ours, strict=True)) <= allowed
        assert "up to half their aspect ratio" in said


def _frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def test_the_image_processor_resizes_as_we_do(tmp_path):
    transformers = pytest.importorskip("transformers")
    preset = SMALL["detr"]
    model = filled(preset)
    export_huggingface(model, preset, CLASSES, tmp_path / "out")
    pixels = _make_image(100, 130)
    inputs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(images=pixels, return_tensors="pt")
    ours = opendetr.load(tmp_path / "out", device="cpu").prepare(pixels).input
    assert inputs["pixel_values"].shape[-2:] == ours.shape[-2:]
    assert (inputs["pixel_values"][0] - ours).abs().max() < 0.02  # a step of 8 bits


def test_dilated_backbones_go_through_timm(tmp_path):
    pytest.importorskip("timm")
    for name in ("detr-r50-dc5", "deformable-detr-r50-single-scale-dc5", "conditional-detr-r50-dc5"):
        preset = small(name, depth=50, half_width=False, dilation=True)
        model = filled(preset)
        export_huggingface(model, preset, CLASSES, tmp_path / name)
        pixels = _make_image(64, 96)
        _, raw, found = _theirs(tmp_path / name, pixels)
        check_same(opendetr.load(tmp_path / name, device="cpu"), pixels, raw, found)


@pytest.mark.parametrize(
    ("preset", "reason"),
    [
        (small("detr-r50", norm="group", half_width=False), "group norm"),
        (small("detr-tiny", dilation=True), "no dilated ResNet-18"),
        (small("detr-r50", depth=50, half_width=True, dilation=True), "half width"),
        (replace(SMALL["detr"], model=replace(SMALL["detr"].model, position="learned")), "learned positions"),
        (miniature("deformable-detr-r50"), "32 groups"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_transformers_cannot_hold(tmp_path, preset, reason):
    with pytest.raises(ConfigError, match=reason):
        export_huggingface(build_model(preset, 3), preset, CLASSES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    model = build_model(SMALL["detr"], 3)
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_huggingface(model, SMALL["detr"], CLASSES, tmp_path / "out")
    with pytest.raises(ConfigError, match="exists already"):
        export_official(model, SMALL["detr"], tmp_path / "out" / "mine")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder that transformers has written: names of classes with a hole, sizes that are not the published ones."""
    transformers = pytest.importorskip("transformers")
    resnet = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.ConditionalDetrConfig(
        backbone_config=resnet, d_model=64, num_queries=12, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=96,
        decoder_ffn_dim=96, encoder_attention_heads=4, decoder_attention_heads=4,
        id2label={0: "N/A", 1: "cat", 2: "N/A", 3: "dog"}, label2id={"cat": 1, "dog": 3},
    )  # fmt: skip
    model = transformers.ConditionalDetrForObjectDetection(config).eval()
    model.load_state_dict({name: rule(name, list(value.shape)) for name, value in model.state_dict().items()})
    model.save_pretrained(tmp_path / "theirs")
    transformers.ConditionalDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(
        tmp_path / "theirs"
    )
    return tmp_path / "theirs"


def _answers(folder: Path) -> tuple[Tensor, Tensor]:
    detector = opendetr.load(weights_file(folder), device="cpu")
    batch = ImageBatch.from_images([torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(0))])
    with torch.no_grad():
        final = detector.model(batch).final
    return final.logits, final.boxes


def test_a_folder_of_transformers_says_all_that_is_needed(theirs):
    detector = opendetr.load(theirs, device="cpu")
    config = detector.preset
    assert (config.name, config.model.backbone.depth, config.model.transformer.decoder_layers) == (
        "conditional-detr-r50", 18, 3,
    )  # fmt: skip
    assert (config.data.image_size, config.data.max_size) == (64, 128)
    assert detector.categories.names == ("N/A", "cat", "N/A", "dog")
    assert set(detector.predict(_make_image(64, 96), min_score=0).names) <= {"cat", "dog"}
    _, _, found = _theirs(theirs, _make_image(64, 96))
    sizes = torch.tensor([[64, 96]])
    batch = ImageBatch.from_images([detector.prepare(_make_image(64, 96)).input])
    with torch.no_grad():
        (raw,) = detect(detector.model(batch).final, sizes, detector.categories, raw=True)
    close(raw.scores.sort().values, found["scores"].sort().values, 1e-5)


def test_one_state_in_every_kind_of_file(theirs, tmp_path):
    """Pickled, and in several files under an index."""
    expected, state = _answers(theirs), load_file(theirs / "model.safetensors")
    (theirs / "model.safetensors").unlink()
    torch.save(state, theirs / "pytorch_model.bin")
    assert all(torch.equal(*pair) for pair in zip(_answers(theirs), expected, strict=True))
    (theirs / "pytorch_model.bin").unlink()
    names = sorted(state)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, theirs / file)
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert weights_file(theirs).name == "model.safetensors.index.json"
    assert all(torch.equal(*pair) for pair in zip(_answers(theirs), expected, strict=True))
    (theirs / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors: no such file"):
        _answers(theirs)


def test_both_spellings_of_the_backbone(theirs):
    """transformers' own ResNet, and torchvision's names, which timm's are."""
    expected, state = _answers(theirs), load_file(theirs / "model.safetensors")
    renamed = {_timm_name(name): value for name, value in state.items()}
    assert "model.backbone.conv_encoder.model.layer2.0.downsample.1.running_var" in renamed
    save_file(renamed, theirs / "model.safetensors")
    assert all(torch.equal(*pair) for pair in zip(_answers(theirs), expected, strict=True))


def _timm_name(name: str) -> str:
    name = name.replace("model.embedder.embedder.convolution", "model.conv1")
    name = name.replace("model.embedder.embedder.normalization", "model.bn1")
    name = re.sub(r"encoder\.stages\.(\d)\.layers", lambda match: f"layer{int(match[1]) + 1}", name)
    name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    name = re.sub(r"layer\.(\d)\.convolution", lambda match: f"conv{int(match[1]) + 1}", name)
    return re.sub(r"layer\.(\d)\.normalization", lambda match: f"bn{int(match[1]) + 1}", name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50d"}},
            "backbone resnet50d is not supported",
        ),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}}, "layers or widths"),
        ({"decoder_attention_heads": 8}, "decoder_attention_heads differ"),
        ({"position_embedding_type": "learned"}, "position_embedding_type 'learned'"),
        ({"id2label": ["cat"]}, "does not describe a supported model"),
        ({"num_queries": "many"}, "model.num_queries"),
        ({"decoder_layers": 4}, "missing decoder.layers.3"),
    ],
)
def test_configurations_that_do_not_fit(theirs, change, words):
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=words):
        opendetr.load(theirs)


def test_other_normalisation_is_refused(theirs):
    path = theirs / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(WeightsError, match="must be those of ImageNet"):
        opendetr.load(theirs)


def test_the_published_configurations_mean_the_published_models(tmp_path):
    """As the repositories of the authors' weights write them: only what differs from the defaults."""
    for kind, record, name in (
        ("detr", {"backbone": "resnet101", "dilation": True}, "detr-r101-dc5"),
        ("detr", {"backbone": "resnet50", "use_timm_backbone": True}, "detr-r50"),
        ("conditional_detr", {"backbone": "resnet50"}, "conditional-detr-r50"),
        ("deformable_detr", {"num_feature_levels": 1}, "deformable-detr-r50-single-scale"),
        ("deformable_detr", {"num_feature_levels": 1, "dilation": True}, "deformable-detr-r50-single-scale-dc5"),
        ("deformable_detr", {}, "deformable-detr-r50"),
        ("deformable_detr", {"with_box_refine": True}, "deformable-detr-r50-refine"),
        ("deformable_detr", {"with_box_refine": True, "two_stage": True}, "deformable-detr-r50-two-stage"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "id2label": {"0": "a"}} | record))
        torch.save({}, tmp_path / "pytorch_model.bin")
        card = read_card(tmp_path / "pytorch_model.bin")
        assert card is not None
        assert opendetr.presets.preset_from_dict(card.config) == get_preset(name)


# ---------------------------------------------------------------------------------------------------------------- masks


def masked(name: str) -> Preset:
    """A miniature with a mask head that transformers can hold: as many heads as the encoder."""
    preset = small(name)
    transformer = replace(preset.model.transformer, num_heads=8)
    data = replace(preset.data, masks="auto")
    return replace(
        preset, model=replace(preset.model, transformer=transformer), masks=MaskHeadConfig(enabled=True), data=data
    )


MASKED = masked("detr-r50-panoptic")


def _check_masks(ours: MaskedDetector, theirs: Any, size: tuple[int, int] = (64, 96)) -> None:
    """The same logits, boxes and masks of all queries, of two images, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    images = ImageBatch.from_images([torch.randn(3, *each, generator=generator) for each in (size, (48, 64))])
    with torch.no_grad():
        output = ours(images)
        raw = theirs(images.pixels, pixel_mask=(~images.padding).long())
        count = ours.num_queries
        masks = ours.masks(output, torch.arange(2).repeat_interleave(count), torch.arange(count).repeat(2))
    close(output.final.logits, raw.logits)
    close(output.final.boxes, raw.pred_boxes)
    close(masks.unflatten(0, (2, count)), raw.pred_masks)
    assert masks.std() > 0.01


def test_transformers_reads_masks_that_are_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, preset = filled(MASKED), MASKED
    export_huggingface(model, preset, CLASSES, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["DetrForSegmentation"]
    theirs, report = transformers.DetrForSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    _check_masks(model, theirs.eval())
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.format == "coco_panoptic"
    detector = opendetr.load(tmp_path / "out", device="cpu")
    assert (detector.preset.masks, detector.categories) == (preset.masks, CLASSES)
    _check_masks(detector.model, theirs)


@pytest.mark.parametrize("is_new", [False, True], ids=["names of the file", "names of the module"])
def test_masks_that_transformers_has_written(tmp_path, is_new):
    transformers = pytest.importorskip("transformers")
    resnet = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        backbone_config=resnet, d_model=64, num_queries=12, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=96,
        decoder_ffn_dim=96, encoder_attention_heads=8, decoder_attention_heads=8,
        id2label={0: "LABEL_0", 1: "cat", 2: "sky"}, label2id={"cat": 1, "sky": 2},
    )  # fmt: skip
    model = transformers.DetrForSegmentation(config).eval()
    model.load_state_dict({name: rule(name, list(value.shape)) for name, value in model.state_dict().items()})
    model.save_pretrained(tmp_path)
    if is_new:
        state = load_file(tmp_path / "model.safetensors")
        heads = {name: value for name, value in model.state_dict().items() if not name.startswith("detr.")}
        assert not heads.keys() & state.keys()
        detector = {name: value for name, value in state.items() if name.startswith("detr.")}
        save_file(detector | heads, tmp_path / "model.safetensors")
    ours = opendetr.load(tmp_path, device="cpu")
    assert ours.preset.masks == MaskHeadConfig(enabled=True)
    _check_masks(ours.model, model)


def test_a_published_segmentation_has_the_classes_of_coco_panoptic(tmp_path):
    record = {"model_type": "detr", "architectures": ["DetrForSegmentation"], "backbone": "resnet101"}
    for names, expected in (
        ({str(label): f"LABEL_{label}" for label in range(250)}, coco_panoptic_categories().names),
        ({str(label): f"mine {label}" for label in range(250)}, tuple(f"mine {label}" for label in range(250))),
    ):
        (tmp_path / "config.json").write_text(json.dumps(record | {"id2label": names}))
        torch.save({}, tmp_path / "pytorch_model.bin")
        card = read_card(tmp_path / "pytorch_model.bin")
        assert card is not None
        assert card.categories.names == expected
        assert opendetr.presets.preset_from_dict(card.config) == get_preset("detr-r101-panoptic")


def test_detectron2_wrapper_with_masks(tmp_path):
    preset = masked("detr-r50-panoptic")
    model = filled(preset)
    export_official(model, preset, tmp_path / "official.pth")
    official = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    assert layout_of(official) == "official"
    theirs = {f"detr.{_masked_detectron2_name(name)}": value for name, value in official.items()}
    again = build_model(preset, len(CLASSES))
    assert load_weights(again, theirs).layout == "detectron2"
    assert same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("layout", ["official", "detectron2", "huggingface"])
def test_a_file_with_masks_opens_as_its_detector(tmp_path, monkeypatch, layout):
    model, things = filled(MASKED), replace(CLASSES, isthing=(True,) * (len(CLASSES) - 1) + (False,))
    if layout == "huggingface":
        export_huggingface(model, MASKED, CLASSES, tmp_path / "folder")
        state = load_file(tmp_path / "folder" / "model.safetensors")
    else:
        export_official(model, MASKED, tmp_path / "official.pth")
        state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    if layout == "detectron2":
        state = {f"detr.{_masked_detectron2_name(name)}": value for name, value in state.items()}
    assert layout_of(state) == layout
    detector = build_model(detector_alone(MASKED), len(CLASSES))
    assert transfer(detector, state, CLASSES, CLASSES).left_out == ("the mask head",)
    assert same(detector.state_dict(), model.detector.state_dict())
    torch.save({"model": state}, tmp_path / "theirs.pth")
    monkeypatch.setattr("opendetr.inference.predictor.get_preset", lambda _name: detector_alone(MASKED))
    found = opendetr.load(tmp_path / "theirs.pth", model="detr-r50", categories=things, device="cpu")
    assert not found.has_masks
    assert found.categories.used == things.isthing
    assert same(found.model.state_dict(), model.detector.state_dict())


def _masked_detectron2_name(name: str) -> str:
    inner = name.removeprefix("detr.")
    return name if inner == name else f"detr.{_detectron2_name(inner)}"


@pytest.mark.parametrize(
    ("preset", "reason"),
    [
        (miniature("deformable-detr-tiny-panoptic"), "masks for DETR only"),
        (small("detr-r50-panoptic"), "as many mask attention heads as encoder heads, 4"),
    ],
    ids=["deformable", "heads"],
)
def test_masks_that_transformers_cannot_hold(tmp_path, preset, reason):
    with pytest.raises(ConfigError, match=reason):
        export_huggingface(build_model(preset, 3), preset, CLASSES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ what is refused


@each
def test_faults_are_named_and_change_nothing(tmp_path, kind):
    model = filled(SMALL[kind])
    export_official(model, SMALL[kind], tmp_path / "official.pth")
    state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    broken = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    del broken["backbone.0.body.conv1.weight"]
    broken["transformer.encoder.layers.0.linear1.bias"] = torch.zeros(7)
    broken["transformer.unheard.of"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, broken)
    for words in ("missing backbone.body.conv1.weight", "unknown transformer.unheard.of", "got (7,)", "3 keys"):
        assert words in str(caught.value)
    assert same(model.state_dict(), before)


def test_heads_that_differ_where_the_model_shares_one(tmp_path):
    model = filled(SMALL["levels"])
    export_official(model, SMALL["levels"], tmp_path / "official.pth")
    state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    assert torch.equal(state["class_embed.0.bias"], state["class_embed.1.bias"])
    state["class_embed.1.bias"] = state["class_embed.1.bias"] + 1
    with pytest.raises(WeightsError, match=r"shares class_heads\.0\.bias between layers"):
        load_weights(model, state)


@pytest.mark.parametrize("kind", ["refine", "two stages"])
def test_equal_heads_may_be_saved_once(tmp_path, kind):
    """As transformers does; those of later layers are the first one again, in the model that has one per layer."""
    model = filled(SMALL[kind])
    state = model.state_dict()
    first = {name: re.sub(r"\d", "0", name, count=1) for name in state if re.match(r"(class|box)_heads\.", name)}
    model.load_state_dict(state | {name: state[other].clone() for name, other in first.items()})
    export_huggingface(model, SMALL[kind], CLASSES, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    later = {name for name in saved if re.search(r"(class|bbox)_embed\.1\.", name)}
    assert later
    again = build_model(SMALL[kind], len(CLASSES))
    load_weights(again, {name: value for name, value in saved.items() if name not in later})
    assert same(again.state_dict(), model.state_dict())


def test_an_unknown_layout_names_those_that_are_known():
    with pytest.raises(WeightsError, match=r"opendetr, official, detectron2, huggingface.*first names: stem.a, stem.b"):
        load_weights(build_model(SMALL["detr"], 3), {"stem.a": torch.zeros(1), "stem.b": torch.zeros(1)})


@pytest.mark.parametrize("name", list_models())
def test_every_model_of_the_catalogue_has_official_names(tmp_path, name):
    preset = miniature(name)
    model = filled(preset)
    export_official(model, preset, tmp_path / "official.pth")
    again = build_model(preset, len(CLASSES))
    load_weights(again, tmp_path / "official.pth")
    assert same(again.state_dict(), model.state_dict())


def test_a_family_that_is_not_registered_has_our_own_layout(tmp_path):
    """And one that a user registers has the layouts that it names."""

    class Own(DETR):
        family = "own"

    preset = small("detr-tiny")
    scoring = preset.criterion.classification.scoring()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [Own(preset.model, scoring.num_logits(3), scoring).eval() for _ in range(2)]
    state = {key: value for key, value in models[0].state_dict().items() if "num_batches" not in key}
    load_weights(models[1], state)
    assert same(models[0].state_dict(), models[1].state_dict())
    with pytest.raises(ConfigError, match="exists only in OpenDETR"):
        export_official(models[0], preset, tmp_path / "official.pth")
    with pytest.raises(ConfigError, match="exists only in OpenDETR"):
        export_huggingface(models[0], preset, CLASSES, tmp_path / "hf")
    assert huggingface_unsupported_reason(models[0], preset) == "transformers has no models of this family"
    official = {their: models[0].state_dict()[our] for their, our in their_names(state, detr.FAMILY.official).items()}
    with pytest.raises(WeightsError, match="the official layout of weights is not supported for own"):
        load_weights(models[1], official)
    register_family(replace(detr.FAMILY, name="own", huggingface=None, no_huggingface="it is new"))
    try:
        assert load_weights(models[1], official).layout == "official"
        export_official(models[0], preset, tmp_path / "official.pth")
        assert same(read_state(tmp_path / "official.pth"), official)
        with pytest.raises(ConfigError, match="to Hugging Face: it is new; use --format official"):
            export_huggingface(models[0], preset, CLASSES, tmp_path / "hf")
    finally:
        family._FAMILIES.pop("own")
