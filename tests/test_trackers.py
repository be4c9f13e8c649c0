"""TransTrack and MOTR: clips of any content, batches of clips, training, sessions, weights of detectors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import opendetr
from golden_tracking import normalised
from opendetr import Predictor, distributed
from opendetr.boxes import iou
from opendetr.categories import Categories, coco_categories
from opendetr.data import open_data
from opendetr.export import export_official
from opendetr.models import (
    MOTR,
    BoxAssociation,
    Detector,
    QueryLifetime,
    TrackerConfig,
    TrackingSession,
    TransTrack,
)
from opendetr.presets import (
    Preset,
    build_model,
    build_task,
    get_preset,
    list_models,
    miniature,
    registry,
    shipped_weights,
    trained_from_nothing,
)
from opendetr.scoring import Sigmoid
from opendetr.structures import Batch, ClipBatch, ImageBatch, Predictions, Target
from opendetr.synthetic import write_scenes
from opendetr.tasks import COUNT, Task
from opendetr.tasks.tracking import shifted
from opendetr.training.activation_checkpointing import recompute_blocks
from opendetr.training.callbacks import MetricsFile, read_metrics
from opendetr.training.events import Callback
from opendetr.training.settings import set_up
from opendetr.training.starting_weights import load_start
from opendetr.training.trainer import STATE, Trainer
from opendetr.weights import WeightsError, transfer
from test_processes import ENVIRONMENT, in_processes, needs_fork

NUM_CLASSES = 3
TRACKERS = [name for name in list_models() if hasattr(get_preset(name), "tracker")]
MOTRS = [name for name in TRACKERS if name.startswith("motr")]
TRANSTRACKS = [name for name in TRACKERS if name.startswith("transtrack")]
everyone = pytest.mark.parametrize("name", TRACKERS)
FAMILIES = ("transtrack-tiny", "motr-tiny")
each_family = pytest.mark.parametrize("name", FAMILIES)
Objects = dict[int, tuple[float, float]]  # id -> centre


def small(name: str, num_classes: int = NUM_CLASSES, **tracking: Any) -> tuple[Preset, Task]:
    preset = trained_from_nothing(miniature(name))
    # Norms of single frames differ from those of batches, and dropout from process to process.
    backbone = replace(preset.model.backbone, norm="frozen")
    transformer = replace(preset.model.transformer, dropout=0.0)
    preset = replace(preset, model=replace(preset.model, backbone=backbone, transformer=transformer))
    preset = replace(preset, tracking=replace(preset.tracking, **tracking))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = build_task(preset, build_model(preset, num_classes), num_classes)
    return preset, task


def frame(objects: Sequence[Objects], seed: int, side: int = 64) -> Batch:
    """One image per entry, with noise, and objects of the class of their id."""
    generator = torch.Generator().manual_seed(seed)
    images = ImageBatch.from_images([torch.randn(3, side, side, generator=generator) for _ in objects])
    targets = []
    for number, own in enumerate(objects):
        ids = torch.tensor(list(own), dtype=torch.int64)
        boxes = torch.tensor([(x, y, 0.25, 0.25) for x, y in own.values()]).view(-1, 4)
        targets.append(Target(ids % NUM_CLASSES, boxes, (side, side), (side, side), number, track_ids=ids))
    return Batch(images, tuple(targets), tuple(f"{number}.jpg" for number in range(len(objects))))


FIRST: list[Objects] = [{7: (0.2, 0.2), 8: (0.7, 0.6)}, {7: (0.5, 0.6), 8: (0.8, 0.1), 3: (0.1, 0.8)}]
SECOND: list[Objects] = [{7: (0.3, 0.3), 9: (0.6, 0.2)}, {3: (0.2, 0.7)}]
THIRD: list[Objects] = [{8: (0.7, 0.5), 7: (0.4, 0.4)}, {7: (0.5, 0.5), 3: (0.2, 0.6)}]


def clip(*frames: Sequence[Objects], seeds: tuple[int, ...] = (11, 12), seed: int = 1) -> ClipBatch:
    return ClipBatch.of([frame(each, number) for number, each in enumerate(frames)], seeds=seeds, seed=seed)


CLIP = clip(FIRST, SECOND, THIRD)
NOTHING: Objects = {}
ALONE: Objects = {5: (0.5, 0.5)}
CROWD: Objects = {number: (0.04 * number, 0.5) for number in range(20)}  # more than queries
CLIPS = {
    "three frames": CLIP,
    "one frame": clip(FIRST),
    "no object": clip([NOTHING, NOTHING], [NOTHING, NOTHING], [NOTHING, NOTHING]),
    "more objects than queries": clip([CROWD, NOTHING], [CROWD, CROWD], [NOTHING, CROWD]),
    "in the first and last frame only": clip(
        [{5: (0.5, 0.5)}, NOTHING], [NOTHING, NOTHING], [{5: (0.5, 0.5)}, NOTHING]
    ),
}


def gradients(task: Task, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses and gradients of a step, divided as the trainer does."""
    task.zero_grad(set_to_none=True)
    losses = task(batch)
    task.total(normalised(losses)).backward()
    return losses, {name: each.grad.clone() for name, each in task.named_parameters() if each.grad is not None}


