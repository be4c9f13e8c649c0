"""Python equals the command line: the same options, the same refusals, and examples that pass a type checker."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import opendetr
from markdown_blocks import ROOT, read_blocks
from opendetr.cli.evaluate import EvalOptions
from opendetr.cli.export import export
from opendetr.cli.main import app
from opendetr.cli.train import TrainOptions
from opendetr.config import ConfigError
from opendetr.inference import Predictor, load
from opendetr.presets import DEFAULT_MODEL, build_model, get_preset, miniature
from opendetr.synthetic import write_scenes
from opendetr.training import Evaluated, RunEnded, StepTaken
from opendetr.training.settings import set_up

SMALL: dict[str, Any] = {"image_size": 64, "batch_size": 2, "max_steps": 2, "workers": 0, "weights": "none"}
TINY = "model={transformer: {width: 32, num_heads: 4, ffn_width: 32, encoder_layers: 1, decoder_layers: 2}}"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"train": 4, "val": 2, "test": 2})
    return folder


@pytest.fixture(scope="module")
def detector(scenes) -> Predictor:
    preset = miniature("detr-tiny-panoptic")
    categories = opendetr.open_data(scenes)["train"].categories
    return Predictor(build_model(preset, len(categories)), preset, categories, device="cpu")


def names(callable_: Any) -> set[str]:
    return set(inspect.signature(callable_).parameters) - {"self"}


# -------------------------------------------------------------------------------------------------------------- options


def test_train_has_the_options_of_the_command():
    options = {field.name for field in fields(TrainOptions)}
    of_resume, of_launcher, of_output = {"resume", "moved"}, {"processes", "nodes"}, {"as_json"}
    assert names(opendetr.train) - {"callbacks", "say"} == options - of_resume - of_launcher - of_output
    assert names(opendetr.resume) == {"folder", "data", "device", "callbacks", "say"}


def test_evaluate_and_export_have_the_options_of_the_commands():
    of_load, of_output = {"weights", "model", "device", "strict_no_object"}, {"as_json", "predictions", "report"}
    options = {field.name for field in fields(EvalOptions)}
    assert names(Predictor.evaluate) - {"progress"} == options - of_load - of_output
    assert names(Predictor.export) == names(export) - {"weights", "model", "as_json", "debug"}


class Recorder(opendetr.Callback):
    """Keeps the events of steps, evaluations and the end."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.on_step = self.on_evaluation = self.on_end = self.events.append  # type: ignore[method-assign]


