"""What the analysis of attention captures, against a plain computation, and without a trace in the outputs.

Shape letters: B batch, Q queries, N keys, H heads, S levels.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inputs import run_model
from opendetr.analysis.attention import (
    CapturedAttention,
    DenseAttention,
    ImageAttention,
    SampledAttention,
    attention_of,
    capture,
    write_exact,
)
from opendetr.data import DetectionData
from opendetr.data.formats import open_split
from opendetr.inference import Predictor, load
from opendetr.models import Detector
from opendetr.nn import AttentionModule
from opendetr.presets import build_model, get_preset, miniature
from opendetr.structures import Output
from opendetr.synthetic import SceneConfig, VideoConfig, write_captioned_scenes, write_scenes, write_videos
from test_inspection import (
    PLAIN,
    Arguments,
    Record,
    content_and_spatial_scores,
    everyone,
    in_rows,
    normalised,
    padded_images,
    record_calls,
    sharp_model,
    tensors,
)

QUERIES = torch.tensor([3, 0, 7])


def run(model: Detector) -> Output:
    torch.manual_seed(5)
    return run_model(model, padded_images(), continued=True)


def cross_names(model: Detector) -> list[str]:
    inside = "" if model.detector_part is None else f"{model.detector_part}."
    names = [name for name, module in model.named_modules() if isinstance(module, AttentionModule)]
    return [name for name in names if name.startswith(f"{inside}decoder.layers") and name.endswith("cross_attention")]


def last_encoder_name(model: Detector) -> str:
    inside = "" if model.detector_part is None else f"{model.detector_part}."
    names = [name for name, module in model.named_modules() if isinstance(module, AttentionModule)]
    return [name for name in names if name.startswith(f"{inside}encoder.layers")][-1]


def valid_cells(output: Output, image: int) -> list[Tensor]:
    """(h, w) bool for each level, where it is not padding."""
    return [
        torch.ones(level.values.shape[-2:], dtype=torch.bool) if level.padding is None else ~level.padding[image]
        for level in output.memory
    ]


def plain_rows(
    module: AttentionModule, arguments: Arguments, output: Output, image: int, rows: Tensor
) -> tuple[Tensor, ...]:
    """The plain weights of some rows in one image: (H, n, N), or points and weights (H, n, S, P)."""
    found = tensors(PLAIN[type(module)][0](module, arguments))
    cells = valid_cells(output, image)
    if len(found) == 1:
        keys = torch.cat([each.flatten() for each in cells])
        return (found[0][image][:, rows][..., keys],)
    shares = torch.tensor([(each[0].float().mean(), each[:, 0].float().mean()) for each in cells]).double()
    return tuple(
        each.transpose(0, 1) for each in (found[0][image, rows].double() / shares[:, None], found[1][image, rows])
    )


def assert_equal(found: DenseAttention | SampledAttention, layer: int, expected: tuple[Tensor, ...]) -> None:
    own = (found.weights,) if isinstance(found, DenseAttention) else (found.points, found.weights)
    for values, plain in zip(own, expected, strict=True):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values[layer].double(), plain.double(), atol=2e-5, rtol=0)


def assert_sums_to_one(attention: DenseAttention | SampledAttention) -> None:
    over = (-1,) if isinstance(attention, DenseAttention) else (-2, -1)
    sums = attention.weights.sum(over)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def assert_no_hooks(model: Detector) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@everyone
@torch.no_grad()
def test_captured_attention_is_the_plain_computation(name):
    """For both images of a padded batch; every row sums to 1; outputs and random state are those without looking."""
    model = sharp_model(name)
    modules = dict(model.named_modules())
    plain = run(model)
    state = torch.get_rng_state()
    captured = capture(model, lambda: run(model))
    assert_no_hooks(model)
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(plain.layers, captured.output.layers, strict=True):
        assert torch.equal(one.logits, other.logits) and torch.equal(one.boxes, other.boxes)
    assert torch.equal(plain.queries, captured.output.queries)
    record = record_calls(model)
    run(model)
    names, last = cross_names(model), last_encoder_name(model)
    for image in range(2):
        decoder, encoder = captured.decoder_of(image, QUERIES), captured.encoder_of(image)
        assert len(decoder.weights) == len(names) == 2
        for layer, key in enumerate(names):
            expected = plain_rows(modules[key], record[key][0][0], captured.output, image, QUERIES)
            assert_equal(decoder, layer, expected)
        levels = valid_cells(captured.output, image)
        levels = levels[:1] if isinstance(encoder, DenseAttention) else levels
        cells = torch.cat([level.flatten() for level in levels]).nonzero()[:, 0]
        expected = plain_rows(modules[last], record[last][0][0], captured.output, image, cells)
        if isinstance(encoder, DenseAttention):
            expected = (expected[0].mean(0, keepdim=True),)
            assert encoder.maps.shape[-2:] == captured.grids_of(image)[0]
        assert_equal(encoder, 0, expected)
        assert encoder.weights.shape[2] == sum(h * w for h, w in captured.grids_of(image))
        for attention in (decoder, encoder):
            assert_sums_to_one(attention)
        check_spatial_part(model, captured, record, image)


def check_spatial_part(model: Detector, captured: CapturedAttention, record: Record, image: int) -> None:
    """It is the softmax of the spatial scores, for the models that compare places on their own."""
    modules = dict(model.named_modules())
    spatial = captured.spatial_of(image, QUERIES)
    separates = [key for key in cross_names(model) if hasattr(modules[key], "query_place")]
    assert (spatial is not None) == bool(separates)
    if spatial is None:
        return
    for layer, key in enumerate(separates):
        arguments = record[key][0][0]
        scores = content_and_spatial_scores(modules[key], arguments)[1]
        plain = normalised(scores, in_rows(arguments["padding"]))
        keys = torch.cat([cells.flatten() for cells in valid_cells(captured.output, image)])
        assert_equal(spatial, layer, (plain[image][:, QUERIES][..., keys],))
    assert_sums_to_one(spatial)


@pytest.mark.parametrize("name", ["detr-r50-panoptic", "conditional-detr-r50", "deformable-detr-r50"])
def test_no_hook_stays_after_an_error(name):
    model = sharp_model(name)

    def fails() -> Output:
        assert any(module._forward_hooks for module in model.modules())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(model, fails)
    assert_no_hooks(model)


# ----------------------------------------------------------------------------------------------------------- a dataset


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> DetectionData:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"val": 3}, config=SceneConfig(size=128))
    return open_split(folder, "val")


@pytest.fixture(scope="module")
def shown(scenes) -> list[ImageAttention]:
    detector = load("deformable-detr-tiny", device="cpu")
    return list(attention_of(detector, scenes, scenes.images[::-1]))


def untrained(name: str, data: DetectionData) -> Predictor:
    preset = miniature(name)
    torch.manual_seed(0)
    return Predictor(build_model(preset, preset.num_classes(data.categories)), preset, data.categories, device="cpu")


def test_the_detections_are_those_of_predict(scenes, shown):
    detector = load("deformable-detr-tiny", device="cpu")
    assert [each.name for each in shown] == [scenes.file_name(record) for record in scenes.images[::-1]]
    for attention, record in zip(shown, scenes.images[::-1], strict=True):
        expected = detector.predict(record.path, min_score=0.3)
        assert len(expected) and torch.allclose(attention.detections.boxes, expected.boxes, atol=1e-3)
        assert attention.detections.names == expected.names
        assert attention.detections.image.shape == (128, 128, 3)


def test_points_are_where_the_model_samples(shown):
    """The mean point of a good detection lies in its box, or near it."""
    for attention in shown:
        weights = attention.decoder.weights[-1]
        points = (attention.decoder.points[-1] * weights[..., None]).sum((0, 2, 3)) / len(weights)
        boxes = attention.detections.boxes / 128
        margin = (boxes[:, 2:] - boxes[:, :2]) * 0.5
        assert ((points > boxes[:, :2] - margin) & (points < boxes[:, 2:] + margin)).all()


def test_scores_choose_what_is_shown(scenes):
    detector = load("deformable-detr-tiny", device="cpu")
    record = scenes.images[:1]
    (strict,) = attention_of(detector, scenes, record, min_score=1.0)
    assert len(strict.detections) == 3  # the best ones, although no score is as high
    (few,) = attention_of(detector, scenes, record, min_score=0.0, max_detections=5)
    assert len(few.detections) == few.decoder.weights.shape[2] == 5


def data_for(name: str, scenes: DetectionData, folder: Path) -> DetectionData:
    preset = get_preset(name)
    if name.startswith("mdetr"):
        write_captioned_scenes(folder / "captions", counts={"test": 1})
        return open_split(folder / "captions", "test")
    if preset.follows_objects:
        write_videos(folder / "videos", counts={"val": 1}, config=VideoConfig(frames=2, size=64))
        return open_split(folder / "videos", "val")
    return scenes


@pytest.mark.parametrize(
    "name",
    ["detr-tiny-panoptic", "conditional-detr-tiny", "deformable-detr-r50-two-stage", "up-detr-tiny", "mdetr-tiny",
     "transtrack-tiny", "motr-tiny"],
)  # fmt: skip
def test_every_kind_of_member_is_captured_on_a_dataset(name, scenes, tmp_path):
    data = data_for(name, scenes, tmp_path)
    detector = untrained(name, data)
    found = list(attention_of(detector, data, data.images[:2], min_score=0.0, max_detections=4))
    assert len(found) == 2
    for attention in found:
        assert len(attention.detections) == len(attention.queries) == attention.decoder.weights.shape[2]
        assert attention.encoder.weights.shape[2] == sum(h * w for h, w in attention.grids)
        assert (attention.caption is not None) == detector.model.takes_text
        if isinstance(attention.decoder, DenseAttention):
            assert len(attention.decoder.tokens) == attention.decoder.token_weights.shape[-1]
            assert bool(attention.decoder.tokens) == detector.model.takes_text


def test_exact_weights_are_written(shown, scenes, tmp_path):
    (dense,) = attention_of(untrained("conditional-detr-tiny", scenes), scenes, scenes.images[:1])
    files = write_exact(tmp_path / "exact", [shown[0], dense])
    sampled_record, dense_record = (json.loads(path.read_text()) for path in files)
    for record, attention in ((sampled_record, shown[0]), (dense_record, dense)):
        weights = torch.tensor(record["decoder"]["weights"])
        assert torch.equal(weights, attention.decoder.weights)
        over = (-1,) if attention is dense else (-2, -1)
        for part in {"decoder", "encoder", "spatial"} & record.keys():
            sums = torch.tensor(record[part]["weights"]).sum(over)
            torch.testing.assert_close(sums, torch.ones_like(sums))
        assert [row["query"] for row in record["detections"]] == attention.queries.tolist()
    assert torch.equal(torch.tensor(sampled_record["decoder"]["points"]), shown[0].decoder.points)
    assert torch.equal(torch.tensor(dense_record["spatial"]["weights"]), dense.spatial.weights)
    height, width = dense_record["encoder_grid"]
    assert torch.tensor(dense_record["encoder"]["weights"]).shape == (height * width, height * width)
    height, width = sampled_record["encoder_grid"]
    assert len(sampled_record["encoder"]["weights"][0]) == height * width
