"""Clips of videos as training data, training of trackers on them, and their evaluation on whole videos."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import opendetr
from miniature_runs import train_miniature, write_blocks
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import ConfigError
from opendetr.data import (
    TRACK,
    ClipDataConfig,
    DetectionData,
    LabelledImage,
    PairDataConfig,
    Videos,
    open_data,
    read_record,
    train_loader,
)
from opendetr.data.clips import ClipSampling
from opendetr.data.formats import read_splits
from opendetr.data.loader import eval_loader, sample_rng
from opendetr.evaluation import TrackingEvaluator
from opendetr.models import BoxAssociation, QueryLifetime, RulesSweep, TrackerConfig
from opendetr.presets import get_preset, list_models, miniature
from opendetr.presets.tracker_fitting import fit_tracker
from opendetr.scoring import Sigmoid
from opendetr.structures import Batch, ClipBatch, FeatureMap, ImageBatch, Movable, Predictions, TrackingOutput
from opendetr.synthetic import VideoConfig, write_videos
from opendetr.training import resume
from opendetr.training.run import _fingerprint
from opendetr.training.schedule import StepSpeed
from opendetr.training.settings import check_settings
from opendetr.training.trainer import STATE
from opendetr.visualize import track_colour
from test_data_mot import write_video
from test_trackers import StopAfterOne, small

TRACKERS = [name for name in list_models() if hasattr(get_preset(name), "tracker")]
each_family = pytest.mark.parametrize("name", ["transtrack-tiny", "motr-tiny"])
FRAMES = 6
CLIPS = replace(ClipDataConfig(num_workers=0).resized(64), max_shift=8)
PAIRS = PairDataConfig(num_workers=0).resized(64)
RULES = QueryLifetime(TrackerConfig(birth=0.5, keep=0.5, patience=5))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three training videos and two for validation."""
    folder = tmp_path_factory.mktemp("videos")
    config = VideoConfig(frames=FRAMES, size=64, max_objects=5)
    write_videos(folder, counts={"train": 3, "val": 2}, config=config)
    return folder


@pytest.fixture(scope="module")
def train(videos) -> DetectionData:
    return open_data(videos)["train"]


def labelled(data: DetectionData) -> list[LabelledImage]:
    return [
        LabelledImage.from_record(record, read_record(record), data.categories, number)
        for number, record in enumerate(data.images)
    ]


def clip_of(config, data: DetectionData, index: int, seed: int = 0) -> ClipBatch:
    images = labelled(data)
    sample = config.training_transform(data)(images[index], sample_rng(seed, 0, index), images)
    return config.collate([sample], (1, 1), torch.device("cpu"))


# ---------------------------------------------------------------------------------------------------------------- clips


def test_all_frames_of_a_clip_have_the_same_augmentation(tmp_path):
    """In a video whose frames are equal, those of a clip are, after flips, crops, sizes and changed colours."""
    rows = [
        f"{frame},{track},{22 * track - 22},{14 * track - 14},4,4,1,1,1" for frame in range(1, 8) for track in (1, 2, 3)
    ]
    video = write_video(tmp_path / "train" / "a", rows, names=[f"{frame:06d}" for frame in range(1, 8)])
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    for path in (video / "img1").iterdir():
        Image.fromarray(pixels).save(path, quality=100)
    data, shapes, counts = read_splits(tmp_path)["train"], set(), set()
    for config in (replace(CLIPS, augment="colour"), PAIRS):
        for seed in range(8):
            clip = clip_of(config, data, index=2, seed=seed)
            assert len(clip.frames) == (5 if config.augment == "colour" else 3)
            first, *others = clip.frames
            shapes.add(first.shape)
            counts.add(len(first.targets[0]))
            for other in others:
                assert torch.equal(other.images.pixels, first.images.pixels)
                assert torch.equal(other.targets[0].boxes, first.targets[0].boxes)
                assert torch.equal(other.targets[0].track_ids, first.targets[0].track_ids)
    assert len(shapes) > 3 and len(counts) > 1  # something was augmented, and objects were cropped away


