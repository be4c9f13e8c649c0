"""The options of a training that people look for: what each does, and that the command line sets it."""

from __future__ import annotations

import csv
import io
import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from folders import one_line
from opendetr import presets
from opendetr.cli.main import app
from opendetr.config import ConfigError
from opendetr.distributed import DeviceError
from opendetr.recipe import Recipe
from opendetr.structures import Batch, ImageBatch, Target
from opendetr.synthetic import write_scenes
from opendetr.training import activation_checkpointing as recompute
from opendetr.training import callbacks, freezing, trainer
from opendetr.training.callbacks import MetricsFile, MetricsTable, Progress, curves, read_metrics
from opendetr.training.checkpoint import load_checkpoint
from opendetr.training.events import Callback, Evaluated, Event, PlanFixed, StepTaken
from opendetr.training.trainer import MODEL, STATE, Trainer
from stand_ins import CountingTask, RandomLoader

RECIPE = Recipe(learning_rate=1e-2, batch_size=4, epochs=4, schedule="cosine", num_evaluations=10, save_every=0)


class Recorder(Callback):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        for name in ("start", "plan", "step", "epoch", "evaluation", "checkpoint", "nonfinite", "end"):
            setattr(self, f"on_{name}", self.events.append)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def run(folder: Path, recipe: Recipe = RECIPE, *, task: nn.Module | None = None, resume: bool = False, **options: Any):
    recorder = Recorder()
    callbacks = [recorder, *options.pop("callbacks", ())]
    started = Trainer(task or CountingTask(), options.pop("loader", None) or RandomLoader(), recipe, folder,
                      callbacks=callbacks, device="cpu", **options)  # fmt: skip
    return started, started.train(resume=resume), recorder


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / STATE)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------------ length of a run


def test_a_run_of_steps_ends_in_the_middle_of_an_epoch(tmp_path):
    _, result, _ = run(tmp_path, replace(RECIPE, max_steps=7))
    assert result.step == 7 and not result.interrupted


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    scores = iter([0.1, 0.2, 0.2, 0.15, 0.5])
    recipe = replace(RECIPE, patience=2)
    screen = io.StringIO()
    progress = Progress(Console(file=screen, width=200), metric="AP")
    _, result, recorder = run(tmp_path, recipe, evaluate=lambda _: {"AP": next(scores)}, callbacks=[progress])
    assert result.step == 8 and not result.interrupted
    assert result.best == {"AP": 0.2, "step": 6}
    assert recorder.events[-1].outcome == "early"
    assert "ended early" in screen.getvalue()
    _, result, recorder = run(tmp_path, recipe, resume=True, evaluate=lambda _: pytest.fail("it is over"))
    assert result.step == 8 and not recorder.of(StepTaken)


def test_patience_counts_on_in_a_resumed_run(tmp_path):
    scores = itertools.chain([0.3, 0.2], itertools.repeat(0.1))

    def evaluate(_task: nn.Module) -> dict[str, float]:
        score = next(scores)
        if score == 0.2:
            os.kill(os.getpid(), signal.SIGINT)  # the evaluation is left to the resumed run
        return {"AP": score}

    recipe = replace(RECIPE, patience=3)
    _, result, _ = run(tmp_path, recipe, evaluate=evaluate)
    assert result.interrupted and result.step == 4
    _, result, _ = run(tmp_path, recipe, evaluate=evaluate, resume=True)
    assert result.step == 8


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("later", [0.5, 1.0, 0.25], ids=["steady", "slower", "faster"])
def test_a_timed_run_ends_in_time_when_the_machine_changes(tmp_path, monkeypatch, later):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    loaded = itertools.count()

    class Slow(RandomLoader):
        def batch(self, epoch: int, position: int) -> Batch:
            clock.now += 0.5 if next(loaded) < 80 else later
            return super().batch(epoch, position)

    def evaluate(task: nn.Module) -> dict[str, float]:
        clock.now += 0.5
        return {"AP": 0.5}

    recipe = replace(RECIPE, time=200.0, save_every=50.0)
    _, result, recorder = run(tmp_path, recipe, loader=Slow(), evaluate=evaluate)
    assert 188 < clock.now - 1000 < 204
    plans = recorder.of(PlanFixed)
    assert (len(plans) > 1) == (later != 0.5)
    reported = plans[-1].plan.total_steps
    assert abs(result.step - reported) <= 0.2 * reported  # smaller changes are not reported
    rates = [event.learning_rate for event in recorder.of(StepTaken)]
    assert rates[-1] < 1e-4  # the schedule ends with the run


