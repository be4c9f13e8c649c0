"""The command line: what it prints and writes, its exit codes, and one clear line for what a user can cause."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from folders import coco_content, write_coco_folder, write_image, write_voc_folder
from opendetr import presets
from opendetr.cli import running
from opendetr.cli.main import app
from opendetr.cli.output import Exit, torchvision_fault
from opendetr.config import to_dict
from opendetr.inference.predictor import load
from opendetr.synthetic import write_scenes
from opendetr.weights import ModelCard, save_weights

SMALL = [
    *("--batch-size", "4", "--image-size", "64", "--workers", "0", "--device", "cpu"),
    *("--set", "model.transformer={width: 32, num_heads: 4, ffn_width: 32, encoder_layers: 1, decoder_layers: 2}"),
    *("--set", "model.num_queries=20"),
    *("--set", "recipe.num_evaluations=1"),
]


def opendetr(*options: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(option) for option in options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def failure(*options: Any) -> str:
    """The one line that a failing command ends with."""
    result = opendetr(*options, code=1)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert "Traceback" not in result.output
    assert not result.stdout
    return lines[0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    opendetr("data", "make", folder, "--train", 8, "--val", 4)
    return folder


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    opendetr("train", scenes, "--weights", "none", "--out", folder, "--epochs", 1, *SMALL)
    return folder


# ------------------------------------------------------------------------------------------------------ from end to end


def test_train_says_what_it_does(scenes, tmp_path):
    out = tmp_path / "run"
    result = opendetr("train", scenes, "--weights", "none", "--out", out, "--epochs", 1, "--json", *SMALL)
    record = json.loads(result.stdout)
    assert record["folder"] == str(out)
    assert record["steps"] == 2
    assert set(record["metrics"]) >= {"AP", "AP50"}
    for words in ("8 images", "12 classes", "weights: none, so the whole backbone is trained", "images/s"):
        assert words in result.stderr
    assert opendetr("train", "--resume", out).stdout.strip() == str(out)


def test_train_for_a_time(scenes, tmp_path):
    started = time.monotonic()
    result = opendetr("train", scenes, "--weights", "none", "--out", tmp_path / "run", "--time", "3s", *SMALL)
    assert "s per step: " in result.stderr
    assert time.monotonic() - started < 30


def test_the_time_of_a_run_includes_the_start_of_the_command(scenes, tmp_path, monkeypatch):
    """Importing took 100 seconds: the time is over, and one step shows what the run would do."""
    monkeypatch.setattr(running, "perf_counter", lambda: time.perf_counter() - 100)
    result = opendetr(
        "train", scenes, "--weights", "none", "--out", tmp_path / "run", "--time", "60s", "--json", *SMALL
    )
    record = json.loads(result.stdout)
    assert record["seconds"] > 100 and record["steps"] == 1
    assert "warning: the model learns very little in 1 step; give the run more time" in result.stderr


def test_eval_gives_the_twelve_numbers(run, scenes, tmp_path):
    results = tmp_path / "results.json"
    plain = opendetr("eval", scenes, "--weights", run, "--layers", "--predictions", results)
    for words in ("AP50", "AR_L", "star", "decoder layer", "seconds per image"):
        assert words in plain.stdout
    record = json.loads(opendetr("eval", scenes, "--weights", run, "--layers", "--json").stdout)
    assert len(record["metrics"]) == 12
    assert len(record["per_class"]) == 12
    assert len(record["per_layer"]) == 2
    assert record["per_layer"][-1] == record["metrics"]["AP"]
    rows = json.loads(results.read_text())
    assert set(rows[0]) >= {"image_id", "category_id", "bbox", "score"}
    assert len(rows) == 4 * 100  # pairs of 20 queries and 12 classes
    on_train = json.loads(opendetr("eval", scenes, "--weights", run, "--split", "train", "--json").stdout)
    assert on_train["images"] == 8


def test_strict_no_object_leaves_detections_out(run, scenes, tmp_path):
    categories, preset = load(run).categories, presets.miniature("detr-tiny")
    model = presets.build_model(preset, len(categories))
    torch.nn.init.constant_(model.class_head.bias[-1:], 10.0)  # "no object" is always the best answer
    weights = tmp_path / "detector.safetensors"
    save_weights(weights, model, ModelCard(to_dict(preset), categories, {}))
    for name, options in {"all": [], "strict": ["--strict-no-object"]}.items():
        opendetr("eval", scenes, "--weights", weights, "--predictions", tmp_path / name, *options)
    assert len(json.loads((tmp_path / "all").read_text())) == 4 * preset.model.num_queries
    assert json.loads((tmp_path / "strict").read_text()) == []
    assert "no 'no object' class" in failure("eval", scenes, "--weights", run, "--strict-no-object")


def test_predict_draws_and_writes(run, scenes, tmp_path):
    out = tmp_path / "found"
    write_image(tmp_path / "photo.tif")
    sources = [scenes / "val", scenes / "train" / "00000[01].png", tmp_path / "photo.tif"]
    record = json.loads(
        opendetr("predict", *sources, "--weights", run, "--out", out, "--min-score", 0, "--json").stdout
    )
    assert record["failed"] == []
    written = json.loads((out / "predictions.json").read_text())
    assert len(written["images"]) == 4 + 2 + 1
    assert {row["image_id"] for row in written["annotations"]} == set(range(1, 8))
    assert written["categories"][0] == {"id": 1, "name": "disc"}
    drawings = [row["drawing"] for row in written["images"]]
    assert len(set(drawings)) == 7
    assert {"000000.png", "000000-2.png", "photo.png"} <= set(drawings)
    assert all((out / drawing).is_file() for drawing in drawings)


def test_predict_names_what_it_cannot_read(run, scenes, tmp_path):
    whole = scenes / "val" / "000000.png"
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:300])
    result = opendetr(
        "predict", whole, broken, tmp_path / "gone.jpg", "--weights", run, "--out", tmp_path / "o", code=3
    )
    assert "broken.png" in result.stderr
    assert "gone.jpg: no such file" in result.stderr
    assert len(json.loads((tmp_path / "o" / "predictions.json").read_text())["images"]) == 1
    assert "broken.png" in failure("predict", broken, "--weights", run, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_data_make_repeats(tmp_path):
    for name in ("a", "b"):
        opendetr("data", "make", tmp_path / name, "--train", 2, "--val", 0, "--hard", "--seed", 3, "--json")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files
    assert all((tmp_path / "a" / each).read_bytes() == (tmp_path / "b" / each).read_bytes() for each in files)
    assert not (tmp_path / "a" / "val").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    assert "contains files that are not scenes" in failure("data", "make", tmp_path / "mine")


def test_models_lists_the_catalogue():
    record = json.loads(opendetr("models", "--json").stdout)
    assert [row["name"] for row in record["models"]] == presets.list_models()
    assert {row["name"]: row["parameters"] for row in record["models"]}["detr-r50"] == 41_524_768


def test_demo_makes_one_page(run, tmp_path, monkeypatch):
    small = load(run, device="cpu")
    monkeypatch.setattr("opendetr.inference.load", lambda *_given, **_options: small)
    record = json.loads(opendetr("demo", "--out", tmp_path / "demo", "--images", 14, "--json").stdout)
    page = Path(record["page"]).read_text(encoding="utf-8")
    assert page.count("<img") == 4 * 8  # ground truth and prediction, attention, worst images
    assert not re.search(r'(src|href)="(?!data:|#)|class=""', page)
    assert record["images"] == 14
    assert set(record["metrics"]) >= {"AP", "AP50"}


def test_demo_scenes_are_not_those_of_training(tmp_path):
    """Training scenes are of the split "train"; the demo's are of another, which draws other scenes."""
    write_scenes(tmp_path, counts={"train": 1, "val": 1})
    assert (tmp_path / "train" / "000000.png").read_bytes() != (tmp_path / "val" / "000000.png").read_bytes()