def test_frames_follow_each_other_at_one_interval_inside_their_video(train):
    videos, sampling = Videos(train), ClipSampling(Videos(train), 3, 10)
    seen, intervals = Counter[int](), Counter[int]()
    for index in range(len(train)):
        for seed in range(20):
            drawn = sampling.draw(index, np.random.default_rng(seed))
            places = [videos.place(each) for each in drawn]
            assert {video for video, _ in places} == {videos.place(index)[0]}
            steps = {later - earlier for (_, earlier), (_, later) in pairwise(places)}
            assert len(steps) == 1
            intervals.update(steps)
            seen.update(drawn)
    assert set(intervals) == {1, 2}  # 3 frames in a video of 6
    assert len(seen) == len(train) and max(seen.values()) < 4 * min(seen.values())
    longer = ClipSampling(videos, FRAMES + 2, 10).draw(0, np.random.default_rng(0))
    assert longer == [0, 1, 2, 3, 4, 5, 5, 5]


def test_a_pair_ends_with_its_image_and_the_first_frame_repeats_itself(train):
    sampling = PAIRS.sampling(Videos(train))
    drawn = [sampling.draw(index, np.random.default_rng(0)) for index in (0, 1, 5, FRAMES)]
    assert drawn == [[0, 0, 0], [0, 0, 1], [3, 4, 5], [FRAMES] * 3]


def test_a_frame_of_another_video_or_size_is_replaced_or_resized(train):
    transform = CLIPS.training_transform(train)
    images = [
        LabelledImage.from_record(each, read_record(each), train.categories, n) for n, each in enumerate(train.images)
    ]
    foreign = [images[0], images[FRAMES], *images[2:]]  # what a loader substitutes for an unreadable frame
    assert transform._frame(1, images[0], foreign) is images[0]
    larger = replace(images[1], pixels=images[1].pixels.repeat(2, 0).repeat(2, 1), boxes=images[1].boxes * 2)
    resized = transform._frame(1, images[0], [images[0], larger])
    assert resized.pixels.shape == images[0].pixels.shape
    np.testing.assert_allclose(resized.boxes, images[1].boxes)


def test_a_still_image_becomes_a_clip_of_shifted_copies(tmp_path):
    data = open_data(write_blocks(tmp_path, most=2, classes=1, sides=(30, 34)))["train"]
    config = replace(CLIPS, augmentation=replace(CLIPS.augmentation, crop=False, multi_scale=False))
    moved = 0
    for index in range(4):
        clip = clip_of(config, data, index)
        assert len(clip.frames) == 5 and len(clip.seeds) == 1
        ids = [frame.targets[0].track_ids.tolist() for frame in clip.frames]
        assert ids == [list(range(len(data.images[index].objects)))] * 5
        centres = torch.stack([frame.targets[0].boxes[0, :2] for frame in clip.frames])
        ways = centres.diff(dim=0).sign()
        assert (ways == ways[0]).all()  # in one direction
        moved += int(ways.any())
        for frame in clip.frames:  # the block is bright where its box is
            x, y, w, h = (64 * frame.targets[0].boxes[-1]).tolist()
            colours = frame.images.pixels[0, 0]
            inner = colours[int(y - h / 4) : int(y + h / 4), int(x - w / 4) : int(x + w / 4)]
            assert inner.mean() > colours.mean() + 0.3
    assert moved == 4
    assert len(clip_of(PAIRS, data, 0).frames) == 1  # the task shifts it