def test_every_option_reaches_the_settings_and_callbacks_receive_the_events(scenes, tmp_path):
    options = {"accumulate": 2, "augment": "colour", "batch_pixels": 90000, "val_fraction": 0.3, "val_split": "test",
               "strict": True, "precision": "fp32", "gradient_checkpointing": True, "freeze": "encoder", "ema": 0.5,
               "best_by": "AP50", "patience": 7, "lr": 3e-4, "seed": 5}  # fmt: skip
    first, second = Recorder(), Recorder()
    run = opendetr.train(
        scenes, out=tmp_path / "run", changes=TINY, callbacks=[first], say=lambda _: None, **SMALL, **options
    )
    preset = load(run.folder / "last", device="cpu").preset
    recipe, data = preset.recipe, preset.data
    assert (recipe.accumulate, recipe.precision, recipe.gradient_checkpointing) == (2, "fp32", True)
    assert (recipe.freeze, recipe.ema_decay, recipe.best_by, recipe.patience) == (("encoder",), 0.5, "AP50", 7)
    assert (recipe.learning_rate, recipe.seed, recipe.batch_size, recipe.max_steps) == (3e-4, 5, 2, 2)
    assert (data.augment, data.batch_pixels, data.val_fraction, data.strict) == ("colour", 90000, 0.3, True)
    assert (data.val_split, data.num_workers, data.image_size) == ("test", 0, 64)
    assert [event.step for event in first.events if isinstance(event, StepTaken)] == [1, 2]
    assert any(isinstance(event, Evaluated) for event in first.events)
    opendetr.resume(run.folder, callbacks=[second], say=lambda _: None)
    assert [type(event) for event in second.events] == [RunEnded]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("accumulate", 0),
        ("epochs", 0),
        ("lr", -1),
        ("image_size", 0),
        ("num_queries", 0),
        ("augment", "none"),
        ("batch_pixels", 0),
        ("val_fraction", 1.5),
        ("workers", -1),
        ("precision", "fp8"),
        ("ema", 1.0),
        ("patience", -1),
        ("time", "soon"),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_has_the_same_message(scenes, tmp_path, name, value):
    out = tmp_path / "run"
    with pytest.raises(ConfigError) as fault:
        opendetr.train(scenes, out=out, weights="none", say=lambda _: None, **{name: value})
    option = f"--{name.replace('_', '-')}={value}"
    result = CliRunner().invoke(app, ["train", str(scenes), "--out", str(out), "--weights", "none", option])
    assert result.exit_code == 2
    option, _, words = str(fault.value).partition(": ")
    assert option == name
    assert result.stderr.splitlines()[-1] == f"Error: Invalid value for '--{name.replace('_', '-')}': {words}"
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "option", "call"),
    [
        ("eval", "--batch-size=0", lambda detector, data: detector.evaluate(data, batch_size=0)),
        ("eval", "--panoptic-score=2", lambda detector, data: detector.evaluate(data, panoptic_score=2.0)),
        ("predict", "--batch-size=0", lambda detector, data: detector.predict(data, batch_size=0)),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_words_of_the_command(detector, scenes, command, option, call):
    with pytest.raises(ConfigError) as fault:
        call(detector, scenes)
    result = CliRunner().invoke(app, [command, str(scenes), option])
    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", " ").split())
    assert str(fault.value).partition(": ")[2] in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "test"}, "apply to a dataset folder"),
        ({"merge": "published"}, "merge: the dataset was loaded without masks"),
        ({"panoptic_score": 0.5}, "panoptic_score: the dataset was loaded without panoptic maps"),
    ],
)
def test_an_argument_without_effect_is_refused(detector, scenes, arguments, words):
    with pytest.raises(ConfigError, match=words):
        detector.evaluate(opendetr.open_data(scenes)["val"], **arguments)


@pytest.mark.parametrize("scores", [{"min_score": 1.5}, {"class_min_scores": {"disc": -0.1}}])
def test_a_score_out_of_range_is_refused(detector, scenes, scores):
    with pytest.raises(ConfigError, match="expected a number from 0 to 1, got "):
        detector.predict(scenes / "val", **scores)


# ----------------------------------------------------------------------------------------------------- the same results


def test_evaluate_takes_a_folder(detector, scenes):
    whole = detector.evaluate(scenes, masks="none")
    assert whole.metrics == detector.evaluate(opendetr.open_data(scenes)["val"]).metrics
    other = detector.evaluate(str(scenes), split="test", masks="none")
    assert {result["image_id"] for result in other.results} <= {
        image.id for image in opendetr.open_data(scenes)["test"].images
    }
    with pytest.raises(opendetr.DataError, match="no split 'tset'"):
        detector.evaluate(scenes, split="tset")


def test_export_writes_what_the_command_writes(tmp_path):
    detector = load(DEFAULT_MODEL, device="cpu")
    assert detector.export(tmp_path / "python.pth", "official") == tmp_path / "python.pth"
    command = ["export", DEFAULT_MODEL, str(tmp_path / "command.pth"), "--format", "official"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "python.pth").stat().st_size == (tmp_path / "command.pth").stat().st_size
    with pytest.raises(ConfigError, match="expected huggingface or official"):
        detector.export(tmp_path / "model", "onx")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------- weights by catalogue name


def test_weights_of_a_catalogue_name_are_those_of_predict(scenes):
    setup, origin = set_up(scenes, None, DEFAULT_MODEL, None, freeze_detector=False)
    published, path = set_up(scenes, DEFAULT_MODEL, "published", None, freeze_detector=False)
    assert (setup.preset, origin) == (published.preset, path)
    assert setup.weights == DEFAULT_MODEL  # what a resumed run starts from
    masks, _ = set_up(scenes, "deformable-detr-tiny-panoptic", DEFAULT_MODEL, None, freeze_detector=False)
    assert masks.preset.name == "deformable-detr-tiny-panoptic"
    with_head, _ = set_up(scenes, None, DEFAULT_MODEL, None, freeze_detector=True)
    assert with_head.preset.name == "deformable-detr-tiny-panoptic"


