"""Datasets whose videos are files, annotated in MOTChallenge format or COCO: their frames and their faults."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from opendetr.cli.main import app
from opendetr.data import DataError, FaultKind, VideoError, Videos, has_tracks, read_record, train_loader, video_files
from opendetr.data.clips import ClipDataConfig
from opendetr.data.formats import Format, open_data, read_splits, recognise
from opendetr.data.records import FaultLog
from opendetr.data.tools.convert import convert
from opendetr.data.video_files import extract_frames
from opendetr.evaluation import true_tracks

pytest.importorskip("av")
from clips import write_video

FRAMES = 10  # of a video; frame n is grey, with the value 20 (n - 1)
ROWS = [f"{frame},{track},{4 * track + frame},3,10,12,1,1,1" for frame in range(1, FRAMES + 1) for track in (1, 2)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the video files that are decoded."""
    names: list[str] = []
    decode = video_files.decode_video

    def watched(path: Path) -> Any:
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(video_files, "decode_video", watched)
    return names


def write_mot(folder: Path, rows: list[str] = ROWS, name: str = "clip.mp4", num_frames: int = FRAMES) -> Path:
    """A video file with annotations in MOTChallenge format."""
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text("\n".join(rows) + "\n")
    write_video(folder / name, num_frames)
    return folder


def coco_content(files: list[str], first_frame: int = 0) -> dict[str, Any]:
    """COCO as tools for videos write it: a list of videos, frames that count from 0, and instance ids."""
    images = [
        {"id": FRAMES * video + number, "video_id": 7 + video, "frame_id": number + first_frame, "height": 48,
         "width": 64}
        for video in range(len(files)) for number in range(FRAMES)
    ]  # fmt: skip
    annotations = [
        {"id": 1 + 2 * image["id"] + track, "image_id": image["id"], "category_id": 3, "instance_id": 5 + track,
         "bbox": [4 + track, 3, 10, 12], "area": 120, "iscrowd": 0}
        for image in images for track in (0, 1)
    ]  # fmt: skip
    return {
        "videos": [{"id": 7 + number, "file_name": name} for number, name in enumerate(files)],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}],
    }


def write_coco(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def faults(folder: Path) -> dict[FaultKind, str]:
    """Kind -> the first fault or warning of this kind, with its place."""
    log = FaultLog(raises=False)
    found = [fault for data in read_splits(folder, log).values() for each in data.fault_counts for fault in each.faults]
    return {fault.kind: f"{fault.place}: {fault.detail}" for fault in reversed([*found, *log.faults])}


def grey(data: Any) -> list[int]:
    """The grey value of each frame, in steps of 20."""
    return [round(float(read_record(image).mean()) / 20) for image in data.images]


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_video_file_takes_the_place_of_its_frames(tmp_path, decoded):
    for split, name in (("train", "a"), ("train", "b"), ("val", "a")):
        write_mot(tmp_path / "data" / split / name)
    splits = open_data(tmp_path / "data")
    assert recognise(tmp_path / "data").format is Format.MOT
    assert {name: len(data) for name, data in splits.items()} == {"train": 2 * FRAMES, "val": FRAMES}
    train = splits["train"]
    assert grey(train) == 2 * list(range(FRAMES))
    assert [image.extras["frame_id"] for image in train.images] == 2 * list(range(1, FRAMES + 1))
    assert [obj.box[0] for obj in train.images[4].objects] == [9, 13]
    assert train.file_name(train.images[4]) == "train/a/clip.mp4/000005.jpg"
    assert has_tracks(train) and Videos(train).names == ("train/a", "train/b")
    assert decoded == 3 * ["clip.mp4"]
    assert open_data(tmp_path / "data")["train"].images == train.images
    assert decoded == 3 * ["clip.mp4"]  # extracted once


def test_clips_of_a_video_file_are_loaded_by_worker_processes(tmp_path):
    for name in "ab":
        write_mot(tmp_path / "data" / name)
    data = open_data(tmp_path / "data", val_fraction=0.5)["train"]
    config = ClipDataConfig(num_workers=2, image_size=48, max_size=80, clip_lengths=(3,), lengthen_at=())
    batches = list(train_loader(data, config, batch_size=2, seed=0).epoch(0))
    alone = ClipDataConfig(num_workers=0, image_size=48, max_size=80, clip_lengths=(3,), lengthen_at=())
    again = list(train_loader(data, alone, batch_size=2, seed=0).epoch(0))
    assert len(batches) == len(again) == FRAMES // 2
    for ours, theirs in zip(batches, again, strict=True):
        assert len(ours.frames) == 3
        for frame, other in zip(ours.frames, theirs.frames, strict=True):
            assert frame.names == other.names and frame.images.pixels.equal(other.images.pixels)


def test_a_changed_or_incomplete_video_is_extracted_again(tmp_path, decoded, cache):
    path = write_video(tmp_path / "clip.mp4", 4)
    files = extract_frames(path).files
    assert list(files) == [1, 2, 3, 4] and extract_frames(path).files == files
    write_video(path, 6)
    assert list(extract_frames(path).files) == [1, 2, 3, 4, 5, 6] and len(decoded) == 2
    files[3].unlink()
    assert all(file.is_file() for file in extract_frames(path).files.values()) and len(decoded) == 3
    assert len([each for each in (cache / "frames").iterdir() if each.is_dir()]) == 1


def test_of_several_processes_one_extracts(tmp_path, decoded):
    path = write_video(tmp_path / "clip.mp4", 30)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(extract_frames, 4 * [path]))
    assert len(decoded) == 1 and all(len(each.files) == 30 for each in found)