def test_clips_become_longer_during_the_run(train):
    loader = train_loader(train, CLIPS, batch_size=2, seed=0)
    batches = list(loader.epoch(0))
    lengths = [len(CLIPS.at_progress(batches[0], progress).frames) for progress in (0, 0.2, 0.25, 0.5, 0.74, 0.75, 1)]
    assert lengths == [2, 2, 3, 4, 4, 5, 5]
    assert [CLIPS.work(progress) for progress in (0, 0.3, 1)] == [2, 3, 5]
    starts = set()
    for batch in batches:
        cut = CLIPS.at_progress(batch, 0)
        names = [frame.names for frame in batch.frames]
        starts.add(names.index(cut.frames[0].names))
        assert cut.seeds == batch.seeds and cut.seed == batch.seed
        assert [frame.names for frame in cut.frames] in [names[start : start + 2] for start in range(4)]
    assert len(starts) > 1  # all frames of the clips are used
    with pytest.raises(ValueError, match="lengthen_at: expected 3 ascending"):
        replace(CLIPS, lengthen_at=(0.5,))


@pytest.mark.parametrize("config", [CLIPS, PAIRS])
def test_the_shares_of_processes_are_parts_of_the_whole(train, config):
    whole = next(train_loader(train, config, batch_size=4, seed=0).epoch(0))
    parts = [next(train_loader(train, config, batch_size=4, seed=0, share=(rank, 2)).epoch(0)) for rank in (0, 1)]
    for frame, *shares in zip(*(batch.frames for batch in (whole, *parts)), strict=True):
        padded = [share.pad_to(*frame.shape) for share in shares]
        assert torch.equal(torch.cat([share.images.pixels for share in padded]), frame.images.pixels)
        ids = [target.track_ids.tolist() for share in padded for target in share.targets]
        assert ids == [target.track_ids.tolist() for target in frame.targets]
    assert parts[0].seeds + parts[1].seeds == whole.seeds and parts[0].seed == parts[1].seed == whole.seed


def test_a_timed_run_knows_that_longer_clips_take_longer():
    speed = StepSpeed()
    for work in (2, 2, 2, 2, 4, 4):
        speed.add(3.0 * work, work)
    assert speed.step_seconds == pytest.approx(3.0) and speed.seconds == pytest.approx(48.0)


@pytest.mark.parametrize("name", list_models())
def test_trackers_say_what_still_images_do_not_teach(name, videos, tmp_path):
    warnings = check_settings(get_preset(name), open_data(write_blocks(tmp_path, train=1, val=1)))
    assert len(warnings) == (name in TRACKERS)
    assert all("give videos in MOTChallenge format" in warning for warning in warnings)
    assert check_settings(get_preset(name), open_data(videos)) == []


def test_the_fingerprint_of_the_data_includes_the_tracks(train):
    def changed(obj):
        return replace(obj, extras={**obj.extras, TRACK: obj.extras[TRACK] + 1})

    first = train.images[0]
    other = replace(train, images=(replace(first, objects=tuple(map(changed, first.objects))), *train.images[1:]))
    prints = {_fingerprint({"train": data, "val": data}) for data in (train, other)}
    assert len(prints) == 2


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_an_evaluation_takes_whole_videos_or_first_frames(train):
    videos = Videos(train)
    for count in (1, 4, FRAMES, FRAMES + 1, 2 * FRAMES, 17, 100):
        part = CLIPS.evaluation_subset(train, count)
        lengths = [len(frames) for frames in Videos(part).frames]
        assert len(part) == min(count, len(train))
        assert sum(length < FRAMES for length in lengths) == (count % FRAMES > 0 and count < len(train))
        assert all(part.images[frames[0]].extras["frame_id"] == 1 for frames in Videos(part).frames)
    both = CLIPS.evaluation_subset(train, 2 * FRAMES)
    assert set(Videos(both).names) == {videos.names[0], videos.names[1]}
    batches = [[batch.names for batch in group] for group in eval_loader(train, CLIPS, batch_size=4).groups()]
    assert batches == [[(str(train.images[index].path),) for index in frames] for frames in videos.frames]


