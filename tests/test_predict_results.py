"""What is written of detections: names that never collide, tables that read back, files that are whole."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from folders import make_image
from opendetr.categories import Categories, coco_categories
from opendetr.data.records import DataError
from opendetr.inference.writers.background import Background
from opendetr.inference.writers.folder import OutputConfig, results_folder
from opendetr.inference.writers.names import FolderNames, OutputNames, safe_name, shortened
from opendetr.inference.writers.tables import Rows
from opendetr.results import Detections

CATEGORIES = Categories.from_names(("cat", "a/b", "a_b"))
EVERYTHING = OutputConfig(crops=True, csv=True, yolo=True)


def detections(source: str | None = "photos/x.png", seed: int = 0, categories: Categories = CATEGORIES, **fields):
    boxes = torch.tensor([[4.0, 6.0, 20.0, 30.0], [-5.0, 10.0, 70.0, 60.0], [70.0, 0.0, 80.0, 10.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 0])
    return Detections(boxes, scores, labels, categories, (48, 64), make_image(seed=seed), source=source, **fields)


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_track_ids_stay_with_their_detections():
    tracked = detections(track_ids=torch.tensor([7, 3, 5]))
    assert tracked[tracked.scores < 0.85].track_ids.tolist() == [3, 5]
    assert tracked.to_supervision().tracker_id.tolist() == [7, 3, 5]
    assert detections().track_ids is None
    with pytest.raises(ValueError, match=r"Detections.track_ids: expected \(3,\), got \(2,\)"):
        detections(track_ids=torch.tensor([7, 3]))


def test_supervision_receives_all_fields():
    ours = detections()
    theirs = ours.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, ours.boxes.numpy())
    np.testing.assert_array_equal(theirs.confidence, ours.scores.numpy())
    np.testing.assert_array_equal(theirs.class_id, ours.labels.numpy())
    assert theirs.data["class_name"].tolist() == ours.names
    assert theirs.mask is None and theirs.tracker_id is None


def test_without_supervision_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'opendetr\[supervision\]'"):
        detections().to_supervision()


# ---------------------------------------------------------------------------------------------------------------- names


def test_names_keep_their_place_and_their_suffix():
    names = OutputNames([Path("in"), Path("/data/x.jpg")])
    given_to = {"in/a/x.jpg": "a/x.jpg", "in/b/x.jpg": "b/x.jpg", "in/x.tif": "x.png", "/data/x.jpg": "x.jpg",
                "other/x.JPG": "x-2.JPG", "other/x.png": "x-2.png", "in/clip.avi": "clip.mp4",
                "camera 0": "camera 0.mp4", "https://host/p/photo.jpg?w=3": "photo.jpg", "http://host": "image.png",
                "http://host/..%2f..%2fetc%2fx.jpg": "_.._etc_x.jpg"}  # fmt: skip
    assert {source: names.name(source).as_posix() for source in given_to} == given_to


PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=90).filter(
    lambda part: part not in (".", "..")
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=30))
def test_no_two_names_are_alike_or_too_long_or_outside(sources):
    names = OutputNames([Path("in")])
    found = [names.name(f"in/{source}") for source in sources]
    assert len({name.as_posix().casefold() for name in found}) == len(sources)
    assert all(len(os.fsencode(name.name)) <= 240 for name in found)
    assert not any(name.is_absolute() or ".." in name.parts for name in found)


def test_many_of_one_name_are_numbered_quickly():
    names = OutputNames([])
    assert names.name("x-2.jpg") == PurePath("x-2.jpg")
    found = {names.name(f"{number}/x.jpg") for number in range(20_000)}
    assert len(found | {PurePath("x-2.jpg")}) == 20_001


def test_safe_names():
    assert safe_name("../a:b\n") == "_a_b_"
    assert safe_name("...") == "_"
    assert len(os.fsencode(shortened("ä" * 400, 100))) <= 100
    assert shortened("ä" * 400, 100) != shortened("ä" * 401, 100)
    folders = FolderNames(("a/b", "a_b", "A_B"))
    assert [folders.of(name) for name in ("a_b", "A_B", "a/b", "..", "a_b")] == ["a_b-2", "A_B-3", "a_b", "_", "a_b-2"]


# --------------------------------------------------------------------------------------------------------------- tables


def write(folder: Path, config: OutputConfig, found: list[Detections], **options) -> None:
    with results_folder(folder, found[0].categories, config, **options) as add:
        for each in found:
            add(each)


def test_everything_that_can_be_written(tmp_path):
    found = [detections(f"in/{name}.png", seed) for seed, name in enumerate(("a/x", "b/x", "ü"))]
    write(tmp_path / "out", EVERYTHING, found, roots=[Path("in")])
    images = {"a/x", "b/x", "ü"}
    expected = {"predictions.json", "predictions.csv", "data.yaml"}
    expected |= {f"{name}.png" for name in images} | {f"labels/{name}.txt" for name in images}
    expected |= {f"crops/a_b/{name}-0.png" for name in images} | {f"crops/a_b-2/{name}-1.png" for name in images}
    assert written(tmp_path / "out") == expected


def test_coco_json(tmp_path):
    found = [detections(f"{number}.jpg") for number in range(3)]
    write(tmp_path, OutputConfig(draw=False), found)
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert content["images"][1] == {"id": 2, "file_name": "1.jpg", "height": 48, "width": 64}
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "a/b"}, {"id": 3, "name": "a_b"}]
    assert content["annotations"] == [row for number, each in enumerate(found, 1) for row in each.to_coco(number)]
    nothing = detections()[:0]
    write(tmp_path, OutputConfig(), [nothing])
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert content["annotations"] == []
    assert content["images"][0]["drawing"] == "x.png"


def test_csv(tmp_path):
    awkward = 'in/a,"b"\n.png'
    bytes_that_are_no_text = os.fsdecode(b"in/\xff.png")
    write(tmp_path, OutputConfig(draw=False, csv=True), [detections(awkward), detections(bytes_that_are_no_text)])
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file_name"] for row in rows] == [awkward] * 3 + [bytes_that_are_no_text] * 3
    assert rows[1] == {"image_id": "1", "file_name": awkward, "frame": "", "category_id": "3", "category": "a_b",
                       "score": "0.800000", "x_min": "-5.000", "y_min": "10.000", "x_max": "70.000",
                       "y_max": "60.000"}  # fmt: skip
    assert json.loads((tmp_path / "predictions.json").read_text())["images"][1]["file_name"] == bytes_that_are_no_text


def test_yolo_labels_are_cut_to_the_image(tmp_path):
    write(tmp_path, OutputConfig(draw=False, yolo=True), [detections(), detections("y.png")[:0]])
    lines = (tmp_path / "labels" / "x.txt").read_text().splitlines()
    rows = np.array([[float(number) for number in line.split()] for line in lines])
    np.testing.assert_array_equal(rows[:, 0], [1, 2])  # the third lies outside
    left, right = rows[:, 1] - rows[:, 3] / 2, rows[:, 1] + rows[:, 3] / 2
    np.testing.assert_allclose(left * 64, [4, 0], atol=1e-4)
    np.testing.assert_allclose(right * 64, [20, 64], atol=1e-4)
    np.testing.assert_allclose((rows[:, 2] + rows[:, 4] / 2) * 48, [30, 48], atol=1e-4)
    assert (tmp_path / "labels" / "y.txt").read_text() == ""
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {"names": {0: "cat", 1: "a/b", 2: "a_b"}}


def test_yolo_counts_the_used_classes(tmp_path):
    """The 80 classes of COCO are 0..79 for YOLO; the published detectors have 91 rows."""
    categories = coco_categories()
    toothbrush = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), torch.tensor([90]), categories, (48, 64))
    write(tmp_path, OutputConfig(draw=False, yolo=True), [toothbrush])
    assert (tmp_path / "labels" / "image.txt").read_text().startswith("79 ")
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"][79] == "toothbrush"
    assert len(json.loads((tmp_path / "predictions.json").read_text())["categories"]) == 80


def test_crops_and_yolo_labels_of_a_text_have_its_phrases(tmp_path):
    """One text can name several kinds of objects; the phrases of all images are numbered as they appear."""
    config = OutputConfig(draw=False, crops=True, yolo=True)
    texts = Categories.from_names(("a man and two dogs",))
    found = detections(categories=texts)
    first = replace(found, labels=torch.zeros(3, dtype=torch.int64), phrases=("two dogs", "a man", "a man"))
    second = replace(first, source="y.png", phrases=("a man", "A man", "a man and two dogs"))
    with results_folder(tmp_path, texts, config) as save:
        save(first)
        save(second)
    assert [line.split()[0] for line in (tmp_path / "labels" / "y.txt").read_text().splitlines()] == ["1", "2"]
    names = {0: "two dogs", 1: "a man", 2: "A man", 3: "a man and two dogs"}
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {"names": names}
    crops = {path for path in written(tmp_path) if path.startswith("crops")}
    assert crops == {"crops/two dogs/x-0.png", "crops/a man/x-1.png", "crops/a man/y-0.png", "crops/A man-2/y-1.png"}


def test_crops_show_what_the_boxes_hold(tmp_path):
    write(tmp_path, OutputConfig(crops=True), [detections()])
    with Image.open(tmp_path / "crops" / "a_b" / "x-0.png") as crop:
        np.testing.assert_array_equal(np.asarray(crop), make_image()[6:30, 4:20])
    with Image.open(tmp_path / "crops" / "a_b-2" / "x-1.png") as crop:
        np.testing.assert_array_equal(np.asarray(crop), make_image()[10:48, 0:64])
    assert not (tmp_path / "crops" / "cat").exists()


def test_a_video_is_annotated_frame_by_frame(tmp_path):
    pytest.importorskip("av")
    from opendetr.inference.sources.video import video_frames

    times = [0.0, 0.1, 0.2, 0.7]
    frames = [detections("clip.avi", frame=number, time=time) for number, time in enumerate(times)]
    frames = [replace(frame, image=np.full((48, 64, 3), 60 * frame.frame, np.uint8)) for frame in frames]
    other = [detections("in/clip.mp4", 9, frame=seed, time=seed / 5) for seed in range(3)]
    write(tmp_path, EVERYTHING, [*frames, *other, detections("photo.jpg")])
    assert {path.name for path in tmp_path.iterdir()} >= {"clip.mp4", "clip-2.mp4", "photo.jpg"}
    read = list(video_frames(tmp_path / "clip.mp4"))
    np.testing.assert_allclose([frame.time for frame in read], times, atol=0.002)
    differences = [np.abs(read[2].pixels.astype(int) - np.asarray(frame.plot())).mean() for frame in frames]
    assert differences[2] < 16 < min(differences[1], differences[3])
    assert len(list(video_frames(tmp_path / "clip-2.mp4"))) == 3
    assert {"clip_000002.txt", "clip-2_000002.txt", "photo.txt"} <= {p.name for p in (tmp_path / "labels").iterdir()}
    assert (tmp_path / "crops" / "a_b" / "clip_000003-0.jpg").is_file()
    images = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert [row.get("frame") for row in images] == [0, 1, 2, 3, 0, 1, 2, None]
    assert images[3]["time"] == 0.7


def test_odd_and_changing_frames(tmp_path):
    pytest.importorskip("av")
    from opendetr.inference.sources.video import video_frames
    from opendetr.inference.writers.video import video_writer

    with video_writer(tmp_path / "a.mp4") as writer:
        for number, (height, width) in enumerate(((101, 75), (101, 75), (60, 90))):
            writer.write(make_image(height, width), number / 10)
    assert {frame.pixels.shape for frame in video_frames(tmp_path / "a.mp4")} == {(100, 74, 3)}


# ---------------------------------------------------------------------------------------------------------------- whole


def test_after_an_error_no_table_and_no_part_of_one_is_left(tmp_path):
    pytest.importorskip("av")
    frames = [detections("clip.mp4", frame=number, time=number / 9) for number in range(3)]

    def failing() -> None:
        with results_folder(tmp_path / "out", CATEGORIES, EVERYTHING) as add:
            add(detections())
            for frame in frames:
                add(frame)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    left = written(tmp_path / "out")
    assert not any(name.startswith(("predictions", "clip", "data")) or ".new" in name for name in left)


def test_an_error_of_a_writing_thread_ends_it(tmp_path):
    shutil.copy(__file__, tmp_path / "b")  # a file where a folder is needed

    def failing() -> None:
        with results_folder(tmp_path, CATEGORIES, OutputConfig(), roots=[Path("in")]) as add:
            for _ in range(100):
                add(detections("in/b/x.png"))

    with pytest.raises(OSError):
        failing()
    assert not (tmp_path / "predictions.json").exists()
    assert not any(thread.name.startswith("write") for thread in threading.enumerate())


def test_a_video_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    from opendetr.inference.writers import video

    def full(*_options):
        raise av.error.OSError(28, "No space left on device")

    monkeypatch.setattr(video.VideoWriter, "finish", full)
    with pytest.raises((DataError, OSError), match="No space left"), video.video_writer(tmp_path / "a.mp4") as writer:
        writer.write(make_image(), 0)
    assert written(tmp_path) == set()


def test_the_background_bounds_what_waits_and_keeps_the_order():
    release, done = threading.Event(), []
    running: list[int] = []

    def work(number: int) -> int:
        running.append(number)
        assert release.wait(10)
        return number

    def submit_all(background: Background) -> None:
        for number in range(30):
            background.submit(partial(work, number), done.append)

    with Background(2, max_pending=5) as background:
        submitter = threading.Thread(target=submit_all, args=(background,))
        submitter.start()
        submitter.join(0.2)
        assert submitter.is_alive()
        assert len(running) <= 2
        release.set()
        submitter.join()
    assert done == list(range(30))


def test_the_background_bounds_the_memory_that_waits():
    release = threading.Event()
    submitted: list[int] = []

    def submit_all(background: Background) -> None:
        for number in range(6):
            background.submit(partial(release.wait, 10), size=2**28 if number == 0 else 2**26)
            submitted.append(number)

    with Background(2, max_pending=100) as background:
        submitter = threading.Thread(target=submit_all, args=(background,))
        submitter.start()
        submitter.join(0.2)
        assert submitted == [0]  # a single large piece is let in, and nothing beside it
        release.set()
        submitter.join()
    assert submitted == list(range(6))


def test_rows(tmp_path):
    for rows in ([], ["ä\n"], [{"a": 1.5}, {"b": None}]):
        with Rows(tmp_path) as kept, (tmp_path / "rows.json").open("w") as stream:
            for row in rows:
                kept.add(row)
            kept.copy_to(stream)
        assert json.loads((tmp_path / "rows.json").read_text()) == rows