# --------------------------------------------------------------------------------------------------------------- losses


@everyone
@pytest.mark.parametrize("kind", CLIPS)
def test_losses_of_every_clip_are_finite_and_of_the_same_shape(name, kind):
    _, task = small(name, min_iou=0.0) if name in MOTRS else small(name)
    losses, found = gradients(task, CLIPS[kind])
    num_layers = len(task.model.decoder.layers)
    expected = {"class": num_layers, "l1": num_layers, "giou": num_layers, "dense": 1, COUNT: 1}
    assert {key: value.numel() for key, value in losses.items()} == expected
    assert all(value.isfinite().all() for value in (*losses.values(), *found.values()))
    without = task.state_dict().keys() - found.keys()
    needed = {key for key, each in task.named_parameters() if each.requires_grad}
    assert not [key for key in without & needed if not key.startswith(task.optional_parameters)]


@pytest.mark.parametrize("name", ["motr-tiny"])
def test_gradients_reach_the_first_frame_through_the_queries(name):
    """With tracks, everything but the norm that no output depends on learns."""
    _, task = small(name, min_iou=0.0, random_drop=0.0)
    _, found = gradients(task, CLIP)
    without = {key for key, _ in task.named_parameters()} - found.keys()
    assert {key.removeprefix("model.interaction.") for key in without} == {"unused_norm.weight", "unused_norm.bias"}
    pixels = CLIP.frames[0].images.pixels.clone().requires_grad_()
    first = replace(CLIP.frames[0], images=replace(CLIP.frames[0].images, pixels=pixels))
    yielded = list(task.frames(ClipBatch.of([first, *CLIP.frames[1:]], seeds=CLIP.seeds)))
    output, targets, matches = yielded[-1]
    task.total(task.losses(output, targets, matches=matches)).backward()
    assert pixels.grad is not None and pixels.grad.abs().max() > 0


def in_float64(batch: ClipBatch) -> ClipBatch:
    def converted(each: Batch) -> Batch:
        images = replace(each.images, pixels=each.images.pixels.double())
        return replace(each, images=images, targets=tuple(replace(t, boxes=t.boxes.double()) for t in each.targets))

    return ClipBatch.of([converted(each) for each in batch.frames], seeds=batch.seeds)


@each_family
def test_micro_batches_and_single_clips_equal_the_whole(name):
    """Also where clips have different numbers of tracks, so that rows fill up the batch."""
    settings = {"min_iou": 0.0, "false_positives": 0.0} if name in MOTRS else {}
    task, batch = small(name, **settings)[1].double(), in_float64(CLIP)
    whole, expected = gradients(task, batch)
    task.zero_grad(set_to_none=True)
    parts = [task(part) for part in batch.split(2)]
    assert sum(part[COUNT] for part in parts) == whole[COUNT]
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value)
    for part in parts:
        (task.total(part) / whole[COUNT].squeeze()).backward()
    for key, each in task.named_parameters():
        if key in expected:
            torch.testing.assert_close(each.grad, expected[key])
    if name in MOTRS:
        assert any(output.padding is not None for output, _, _ in task.frames(batch))


@pytest.mark.parametrize("name", ["motr-tiny"])
def test_what_is_drawn_depends_on_the_seed_of_the_clip_alone(name):
    _, task = small(name, min_iou=0.0, random_drop=0.5, false_positives=0.5)

    def tracks(batch: ClipBatch) -> list[list[list[int]]]:
        outputs = [output for output, _, _ in task.frames(batch)]
        ids = [each.track_ids[:, task.model.num_queries :].tolist() for each in outputs]
        hidden = [None if each.padding is None else each.padding[:, task.model.num_queries :] for each in outputs]
        return [
            [own if mask is None else [id_ for id_, out in zip(own, mask[video], strict=True) if not out]
             for video, own in enumerate(each)]
            for each, mask in zip(ids, hidden, strict=True)
        ]  # fmt: skip

    together = tracks(CLIP)
    alone = [tracks(part) for part in CLIP.split(2)]
    assert [[video for part in alone for video in part[number]] for number in range(3)] == together
    assert any(tracks(replace(CLIP, seeds=(seed, seed + 1))) != together for seed in range(5))
    assert together == tracks(replace(CLIP, seed=5))
    task.eval()
    assert tracks(replace(CLIP, seeds=())) == tracks(CLIP)  # nothing is drawn


