"""`opendetr.Tracker` and `opendetr track`: video files, folders of frames, a camera, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import opendetr
from folders import write_image
from opendetr import Tracker
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import ConfigError, SettingError, to_dict
from opendetr.data import DataError, ImageError
from opendetr.evaluation import Tracks, TrueTracks, explain_switches
from opendetr.evaluation.tracking import TrackingMetrics
from opendetr.inference.association import ASSOCIATIONS, Association, published_config
from opendetr.inference.history import Explanation
from opendetr.inference.predictor import Predictor
from opendetr.models import TrackerConfig, TrackingSession
from opendetr.postprocess import tracked_objects
from opendetr.presets import build_model, get_preset, list_models, miniature
from opendetr.scoring import ScoreThresholds, Sigmoid
from opendetr.structures import Predictions
from opendetr.synthetic import VideoConfig, write_videos
from opendetr.visualize import draw_tracks, track_colour
from opendetr.weights import ModelCard, save_weights
from test_predict_sources import Camera

pytest.importorskip("av")
from clips import write_video

TRACKERS = ("motr-tiny", "transtrack-tiny")
CLASSES = ("cat", "dog")
EAGER = ("--birth", "0", "--keep", "0")  # the miniatures know nothing, and track everything


def write_weights(path: Path, name: str, **changes: Any) -> Path:
    torch.manual_seed(0)
    preset = miniature(name)
    if preset.follows_objects:  # the boxes of a miniature are small
        preset = preset.with_tracker(replace(preset.tracker, min_area=0))
    preset = replace(preset, **changes)
    card = ModelCard(to_dict(preset), Categories.from_names(CLASSES), {})
    save_weights(path, build_model(preset, len(CLASSES)), card)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {name: write_weights(folder / f"{name}.safetensors", name) for name in (*TRACKERS, "detr-tiny")}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture(scope="module")
def annotated(tmp_path_factory) -> Path:
    """Two videos in MOTChallenge format, in the split `val`."""
    folder = tmp_path_factory.mktemp("annotated")
    write_videos(folder, counts={"val": 2}, config=VideoConfig(frames=6, size=64, max_objects=4))
    return folder / "val"


@pytest.fixture
def track(weights, tmp_path):
    """Runs the command with a tracker, with its output in `out`."""

    def run(*words: Any, code: int = 0, name: str = "motr-tiny", options: tuple[str, ...] = EAGER) -> Result:
        given = ["--weights", weights[name], "--out", tmp_path / "out", "--device", "cpu", "--overwrite", *options]
        result = CliRunner().invoke(app, ["track", *map(str, (*words, *given))])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


def last_line(result: Result) -> str:
    """The line that says what is wrong."""
    lines = [line for line in result.stderr.splitlines() if line.strip("─╭╮╰╯ ")]
    return " ".join(line.strip("│ ") for line in lines)


# ------------------------------------------------------------------------------------------------------------- tracker


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_follows_a_video_as_its_session_does(name, weights, video):
    tracker = Tracker(weights[name], birth=0, keep=0, device="cpu")
    found = list(tracker.track(video))
    assert [each.frame for each in found] == list(range(10))
    assert [each.time for each in found] == pytest.approx(np.arange(10) / 10, abs=0.02)
    session = TrackingSession(tracker.predictor.model, tracker._follower._session.rules)
    for each in found:
        images, sizes = tracker.predictor.batch([tracker.predictor.prepare(each.image)])
        ((expected, _),) = tracked_objects(session.step(images), sizes, tracker.predictor.categories, session.rules)
        assert torch.equal(each.track_ids, expected.track_ids) and torch.equal(each.boxes, expected.boxes)
    ids = found[0].track_ids.tolist()
    assert min(ids) == 1 and len(set(ids)) == len(ids)
    assert set(ids) & set(found[-1].track_ids.tolist())


def test_step_counts_frames_and_reset_begins_again(weights):
    tracker = Tracker(weights["motr-tiny"], birth=0, keep=0, device="cpu")
    images = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8) for seed in range(3)]
    first = [tracker.step(image) for image in images]
    assert [each.frame for each in first] == [0, 1, 2]
    assert len(tracker.queries) == len(first[-1])
    assert max(first[2].track_ids.tolist()) > max(first[0].track_ids.tolist())  # new tracks have new ids
    tracker.reset()
    again = tracker.step(images[0])
    assert again.frame == 0 and torch.equal(again.boxes, first[0].boxes)
    assert torch.equal(again.track_ids, first[0].track_ids)
    assert "track" in repr(again) and again.plot().size == (64, 48)


def test_frames_of_another_size_and_other_inputs_of_step_are_one_line(weights, video):
    tracker = Tracker(weights["transtrack-tiny"], device="cpu")
    tracker.step(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ImageError, match=r"is 64 x 32, but the frames before it are 64 x 48.*reset\(\)"):
        tracker.step(np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ImageError, match="track takes a video"):
        tracker.step(video)
    tracker.reset()
    tracker.step(np.zeros((32, 64, 3), np.uint8))


def test_the_stored_thresholds_are_the_default(tmp_path):
    stored = TrackerConfig(birth=0.35, keep=0.2, patience=17, min_area=100)
    path = write_weights(tmp_path / "fitted.safetensors", "motr-tiny", tracker=stored)
    assert Tracker(path, device="cpu").config == stored
    assert Tracker(path, birth=0.1, device="cpu").config == replace(stored, birth=0.1, keep=0.1)
    assert Tracker(path, birth=0.9, patience=3, device="cpu").config == replace(stored, birth=0.9, patience=3)
    for name, published in (("motr-r50", (0.7, 0.6, 5, 100)), ("transtrack-r50", (0.4, 0.4, 32, 0))):
        config = get_preset(name).tracker
        assert (config.birth, config.keep, config.patience, config.min_area) == published


def test_only_used_classes_are_tracked():
    preset = miniature("transtrack-tiny")
    published = preset.published_categories()
    assert preset.of_classes(published).tracker.classes == (1,)
    assert preset.of_classes(Categories.from_names(CLASSES)).tracker.classes == ()
    chosen = replace(preset, tracker=replace(preset.tracker, classes=(0,)))
    assert chosen.of_classes(published).tracker.classes == (0,)


def test_what_is_reported_has_the_area_and_the_class_of_a_tracked_object(weights):
    """Rows: a small box, a large one of the class that is not tracked, and one without a track."""
    logits = torch.tensor([[[2.0, -3.0], [3.0, 1.0], [2.0, 2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]])
    ids = torch.tensor([[4, 2, -1]])
    tracker = Tracker(weights["motr-tiny"], device="cpu")
    rules = tracker._follower._session.rules
    output = tracker._follower._session._model(tracker.predictor.batch([tracker.predictor.prepare(blank())])[0])
    output = replace(output, layers=(Predictions(logits, boxes, Sigmoid()),), track_ids=ids)
    rules = replace(rules, config=replace(rules.config, classes=(1,), min_area=100))
    ((found, queries),) = tracked_objects(output, torch.tensor([[80, 100]]), Categories.from_names(CLASSES), rules)
    assert (found.track_ids.tolist(), queries.tolist(), found.labels.tolist()) == ([3], [1], [1])  # 8 x 10 is too small
    assert found.boxes.tolist() == [[25, 20, 75, 60]]
    assert found.scores.item() == pytest.approx(torch.tensor(1.0).sigmoid().item())


def blank() -> np.ndarray:
    return np.zeros((48, 64, 3), np.uint8)


# --------------------------------------------------------------------------------------------------------- association


def moving(frame: int) -> np.ndarray:
    """Two boxes that move towards the right, one below the other."""
    return np.array([[10 + 2 * frame, 10, 40 + 2 * frame, 40], [10 + 3 * frame, 60, 40 + 3 * frame, 90]], np.float32)


@pytest.mark.parametrize("name", ASSOCIATIONS)
def test_boxes_keep_their_ids_through_a_gap_and_end_after_it(name):
    pytest.importorskip("trackers")
    association = Association(name, replace(published_config(name), patience=5))
    scores = np.array([0.9, 0.8], np.float32)
    ids = [association.step(moving(frame)[::order], scores)[::order].tolist() for frame, order in
           zip(range(6), (1, -1, 1, -1, 1, -1), strict=True)]  # fmt: skip
    assert sorted(ids[-1]) == [1, 2] and ids[-1] == ids[-2]
    for _ in range(3):
        assert association.step(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).tolist() == []
    assert {id_ for frame in range(9, 13) for id_ in association.step(moving(frame), scores).tolist()} - {0} == {1, 2}
    for _ in range(10):
        association.step(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert not {1, 2} & {id_ for frame in range(21, 26) for id_ in association.step(moving(frame), scores).tolist()}
    association.reset()
    assert max(association.step(moving(frame), scores).max() for frame in range(5)) == 2


def test_low_scores_continue_tracks_and_begin_none():
    pytest.importorskip("trackers")
    association = Association("bytetrack", TrackerConfig(birth=0.7, keep=0.1, patience=5))
    low, high = np.full(2, 0.3, np.float32), np.full(2, 0.9, np.float32)
    assert not any(association.step(moving(frame), low).any() for frame in range(4))
    ids = [association.step(moving(frame), high if frame < 7 else low).tolist() for frame in range(4, 10)]
    assert ids[-1] == ids[2] == [1, 2]


def test_thresholds_of_an_association(weights):
    pytest.importorskip("trackers")
    loaded = opendetr.load(weights["detr-tiny"], device="cpu")
    for name in ASSOCIATIONS:
        assert Tracker(loaded, association=name).config == published_config(name)
    assert Tracker(loaded, association="ocsort", birth=0.3).config.keep == 0.3
    loaded.thresholds = ScoreThresholds(0.25)
    assert Tracker(loaded, association="bytetrack").config == TrackerConfig(birth=0.25, keep=0.1, patience=30)
    assert Tracker(loaded, association="bytetrack", birth=0.05).config.keep == 0.05


@pytest.mark.parametrize("name", [name for name in list_models() if "mdetr" not in name or name == "mdetr-tiny"])
def test_every_model_tracks_or_says_why_not(name):
    pytest.importorskip("trackers")
    torch.manual_seed(0)
    preset = miniature(name)
    preset = preset.with_tracker(replace(preset.tracker, min_area=0)) if preset.follows_objects else preset
    categories = Categories.from_names(CLASSES)
    model = build_model(preset, preset.num_classes(categories))
    predictor = Predictor(model, preset, categories, device="cpu")
    if model.takes_text or model.max_patches:
        with pytest.raises(ConfigError, match=f"{name}: takes .*does not track"):
            Tracker(predictor, association="sort")
        return
    tracker = Tracker(predictor, association=None if preset.follows_objects else "sort", birth=0, keep=0)
    found = [tracker.step(image) for image in 4 * [np.full((40, 48, 3), 90, np.uint8)]]
    assert len(found[-1]) and (found[-1].track_ids > 0).all()
    assert set(found[-1].track_ids.tolist()) & set(found[-2].track_ids.tolist())


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("detr-tiny", {}, "association: detr-tiny is a detector, .* choose bytetrack, ocsort or sort"),
        ("detr-tiny", {"association": "bytetrak"}, "association: 'bytetrak' is not one of .*; did you mean bytetrack"),
        ("motr-tiny", {"association": "sort"}, "association: motr-tiny follows objects itself: leave it out"),
        ("detr-tiny", {"association": "ocsort", "keep": 0.2}, "keep: ocsort has one threshold"),
        ("motr-tiny", {"birth": 1.5}, "birth: expected a number from 0 to 1, got 1.5"),
        ("motr-tiny", {"birth": "high"}, "birth: 'high' is not a number"),
        ("motr-tiny", {"keep": 0.9}, "keep: expected at most tracker.birth, 0.4, got 0.9"),
        ("detr-tiny", {"association": "sort", "patience": 0}, "patience: expected at least 1 frame"),
    ],
)
def test_wrong_settings_are_one_line(weights, name, given, message):
    with pytest.raises(SettingError, match=message):
        Tracker(weights[name], device="cpu", **given)


# ------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize("name", TRACKERS)
def test_a_video_gives_a_video_text_json_and_csv(track, video, tmp_path, name):
    from opendetr.inference.sources.video import video_frames

    result = track(video, name=name)
    assert "10 frames" in result.stdout and "per second" in result.stdout and not result.stderr
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"clip.mp4", "clip.txt", "tracks.json", "tracks.csv"}
    drawn = list(video_frames(out / "clip.mp4"))
    assert len(drawn) == 10 and drawn[0].pixels.shape == (8 * 48, 8 * 64, 3)  # small frames are enlarged
    assert np.ptp(drawn[-1].pixels.astype(int), axis=(0, 1)).max() > 100  # frames are grey, and drawings are not
    rows = np.loadtxt(out / "clip.txt", delimiter=",")
    assert set(rows[:, 0]) == set(range(1, 11)) and rows[:, 1].min() == 1 and (rows[:, 7:] == -1).all()
    content = json.loads((out / "tracks.json").read_text())
    assert [(row["video"], row["frame_id"]) for row in content["images"]] == [("clip", n) for n in range(1, 11)]
    assert [row["track_id"] for row in content["annotations"]] == rows[:, 1].tolist()
    with (out / "tracks.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [int(row["track_id"]) for row in table] == rows[:, 1].tolist()
    assert float(table[0]["x_max"]) - float(table[0]["x_min"]) == pytest.approx(rows[0, 4], abs=0.02)


def test_videos_of_a_folder_begin_anew_and_annotated_ones_are_explained(track, annotated, tmp_path):
    result = track(annotated, "--json", "--no-draw")
    content = json.loads(result.stdout)
    assert [(each["name"], each["frames"]) for each in content["videos"]] == [("video-0000", 6), ("video-0001", 6)]
    assert all(set(each["switches"]) == {"lost", "taken", "occluded"} for each in content["videos"])
    assert content["failed"] == [] and {row["video"] for row in content["images"]} == {"video-0000", "video-0001"}
    for name in ("video-0000", "video-0001"):
        assert np.loadtxt(tmp_path / "out" / f"{name}.txt", delimiter=",")[:, 1].min() == 1
        assert Image.open(tmp_path / "out" / f"{name}.png").size == (1200, 640)
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_detector_tracks_by_association(track, annotated, tmp_path):
    pytest.importorskip("trackers")
    folder = annotated / "video-0000" / "img1"
    result = track(folder, "--association", "bytetrack", "--no-draw", name="detr-tiny")
    assert "6 tracks" not in result.stderr and (tmp_path / "out" / "video-0000.txt").stat().st_size


def test_an_annotated_video_file_is_explained(track, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "videos" / "street"
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text("".join(f"{frame},1,{frame},3,10,12\n" for frame in range(1, 11)))
    write_video(folder / "clip.mp4")
    (video,) = json.loads(track(folder.parent, "--json", "--no-draw").stdout)["videos"]
    assert (video["name"], video["frames"], video["switches"].keys()) == ("street", 10, {"lost", "taken", "occluded"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "street.txt", "street.png", "tracks.json", "tracks.csv",
    }  # fmt: skip
    (folder / "clip.mp4").write_bytes(b"no video")
    assert "clip.mp4: not a video that can be read" in track(folder.parent, "--no-draw", code=1).stderr


def test_a_camera_is_tracked_until_it_ends(weights, monkeypatch):
    opencv = SimpleNamespace(VideoCapture=Camera, COLOR_BGR2RGB=4, cvtColor=lambda image, _: image[..., ::-1])
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    lines: list[str] = []
    found = list(Tracker(weights["motr-tiny"], device="cpu").track(0, on_unreadable=lines.append))
    assert [each.source for each in found] == ["camera 0"] * 3 and len(lines) == 1


def test_an_interrupt_leaves_complete_files(track, video, tmp_path, monkeypatch):
    step = Tracker._step

    def interrupted(self: Tracker, item: Any) -> Any:
        if self._next_frame == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, item)

    monkeypatch.setattr(Tracker, "_step", interrupted)
    result = track(video, code=1)
    assert "interrupted after 4 frames" in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.mp4", "clip.txt", "tracks.json", "tracks.csv"}
    assert set(np.loadtxt(tmp_path / "out" / "clip.txt", delimiter=",")[:, 0]) == {1, 2, 3, 4}


# ----------------------------------------------------------------------------------------------------------- bad input


def frames_in(folder: Path, numbers: Any) -> Path:
    for number in numbers:
        write_image(folder / f"{number:06d}.png", 48, 64)
    return folder


def test_an_unreadable_frame_of_a_folder_is_skipped_and_named(track, tmp_path):
    folder = frames_in(tmp_path / "frames", range(1, 6))
    content = (folder / "000003.png").read_bytes()
    (folder / "000003.png").write_bytes(content[: len(content) // 2])
    result = track(folder, "--no-draw", code=3)
    assert result.stderr.count("skipped") == 1 and "000003.png" in result.stderr
    rows = np.loadtxt(tmp_path / "out" / "frames.txt", delimiter=",")
    assert set(rows[:, 0]) == {1, 2, 4, 5}


def test_an_unreadable_frame_of_a_video_is_skipped_and_named(track, tmp_path):
    path = tmp_path / "noise.mp4"
    write_noise(path, 30)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1500] = b"\xff" * 1500
    path.write_bytes(content)
    result = track(path, "--no-draw", code=3)
    assert "noise.mp4: frame" in result.stderr and "cannot be decoded" in result.stderr
    rows = np.loadtxt(tmp_path / "out" / "noise.txt", delimiter=",")
    seen = set(rows[:, 0].astype(int))
    assert seen < set(range(1, 31)) and 30 in seen and len(seen) > 20
    with pytest.raises(ImageError, match="cannot be decoded"):
        list(Tracker(write_weights(tmp_path / "m.safetensors", "motr-tiny"), device="cpu").track(path))


def write_noise(path: Path, frames: int) -> None:
    import av

    texture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(frames):
            shifted = av.VideoFrame.from_ndarray(np.roll(texture, number, 1), format="rgb24")
            container.mux(stream.encode(shifted))
        container.mux(stream.encode(None))


def test_missing_frame_numbers_are_named_and_kept(track, tmp_path):
    result = track(frames_in(tmp_path / "frames", (10, 11, 13, 17)), "--no-draw")
    assert "note: " in result.stderr and "frames 3 and 3 others missing" in result.stderr
    rows = np.loadtxt(tmp_path / "out" / "frames.txt", delimiter=",")
    assert set(rows[:, 0]) == {1, 2, 4, 8}


def make_sizes_differ(folder: Path) -> Path:
    write_image(frames_in(folder / "sizes", (1, 2, 4)) / "000003.png", 48, 80)
    return folder / "sizes"


def make_file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_sizes_differ, "000003.png: is 80 x 48, but 000001.png is 64 x 48; the frames of a video have one size"),
        (lambda folder: make_file(folder, "empty.mp4", b""), "empty.mp4: not a video that can be read"),
        (lambda folder: make_file(folder, "text.mp4", b"no video"), "text.mp4: not a video that can be read"),
        (lambda folder: make_file(folder, "notes.txt", b"text"), "notes.txt: is one image; tracking needs a video"),
        (lambda folder: folder / "gone.mp4", "gone.mp4: no such file"),
        (lambda folder: folder / "no*.mp4", r"no\*.mp4: no such file"),
        (lambda folder: folder / "nothing", "nothing: neither frames nor videos in this folder"),
        (lambda folder: write_video(folder / "no-frames.mkv", 0), "no-frames.mkv: "),
    ],
)
def test_what_cannot_be_tracked_is_one_line(track, tmp_path, make, message):
    import re

    (tmp_path / "nothing").mkdir()
    result = track(make(tmp_path), code=1)
    assert result.stderr.count("\n") == 1 and re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


def test_one_faulty_folder_of_several_is_named(track, tmp_path):
    make_sizes_differ(tmp_path / "videos")
    frames_in(tmp_path / "videos" / "fine", (1, 2))
    result = track(tmp_path / "videos", "--no-draw", code=3)
    assert "skipped: " in result.stderr and "one size" in result.stderr
    assert (tmp_path / "out" / "fine.txt").exists() and not (tmp_path / "out" / "sizes.txt").exists()


def test_in_python_several_videos_are_one_line(weights, annotated):
    with pytest.raises(DataError, match=r"has 2 videos, the first is .*video-0000; give one of them"):
        Tracker(weights["motr-tiny"], device="cpu").track(annotated)


def test_a_detector_without_an_association_is_bad_usage(track, video, tmp_path):
    line = last_line(track(video, name="detr-tiny", options=(), code=2))
    assert "detr-tiny is a detector, which gives objects no ids: choose bytetrack, ocsort or sort, or track" in line
    assert "--association" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--association", "bytetrak"), "did you mean bytetrack?"),
        (("--association", "sort"), "motr-tiny follows objects itself"),
        (("--birth", "0.2", "--keep", "0.4"), "expected at most tracker.birth, 0.2, got 0.4"),
        (("--birth", "2"), "expected a number from 0 to 1, got 2.0"),
        (("--patience", "0"), "expected at least 1"),
    ],
)
def test_wrong_options_are_bad_usage(track, video, options, message):
    assert message in last_line(track(video, options=options, code=2))


def test_a_missing_package_is_one_line(track, video, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    result = track(video, "--association", "sort", name="detr-tiny", code=1)
    assert "association sort: needs trackers; install it with `python -m pip install" in result.stderr


# --------------------------------------------------------------------------------------------------------- explanation


def box(x: float) -> list[float]:
    return [x, 0, x + 10, 10]


def test_switches_are_explained():
    """Object 1 loses its track, object 2 is hidden in between, and object 3 loses its track to object 4."""
    rows = [  # frame, object, x, visibility, track, and x of the track; None where there is none
        (1, 1, 0, 1.0, 11, 0), (2, 1, 0, 1.0, None, 0), (3, 1, 0, 1.0, 12, 1),
        (1, 2, 50, 1.0, 21, 50), (2, 2, 50, 0.2, None, 0), (3, 2, 50, 1.0, 22, 50),
        (1, 3, 100, 1.0, 31, 100), (2, 3, 100, 1.0, 31, 100), (3, 3, 100, 1.0, 32, 101),
        (3, 4, 150, 1.0, 31, 150), (2, 4, 150, 1.0, 41, 190),
    ]  # fmt: skip
    found = sorted((row for row in rows if row[4] is not None), key=lambda row: row[0])
    truth = TrueTracks(
        frames=np.array([row[0] for row in rows]),
        ids=np.array([row[1] for row in rows]),
        boxes=np.array([box(row[2]) for row in rows], float),
        ignored=np.zeros(len(rows), bool),
        distractors=np.zeros(len(rows), bool),
    )
    predicted = Tracks(
        frames=np.array([row[0] for row in found]),
        ids=np.array([row[4] for row in found]),
        boxes=np.array([box(row[5]) for row in found], float),
    )
    objects, switches = explain_switches(truth, np.array([row[3] for row in rows]), predicted)
    assert objects.tolist() == [-1 if row[4] == 41 else row[1] for row in found]
    assert [(each.object, each.before, each.after, each.reason) for each in switches] == [
        (1, 11, 12, "lost"), (2, 21, 22, "occluded"), (3, 31, 32, "taken"),
    ]  # fmt: skip
    assert all(found[each.row][4] == each.after and each.frame == 3 for each in switches)


@pytest.mark.parametrize("seed", range(5))
def test_the_explained_switches_are_those_of_the_metric(seed):
    """Objects and tracks come and go, some frames have none, boxes lie between objects, some are not evaluated."""
    pytest.importorskip("trackeval")
    rng = np.random.default_rng(seed)
    true_rows, rows = [], []
    for frame in range(60):
        for number in np.flatnonzero(rng.random(4) < 0.8 * (frame % 7 != 3)).tolist():
            true_rows.append((frame, number, box(4.0 * number)))
        for track in np.flatnonzero(rng.random(4) < 0.8 * (frame % 5 != 2)).tolist():
            rows.append((frame, track, box(4.0 * (track + frame // 20) % 16 + rng.uniform(-3, 3))))

    def columns(table: list[Any]) -> dict[str, np.ndarray]:
        frames, ids, boxes = zip(*table, strict=True)
        return {"frames": np.array(frames), "ids": np.array(ids), "boxes": np.array(boxes)}

    kind = rng.integers(10, size=len(true_rows))
    truth = TrueTracks(**columns(true_rows), ignored=kind == 0, distractors=kind == 1)
    predicted = Tracks(**columns(rows))
    metrics = TrackingMetrics()
    metrics.add("video", 60, truth, predicted)
    _, switches = explain_switches(truth, np.ones(len(true_rows)), predicted)
    assert len(switches) == metrics.compute().combined["switches"] > 5


def test_the_chart_has_a_colour_for_each_object():
    frames, carriers = np.repeat(np.arange(20.0), 2), np.tile([3.0, 8.0], 20)
    explanation = Explanation(frames, carriers, np.tile([5, 6], 20), [], "query")
    pixels = {colour for _, colour in explanation.draw("a").getcolors(2**20)}
    assert {track_colour(5), track_colour(6)} <= pixels
    assert explanation.counts == {"lost": 0, "taken": 0, "occluded": 0}
    empty = Explanation(np.zeros(0), np.zeros(0), np.zeros(0, int), [], "track")
    assert empty.draw("").size == (1200, 640)


def test_trails_fade():
    grey = np.full((300, 300, 3), 128, np.uint8)
    way = [(float(x), 150.0) for x in range(20, 280, 5)]
    drawn = np.asarray(draw_tracks(grey, np.zeros((0, 4)), [], [], {3: way}, scale=1)).astype(int)
    strength = np.abs(drawn[150] - 128).sum(1)
    assert 0 < strength[25] < strength[150] < strength[270]
    assert (drawn[100] == 128).all()
