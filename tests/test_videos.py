"""Synthetic videos: their labels are exact, and they are as difficult as the documentation says."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from opendetr.cli.main import app
from opendetr.data import DataError
from opendetr.synthetic import VideoConfig, draw_video, label_video, write_videos
from opendetr.synthetic.videos import _lay_out

DEFAULT, HARD = VideoConfig(size=96), VideoConfig(size=96, hard=True)


def tracks(index: int, config: VideoConfig) -> dict[int, dict[int, tuple[float, float]]]:
    """The box centre of each object by its id and frame."""
    found: dict[int, dict[int, tuple[float, float]]] = {}
    for frame, objects in enumerate(label_video(index, config=config)):
        for each in objects:
            x0, y0, x1, y1 = each.box
            found.setdefault(each.id, {})[frame] = ((x0 + x1) / 2, (y0 + y1) / 2)
    return found


@pytest.mark.parametrize(("config", "lowest", "highest"), [(DEFAULT, 0.18, 0.23), (HARD, 0.24, 0.31)])
def test_the_difficulty_is_frozen(config, lowest, highest):
    visibilities, num_tracks, num_returning = [], 0, 0
    for index in range(24):
        for objects in label_video(index, config=config):
            visibilities += [each.visibility for each in objects]
        found = tracks(index, config)
        assert 4 <= len(found) <= 12
        num_tracks += len(found)
        num_returning += sum(any(b - a > 1 for a, b in pairwise(frames)) for frames in found.values())
    assert lowest < np.mean(np.array(visibilities) < 0.5) < highest
    assert 0.2 < num_returning / num_tracks < 0.35


@pytest.mark.parametrize("config", [DEFAULT, HARD])
def test_every_track_changes_direction(config):
    for index in range(8):
        layout, _ = _lay_out(index, "train", 0, config)
        for mover in layout.movers:
            steps = np.diff(mover.positions[::3], axis=0)
            headings = np.arctan2(steps[:, 1], steps[:, 0])
            turns = np.abs((headings - headings[:1] + math.pi) % (2 * math.pi) - math.pi)
            assert turns.max() > math.radians(45)


def test_objects_that_cross_look_alike_in_half_of_the_hard_videos_and_differ_in_the_others():
    for index in range(6):
        layout, _ = _lay_out(index, "train", 0, HARD)
        looks = [mover.look for mover in layout.movers]
        categories = {mover.look: mover.category_id for mover in layout.movers}
        if index % 2:
            assert len(set(looks)) == len(looks)
            assert all(categories[look] != categories.get(look + 1) for look in looks if look % 2 == 0)
        else:
            assert len(set(looks)) == math.ceil(len(looks) / 2)
    assert [HARD.crossings(index) for index in range(4)] == ["alike", "distinct"] * 2
    assert DEFAULT.crossings(3) == "any"


def test_boxes_and_visibility_equal_those_counted_pixel_by_pixel():
    layout, _ = _lay_out(1, "train", 0, DEFAULT)
    checked = 0
    for frame in range(0, 40, 4):
        layers, objects = layout.place(frame, 96)
        masks = []
        for layer in layers:
            mask = np.zeros((96, 96), bool)
            mask[layer.window] = layer.mask
            masks.append(mask)
        labels = {each.id: each for each in objects}
        for number, mask in enumerate(masks, start=1):
            assert (number in labels) == mask.any()
            if number in labels:
                y, x = np.nonzero(mask)
                label = labels[number]
                assert label.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
                visible = mask & ~np.any([np.zeros_like(mask), *masks[number:]], axis=0)
                if x.min() > 0 and y.min() > 0 and x.max() < 95 and y.max() < 95:  # all of it is inside the image
                    assert label.visibility == pytest.approx(visible.sum() / mask.sum())
                    checked += 1
                else:
                    assert label.visibility <= visible.sum() / mask.sum()
                assert label.evaluated == (label.visibility >= 0.1)
    assert checked > 30


def test_the_camera_moves_the_ground_and_the_objects_alike():
    index = next(i for i in range(9) if _lay_out(i, "train", 0, DEFAULT)[0].pan.any())
    layout, _ = _lay_out(index, "train", 0, DEFAULT)
    frames = [frame.image for frame in draw_video(index, config=DEFAULT)]
    moved = int(np.abs(layout.pan).sum(axis=1).argmax())
    (x0, y0), (x1, y1) = layout.pan[0], layout.pan[moved]
    dx, dy = x1 - x0, y1 - y0
    first = frames[0][max(dy, 0) : 96 + min(dy, 0), max(dx, 0) : 96 + min(dx, 0)].astype(int)
    later = frames[moved][max(-dy, 0) : 96 + min(-dy, 0), max(-dx, 0) : 96 + min(-dx, 0)].astype(int)
    assert (np.abs(first - later).max(axis=2) == 0).mean() > 0.4  # the ground between the objects


def test_a_video_depends_on_its_seed_split_and_index_only():
    config = VideoConfig(size=64, frames=3)
    frames = [frame.image for frame in draw_video(2, config=config)]
    again = [frame.image for frame in draw_video(2, config=config)]
    assert all((a == b).all() for a, b in zip(frames, again, strict=True))
    for other in ({"seed": 1}, {"split": "val"}):
        assert not (next(draw_video(2, config=config, **other)).image == frames[0]).all()
    labels = [frame.objects for frame in draw_video(2, config=config)]
    assert labels == list(label_video(2, config=config))


def test_the_files_are_those_of_mot_challenge(tmp_path):
    config = VideoConfig(size=64, frames=5, hard=True)
    write_videos(tmp_path / "videos", counts={"train": 2, "val": 1}, config=config)
    video = tmp_path / "videos" / "train" / "video-0001"
    info = dict(line.split("=") for line in (video / "seqinfo.ini").read_text().splitlines()[1:])
    assert info == {
        "name": "video-0001",
        "imDir": "img1",
        "frameRate": "10",
        "seqLength": "5",
        "imWidth": "64",
        "imHeight": "64",
        "imExt": ".jpg",
        "crossings": "distinct",
    }
    rows = [line.split(",") for line in (video / "gt" / "gt.txt").read_text().splitlines()]
    expected = [
        (frame, each.id, each.box, each.evaluated, each.category_id, round(each.visibility, 3))
        for frame, objects in enumerate(label_video(1, config=config), start=1)
        for each in objects
    ]
    read = []
    for frame, track, left, top, width, height, flag, category, visibility in rows:
        x, y = int(left), int(top)
        box = (x, y, x + int(width), y + int(height))
        read.append((int(frame), int(track), box, flag == "1", int(category), float(visibility)))
    assert read == expected
    assert (video / "gt" / "labels.txt").read_text().splitlines()[:2] == ["disc", "ring"]
    drawn = next(draw_video(1, config=config)).image
    stored = np.asarray(Image.open(video / "img1" / "000001.jpg")).astype(int)
    assert np.abs(stored - drawn).mean() < 6
    assert len(list((tmp_path / "videos").rglob("*.jpg"))) == 15
    write_videos(tmp_path / "videos", counts={"train": 1}, config=config)  # replaces the split
    assert len(list((tmp_path / "videos" / "train").rglob("*.jpg"))) == 5


def test_the_command_makes_videos(tmp_path):
    result = CliRunner().invoke(
        app, ["data", "make", str(tmp_path / "v"), "--videos", "1", "--frames", "2", "--size", "64", "--json"]
    )
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["videos"] == {"train": 1, "val": 1} and made["frames"] == 2
    result = CliRunner().invoke(app, ["data", "make", str(tmp_path / "w"), "--videos", "1", "--captions"])
    assert result.exit_code == 2 and "choose one" in result.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames=0: must be at least 1"),
        ({"min_objects": 5, "max_objects": 4}, "max_objects=4: must be at least 5"),
        ({"max_scale": 0.6}, "need 0 < min <= max <= 0.5"),
    ],
)
def test_impossible_settings_are_one_line(settings, message):
    with pytest.raises(DataError, match=f"VideoConfig: .*{message}"):
        VideoConfig(**settings)