@pytest.mark.parametrize("name", ["motr-tiny"])
def test_a_track_keeps_its_object_and_an_absent_one_is_a_negative_for_every_class(name):
    _, task = small(name, min_iou=0.0, random_drop=0.0, false_positives=0.0)
    task.criterion.class_term = seen = Recorder(task.criterion.class_term)
    all_absent = 0
    for output, targets, matches in task.frames(CLIP):
        for image, target in enumerate(targets):
            for row, track in enumerate(output.track_ids[image].tolist()):
                here = (matches.image == image) & (matches.query == row)
                expected = [target.track_ids.tolist().index(track)] if track in target.track_ids.tolist() else []
                if track >= 0:  # in every layer
                    assert matches.target[here].tolist() == expected * len(output.layers)
        count = task.count(output, targets, matches).item()
        absent = sum(track not in target.track_ids for target, ids in zip(targets, output.track_ids, strict=True)
                     for track in ids.tolist() if track >= 0)  # fmt: skip
        assert count == sum(map(len, targets)) + absent
        all_absent += absent
        task.losses(output, targets, matches=matches)
        rows = (output.track_ids >= 0).nonzero().tolist()
        labels = [seen.labels(image, row) for image, row in rows]
        ids = [output.track_ids[image, row] for image, row in rows]
        wanted = [
            [int(id_) % NUM_CLASSES] if id_ in targets[image].track_ids else []
            for (image, _), id_ in zip(rows, ids, strict=True)
        ]
        assert labels == wanted
    assert all_absent > 1


class Recorder:
    """A class term that keeps the labels of the last layer that it was asked for."""

    def __init__(self, term: Any) -> None:
        self.term, self.matches, self.targets = term, None, ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.term, name)

    def loss(self, logits: Tensor, targets: Sequence[Target], matches: Any) -> Tensor:
        self.matches, self.targets = matches.of_layer(len(logits) - 1), targets
        return self.term.loss(logits, targets, matches)

    def labels(self, image: int, row: int) -> list[int]:
        here = (self.matches.image == image) & (self.matches.query == row)
        return self.targets[image].labels[self.matches.target[here]].tolist()


@pytest.mark.parametrize("name", ["motr-tiny"])
def test_an_anonymous_object_has_a_class_loss_alone_and_begins_no_track(name):
    _, task = small(name, min_iou=0.0, random_drop=0.0, false_positives=0.0)
    first = frame([{-1: (0.5, 0.5)}], 0)
    first = replace(first, targets=(replace(first.targets[0], labels=torch.tensor([1])),))
    outputs = list(task.frames(ClipBatch.of([first, frame([NOTHING], 1)], seeds=(1,))))
    losses = task.losses(*outputs[0][:2], matches=outputs[0][2])
    assert not losses["l1"].any() and not losses["giou"].any() and len(outputs[0][2]) == len(losses["l1"])
    unknown = task.losses(outputs[0][0], [replace(first.targets[0], track_ids=None)], matches=outputs[0][2])
    assert torch.equal(unknown["class"], losses["class"]) and unknown["l1"].all()
    assert (outputs[1][0].track_ids < 0).all()


# ------------------------------------------------------------------------------------------------------------- training


class Clips:
    """A loader of the same clips in every epoch, and of the share of a process in them."""

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ClipBatch]:
        share = CLIP.split(distributed.world_size())[distributed.rank()]
        yield from [replace(share, seed=seed) for seed in range(len(self))][start:]


def train(name: str, folder: Path, *, resume: bool = False, callbacks: Sequence[Any] = ()) -> None:
    """Two steps, or what is left of them."""
    torch.set_num_threads(1)
    preset, task = small(name, min_iou=0.0) if name in MOTRS else small(name)
    recipe = replace(preset.recipe, batch_size=2, max_steps=2, precision="fp32", warmup_steps=0)
    Trainer(task, Clips(), recipe, folder, callbacks=callbacks, device="cpu").train(resume=resume)