def test_an_interrupted_extraction_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", 6)
    decode = video_files.decode_video

    def interrupted(path: Path) -> Any:
        for item in decode(path):
            if item.number == 3:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(video_files, "decode_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_frames(path)
    monkeypatch.setattr(video_files, "decode_video", decode)
    assert [np.asarray(Image.open(file)).mean().round(-1) for file in extract_frames(path).files.values()] == [
        0, 20, 40, 60, 80, 100,
    ]  # fmt: skip


def test_a_dataset_of_video_files_is_converted_with_its_frames(tmp_path):
    write_mot(tmp_path / "data" / "a")
    convert(tmp_path / "data", tmp_path / "coco", Format.COCO)
    data = read_splits(tmp_path / "coco")["all"]
    assert grey(data) == list(range(FRAMES)) and has_tracks(data)
    assert all(image.path.is_relative_to(tmp_path / "coco") for image in data.images)


# ----------------------------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize("first_frame", [0, 1])
@pytest.mark.parametrize("place", [".", "videos"])
def test_a_coco_file_names_its_video_files(tmp_path, first_frame, place):
    folder = write_coco(tmp_path / "data", coco_content(["a.mp4", "b.mp4"], first_frame))
    (folder / place).mkdir(exist_ok=True)
    for name in ("a.mp4", "b.mp4"):
        write_video(folder / place / name)
    data = read_splits(folder)["all"]
    assert grey(data) == 2 * list(range(FRAMES)) and has_tracks(data)
    assert Videos(data).names == ("a.mp4", "b.mp4")
    assert [image.extras["frame_id"] for image in data.images] == 2 * list(range(1, FRAMES + 1))
    assert [obj.extras["track_id"] for obj in data.images[3].objects] == [5, 6]
    assert data.file_name(data.images[12]) == "b.mp4/000003.jpg"
    assert faults(folder) == {}


def test_images_take_precedence_over_the_video_file(tmp_path, decoded):
    content = coco_content(["a.mp4"])
    for row in content["images"]:
        row["file_name"] = f"a/{row['frame_id']:03d}.png"
    folder = write_coco(tmp_path / "data", content)
    (folder / "a").mkdir()
    write_video(folder / "a.mp4")
    assert grey(read_splits(folder)["all"]) == list(range(FRAMES)) and decoded == ["a.mp4"]
    for row in content["images"]:
        Image.new("RGB", (64, 48), (200, 200, 200)).save(folder / row["file_name"])
    assert grey(read_splits(folder)["all"]) == FRAMES * [10] and decoded == ["a.mp4"]


def test_videos_of_one_name_are_told_apart(tmp_path):
    content = coco_content(["a.mp4", "a.mp4"])
    folder = write_coco(tmp_path / "data", content)
    write_video(folder / "a.mp4")
    assert Videos(read_splits(folder)["all"]).names == ("a.mp4-7", "a.mp4-8")


# --------------------------------------------------------------------------------------------------------------- faults


def test_a_video_with_fewer_frames_than_its_annotations_is_named(tmp_path):
    folder = write_mot(tmp_path / "a", num_frames=7)
    found = faults(folder)
    assert found[FaultKind.MISSING_FRAME] == f"{folder / 'clip.mp4'}: 3 of 10 frames, the first is 8"
    assert (
        found[FaultKind.OUTSIDE_VIDEO]
        == f"{folder / 'gt' / 'gt.txt'}, line 15: frame 8; the video has the frames 1 to 7"
    )
    assert len(read_splits(folder)["all"]) == 7
    result = CliRunner().invoke(app, ["data", "check", str(folder)])
    assert result.exit_code == 1 and "clip.mp4" in result.output and "without some of its frames" in result.output
    folder = write_coco(tmp_path / "data", coco_content(["b.mp4"]))
    write_video(folder / "b.mp4", 7)
    assert faults(folder) == {FaultKind.MISSING_FRAME: f"{folder / 'b.mp4'}: 3 of 10 frames, the first is 8"}
    assert len(read_splits(folder)["all"]) == 7


def test_frames_that_cannot_be_decoded_are_missing(tmp_path, monkeypatch):
    folder = write_mot(tmp_path / "a")
    decode = video_files.decode_video

    def damaged(path: Path) -> Any:
        return (VideoError("frame 4: broken") if item.number == 3 else item for item in decode(path))

    monkeypatch.setattr(video_files, "decode_video", damaged)
    assert faults(folder) == {FaultKind.MISSING_FRAME: f"{folder / 'clip.mp4'}: 1 of 10 frames, the first is 4"}
    data = read_splits(folder)["all"]
    assert grey(data) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert [image.extras["frame_id"] for image in data.images] == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_a_video_that_cannot_be_read_is_named_and_skipped(tmp_path):
    write_mot(tmp_path / "data" / "a")
    broken = write_mot(tmp_path / "data" / "b") / "clip.mp4"
    broken.write_bytes(b"no video")
    assert faults(tmp_path / "data")[FaultKind.UNREADABLE_IMAGE].startswith(f"{broken}: not a video that can be read")
    assert Videos(read_splits(tmp_path / "data")["all"]).names == ("a",)
    folder = write_coco(tmp_path / "coco", coco_content(["a.mp4", "b.mp4"]))
    write_video(folder / "a.mp4")
    (folder / "b.mp4").write_bytes(b"no video")
    assert faults(folder)[FaultKind.UNREADABLE_IMAGE].startswith(f"{folder / 'b.mp4'}: not a video that can be read")
    assert len(read_splits(folder)["all"]) == FRAMES


def test_what_video_files_lack_is_one_line(tmp_path, monkeypatch):
    folder = write_mot(tmp_path / "a")
    write_video(folder / "other.avi")
    with pytest.raises(DataError, match=r"a has the video files clip.mp4 and other.avi; keep the annotated one"):
        read_splits(folder)
    (folder / "clip.mp4").unlink()
    (folder / "other.avi").unlink()
    with pytest.raises(DataError, match=r"its frames are missing; put them into .*img1.*, or the video file into .*a$"):
        read_splits(folder)
    folder = write_coco(tmp_path / "coco", coco_content(["a.mp4", "b.mp4"]))
    with pytest.raises(DataError, match=r"its images \(a.mp4, ...\) are missing; put them into one of"):
        read_splits(folder)
    write_video(folder / "a.mp4")
    with pytest.raises(DataError, match=r"images\[10\]: the image .*b.mp4 is missing"):
        read_splits(folder)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"a.mp4: needs av; install it with"):
        read_splits(folder)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_args: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"clip.mp4: .*No space left on device\); set OPENDETR_CACHE to a folder with"):
        extract_frames(path)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"instance_id": 5}, FaultKind.REPEATED_TRACK, "annotation 8: id 5 in frame 4 is in annotation 7 too"),
        ({"instance_id": 9}, FaultKind.SHORT_TRACK, "annotation 8: id 9"),
        ({"category_id": 4}, FaultKind.CLASS_CHANGE, "annotation 8: id 6 has class 4, and class 3 in annotation 2"),
        ({"bbox": [5, 3, 10, 0]}, FaultKind.NO_AREA, "annotation 8: "),
    ],
)
def test_faulty_tracks_of_a_coco_file_are_named(tmp_path, change, kind, text):
    content = coco_content(["a.mp4"])
    content["annotations"][7].update(change)
    content["categories"].append({"id": 4, "name": "dog"})
    folder = write_coco(tmp_path / "data", content)
    write_video(folder / "a.mp4")
    found = faults(folder)
    assert found.keys() == {kind} and found[kind].endswith(text)
    skipped = kind in (FaultKind.REPEATED_TRACK, FaultKind.NO_AREA)
    assert read_splits(folder)["all"].num_objects == 2 * FRAMES - skipped