def test_weights_of_a_catalogue_name_that_do_not_fit_are_one_line(scenes):
    with pytest.raises(ConfigError, match="the weights of detr-r50 do not fit detr-tiny; leave the model out"):
        set_up(scenes, "detr-tiny", "detr-r50", None, freeze_detector=False)
    with pytest.raises(opendetr.WeightsError, match="detr-tiny: has no published weights"):
        set_up(scenes, None, "detr-tiny", None, freeze_detector=False)
    assert get_preset("detr-tiny")


# ---------------------------------------------------------------------------------------------------------------- types


@pytest.mark.slow  # reads the types of all packages: 15 seconds without a cache
def test_examples_of_the_pages_pass_mypy_strict(tmp_path):
    mypy = pytest.importorskip("mypy").__name__
    pages = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("quickstart.md", "training.md", "prediction.md"))]
    files = []
    for page in pages:
        for number, block in enumerate(block for block in read_blocks(page.read_text()) if block.language == "python"):
            files.append(tmp_path / f"{page.stem.lower()}_{number}.py")
            files[-1].write_text(block.text)
    assert len(files) > len(pages)
    wrong = tmp_path / "wrong.py"  # shows that the types of the package are read
    wrong.write_text("import opendetr\n\nopendetr.load(1).predict(2).names\n")
    command = [sys.executable, "-m", mypy, "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    command += ["--config-file", "", "--cache-dir", str(tmp_path / "cache"), *map(str, files), str(wrong)]
    environment = os.environ | {"MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert errors and all(line.startswith("wrong.py:3: ") for line in errors), done.stdout + done.stderr


def test_habits_from_other_tools_get_the_right_name(tmp_path):
    """Unknown arguments and attributes, from the table of the command line."""
    detector = opendetr.load(device="cpu")  # the default of the command line
    assert detector.preset.name == DEFAULT_MODEL
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    calls = {
        "predict has no argument 'conf'; did you mean min_score?": lambda: detector(image, conf=0.1),
        "predict has no argument 'threshold'; did you mean min_score?": lambda: detector.predict(image, threshold=0.1),
        "predict has no argument 'iou'; DETR needs no non-maximum": lambda: detector(image, iou=0.5),
        "train has no argument 'imgsz'; did you mean image_size?": lambda: opendetr.train("data", imgsz=3),
        "train has no argument 'learning_rate'; did you mean lr?": lambda: opendetr.train("data", learning_rate=1),
        "given as changes, such as changes=['recipe.": lambda: opendetr.train("data", weight_decay=1),
        "train has no argument 'dataset'; did you mean data?": lambda: opendetr.train(dataset="data"),
        "train has no argument 'batch'; did you mean batch_size?": lambda: opendetr.pretrain("data", batch=2),
        "load has no argument 'cuda'; did you mean device?": lambda: opendetr.load(cuda=True),
        "create has no argument 'pretrained'; did you mean weights?": lambda: opendetr.create("detr-r50", pretrained=1),
    }
    for text, call in calls.items():
        with pytest.raises(TypeError) as fault:
            call()
        assert text in str(fault.value)
    found = detector(image, min_score=0)
    for name, near in {"xyxy": "boxes", "conf": "scores", "cls": "labels", "to_panda": "to_pandas"}.items():
        with pytest.raises(AttributeError, match=f"Detections has no attribute '{name}'; did you mean {near}?"):
            getattr(found, name)
    assert copy.deepcopy(found).size == found.size and not hasattr(found, "__array__")
    with pytest.raises(ValueError, match=r"write d\[\[name == 'RBC' for name in d.names\]\]"):
        found["RBC"]
    with pytest.raises(opendetr.ConfigError, match="0 is not the name of a class; give names, such as 'disc'"):
        detector(image, class_min_scores={0: 0.9})
