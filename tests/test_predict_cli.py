"""`opendetr predict` as a user meets it: what it writes and says, and what it does with inputs that attack."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from folders import make_image, write_image
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import to_dict
from opendetr.presets import build_model, miniature
from opendetr.recipe import DEFAULT_MODEL
from opendetr.scoring import ScoreThresholds
from opendetr.weights import ModelCard, save_weights
from web import sends, serving

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A detector that knows nothing and finds 12 objects in every image."""
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    torch.manual_seed(0)
    preset = miniature("detr-tiny")
    card = ModelCard(to_dict(preset), Categories.from_names(CLASSES), {})
    save_weights(path, build_model(preset, len(CLASSES)), card)
    return path


@pytest.fixture
def predict(weights, tmp_path):
    """Runs the command on sources, with its output in `out`."""

    def run(
        *options: Any,
        code: int = 0,
        out: Path = tmp_path / "out",
        min_score: float | None = 0,
        overwrite: bool = True,
    ) -> Result:
        given = ["--weights", weights, "--out", out, "--device", "cpu", *(["--overwrite"] if overwrite else [])]
        given += [] if min_score is None else ["--min-score", min_score]
        result = CliRunner().invoke(app, ["predict", *map(str, (*options, *given))])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert not [path for path in out.rglob("*") if path.name.endswith(".new")] if out.is_dir() else True
        return result

    return run


def tables(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "predictions.json").read_text())


