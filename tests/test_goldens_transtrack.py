"""TransTrack against the numbers of the original implementation."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from golden import Golden, objects, target
from golden_scaled import close, official_losses, pairs
from golden_tracking import TrackingGolden, gradient_faults, normalised, published_names
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.models import BoxAssociation, TrackerConfig, TrackingSession, TransTrack
from opendetr.models.tracking import Track
from opendetr.presets import build_model, build_task, create, get_preset
from opendetr.structures import Batch, ClipBatch, ImageBatch, Target
from opendetr.tasks.tracking import shifted
from opendetr.weights import load_weights
from opendetr.weights.transtrack import FAMILY

NAME = "transtrack-r50"
PERSON = 1  # the only class that the original looks at


def loaded(golden: TrackingGolden) -> TransTrack:
    model = build_model(golden.preset(NAME), golden["config"]["num_classes"])
    load_weights(model, golden.state())
    return model


def in_pixels(boxes: Tensor, size: list[int]) -> Tensor:
    height, width = size
    return cxcywh_to_xyxy(boxes) * torch.tensor([width, height, width, height])


def check_arrays(found: dict[str, Tensor], golden: TrackingGolden, prefix: str) -> None:
    """Every array of the golden below a prefix."""
    expected = {name.removeprefix(prefix): value for name, value in golden.arrays.items() if name.startswith(prefix)}
    assert expected.keys() <= found.keys(), sorted(expected.keys() - found.keys())
    for name, value in expected.items():
        # Boxes in pixels of the original image are up to 640 times as large.
        close(found[name], value, 1e-4 if value.abs().max() < 100 or "boxes" not in name else 1e-2)


def test_the_preset_holds_the_published_configuration():
    golden, preset = TrackingGolden("transtrack/infer_full"), get_preset(NAME)
    ours = published_names(preset)
    assert {name: golden["config"][name] for name in ours} == ours
    recipe = preset.recipe
    assert (recipe.learning_rate, recipe.backbone_learning_rate, recipe.sampling_rate_factor) == (2e-4, 2e-5, 0.1)
    assert (recipe.batch_size, recipe.epochs, recipe.step_at * recipe.epochs, recipe.clip_norm) == (16, 150, 100, 0.1)
    with torch.device("meta"):
        model = create(NAME)
    assert sum(value.numel() for value in model.state_dict().values()) == 47_203_410


@pytest.mark.parametrize("variant", ["infer_small", "infer_full"])
@torch.no_grad()
def test_inference(variant):
    golden = TrackingGolden(f"transtrack/{variant}")
    tracker, size = golden["tracker"], golden["inputs"]["orig_size_hw"]
    threshold = tracker["score_thresh"]
    rules = BoxAssociation(
        TrackerConfig(birth=threshold, keep=threshold, patience=tracker["max_age"], classes=(PERSON,))
    )
    session, rows = TrackingSession(loaded(golden).eval(), rules), []
    for number, frame in enumerate(golden.frames("frames")):
        output = session.step(frame)
        aux = output.tracks if number else output.layers
        tracks, final = output.tracks[-1], output.final
        found = {
            "pred_logits": final.logits, "pred_boxes": final.boxes,
            "tracking_logits": tracks.logits, "tracking_boxes": tracks.boxes,
            "embed/tgt": output.state.content, "embed/reference": output.state.boxes,
            "post/scores": final.logits[..., PERSON].sigmoid(), "post/boxes": in_pixels(final.boxes, size),
            "post/track_scores": tracks.logits[..., PERSON].sigmoid(),
            "post/track_boxes": in_pixels(tracks.boxes, size),
        }  # fmt: skip
        for index, layer in enumerate(aux[:-1]):
            found |= {f"aux{index}/pred_logits": layer.logits, f"aux{index}/pred_boxes": layer.boxes}
        check_arrays({name: value[0] for name, value in found.items()}, golden, f"frame{number}/")
        (memory,) = session.memories
        rows += [(number, track) for track in memory.tracks]
        active = {track.query: track.id for track in memory.tracks if track.query is not None}
        assert {query: id_ for query, id_ in enumerate(output.track_ids[0].tolist()) if id_ >= 0} == active
        if not number:
            assert len(memory.tracks) == tracker["born_on_frame0"]
    scale = torch.tensor([size[1], size[0], size[1], size[0]])
    check_rows(rows, golden.arrays["tracker/rows"], scale, 1e-2)


def check_rows(rows: list[tuple[int, Track]], expected: Tensor, scale: Tensor, tolerance: float) -> None:
    """The tracks of all frames in their order: frame, id, active, age exactly; score and box."""
    exact = [(frame, track.id, track.query is not None, track.age) for frame, track in rows]
    assert exact == [tuple(row[:4]) for row in expected.long().tolist()]
    close(torch.tensor([track.score for _, track in rows]), expected[:, 4], 1e-4)
    close(torch.tensor([track.box for _, track in rows]) * scale, expected[:, 5:], tolerance)


def mot_text(rows: list[tuple[int, Track]]) -> str:
    """The result file: tracks in the order of their ids, ids without gaps, then frames."""
    seen = sorted({track.id for _, track in rows if track.query is not None})
    lines = sorted((seen.index(track.id) + 1, frame + 1, track.box) for frame, track in rows if track.query is not None)
    return "".join(
        f"{frame},{id_},{x0:.2f},{y0:.2f},{x1 - x0:.2f},{y1 - y0:.2f},-1,-1,-1,-1\n"
        for id_, frame, (x0, y0, x1, y1) in lines
    )


@pytest.mark.parametrize("run", ["default", "max_age2", "no_track_boxes", "high_threshold"])
def test_association(run):
    golden = Golden("transtrack/tracker_script")
    settings, arrays = golden["runs"][run], golden.arrays
    threshold = settings["score_thresh"]
    rules = BoxAssociation(TrackerConfig(birth=threshold, keep=threshold, patience=settings["max_age"]))
    memory, rows = rules.start(), []
    for frame, scores in enumerate(arrays["input/scores"]):
        predicted = arrays["input/track_boxes"][frame] if settings["track_boxes_given"] else None
        memory = rules.associate(memory, scores, arrays["input/boxes"][frame], predicted)
        rows += [(frame, track) for track in memory.tracks]
        ids = [[track.id for track in memory.tracks if (track.query is not None) == active] for active in (True, False)]
        assert ids == [settings["active_ids"][frame], settings["inactive_ids"][frame]]
    check_rows(rows, arrays[f"{run}/rows"], torch.ones(4), 1e-4)
    assert mot_text(rows) == settings["mot_text"]


# ------------------------------------------------------------------------------------------------------------- training


def clip_of(golden: TrackingGolden) -> ClipBatch:
    """The two frames before, with the shifts that the original drew, and the frame itself."""
    images, inputs = ImageBatch.from_images(golden.images("images")), golden["inputs"]
    calls = [re.search(r"targets\('([\w/]+)', (\d+), (\d+), salt\)", text) for text in inputs["targets"]]
    targets = tuple(
        replace(target(*objects(call[1], int(call[2]), int(call[3]))), size=tuple(size))
        for call, size in zip(calls, images.sizes.tolist(), strict=True)
        if call
    )
    last = Batch(images, targets)
    names = ("before_previous", "previous")
    before = [
        shifted(last, list(zip(inputs[f"xshift_{name}"], inputs[f"yshift_{name}"], strict=True))) for name in names
    ]
    return ClipBatch.of([*before, last], seed=int(inputs["branch"] == "track"))


@pytest.mark.parametrize(
    "variant", ["train_small_track", "train_small_detect", pytest.param("train_full_track", marks=pytest.mark.slow)]
)
def test_training(variant):
    golden = TrackingGolden(f"transtrack/{variant}")
    preset, model, clip = golden.preset(NAME), loaded(golden).train(), clip_of(golden)
    for name, frame in zip(("before_previous", "previous"), clip.frames, strict=False):
        check_arrays(shifted_arrays(frame), subset(golden, f"{name}/image", f"{name}/boxes"), f"{name}/")
    task = build_task(preset, model, golden["config"]["num_classes"])
    with torch.no_grad():
        before = model.detect(clip.frames[1].images, model.backbone(clip.frames[0].images))
    found = {"out/pred_logits": before.final.logits, "out/pred_boxes": before.final.boxes}
    found["embed/tgt"] = before.state.content
    check_arrays(found, subset(golden, "previous/out", "previous/embed"), "previous/")
    ((output, targets, matches),) = task.frames(clip)
    found = {"pred_logits": output.final.logits, "pred_boxes": output.final.boxes}
    for index, layer in enumerate(output.layers[:-1]):
        found |= {f"aux{index}/pred_logits": layer.logits, f"aux{index}/pred_boxes": layer.boxes}
    check_arrays(found, golden, "out/")
    names = [*(str(index) for index in range(len(output.layers) - 1)), "final"]
    assert {name: pairs(matches, layer, len(targets)) for layer, name in enumerate(names)} == golden["matching"]
    losses = normalised(task(clip))
    plain = {name: value for name, value in golden["losses"].items() if name.startswith("loss_")}
    assert official_losses(losses) == pytest.approx(plain, rel=1e-4)
    total = task.total(losses)
    assert total.item() == pytest.approx(golden["total_weighted"], rel=1e-4)
    total.backward()
    assert gradient_faults(model, golden["grad_norms"], FAMILY.official) == []


def shifted_arrays(frame: Batch) -> dict[str, Tensor]:
    pixels, boxes = frame.images.pixels, {f"boxes{index}": each.boxes for index, each in enumerate(frame.targets)}
    return {"image_strided4": pixels[..., ::4, ::4], "image_sum_rows": pixels.sum(-1)} | boxes


def subset(golden: TrackingGolden, *prefixes: str) -> TrackingGolden:
    """The golden with some of its arrays."""
    chosen = copy.copy(golden)
    chosen.arrays = {name: value for name, value in golden.arrays.items() if name.startswith(prefixes)}
    return chosen


@pytest.mark.parametrize("seed", [0, 1])
def test_one_decoder_has_a_gradient_in_each_step(seed):
    task = build_task(get_preset("transtrack-tiny").miniature(), create_small(), 3)
    images = ImageBatch.from_images([torch.rand(3, 64, 64)])
    labelled: Target = target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    clip = ClipBatch.of([Batch(images, (labelled,))], seed=seed, seeds=(4,))
    task.total(task(clip)).backward()
    without = {name for name, each in task.named_parameters() if each.requires_grad and each.grad is None}
    assert all(name.startswith(task.optional_parameters) for name in without)
    assert any("track_decoder" in name for name in without) == (seed == 0)
    assert any("model.decoder" in name for name in without) == (seed == 1)


def create_small() -> TransTrack:
    return build_model(get_preset("transtrack-tiny").miniature(), 3)