class StopAfterOne(Callback):
    def on_step(self, event: Any) -> None:
        if event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)


@each_family
def test_two_steps_learn_and_resume_to_the_same_bits(name, tmp_path):
    train(name, tmp_path / "whole")
    train(name, tmp_path / "stopped", callbacks=[StopAfterOne()])
    train(name, tmp_path / "stopped", resume=True)
    whole, resumed = (load_file(tmp_path / folder / "last" / STATE) for folder in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert not [key for key in whole if not torch.equal(whole[key], resumed[key])]
    before = small(name)[1].state_dict()
    assert sum(not torch.equal(value, whole[f"task/{key}"]) for key, value in before.items()) > 50


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0 and json.loads(done.stdout) == [0] * 3 * len(FAMILIES), done.stderr
    return folder


@needs_fork
@each_family
def test_two_processes_equal_one(name, runs):
    """Each process has another clip, with another number of objects and tracks."""
    one, two = ([row for row in read_metrics(runs / name / str(number)) if row["kind"] == "step"] for number in (1, 2))
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        # The gradient of a random backbone without norms is rough in float32; in float64 the clips add up exactly.
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=5e-3)
        assert ours["losses"].keys() == theirs["losses"].keys()
        for term, values in ours["losses"].items():
            assert theirs["losses"][term] == pytest.approx(values, rel=1e-3, abs=1e-5), term


def main(folder: Path) -> None:
    """Train in one and in two processes, and print the exit codes."""
    codes = []
    for name, count in product(FAMILIES, (1, 2)):
        run = folder / name / str(count)
        codes += in_processes(count, lambda name=name, run=run: train(name, run, callbacks=[MetricsFile()]))
    print(json.dumps(codes))


@each_family
def test_activation_checkpointing_gives_the_same(name):
    _, task = small(name, min_iou=0.0) if name in MOTRS else small(name)
    losses, expected = gradients(task, CLIP)
    assert recompute_blocks(task) == 1 if name in MOTRS else recompute_blocks(task) > 1
    again, found = gradients(task, CLIP)
    assert all(torch.equal(again[key], value) for key, value in losses.items())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_a_still_image_is_shifted_by_the_seed_of_its_clip():
    _, task = small("transtrack-tiny")
    still = ClipBatch.of([frame(FIRST, 0)], seeds=(1, 2))
    earlier, previous, last = task.last_three(still)
    assert last is still.frames[0]
    pixels = [each.images.pixels for each in (earlier, previous, last)]
    assert not torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[1], pixels[2])
    parts = [task.last_three(part)[1].images.pixels for part in still.split(2)]
    assert torch.equal(torch.cat(parts), pixels[1])
    assert task.last_three(ClipBatch.of([still.frames[0]])) == (still.frames[0],) * 3
    assert task.last_three(CLIP) == CLIP.frames
    tiny = frame([NOTHING], 0, side=1)
    assert task.last_three(ClipBatch.of([tiny], seeds=(3,)))[1].images.shape == (1, 1)


def test_a_shift_moves_boxes_with_the_pixels():
    batch = frame([{0: (0.5, 0.5)}], 0)
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[..., 24:40, 24:40] = 1  # the box: 16 pixels around the centre
    moved = shifted(replace(batch, images=replace(batch.images, pixels=pixels)), [(8, -16)])
    rows, columns = moved.images.pixels[0, 0].amax(1).nonzero(), moved.images.pixels[0, 0].amax(0).nonzero()
    x, y, w, h = (64 * moved.targets[0].boxes[0]).tolist()
    assert (columns.min(), columns.max() + 1) == (pytest.approx(x - w / 2, abs=1), pytest.approx(x + w / 2, abs=1))
    assert (rows.min(), rows.max() + 1) == (pytest.approx(y - h / 2, abs=1), pytest.approx(y + h / 2, abs=1))
    assert x > 32 and y < 32


# -------------------------------------------------------------------------------------------------------------- session


def session_of(name: str, model: Detector, **config: Any) -> TrackingSession:
    preset = miniature(name)
    return replace(preset, tracker=replace(preset.tracker, **config)).session(model.eval())