def images_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def fill(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_image(folder / name, seed=seed)
    return folder


# --------------------------------------------------------------------------------------------------------- what is made


def test_the_output_has_the_shape_of_the_input(predict, tmp_path):
    fill(tmp_path / "in", "x.png", "a/x.png", "b/x.png")
    result = predict(tmp_path / "in", "--csv", "--yolo", "--crops")
    assert "objects in 3 images" in result.stdout
    written = tables(tmp_path / "out")
    assert [row["drawing"] for row in written["images"]] == ["a/x.png", "b/x.png", "x.png"]
    names = ("a/x.png", "b/x.png", "x.png")
    assert [row["file_name"] for row in written["images"]] == [str(tmp_path / "in" / name) for name in names]
    for name in names:
        with Image.open(tmp_path / "out" / name) as drawn:
            drawn.load()
    with (tmp_path / "out" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(written["annotations"]) > 3
    assert float(rows[0]["score"]) == pytest.approx(written["annotations"][0]["score"], abs=1e-6)
    assert len((tmp_path / "out" / "labels" / "a" / "x.txt").read_text().splitlines()) > 1
    assert {path.name for path in (tmp_path / "out" / "crops").iterdir()} <= set(CLASSES)


def test_files_of_one_name_from_two_folders_keep_apart(predict, tmp_path):
    fill(tmp_path, "a/x.png", "b/x.png")
    predict(tmp_path / "a" / "x.png", tmp_path / "b", tmp_path / "b" / "x.png")  # the last one is not predicted twice
    assert [row["drawing"] for row in tables(tmp_path / "out")["images"]] == ["x.png", "x-2.png"]


def test_json_on_standard_output_is_the_file_and_what_failed(predict, tmp_path):
    fill(tmp_path / "in", "x.png", "y.png")
    (tmp_path / "in" / "bad.png").write_text("no image")
    result = predict(tmp_path / "in", "--json", "--no-draw", code=3)
    answer = json.loads(result.stdout)
    assert answer.pop("out") == str(tmp_path / "out")
    (line,) = answer.pop("failed")
    assert "bad.png" in line
    assert answer == tables(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_scores_by_class(predict, tmp_path):
    fill(tmp_path / "in", "x.png")
    predict(tmp_path / "in")
    found = tables(tmp_path / "out")["annotations"]
    name = CLASSES[found[0]["category_id"] - 1]
    same = [row for row in found if row["category_id"] == found[0]["category_id"]]
    predict(tmp_path / "in", "--min-score", f"{name}=0", min_score=1)
    assert tables(tmp_path / "out")["annotations"] == same
    predict(tmp_path / "in", "--min-score", f"{name}=1")
    assert len(tables(tmp_path / "out")["annotations"]) == len(found) - len(same)
    line = predict(tmp_path / "in", "--min-score", "cta=0.5", code=2).stderr
    assert "did you mean 'cat'" in line
    for bad in ("2", "nan", "cat=", "=0.5", "cat=-1", "much"):
        assert "NAME=NUMBER" in predict(tmp_path / "in", "--min-score", bad, code=2, min_score=None).stderr


def test_an_address_and_a_video_in_one_run(predict, tmp_path, monkeypatch):
    pytest.importorskip("av")
    from clips import write_video

    monkeypatch.setenv("no_proxy", "*")
    content = io.BytesIO()
    Image.fromarray(make_image()).save(content, "png")
    video = write_video(tmp_path / "clip.avi", num_frames=5)
    with serving() as server:
        server.answers["/photo"] = sends(content.getvalue())
        result = predict(f"{server.url}/photo", video, f"{server.url}/gone", code=3)
        assert f"{server.url}/gone: cannot be downloaded: the server answers 404" in result.stderr
    images = tables(tmp_path / "out")["images"]
    assert [row.get("frame") for row in images] == [None, 0, 1, 2, 3, 4]
    assert [row["drawing"] for row in images] == ["photo.png", *["clip.mp4"] * 5]
    assert (tmp_path / "out" / "clip.mp4").stat().st_size > 0


def test_cameras_and_models_in_the_wrong_place(predict, tmp_path):
    fill(tmp_path / "in", "x.png")
    assert "a camera or stream never ends" in predict("0", tmp_path / "in", code=2).stderr
    assert "--weights detr-tiny" in predict("detr-tiny", tmp_path / "in", code=2).stderr
    if "cv2" not in sys.modules:
        assert "camera 7: " in predict("7", code=1).stderr
    assert not (tmp_path / "out").exists()


def test_classes_are_counted_by_image_and_in_all(predict, tmp_path):
    folder = fill(tmp_path / "in", *(f"{number:02}.png" for number in range(13)))
    *lines, more, total = predict(folder).stdout.splitlines()
    rows = tables(tmp_path / "out")
    names = {row["id"]: row["name"] for row in rows["categories"]}
    counts = Counter((row["image_id"], names[row["category_id"]]) for row in rows["annotations"])
    assert len(lines) == 10
    for number, line in enumerate(lines, start=1):
        words = {f"{counts[number, name]} {name}" for name in CLASSES if counts[number, name]}
        assert line.startswith(str(folder / f"{number - 1:02}.png"))
        assert set(line.split("png", 1)[1].strip().split(", ")) == words
    assert more == "... and 3 more images"
    whole = Counter(names[row["category_id"]] for row in rows["annotations"])
    assert all(f"{count} {name}" in total for name, count in whole.items())
    assert total.startswith(f"{whole.total()} objects in 13 images (")
    assert total.endswith(f"): {tmp_path / 'out'}")
    (total,) = predict(folder / "00.png").stdout.splitlines()  # the counts of one image are those of all
    assert " objects in 1 image (" in total
    result = predict(folder / "00.png", min_score=1)
    assert result.stdout == f"0 objects in 1 image: {tmp_path / 'out'}\n"
    assert "try a lower one" in result.stderr


@pytest.mark.parametrize(
    ("options", "stored", "advice"),
    [
        ((), None, "; try a lower one, such as --min-score 0.2"),
        ((), 0.4, "; try a lower one, such as --min-score 0.2"),
        ((), 0.15, ", 0.15; `opendetr eval` shows on annotated images what the model detects"),
        (("--min-score", "0.05"), 0.4, ", 0.05; `opendetr eval` shows on annotated images what the model detects"),
    ],
)
def test_a_lower_score_is_advised_only_if_it_is_lower(options, stored, advice, tmp_path):
    preset = miniature("detr-tiny")
    model = build_model(preset, len(CLASSES))
    torch.nn.init.constant_(model.class_head.bias[-1:], 20.0)  # "no object" everywhere
    thresholds = None if stored is None else ScoreThresholds(0.9, {CLASSES[0]: stored})
    card = ModelCard(to_dict(preset), Categories.from_names(CLASSES), {}, thresholds)
    save_weights(tmp_path / "w.safetensors", model, card)
    write_image(tmp_path / "x.png")
    given = ("--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out"), "--device", "cpu")
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "x.png"), *given, *options], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == f"nothing reaches the minimum score{advice}"


def test_images_are_drawn_in_their_size(predict, tmp_path):
    fill(tmp_path / "in", "x.png")
    write_image(tmp_path / "in" / "y.png", 900, 700)
    predict(tmp_path / "in")
    for name in ("x.png", "y.png"):
        with Image.open(tmp_path / "in" / name) as image, Image.open(tmp_path / "out" / name) as drawn:
            assert drawn.size == image.size