def test_a_corrected_plan_is_what_a_resumed_run_keeps(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)

    class Slowing(RandomLoader):
        def batch(self, epoch: int, position: int) -> Batch:
            clock.now += 0.5 if epoch * len(self) + position < 60 else 1.0
            return super().batch(epoch, position)

    class Killed(BaseException):
        pass

    class Killer(Callback):
        def on_step(self, event: StepTaken) -> None:
            if event.step == corrected + 3:
                raise Killed

    recipe = replace(RECIPE, time=150.0, save_every=20.0)
    options = {"loader": Slowing(), "evaluate": lambda _: {"AP": 0.5}}
    _, whole, recorder = run(tmp_path / "whole", recipe, **options)
    first, *corrections = recorder.of(PlanFixed)
    assert corrections and whole.step < first.plan.total_steps
    corrected = corrections[-1].step
    with pytest.raises(Killed):
        run(tmp_path / "killed", recipe, callbacks=[Killer()], **options)
    clock.now += 3600
    _, resumed, _ = run(tmp_path / "killed", recipe, resume=True, **options)
    assert resumed.step == whole.step
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))


# ------------------------------------------------------------------------------------------------- what is trained, how


def test_frozen_parts_stay_as_they_are_statistics_included(tmp_path):
    before = {name: tensor.clone() for name, tensor in CountingTask().state_dict().items()}
    started, _, _ = run(tmp_path, replace(RECIPE, freeze=("backbone",)), evaluate=lambda _: {"AP": 0.1})
    after = started.task.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.1.weight", "head.1.bias"}


@pytest.mark.parametrize(
    ("parts", "words"), [(("backbon",), "backbone, head"), (("backbone", "head"), "nothing is left")]
)
def test_what_cannot_be_frozen_is_one_line(tmp_path, parts, words):
    with pytest.raises(ConfigError, match=words) as caught:
        run(tmp_path, replace(RECIPE, freeze=parts))
    one_line(caught.value)
    assert not tmp_path.joinpath("last").exists()


def test_parts_of_a_detector_have_the_names_of_its_modules():
    task = presets.create_task("detr-tiny", presets.build_model(presets.miniature("detr-tiny"), 3), 3)
    freezing.freeze(task, ["encoder", "backbone.body.layer4"])
    frozen = {name for name, each in task.named_parameters() if not each.requires_grad}
    assert any(name.startswith("model.encoder.layers.1") for name in frozen)
    assert any(name.startswith("model.backbone.body.layer4.1") for name in frozen)
    assert not any(name.startswith("model.decoder") for name in frozen)
    with pytest.raises(ConfigError, match=r"backbone, .*decoder"):
        freezing.freeze(task, ["nose"])