@everyone
def test_two_videos_do_not_know_each_other(name):
    _, task = small(name)
    one, other, both = (session_of(name, task.model, birth=0.0, keep=0.0) for _ in range(3))
    frames = [each.images for each in CLIP.frames]
    results = []
    for number, images in enumerate(frames):
        results.append([one.step(images[:1]), other.step(images[1:])])
        together = both.step(images)
        for video, alone in enumerate(results[-1]):
            assert torch.equal(together.track_ids[video, : alone.track_ids.shape[1]], alone.track_ids[0]), number
            torch.testing.assert_close(together.final.boxes[video], alone.final.boxes[0], atol=1e-5, rtol=0)
    one.reset()
    again = one.step(frames[0][:1])
    assert torch.equal(again.track_ids, results[0][0].track_ids)
    assert torch.equal(again.final.boxes, results[0][0].final.boxes)


@everyone
def test_tracks_begin_continue_and_end(name):
    _, task = small(name)
    images = CLIP.frames[0].images[:1]
    eager = session_of(name, task.model, birth=0.0, keep=0.0)
    first, second = eager.step(images), eager.step(images)
    count = task.model.num_queries
    assert len(set(first.track_ids[0].tolist())) == count and (first.track_ids >= 0).all()
    assert set(first.track_ids[0].tolist()) <= set(second.track_ids[0].tolist())
    strict = session_of(name, task.model, birth=1.0, keep=1.0)
    assert (strict.step(images).track_ids == -1).all() and (strict.step(images).track_ids == -1).all()


def test_the_score_of_a_track_is_that_of_its_best_tracked_class():
    logits = torch.tensor([[[-2.0, 3.0, 0.0], [1.0, -1.0, -3.0]]])
    predictions = Predictions(logits, torch.zeros(1, 2, 4), Sigmoid())
    config = TrackerConfig(birth=0.5, keep=0.5, patience=1)
    torch.testing.assert_close(config.scores(predictions), torch.tensor([[3.0, 1.0]]).sigmoid())
    chosen = replace(config, classes=(0, 2))
    torch.testing.assert_close(chosen.scores(predictions), torch.tensor([[0.0, 1.0]]).sigmoid())


def test_the_rules_of_a_preset_follow_its_settings():
    config = TrackerConfig(birth=0.3, keep=0.2, patience=7)
    kinds = {name: type(session_of(name, small(name)[1].model).rules) for name in ("motr-tiny", "transtrack-tiny")}
    assert kinds == {"motr-tiny": QueryLifetime, "transtrack-tiny": BoxAssociation}
    preset = replace(get_preset("motr-tiny"), tracker=config)
    assert preset.session(small("motr-tiny")[1].model).rules == QueryLifetime(config)


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["motr-r50", "transtrack-r50"])
def test_a_tracker_starts_from_a_detector_with_refinement(name):
    torch.manual_seed(0)
    detector, tracker = build_model(miniature("deformable-detr-r50-refine"), 91), build_model(miniature(name), 1)
    before, source = {key: value.clone() for key, value in tracker.state_dict().items()}, detector.state_dict()
    report = transfer(tracker, source, coco_categories(), Categories.from_names(["pedestrian"]))
    after = tracker.state_dict()
    for key, value in source.items():
        expected = value[1:2] if key in tracker.class_rows else value  # the row of "person"
        assert torch.equal(after[key], expected), key
    added = after.keys() - source.keys()
    assert added and all(tracker.added_parts & set(key.split(".")) for key in added)
    if isinstance(tracker, TransTrack):
        assert all(torch.equal(after[f"track_{key}"], value) for key, value in source.items() if "decoder." in key)
        images = CLIP.frames[0].images
        with torch.no_grad():
            levels = detector.project_features(detector.backbone(images))
            found = tracker.project_features(tracker.backbone(images))
        assert all(torch.allclose(one.values, other.values) for one, other in zip(levels, found, strict=True))
        assert report.new_parts == ()
    else:
        assert all(torch.equal(after[key], before[key]) for key in added)
        assert set(report.new_parts) == MOTR.added_parts
    state = {key: value for key, value in source.items() if "encoder" not in key}
    with pytest.raises(WeightsError, match="missing encoder"):
        transfer(tracker, state, coco_categories(), Categories.from_names(["pedestrian"]))


GRID = torch.tensor([0.2, 0.5, 0.8])