@pytest.mark.parametrize("others", [(), ("--json", "--no-draw")])
def test_the_results_of_another_run_stay(predict, tmp_path, others):
    fill(tmp_path / "in", "x.png", "y.png")
    predict(tmp_path / "in" / "x.png", *others, overwrite=False)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*")}
    result = predict(tmp_path / "in" / "y.png", *others, overwrite=False, code=1)
    (line,) = result.stderr.splitlines()
    assert line == (
        f"error: {tmp_path / 'out'}: has the results of another run; choose another --out, or replace files of equal "
        "name with --overwrite"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*")} == before
    predict(tmp_path / "in" / "y.png", *others)
    assert tables(tmp_path / "out")["images"][0]["file_name"].endswith("y.png")


def test_files_of_the_user_stay(predict, tmp_path):
    fill(tmp_path / "in", "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".hidden").touch()
    predict(tmp_path / "in", overwrite=False)
    fill(tmp_path / "mine", "x.png")
    assert (
        "mine: is not empty; choose" in predict(tmp_path / "in", overwrite=False, out=tmp_path / "mine", code=1).stderr
    )


def test_the_default_detector_says_what_it_knows(tmp_path):
    fill(tmp_path / "in", "x.png")
    for options, times in (([], 1), (["--weights", DEFAULT_MODEL], 0)):
        given = ["predict", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--overwrite", *options]
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        assert result.exit_code == 0
        assert result.stderr.count("only drawn shapes are known (disc, ring, crescent, ...)") == times
        assert result.stderr.count("give --weights detr-r50") == times


# ---------------------------------------------------------------------------------------------------------- bad inputs


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def test_one_bad_image_of_many_stops_nothing(predict, tmp_path):
    folder = fill(tmp_path / "in", *(f"{number:03}.png" for number in range(40)))
    whole = (folder / "000.png").read_bytes()
    bad = {"003.png": b"", "007.png": b"no image", "011.png": whole[: len(whole) // 2], "013.png": bomb()}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    result = predict(folder, code=3)
    lines = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == len(bad) + 1
    assert all(any(name in line for line in lines) for name in (*bad, "loop.jpg"))
    assert len(images_below(tmp_path / "out")) == len(tables(tmp_path / "out")["images"]) == 36


def test_nothing_that_can_be_read(predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    assert "no image in this folder" in predict(folder, code=1).stderr
    assert "no file matches" in predict(tmp_path / "*.jpg", code=1).stderr
    (folder / "a.png").write_bytes(b"no image")
    (folder / "b.png").write_bytes(b"")
    result = predict(folder, code=1)
    assert result.stderr.splitlines()[-1] == "error: none of 2 images can be read"
    assert predict(folder / "a.png", code=1).stderr.startswith(f"error: {folder / 'a.png'}: ")
    assert not (tmp_path / "out").exists()


def test_the_first_frame_of_an_animation(predict, tmp_path):
    frames = [Image.fromarray(make_image(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    predict(tmp_path / "moving.gif", tmp_path / "moving.webp")
    assert [row["drawing"] for row in tables(tmp_path / "out")["images"]] == ["moving.png", "moving.webp"]


def test_more_pixels_than_a_format_has(predict, tmp_path):
    """A PNG that calls itself a JPEG or WebP may be larger than those can be."""
    for name, width in {"x.webp": 17_000, "y.jpg": 66_000}.items():
        Image.new("RGB", (width, 2)).save(tmp_path / name, "png")
    predict(tmp_path / "x.webp", tmp_path / "y.jpg")
    for name, width in {"x.webp": 17_000, "y.jpg": 66_000}.items():
        with Image.open(tmp_path / "out" / name) as drawn:
            assert drawn.size == (width, 2)


def test_names_of_every_kind(predict, tmp_path):
    folder = tmp_path / "in"
    names = ["ünïcödé 图片 🦌.png", "x" * 251 + ".png", "ä" * 125 + ".tif", "new\nline.png", "-h.png", "[a]*?.png",
             os.fsdecode(b"no text \xff.png"), "UPPER.PNG", "upper.png", " .png"]  # fmt: skip
    folder.mkdir()
    for name in names:
        Image.fromarray(make_image()).save(folder / name)
    predict(folder, "--csv", "--yolo", "--crops")
    images = tables(tmp_path / "out")["images"]
    assert sorted(row["file_name"] for row in images) == sorted(str(folder / name) for name in names)
    assert len({row["drawing"].casefold() for row in images}) == len(names)
    assert all((tmp_path / "out" / row["drawing"]).is_file() for row in images)
    (folder / "new\nline.png").write_bytes(b"no image")
    (line,) = (line for line in predict(folder, code=3).stderr.splitlines() if "skipped" in line)
    assert "new line.png" in line
    predict("x" * 5000, folder, code=3)


def test_output_that_cannot_be_written(predict, tmp_path):
    fill(tmp_path / "in", "x.png")
    (tmp_path / "file").touch()
    assert (
        "file: is a file; give the name of a folder" in predict(tmp_path / "in", code=2, out=tmp_path / "file").stderr
    )
    for out in (tmp_path / "file" / "below", Path("/proc/none")):
        result = predict(tmp_path / "in", code=1, out=out)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {out}")
        assert not result.stdout


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user for whom folders can be closed")
def test_a_folder_that_may_not_be_written(predict, tmp_path):
    fill(tmp_path / "in", "x.png")
    (tmp_path / "out").mkdir(mode=0o555)
    assert "permission denied" in predict(tmp_path / "in", code=1).stderr


def test_what_is_read_is_never_overwritten_or_predicted_again(predict, tmp_path):
    folder = fill(tmp_path / "in", "x.png", "z/x.png")
    before = (folder / "x.png").read_bytes()
    for source in (folder, folder / "x.png", folder / "*.png"):
        assert "would be overwritten" in predict(source, code=1, out=folder).stderr
    assert (folder / "x.png").read_bytes() == before
    for _ in range(2):
        predict(folder, out=folder / "found")
        assert len(tables(folder / "found")["images"]) == 2
    assert images_below(folder / "found") == {"x.png", "z/x.png"}


def process(options: list[Any], prelude: str = "") -> subprocess.Popen[str]:
    code = f"{prelude}\nfrom opendetr.cli.main import main; main()"
    command = [sys.executable, "-c", code, "predict", *map(str, options), "--min-score", "0", "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_leaves_whole_files(weights, tmp_path, times):
    """After one Ctrl-C the tables hold what is done; after two there are none, and no part of one."""
    folder, out = fill(tmp_path / "in", *(f"{number:03}.png" for number in range(50))), tmp_path / "out"
    links = folder / "more"
    links.mkdir()
    for number in range(3000):
        (links / f"{number}.png").symlink_to(folder / f"{number % 50:03}.png")
    running = process([folder, "--weights", weights, "--out", out, "--csv"])
    try:
        deadline = time.monotonic() + 60
        while len(images_below(out)) < 5:
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        for _ in range(times):
            running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    finally:
        running.kill()
    assert "Traceback" not in errors
    assert not list(out.rglob("*.new"))
    for name in images_below(out):
        with Image.open(out / name) as drawn:
            drawn.load()
    if times == 1:
        assert running.returncode == 1
        assert "interrupted after" in errors.splitlines()[-1]
        images = tables(out)["images"]
        assert 5 <= len(images) < 3000
        assert {row["drawing"] for row in images} == images_below(out)


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_full_disk_is_one_line(weights, tmp_path):
    """Files may not grow beyond 20 kB: the first drawn image cannot be saved, and no part of it stays."""
    for number in range(12):
        write_image(tmp_path / "in" / f"{number}.png", 200, 300, seed=number)
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    )
    running = process([tmp_path / "in", "--weights", weights, "--out", tmp_path / "out"], limit)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith(f"error: cannot write {tmp_path / 'out'}{os.sep}")
    assert "File too large" in line
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.skipif(os.name != "posix", reason="needs pipes as descriptors")
@pytest.mark.parametrize("target", ["closed", "/dev/full"])
def test_an_output_that_cannot_be_printed_is_one_line(weights, tmp_path, monkeypatch, capfd, target):
    """As in `opendetr predict ... --json | head`. Python does not report the error again when it closes the stream."""
    fill(tmp_path / "in", "x.png")
    if target == "closed":
        reading, writing = os.pipe()
        os.close(reading)
    elif Path(target).exists():
        writing = os.open(target, os.O_WRONLY)
    else:
        pytest.skip("the system has no full device")
    options = ["predict", tmp_path / "in", "--weights", weights, "--out", tmp_path / "out", "--json"]
    with os.fdopen(writing, "w") as stream, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stdout", stream)
        app(list(map(str, options)))
    assert ended.value.code == 1
    full = "error: cannot write standard output: No space left on device; make room, and run the command again"
    assert capfd.readouterr().err.splitlines() == ([] if target == "closed" else [full])