def perfect(data: DetectionData, index: int, ids: list[int], *, classes: int, score: float = 0.9) -> TrackingOutput:
    """The output that equals the ground truth of an image, with other ids."""
    record = data.images[index]
    objects = [obj for obj in record.objects if not obj.crowd]
    scale = torch.tensor([record.width, record.height] * 2)
    corners = torch.tensor([obj.box for obj in objects]).reshape(-1, 4)
    boxes = torch.cat((corners[:, :2] + corners[:, 2:] / 2, corners[:, 2:]), 1) / scale
    labels = torch.tensor([data.categories.label_of_id(obj.category_id) for obj in objects], dtype=torch.int64)
    logits = torch.full((1, len(objects), classes), -10.0)
    logits[0, torch.arange(len(objects)), labels.clamp(max=classes - 1)] = float(torch.logit(torch.tensor(score)))
    return output_of(Predictions(logits, boxes[None], Sigmoid()), torch.tensor([ids[: len(objects)]]))


def output_of(final: Predictions, ids: torch.Tensor) -> TrackingOutput:
    return TrackingOutput(
        (final,), final.boxes.new_zeros(1, *final.boxes.shape[:2], 1), (), (), state=Movable(), track_ids=ids
    )


def evaluated(data: DetectionData, categories: Categories, ids_of) -> TrackingEvaluator:
    evaluator = TrackingEvaluator(categories, data, RULES)
    for index, record in enumerate(data.images):
        own = [obj.extras[TRACK] for obj in record.objects if not obj.crowd]
        target = SimpleNamespace(image_id=record.id, original_size=(record.height, record.width))
        images = ImageBatch.from_images([torch.zeros(3, record.height, record.width)])
        batch = SimpleNamespace(images=images, targets=(target,))
        output = perfect(data, index, [ids_of(record, each) for each in own], classes=len(categories))
        evaluator.update(batch, evaluator.results(output, images, batch))
    evaluator.gather()
    return evaluator


def test_perfect_tracks_have_perfect_metrics_and_exchanged_ids_do_not(train):
    metrics = evaluated(train, train.categories, lambda record, track: track).compute()
    assert [metrics[name] for name in ("HOTA", "DetA", "AssA", "LocA", "MOTA", "IDF1", "AP")] == pytest.approx(
        [1] * 7, abs=1e-4
    )
    assert (metrics["switches"], metrics["mostly_lost"]) == (0, 0) and metrics["mostly_tracked"] == metrics["objects"]
    late = evaluated(train, train.categories, lambda record, track: track + 100 * (record.extras["frame_id"] > 3))
    scores = late.evaluation(0.5, ("a.jpg: broken",))
    assert scores.metrics["DetA"] == pytest.approx(1, abs=1e-4) and scores.metrics["AssA"] < 0.8
    assert scores.metrics["switches"] == sum(own["switches"] for own in scores.sequences.values()) > 0
    assert list(scores.sequences) == list(Videos(train).names)
    (names, *_), (head, *rows), *_ = scores.tables()
    assert names[0] == "HOTA" and head[:2] == ("video", "HOTA") and rows[-1][0] == "all videos"
    assert rows[-1][head.index("switches")] == str(int(scores.metrics["switches"]))
    unnamed = evaluated(train, train.categories, lambda record, track: -1).compute()
    assert unnamed["HOTA"] == 0 and unnamed["AP"] == pytest.approx(1)


def test_one_class_is_the_one_class_of_the_dataset(tmp_path):
    """A model of persons tracks pedestrians."""
    data = read_splits(write_video(tmp_path / "train" / "a").parent.parent)["train"]
    person = Categories(("N/A", "person"), (0, 1), used=(False, True))
    with pytest.raises(opendetr.data.DataError, match="no class in common"):
        TrackingEvaluator(Categories.from_names(["cat", "dog"]), data, RULES)
    evaluator = TrackingEvaluator(person, data, RULES)
    assert evaluator._detection.things.tolist() == [-1, 0]