# ------------------------------------------------------------------------------------------------------------ bad input


def _no_coco(folder: Path) -> Path:
    folder.mkdir()
    (folder / "list.json").write_text('{"images": []}')
    return folder


def _edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = coco_content()
        edit(content)
        return write_coco_folder(folder, {"train": content})

    return make


def _climbing(folder: Path) -> Path:
    write_coco_folder(folder, {"train": coco_content()})
    path = folder / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"0.png"', '"../../outside.png"'))
    (folder.parent / "outside.png").write_bytes((folder / "images" / "0.png").read_bytes())
    return folder


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


BAD_DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder, "no such folder"),
    "empty": (_empty, "folder is empty"),
    "not COCO": (_no_coco, "annotations"),
    "no annotations": (_edited(lambda content: content["annotations"].clear()), "no annotations"),
    "unknown image": (_edited(lambda content: content["annotations"][1].update(image_id=99)), "image"),
    "unknown category": (_edited(lambda content: content["annotations"][1].update(category_id=99)), "categor"),
    "climbing name": (_climbing, "leaves the data folder"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_one_line_and_writes_nothing(kind, tmp_path):
    make, words = BAD_DATA[kind]
    data = make(tmp_path / "data")
    out = tmp_path / "run"
    line = failure("train", data, "--weights", "none", "--out", out, *SMALL)
    assert words in line
    assert str(tmp_path / "data") in line
    assert not out.exists()


def _bad_boxes(content: dict[str, Any]) -> None:
    for row, box in zip(content["annotations"], ([float("nan")] * 4, [5, 5, -3, 4]), strict=False):
        row["bbox"] = box


def test_bad_boxes_are_counted_and_skipped_unless_strict(tmp_path):
    data = _edited(_bad_boxes)(tmp_path / "data")
    options = ["--weights", "none", "--epochs", 1, *SMALL]
    result = opendetr("train", data, "--out", tmp_path / "run", "--val-fraction", 0.3, *options)
    assert "with NaN, negative or inverted sides, skipped" in result.stderr
    assert "strict" in failure("train", data, "--out", tmp_path / "strict", "--strict", *options)
    assert not (tmp_path / "strict").exists()


def test_broken_images_are_named_and_skipped_unless_strict(tmp_path, caplog):
    names = [f"image_{index}" for index in range(8)]
    data = write_voc_folder(tmp_path / "data", 8, {"train": names[:6], "val": names[6:]})
    for name in ("image_1.jpg", "image_7.jpg"):
        broken = data / "JPEGImages" / name
        broken.write_bytes(broken.read_bytes()[:400])
    options = ["--weights", "none", "--epochs", 2, *SMALL, "--set", "recipe.num_evaluations=2"]
    opendetr("train", data, "--out", tmp_path / "run", *options)
    said = [message for message in caplog.messages if message.startswith("skipped")]
    for name in ("image_1.jpg", "image_7.jpg"):  # of training and of validation, each once in the run
        assert sum(name in message for message in said) == 1, said
    assert "image_1.jpg" in failure("train", data, "--out", tmp_path / "strict", "--strict", *options)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("run-by-a-pickle",)


def test_bad_weights_are_one_line(run, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "best" / "model.safetensors").read_bytes()[:5000])
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"model": _Code()}, protocol=2))
    plain = tmp_path / "plain.pth"
    plain.write_bytes(b"")
    image = scenes / "val" / "000000.png"
    for options, words in (
        (["--weights", cut], "not a complete safetensors file"),
        (["--weights", evil, "--model", "detr-tiny"], "could run code"),
        (["--weights", plain, "--model", "detr-tiny"], "is an empty file, not a file of weights"),
        (["--weights", run / "best" / "model.safetensors.gone"], "no such file"),
        (["--weights", scenes], "contains no weights"),
        (["--weights", "detr-r18"], "detr-r18: has no published weights"),
    ):
        assert words in failure("predict", image, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "run-by-a-pickle").exists()
    assert not (tmp_path / "out").exists()
    assert "no class in common" in failure("eval", write_voc_folder(tmp_path / "voc"), "--weights", run)