def test_objects_without_a_track_are_kept_and_not_evaluated(tmp_path):
    content = coco_content(["a.mp4"])
    for row in content["annotations"][6:10]:
        row["instance_id"] = -1
    folder = write_coco(tmp_path / "data", content)
    write_video(folder / "a.mp4")
    data = read_splits(folder)["all"]
    assert faults(folder) == {} and data.num_objects == 2 * FRAMES and has_tracks(data)
    truth = true_tracks(data.images)
    assert truth.ignored.tolist() == [6 <= row < 10 for row in range(2 * FRAMES)]
    for row in content["annotations"]:
        row["instance_id"] = -1
    for row in content["images"]:
        row["file_name"] = f"{row['id']}.png"
        Image.new("RGB", (64, 48)).save(folder / row["file_name"])
    write_coco(folder, content)
    assert not has_tracks(read_splits(folder)["all"]) and read_splits(folder)["all"].num_objects == 2 * FRAMES


def test_a_gap_between_the_images_of_a_coco_file_is_named(tmp_path):
    content = coco_content(["a"])
    content["images"] = [row for row in content["images"] if row["frame_id"] not in (3, 4)]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in (3, 4)]
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for row in content["images"]:
        row["file_name"] = f"{row['id']}.png"
        Image.new("RGB", (64, 48)).save(folder / "images" / row["file_name"])
    write_coco(folder, content)
    place = f"{folder / 'annotations.json'}, video a"
    assert faults(folder) == {FaultKind.MISSING_FRAME: f"{place}: 2 of 10 frames, the first is 4"}