def _detection_step(recomputing: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients and number of kept tensors of a step with dropout."""
    preset = presets.miniature("detr-r18")
    torch.manual_seed(0)
    task = presets.build_task(preset, presets.build_model(preset, 3), 3).train()
    assert preset.model.transformer.dropout > 0
    if recomputing:
        assert recompute.recompute_blocks(task) == 8 + 2 + 2  # of ResNet-18, encoder and decoder
    kept = []
    images = ImageBatch.from_images([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))])
    target = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.3, 0.3]]), (64, 64), (64, 64), 0)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(1) or tensor, lambda tensor: tensor):
        loss = task.total(task(Batch(images, (target,))))
    loss.backward()
    gradients = {name: each.grad for name, each in task.named_parameters() if each.grad is not None}
    return loss.item(), gradients, len(kept)


def test_gradient_checkpointing_keeps_less_and_computes_the_same():
    loss, gradients, kept = _detection_step(recomputing=False)
    other_loss, other_gradients, fewer = _detection_step(recomputing=True)
    assert other_loss == loss
    assert same(other_gradients, gradients)
    assert fewer < kept / 2


def test_gradient_checkpointing_leaves_out_norms_that_learn_and_what_evaluates():
    preset = presets.trained_from_nothing(presets.miniature("detr-tiny"))
    task = presets.build_task(preset, presets.build_model(preset, 3), 3)
    names = set(task.state_dict())
    assert recompute.recompute_blocks(task) == 2 + 2
    assert set(task.state_dict()) == names
    images = ImageBatch.from_images([torch.rand(3, 64, 64)])
    with torch.inference_mode():
        assert task.eval().model(images).final.boxes.isfinite().all()


def test_a_run_with_gradient_checkpointing_is_the_same_run(tmp_path):
    preset = presets.miniature("detr-r18")
    ends = []
    for recomputing in (False, True):
        torch.manual_seed(0)
        task = presets.build_task(preset, presets.build_model(preset, 1), 1)
        recipe = Recipe(batch_size=2, max_steps=2, ema_decay=0.9, gradient_checkpointing=recomputing)
        folder = tmp_path / str(recomputing)
        run(folder, recipe, task=task, loader=LargerLoader(2, 2))
        ends.append(state_of(folder))
    assert same(*ends)


class LargerLoader(RandomLoader):
    """Images that are large enough for a backbone."""

    def batch(self, epoch: int, position: int) -> Batch:
        batch = super().batch(epoch, position)
        pixels = torch.nn.functional.interpolate(batch.images.pixels, size=(64, 64))
        targets = tuple(replace(target, size=(64, 64)) for target in batch.targets)
        return Batch(ImageBatch.from_images(list(pixels)), targets, batch.names)


def test_the_best_checkpoint_is_chosen_by_any_score(tmp_path):
    scores = iter([{"AP": 0.3, "AP50": 0.4}, {"AP": 0.2, "AP50": 0.6}, {"AP": 0.4, "AP50": 0.5}])
    recipe = replace(RECIPE, num_evaluations=3, best_by="AP50")
    _, result, recorder = run(tmp_path, recipe, evaluate=lambda _: next(scores))
    assert result.best == {"AP": 0.2, "AP50": 0.6, "step": 14}
    assert [event.best for event in recorder.of(Evaluated)] == [True, True, False]
    assert load_checkpoint(tmp_path / "best").facts["step"] == 14


def test_of_equal_scores_the_later_is_best_but_patience_ends(tmp_path):
    """As long as nothing is found every score is 0, and what has learned longest is what to keep."""
    recipe = replace(RECIPE, num_evaluations=5, best_by="PQ", patience=2)
    _, result, recorder = run(tmp_path, recipe, evaluate=lambda _: {"PQ": 0.0})
    assert [event.best for event in recorder.of(Evaluated)] == [True, True, True]
    assert result.best["step"] == result.step == load_checkpoint(tmp_path / "best").facts["step"]


# ----------------------------------------------------------------------------------------------------------------- fp16


def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(
        DeviceError, match="precision fp16: needs a CUDA GPU, and this run is on cpu; use bf16"
    ) as caught:
        run(tmp_path, replace(RECIPE, precision="fp16"))
    one_line(caught.value)


class SteepTask(CountingTask):
    """Its gradients overflow fp16 until the loss is scaled less."""

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        return 100 * losses["error"].sum()


def test_fp16_skips_steps_that_overflow_and_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "autocast_dtype", lambda _precision, _device: torch.float16)
    recipe = replace(RECIPE, precision="fp16")
    started, result, recorder = run(tmp_path / "whole", recipe, task=SteepTask())
    norms = torch.tensor([event.gradient_norm for event in recorder.of(StepTaken)])
    skipped = int((~norms.isfinite()).sum())
    assert result.step == 20 and 0 < skipped < 20
    assert started.scaler.get_scale() == 2.0 ** (16 - skipped)
    assert int(started.optimizer.state[started.task.head[1].weight]["step"]) == 20 - skipped
    assert all(tensor.isfinite().all() for tensor in state_of(tmp_path / "whole").values())

    class Stopper(Callback):
        def on_step(self, event: StepTaken) -> None:
            if event.step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    run(tmp_path / "stopped", recipe, task=SteepTask(), callbacks=[Stopper()])
    assert load_checkpoint(tmp_path / "stopped" / "last").facts["scaler"]["scale"] < 2**16
    run(tmp_path / "stopped", recipe, task=SteepTask(), resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "stopped"))


def test_fp16_still_refuses_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "autocast_dtype", lambda _precision, _device: torch.float16)
    with pytest.raises(trainer.NonFiniteError, match="step 8"):
        run(tmp_path, replace(RECIPE, precision="fp16"), loader=RandomLoader(poison=(1, 2)))


# ---------------------------------------------------------------------------------------------------- what is written


def scores_of_classes(_task: nn.Module) -> dict[str, float]:
    return {"AP": 0.25, "AP50": 0.5, "AP/cat": 0.125, "AP/dog": 0.375}


def test_the_table_has_a_row_an_evaluation(tmp_path):
    recipe = replace(RECIPE, num_evaluations=4)
    run(tmp_path, recipe, evaluate=scores_of_classes, callbacks=[MetricsFile(), MetricsTable()])
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]
    assert {"loss", "loss error", "learning rate", "AP", "AP/dog"} <= rows[0].keys()
    losses = [row["loss"] for row in read_metrics(tmp_path) if row["kind"] == "step"]
    assert float(rows[1]["loss"]) == pytest.approx(sum(losses[5:10]) / 5)
    assert rows[3]["AP/dog"] == "0.375"


STEP = {"kind": "step", "step": 1, "loss": 1.0, "losses": {"class": [1.0]}, "learning_rate": 1e-4}


def test_curves_name_the_classes():
    many = {"AP": 0.2} | {f"AP/class {number}": number / 100 for number in range(40)}

    def height(metrics: dict[str, float]) -> int:
        return curves([STEP, {"kind": "evaluation", "step": 1, "metrics": metrics}], ["AP"]).height

    assert height({"AP": 0.2}) < height(scores_of_classes(nn.Identity())) == height(many)


def test_curves_mark_the_best_step_and_show_the_learning_rate(monkeypatch):
    charts = []

    def draw(series: dict, **options: Any) -> Image.Image:
        charts.append((series, options))
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(callbacks, "draw_curves", draw)
    scores = [(0, 0.1, True, 16), (2, 0.4, True, 16), (4, 0.3, False, None)]
    rows = [STEP | {"step": step, "learning_rate": step / 10} for step in range(1, 5)]
    rows += [
        {"kind": "evaluation", "step": step, "images": images, "best": best, "metrics": {"AP": score}}
        for step, score, best, images in scores
    ]
    curves(rows, ["AP", "AP50"])
    assert [list(series) for series, _ in charts] == [["AP"], ["loss"], ["class"], ["learning rate"]]
    assert charts[0][0]["AP"] == [(0, 0.1), (2, 0.4), (4, 0.3)]
    assert charts[3][0]["learning rate"] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert charts[0][1]["y_label"] == "validation, on 16 of the images, the last on all"
    assert all(options["mark"] == (2, "best AP: step 2") for _, options in charts)
    assert all(options["x_range"] == (0, 4) for _, options in charts)
    curves([row | {"best": False} for row in rows])
    assert charts[-1][1]["mark"] is None


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"train": 8, "val": 4})
    return folder


SMALL = ("--image-size", "64", "--workers", "0", "--device", "cpu", "--batch-size", "4", "--weights", "none")
TINY = "model={transformer: {width: 32, num_heads: 4, ffn_width: 32, encoder_layers: 1, decoder_layers: 2}}"


def test_every_flag_reaches_the_recipe_and_the_average_is_deployed(scenes, tmp_path):
    flags = (
        "--max-steps 3 --accumulate 2 --precision fp32 --gradient-checkpointing --freeze encoder "
        "--freeze backbone.body.conv1 --ema 0.5 --best-by AP50 --patience 7"
    )
    options = ("train", str(scenes), "--out", str(tmp_path / "run"), *SMALL, *flags.split(), "--set", TINY)
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    recipe = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["recipe"]
    expected = {"max_steps": 3, "accumulate": 2, "precision": "fp32", "gradient_checkpointing": True, "patience": 7}
    expected |= {"freeze": ["encoder", "backbone.body.conv1"], "ema_decay": 0.5, "best_by": "AP50", "time": None}
    assert {name: recipe[name] for name in expected} == expected
    state = state_of(tmp_path / "run")
    assert any(name.startswith("average/model.") for name in state)
    deployed = load_file(tmp_path / "run" / "last" / MODEL)
    for name, tensor in deployed.items():
        assert torch.equal(tensor, state[f"average/model.{name}"])
    assert not torch.equal(deployed["class_heads.0.weight"], state["task/model.class_heads.0.weight"])
    assert CliRunner().invoke(app, ["train", "--resume", str(tmp_path / "run"), "--device", "cpu"]).exit_code == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--precision", "fp16"), 1, "needs a CUDA GPU"),
        (("--best-by", "ap50"), 2, "did you mean AP50?"),
        (("--best-by", "AP/dog"), 2, "no metric of the validation data is called 'AP/dog'"),
        (("--freeze", "bakcbone"), 2, "'--freeze': no part is called 'bakcbone'; there are backbone"),
        (("--max-steps", "3", "--epochs", "2"), 2, "give one of them"),
        (("--max-steps", "0"), 2, "'--max-steps': expected at least 1"),
    ],
)
def test_what_a_flag_cannot_do_is_one_line_and_nothing_is_written(scenes, tmp_path, flags, code, words):
    result = CliRunner().invoke(app, ["train", str(scenes), "--out", str(tmp_path / "run"), *SMALL, *flags])
    start = "Error: " if code == 2 else "error: "
    errors = [line for line in result.stderr.splitlines() if line.startswith(start)]
    assert result.exit_code == code and len(errors) == 1, result.output
    assert words in errors[0]
    assert not (tmp_path / "run").exists()


def test_changes_with_full_names_equal_nested_ones():
    from opendetr.training.settings import _nested

    full = _nested({"recipe.seed": 3, "data": {"image_size": 64}, "data.augmentation.crop": False})
    assert full == {"recipe": {"seed": 3}, "data": {"image_size": 64, "augmentation": {"crop": False}}}
    assert full == _nested(["recipe.seed=3", {"data": {"image_size": 64, "augmentation.crop": False}}])
    assert _nested(["recipe=2", "recipe.seed=3"]) == {"recipe": 2}