@pytest.mark.parametrize("name", ["motr-tiny", "transtrack-tiny"])
def test_a_tiny_tracker_starts_from_the_weights_of_the_package(name, tmp_path):
    setup, origin = set_up(tmp_path, name, "deformable-detr-tiny", None, freeze_detector=False)
    assert origin == shipped_weights("deformable-detr-tiny") and setup.preset.name == name
    assert not setup.preset.has_masks
    model = build_model(setup.preset, 2)
    report = load_start(model, origin, setup.preset, Categories.from_names(["disc", "other"]))
    assert "1 kept (disc), 1 new (other)" in report and "proposal_class_head" in report
    assert "queries" not in report and "reference_points" not in report  # these are not random
    points = model.reference_of(model.queries.weight.chunk(2, 1)[0])
    assert all(((points - corner).abs().amax(1) < 0.15).any() for corner in torch.cartesian_prod(*2 * [GRID]))
    # Its boxes are on objects before any training. With random queries, hardly any are.
    write_scenes(tmp_path / "scenes", counts={"train": 1, "val": 6})
    val = open_data(tmp_path / "scenes")["val"]
    predictor = Predictor(model, setup.preset, Categories.from_names(["disc", "other"]), device="cpu")
    ious = []
    for record in val.images:
        found = predictor.predict(record.path, min_score=0)
        boxes = torch.tensor([obj.box for obj in record.objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        ious += iou(boxes[:, None], found.boxes[None]).amax(1).tolist()
    assert sum(value > 0.5 for value in ious) > 0.15 * len(ious)


@pytest.mark.parametrize("name", ["motr-r50", "transtrack-r50"])
def test_a_published_file_is_loaded_by_the_name_of_its_model(name, tmp_path, monkeypatch):
    preset = miniature(name)
    monkeypatch.setitem(registry._PRESETS, name, lambda: preset)
    model = build_model(preset, len(preset.published_categories()))
    export_official(model, preset, tmp_path / "published.pth")
    predictor = opendetr.load(tmp_path / "published.pth", model=name, device="cpu")
    assert predictor.categories == preset.published_categories()
    names = [name for name, used in zip(predictor.categories.names, predictor.categories.used, strict=True) if used]
    assert names == ["person"]
    # Weights of a detector have the classes of COCO.
    assert preset.categories_of(build_model(miniature("deformable-detr-r50"), 91).state_dict()) == coco_categories()


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["motr-tiny"])
def test_what_clips_lack_is_one_line(name):
    _, task = small(name)
    with pytest.raises(ValueError, match=r"ClipBatch.seeds: MOTR drops tracks at random"):
        task(replace(CLIP, seeds=()))
    frames = [replace(each, targets=tuple(replace(t, track_ids=None) for t in each.targets)) for each in CLIP.frames]
    with pytest.raises(ValueError, match=r"0.jpg: its objects have no track ids.*; use a tracking dataset"):
        task(ClipBatch.of(frames, seeds=(1, 2)))
    assert task(ClipBatch.of(frames[:1], seeds=(1, 2)))["class"].isfinite().all()


def test_frames_of_two_sizes_are_one_line():
    _, task = small("transtrack-tiny")
    session = session_of("transtrack-tiny", task.model)
    session.step(frame([NOTHING], 0).images)
    with pytest.raises(ValueError, match="a frame differs in size from the one before"):
        session.step(frame([NOTHING], 0, side=128).images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"birth": 1.5}, "tracker.birth: expected a number from 0 to 1"),
        ({"keep": 0.9}, "tracker.keep: expected at most tracker.birth"),
        ({"patience": 0}, "tracker.patience: expected at least 1"),
        ({"classes": (-1,)}, "tracker.classes: expected labels from 0"),
    ],
)
def test_tracker_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TrackerConfig(birth=0.5, keep=0.4, patience=3), **change)


@everyone
def test_settings_of_a_preset_that_cannot_be(name):
    preset = get_preset(name)
    with pytest.raises(ValueError, match="a tracker has no mask head"):
        replace(preset, masks=replace(preset.masks, enabled=True))
    field, value = ("random_drop", 2.0) if name in MOTRS else ("max_shift", 0)
    with pytest.raises(ValueError, match=f"tracking.{field}: expected"):
        replace(preset.tracking, **{field: value})


@everyone
def test_a_tracker_detects_in_single_images(name):
    """Batches of any number; nothing of one reaches the next."""
    preset, task = small(name)
    predictor = Predictor(task.model, preset, Categories.from_names("abc"), device="cpu")
    images = [(255 * torch.rand(3, 48, 64)).byte().permute(1, 2, 0).numpy() for _ in range(3)]
    first = predictor.predict(images[0], min_score=0.0)
    together = list(predictor.predict(images, min_score=0.0))
    torch.testing.assert_close(together[0].boxes, first.boxes, atol=1e-3, rtol=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
