"""Videos in the MOTChallenge format: their objects, splits, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from opendetr.data import DataError, FaultKind
from opendetr.data.formats import Format, open_data, read_splits, recognise, stratified
from opendetr.data.records import FaultLog
from opendetr.data.tools.convert import convert
from opendetr.synthetic import VideoConfig, label_video, write_videos

ROWS = ["1,1,2,3,10,12,1,1,1", "2,1,4,3,10,12,1,1,0.25", "2,7,20,3,10,12,1,1,1", "3,7,22,3,10,12,0,1,0"]


def write_video(folder: Path, rows=ROWS, *, names=("000001", "000002", "000003"), info: str | None = "", labels=None):
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    for name in names:
        Image.new("RGB", (48, 32)).save(folder / "img1" / f"{name}.jpg")
    (folder / "gt" / "gt.txt").write_text("\n".join(rows) + "\n")
    if info is not None:
        lines = info or f"seqLength={len(names)}\nimWidth=48\nimHeight=32"
        (folder / "seqinfo.ini").write_text(f"[Sequence]\nname={folder.name}\nimDir=img1\n{lines}\n")
    if labels is not None:
        (folder / "gt" / "labels.txt").write_text("\n".join(labels) + "\n")
    return folder


def read(folder: Path, split: str = "all"):
    return read_splits(folder)[split]


def kinds(folder: Path) -> dict[FaultKind, int]:
    log = FaultLog(raises=False)
    splits = read_splits(folder, log)
    counts = {entry.kind: entry.count for data in splits.values() for entry in data.fault_counts}
    return counts | {fault.kind: 1 for fault in log.faults}


def test_objects_have_their_tracks(tmp_path):
    data = read(write_video(tmp_path / "a"))
    assert data.categories.names == ("pedestrian",)
    assert [(image.id, dict(image.extras)) for image in data.images] == [
        (number, {"video": "a", "frame_id": number}) for number in (1, 2, 3)
    ]
    objects = [[(obj.extras["track_id"], obj.box, obj.crowd) for obj in image.objects] for image in data.images]
    assert objects == [
        [(1, (2, 3, 10, 12), False)],
        [(1, (4, 3, 10, 12), False), (7, (20, 3, 10, 12), False)],
        [(7, (22, 3, 10, 12), True)],  # its flag is 0
    ]
    assert data.images[1].objects[0].extras["visibility"] == 0.25
    assert (data.images[0].height, data.images[0].width) == (32, 48)
    assert recognise(tmp_path / "a").format is Format.MOT


def test_synthetic_videos_are_read_exactly(tmp_path):
    config = VideoConfig(frames=4, size=64)
    write_videos(tmp_path, counts={"train": 2, "val": 1}, config=config)
    splits = open_data(tmp_path)
    assert {name: len(data) for name, data in splits.items()} == {"train": 8, "val": 4}
    frames = [list(label_video(index, config=config)) for index in range(2)]
    for image, objects in zip(splits["train"].images, frames[0] + frames[1], strict=True):
        read_back = [
            (obj.extras["track_id"], obj.box, obj.category_id, obj.crowd, obj.extras["visibility"])
            for obj in image.objects
        ]
        expected = []
        for each in objects:
            x0, y0, x1, y1 = each.box
            box = (x0, y0, x1 - x0, y1 - y0)
            expected.append(
                (each.id, box, each.category_id, not each.evaluated, pytest.approx(each.visibility, abs=6e-4))
            )
        assert read_back == expected
    names = {image.extras["video"] for data in splits.values() for image in data.images}
    assert names == {"train/video-0000", "train/video-0001", "val/video-0000"}
    ids = [obj.id for data in splits.values() for image in data.images for obj in image.objects]
    assert len(set(ids)) == len(ids)
    assert recognise(tmp_path).format is Format.MOT


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["1,4,0,0,9,9"], (4, False, 1.0)),  # six columns
        (["1,4,0,0,9,9,1,-1,-1,-1"], (4, False, 1.0)),  # MOT15
        (["1 4 0 0 9 9 1 1 0.5"], (4, False, 0.5)),
        (["1,4,0,0,9,9,1,12,1"], (4, True, 1.0)),  # a reflection
    ],
)
def test_variants_of_rows(tmp_path, rows, expected):
    (obj,) = read(write_video(tmp_path / "a", rows)).images[0].objects
    assert (obj.extras["track_id"], obj.crowd, obj.extras["visibility"]) == expected
    assert obj.extras["distractor"] == obj.crowd


def test_cars_of_mot_challenge_are_not_read(tmp_path):
    data = read(write_video(tmp_path / "a", ["1,4,0,0,9,9,1,3,1", "1,5,0,0,9,9,1,1,1"]))
    assert [obj.extras["track_id"] for obj in data.images[0].objects] == [5]


def test_labels_name_the_classes(tmp_path):
    folder = write_video(tmp_path / "a", ["1,4,0,0,9,9,1,2,1", "2,4,0,0,9,9,1,2,1"], info=None, labels=["cat", "dog"])
    data = read(folder)
    assert data.categories.names == ("cat", "dog")
    assert data.images[0].objects[0].category_id == data.categories.ids[1]
    write_video(tmp_path / "b", info=None, labels=["dog", "cat"])
    with pytest.raises(DataError, match=r"b/gt/labels.txt: differs from .*a/gt/labels.txt; all videos need the same"):
        read(tmp_path)
    folder = write_video(tmp_path / "c" / "c", ["1,4,0,0,9,9,1,3,1"], info=None, labels=["cat", "dog"])
    with pytest.raises(DataError, match=r"gt.txt, line 1: class 3 is not in gt/labels.txt"):
        read(folder)


@pytest.mark.parametrize(
    ("names", "rows", "expected"),
    [
        (("000001", "000002", "000003"), ROWS, ["000001", "000002", "000003"]),
        (("frame_000000", "frame_000001", "frame_000002"), ROWS, ["frame_000000", "frame_000001", "frame_000002"]),
        (("image9", "image10", "image11"), ROWS, ["image9", "image10", "image11"]),  # the rows count from 1
        (("b", "a", "c"), ROWS, ["a", "b", "c"]),
    ],
)
def test_frames_are_found_by_their_numbers(tmp_path, names, rows, expected):
    data = read(write_video(tmp_path / "a", rows, names=names, info=None))
    assert [(image.path.stem, image.extras["frame_id"]) for image in data.images] == list(
        zip(expected, (1, 2, 3), strict=True)
    )


def test_frame_numbers_of_a_part_of_a_video_are_kept(tmp_path):
    names = ("000008", "000009", "000010")
    data = read(write_video(tmp_path / "a", ["9,1,0,0,5,5,1,1,1"], names=names, info="seqLength=10"))
    assert [image.extras["frame_id"] for image in data.images] == [8, 9, 10]
    assert [len(image.objects) for image in data.images] == [0, 1, 0]


@pytest.mark.parametrize(
    ("rows", "info", "kind"),
    [
        (["1,1,0,0,5,5", "1,1,9,9,5,5", "2,1,0,0,5,5"], "", FaultKind.REPEATED_TRACK),
        (["1,1,0,0,5,5", "4,1,0,0,5,5", "2,1,0,0,5,5"], "", FaultKind.OUTSIDE_VIDEO),
        (["0,1,0,0,5,5", "1,1,0,0,5,5", "2,1,0,0,5,5"], "", FaultKind.OUTSIDE_VIDEO),
        (ROWS, "seqLength=5", FaultKind.MISSING_FRAME),
        (ROWS, f"seqLength={10**8}", FaultKind.MISSING_FRAME),
        (ROWS, "imWidth=50\nimHeight=32", FaultKind.VIDEO_SIZE),
        (["1,1,0,0,5,5,1,1,1", "2,1,0,0,5,5,1,2,1"], "", FaultKind.CLASS_CHANGE),
        (["1,1,0,0,5,5", "2,1,0,0,5,0"], "", FaultKind.NO_AREA),
        (["1,1,0,0,5,5"], "", FaultKind.SHORT_TRACK),
        (["1,1,0,0,5"], "", FaultKind.INVALID_ROW),
        (["1,1,0,0,5,x"], "", FaultKind.INVALID_ROW),
        (["1.5,1,0,0,5,5"], "", FaultKind.INVALID_ROW),
        (["1,nan,0,0,5,5"], "", FaultKind.INVALID_ROW),
        (["1,-1,0,0,5,5"], "", FaultKind.INVALID_ROW),
        (["1,1,0,0,5,5,1,99,1"], "", FaultKind.UNKNOWN_CLASS),
        (ROWS, "imDir=../../secret", FaultKind.UNSAFE_NAME),
    ],
)
def test_faults_are_named(tmp_path, rows, info, kind):
    found = kinds(write_video(tmp_path / "a", rows, info=info))
    assert found.get(kind) == 1, found


def test_detections_without_ids_are_refused_in_one_line(tmp_path):
    write_video(tmp_path / "train" / "a", ["1,-1,0,0,5,5,0.9,-1,-1,-1"])
    write_video(tmp_path / "val" / "b")
    with pytest.raises(DataError, match=r"no annotations: .* the id is -1: .*needs the ground truth with ids"):
        open_data(tmp_path)


def test_the_size_of_a_video_is_that_of_the_first_frame_that_can_be_read(tmp_path):
    folder = write_video(tmp_path / "a")
    (folder / "img1" / "000001.jpg").write_bytes(b"no image")
    data = read(folder)
    assert len(data) == 3 and {(image.height, image.width) for image in data.images} == {(32, 48)}
    for name in ("000002.jpg", "000003.jpg"):
        (folder / "img1" / name).write_bytes(b"no image")
    assert kinds(folder)[FaultKind.UNREADABLE_IMAGE] == 1 and len(read(folder)) == 0


def test_a_clean_video_has_no_fault(tmp_path):
    assert kinds(write_video(tmp_path / "a", ["1,1,0,0,5,5", "2,1,0,0,5,5", "3,1,0,0,5,5"])) == {}


def test_a_folder_without_frames_or_with_a_broken_seqinfo_is_one_line(tmp_path):
    folder = write_video(tmp_path / "a", names=())
    with pytest.raises(DataError, match=r"gt.txt: its frames are missing; put them into .*img1, as 000001.jpg"):
        read(folder)
    folder = write_video(tmp_path / "b")
    (folder / "seqinfo.ini").write_text("seqLength=3\n")
    with pytest.raises(DataError, match=r"seqinfo.ini: has no section \[Sequence\]"):
        read(folder)


def test_a_validation_split_consists_of_whole_videos(tmp_path):
    for name in "abcd":
        write_video(tmp_path / name)
    splits = open_data(tmp_path, val_fraction=0.25)
    videos = {name: {image.extras["video"] for image in data.images} for name, data in splits.items()}
    assert len(videos["val"]) == 1 and len(videos["train"]) == 3 and not videos["val"] & videos["train"]
    with pytest.raises(DataError, match=r"too few for a validation split \(1 video\)"):
        open_data(tmp_path / "a")


def test_a_video_stays_in_one_part(tmp_path):
    for name in "abcd":
        write_video(tmp_path / name)
    parts = stratified(read(tmp_path).images, {"train": 0.5, "val": 0.5}, seed=0)
    videos = {name: {image.extras["video"] for image in images} for name, images in parts.items()}
    assert sorted(map(len, videos.values())) == [2, 2] and not videos["train"] & videos["val"]
    assert [len(images) for images in parts.values()] == [6, 6]


def test_videos_written_as_coco_are_read_back(tmp_path):
    write_videos(tmp_path / "videos", counts={"train": 2, "val": 2}, config=VideoConfig(frames=4, size=64))
    notes = convert(tmp_path / "videos", tmp_path / "coco", Format.COCO)
    assert notes == (
        "16 images under a new name",
        "frame rates of the videos, and rows of classes that are not read, were not written",
    )
    original, written = read_splits(tmp_path / "videos"), read_splits(tmp_path / "coco")
    assert recognise(tmp_path / "coco").format is Format.COCO
    for split, data in original.items():
        assert written[split].categories == data.categories
        for image, copy in zip(data.images, written[split].images, strict=True):
            assert (copy.id, copy.extras, copy.objects) == (image.id, image.extras, image.objects)
            assert copy.path.read_bytes() == image.path.read_bytes()
            assert copy.path.name == f"{Path(image.extras['video']).name}_{image.path.name}"
    notes = convert(tmp_path / "coco", tmp_path / "yolo", Format.YOLO)
    assert "4 videos written as single images without track ids: the format does not support videos" in notes