def test_a_checkpoint_of_another_architecture_is_refused(run, scenes, tmp_path):
    options = [*SMALL, "--set", "model.transformer.ffn_width=33"]
    line = failure("train", scenes, "--weights", run, "--out", tmp_path / "run", *options)
    assert "were trained with model.transformer.ffn_width=32" in line
    shutil.copytree(run, tmp_path / "copy")
    config = tmp_path / "copy" / "config.yaml"
    config.write_text(config.read_text().replace("ffn_width: 32", "ffn_width: 33"))
    assert "another model" in failure("train", "--resume", tmp_path / "copy")


def test_a_cut_off_checkpoint_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    state = tmp_path / "copy" / "last" / "training.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    assert "cut off or altered" in failure("train", "--resume", tmp_path / "copy")


def test_a_loss_that_is_not_finite_names_the_images(scenes, tmp_path):
    line = failure("train", scenes, "--weights", "none", "--out", tmp_path / "run", "--epochs", 1, *SMALL,
                   "--set", "criterion.class_weight=.inf")  # fmt: skip
    assert "the loss is inf in step 1" in line
    assert "train/00000" in line


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_full_disk_is_one_line(scenes, tmp_path):
    """Files may not grow beyond 200 kB: the first checkpoint cannot be saved, and no part of it stays."""
    out = tmp_path / "run"
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); from opendetr.cli.main import main; main()"
    )
    options = ["train", str(scenes), "--weights", "none", "--out", str(out), "--epochs", "1", *SMALL]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(out.glob("last*"))


def test_torch_and_torchvision_that_do_not_fit(tmp_path):
    """A torchvision built for another torch fails when it is imported; the command says the fix."""
    for error in ("RuntimeError('operator torchvision::nms does not exist')", "ImportError('torchvision is broken')"):
        package = tmp_path / error[:5] / "torchvision"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise {error}")
        done = _process(["models"], PYTHONPATH=f"{package.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        assert done.returncode == 1
        assert re.search(r"error: torch [\d.+\w]+ and torchvision [\d.+\w]+ do not match \(", done.stderr)
        assert re.search(r"Error: (operator torchvision::nms does not exist|torchvision is broken)\); fix", done.stderr)
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("torch", "index"), [("2.6.0", ""), ("2.6.0a0+git12", ""), ("2.6.0+cpu", "cpu"),
                                              ("2.6.0+cu126", "cu126"), (None, "")])  # fmt: skip