def test_still_images_are_evaluated_as_for_a_detector(tmp_path, train):
    stills = open_data(write_blocks(tmp_path, train=1, val=1))["val"]
    for name in TRACKERS:
        preset = get_preset(name)
        assert (preset.metrics(stills)[0], preset.metrics(train)[0]) == ("AP", "HOTA")
        assert not isinstance(preset.evaluator(stills.categories, stills), TrackingEvaluator)
        assert set(preset.headlines(train)) <= set(preset.metrics(train))


@pytest.mark.parametrize("name", TRACKERS)
def test_without_trackeval_a_run_on_videos_is_refused_in_one_line(name, train, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    for use in (get_preset(name).metrics, lambda data: get_preset(name).evaluator(data.categories, data)):
        with pytest.raises(ConfigError, match=r"on videos: needs trackeval; .*'opendetr\[track\]'"):
            use(train)


# ----------------------------------------------------------------------------------------------------------- thresholds


@each_family
def test_rules_that_are_compared_see_what_each_would_see_alone(name, train):
    preset, task = small(name, 12)
    model = task.model.eval()
    configs = [
        TrackerConfig(birth=birth, keep=birth / 2, patience=patience)
        for birth, patience in ((0.0, 5), (1e-3, 2), (1, 2))
    ]
    sweep = RulesSweep(model, [preset.rules(config) for config in configs])
    sessions = [replace(preset, tracker=config).session(model) for config in configs]
    video = next(eval_loader(train, preset.data, batch_size=1).groups())
    found = 0
    for batch in islice(video, 3):
        for together, session in zip(sweep.step(batch.images), sessions, strict=True):
            alone = session.step(batch.images)
            count = alone.track_ids.shape[1]
            assert torch.equal(together.track_ids[0, :count], alone.track_ids[0])
            assert (together.track_ids[0, count:] == -1).all()  # rows that fill up the batch
            torch.testing.assert_close(together.final.boxes[0, :count], alone.final.boxes[0], atol=1e-4, rtol=0)
            found += int((alone.track_ids >= 0).sum())
    assert found


class Known:
    """A video model that knows where the objects are, with score 0.5, and sees false ones with 0.3."""

    state_has_tracks = False

    def __init__(self, data: DetectionData) -> None:
        self.data, self.index = data, -1

    def encode_frames(self, images, state=None):
        self.index += 1
        return (FeatureMap(torch.zeros(1, 1, 1, 1)),), ()

    def decode(self, memory, features=(), *, state=None) -> TrackingOutput:
        classes = len(self.data.categories)
        truth = perfect(self.data, self.index % len(self.data), list(range(20)), classes=classes, score=0.5).final
        count = 8 - truth.boxes.shape[1]
        false = torch.full((1, count, classes), float(torch.logit(torch.tensor(0.3))))
        box = torch.tensor([0.9, 0.9, 0.05, 0.05]).expand(1, count, 4)
        final = Predictions(torch.cat((truth.logits, false), 1), torch.cat((truth.boxes, box), 1), Sigmoid())
        ids = torch.full(final.boxes.shape[:2], -1)
        return replace(output_of(final, ids), tracks=(final,))

    def update(self, output, ids):
        return output.state


def test_thresholds_are_chosen_on_training_videos(train):
    default = TrackerConfig(birth=0.9, keep=0.9, patience=3, classes=())
    chosen = fit_tracker(Known(train), BoxAssociation, default, train, CLIPS)
    assert chosen.birth == 0.45
    assert fit_tracker(Known(train), BoxAssociation, default, train, CLIPS, num_images=4) is default
    preset = miniature("motr-tiny")
    assert preset.fit_tracker and isinstance(preset.rules(default), QueryLifetime)
    assert replace(preset, fit_tracker=False).fitted(None, train) == replace(preset, fit_tracker=False)


# ------------------------------------------------------------------------------------------------------------- training


@each_family
def test_a_tracker_trains_on_videos_is_evaluated_and_resumes(name, videos, tmp_path):
    """The clips become longer after the first step, at which one of the runs is stopped."""
    changes = {"data": {"clip_lengths": [2, 3], "lengthen_at": [0.4]} if name == "motr-tiny" else {},
               "tracking": {"min_iou": 0.0} if name == "motr-tiny" else {}}  # fmt: skip
    lengths: list[int] = []

    class Lengths(StopAfterOne):
        def on_batch(self, event):
            lengths.append(len(event.batch.frames))

        def on_step(self, event):
            pass

    run, lines = train_miniature(videos, tmp_path / "whole", name, steps=2, changes=changes, callbacks=[Lengths()])
    assert lengths == ([2, 3] if name == "motr-tiny" else [3, 3])
    assert not [line for line in lines if "warning" in line and "still" in line]
    train_miniature(videos, tmp_path / "stopped", name, steps=2, changes=changes, callbacks=[StopAfterOne()])
    resume(tmp_path / "stopped", device="cpu", say=lines.append)
    whole, resumed = (load_file(tmp_path / folder / "last" / STATE) for folder in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert not [key for key in whole if not torch.equal(whole[key], resumed[key])]
    assert run.result.metric == "HOTA" and {"AssA", "switches", "AP50"} <= run.result.metrics.keys()
    detector = opendetr.load(run.folder, device="cpu")
    default = get_preset(name).tracker
    assert isinstance(detector.preset.tracker, TrackerConfig) and default.classes == detector.preset.tracker.classes
    again = detector.metrics(open_data(videos)["val"])
    assert {key: again[key] for key in run.result.metrics} == pytest.approx(dict(run.result.metrics), abs=1e-6)
    result = CliRunner().invoke(app, ["eval", str(videos), "--weights", str(run.folder), "--device", "cpu", "--json"])
    record = json.loads(result.stdout)
    assert record["metrics"]["HOTA"] == pytest.approx(again["HOTA"], abs=1e-6)
    assert len(record["sequences"]) == 2 and "IDF1" in record["sequences"]["val/video-0000"]


@pytest.mark.parametrize("name", ["motr-tiny"])
def test_motr_learns_from_still_images(name, tmp_path):
    run, lines = train_miniature(write_blocks(tmp_path / "data"), tmp_path / "run", name, steps=1)
    assert any("learns from shifted copies" in line for line in lines)
    assert run.result.metric == "AP" and isinstance(run.result.step, int)


def test_a_batch_of_evaluation_has_single_images(train):
    batch = next(iter(eval_loader(train, CLIPS, batch_size=3)))
    assert type(batch) is Batch and len(batch) == 1


# -------------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("number", [1, 5, 7])
def test_a_contact_sheet_of_a_single_video_has_the_requested_frames(number, tmp_path):
    write_videos(tmp_path / "one", counts={"train": 1, "val": 1}, config=VideoConfig(frames=8))
    show = ["data", "show", str(tmp_path / "one"), "--images", str(number), "--out", str(tmp_path / "a.png"), "--json"]
    result = CliRunner().invoke(app, show)
    assert (result.exit_code, json.loads(result.stdout)["images"]) == (0, number)


def test_a_contact_sheet_of_videos_has_a_colour_per_track(videos, train, tmp_path):
    """Each row is a video, and the trails of its tracks have their colours."""
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(app, ["data", "show", str(videos), "--images", "4", "--out", str(out), "--json"])
    assert (result.exit_code, json.loads(result.stdout)["images"]) == (0, 4)
    sheet = np.asarray(Image.open(out)).reshape(-1, 3)
    ids = {obj.extras[TRACK] for image in train.images for obj in image.objects}
    found = [track for track in ids if (sheet == track_colour(track)).all(1).sum() > 50]
    assert len(found) > 2 and len({track_colour(track) for track in ids}) == len(ids)