def test_the_fix_of_torchvision_keeps_the_build_of_torch(torch, index):
    """CPU packages are not replaced by gigabytes of CUDA, and other packages are not reinstalled."""
    line = torchvision_fault(ImportError("broken"), torch, None)
    option = f" --index-url https://download.pytorch.org/whl/{index}" if index else ""
    assert line.endswith(f"pip install --upgrade torch torchvision{option}`")
    assert "torchvision (missing) do not match (ImportError: broken)" in line and "--force" not in line


# ---------------------------------------------------------------------------------------------------------------- usage


def _process(options: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opendetr", *options],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ["train"],
        ["train", "--resume", "run", "--epochs", "3"],
        ["train", "data", "--epochs", "many"],
        ["predict"],
        ["predict", "a.jpg", "--min-score", "2"],
        ["paint"],
        ["data", "make"],
    ],
)
def test_bad_usage_is_exit_code_2(options):
    assert opendetr(*options, code=2).stderr


EXIT_CODES = (
    ("models --json", 0),
    ("data check scenes --no-images", 0),
    ("data check nowhere", 1),
    ("predict broken.jpg --weights run", 1),
    ("eval scenes --weights gone.pth", 1),
    ("train scenes --imgsz 640", 2),
    ("train scenes --set xyzzy=1", 2),
    ("train scenes --model xyzzy", 2),
    ("train scenes --epochs many", 2),
    ("predict photo.jpg broken.jpg --weights run", 3),
    ("data check faulty", 3),
)


@pytest.fixture(scope="module")
def workplace(scenes, run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "scenes").symlink_to(scenes)
    (folder / "run").symlink_to(run)
    write_image(folder / "photo.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    faulty = coco_content()
    faulty["annotations"][0]["bbox"][2] = 0
    write_coco_folder(folder / "faulty", {"train": faulty, "val": coco_content(2, first_id=9)})
    return folder


@pytest.mark.parametrize(("command", "code"), EXIT_CODES)
def test_exit_codes_are_those_of_the_documentation(command, code, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    opendetr(*command.split(), code=code)


@pytest.mark.parametrize(("ended", "code"), [(1, 1), (2, 2), (-9, 1)])
def test_the_exit_code_of_several_processes_is_that_of_the_first_failure(ended, code, workplace, monkeypatch):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher import api

    def launched(*_arguments: Any) -> Callable[..., None]:
        def start(*_own: Any) -> None:
            raise ChildFailedError("opendetr", {0: ProcessFailure(0, 1, ended, "none")})

        return start

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else the command sets it
    monkeypatch.setattr(api, "elastic_launch", launched)
    monkeypatch.setattr(logging, "disable", lambda level: None)
    opendetr("train", workplace / "scenes", "--processes", 2, "--set", "xyzzy=1", code=code)


def test_ctrl_c_is_exit_code_130(workplace, monkeypatch):
    """Unless the command saves its work first: see the tests of stopped runs and predictions."""
    from opendetr.data import tools

    monkeypatch.setattr(tools, "check_data", lambda *_args, **_options: signal.raise_signal(signal.SIGINT))
    result = opendetr("data", "check", workplace / "scenes", code=130)
    assert not result.output


def test_every_exit_code_is_documented():
    page = (Path(__file__).parent.parent / "docs" / "index.md").read_text()
    rows = page.partition("| exit code | meaning |\n|---|---|\n")[2].splitlines()
    documented = {int(row.split("|")[1]) for row in itertools.takewhile(lambda row: row.startswith("|"), rows)}
    assert documented == set(Exit) == {code for _, code in EXIT_CODES} | {130}
    assert set(map(int, re.findall(r"\d+", opendetr("--help").stdout.partition("Exit codes:")[2]))) == documented


@pytest.mark.parametrize(
    "command", [["demo"], ["train"], ["eval"], ["predict"], ["data", "make"], ["models"], ["doctor"]]
)
def test_help_has_examples(command):
    text = opendetr(*command, "--help").stdout
    assert "Examples:" in text
    assert f"opendetr {' '.join(command)}" in text
    assert "--json" in text
    assert "--debug" in text


def test_debug_shows_the_traceback(tmp_path):
    done = _process(["train", str(tmp_path / "nothing"), "--debug"])
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "DataError" in done.stderr


def test_help_is_instant_and_loads_nothing_heavy():
    code = "import sys, opendetr.cli.main as m; print([n for n in ('torch', 'numpy', 'PIL') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    seconds = []
    for _ in range(3):
        before = os.times()
        assert "predict" in _process(["--help"]).stdout
        after = os.times()  # the computing alone, whatever else the machine does meanwhile
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5
