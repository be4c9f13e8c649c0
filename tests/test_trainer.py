"""The trainer: exact resume, exact accumulation, signals, refusals, timed runs, what callbacks are told."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from opendetr import presets
from opendetr.recipe import Recipe
from opendetr.training import trainer
from opendetr.training.callbacks import Curves, MetricsFile, Progress, ValidationImages, read_metrics
from opendetr.training.checkpoint import CheckpointError, load_checkpoint
from opendetr.training.ema import WeightAverage
from opendetr.training.events import BatchLoaded, Callback, Evaluated, Event, ReportDue, RunStarted, StepTaken
from opendetr.training.signals import StopSignal
from opendetr.training.train_step import step_randomness
from opendetr.training.trainer import NonFiniteError, Trainer
from stand_ins import CountingTask, RandomLoader

RECIPE = Recipe(
    learning_rate=1e-2,
    backbone_learning_rate=1e-3,
    batch_size=4,
    accumulate=2,
    epochs=4,
    schedule="cosine",
    warmup_steps=3,
    ema_decay=0.9,
    num_evaluations=4,
    save_every=0,
)


class Recorder(Callback):
    """Keeps every event, and does something at a step."""

    def __init__(self, at_step: int = -1, act=lambda: None) -> None:
        self.events: list[Event] = []
        self._at_step, self._act = at_step, act
        for name in ("start", "plan", "epoch", "evaluation", "checkpoint", "nonfinite", "end"):
            setattr(self, f"on_{name}", self.events.append)

    def on_step(self, event: StepTaken) -> None:
        self.events.append(event)
        if event.step == self._at_step:
            self._act()

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def evaluate(task: nn.Module) -> dict[str, float]:
    """A score that rises with the weights' change; it draws random numbers, as an evaluation may."""
    torch.rand(7)
    assert not task.training
    return {"AP": task.head[1].weight.abs().sum().item(), "AP50": 0.5}


def run(folder: Path, *, recipe: Recipe = RECIPE, resume: bool = False, loader=None, evaluate=evaluate, **options):
    started = Trainer(
        CountingTask(), loader or RandomLoader(), recipe, folder, evaluate=evaluate, device="cpu", **options
    )
    return started, started.train(resume=resume)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last").tensors(trainer.STATE)


def assert_equal_bits(folder: Path, other: Path) -> None:
    ours, theirs = state_of(folder), state_of(other)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


class Killed(BaseException):
    pass


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.mark.parametrize("step", [1, 2, 7, 10, 19, 20])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, whole, step):
    with pytest.raises(Killed):
        run(tmp_path, callbacks=[Recorder(step, kill)])
    torch.manual_seed(step)  # what the process has drawn so far must not matter
    _, result = run(tmp_path, resume=True)
    assert result.step == 20 and not result.interrupted
    assert_equal_bits(tmp_path, whole)


def test_a_resumed_run_repeats_exactly_one_batch_nowhere(tmp_path):
    seen = []

    class Watched(RandomLoader):
        def batch(self, epoch, position):
            seen.append((epoch, position))
            return super().batch(epoch, position)

    with pytest.raises(Killed):
        run(tmp_path, loader=Watched(), callbacks=[Recorder(8, kill)])
    run(tmp_path, loader=Watched(), resume=True)
    expected = list(itertools.product(range(4), range(5)))
    assert seen == [*expected[:8], *expected[7:]]  # step 8 had been taken, but not saved


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(tmp_path, whole, number):
    before = signal.getsignal(number)
    recipe = replace(RECIPE, save_every=1000)
    recorder = Recorder(8, lambda: os.kill(os.getpid(), number))
    _, result = run(tmp_path, recipe=recipe, callbacks=[recorder])
    assert result.interrupted and result.step == 8
    assert load_checkpoint(tmp_path / "last").facts["step"] == 8
    assert recorder.events[-1].outcome == "interrupted"
    assert signal.getsignal(number) is before
    _, result = run(tmp_path, recipe=recipe, resume=True)
    assert result.step == 20 and not result.interrupted
    assert_equal_bits(tmp_path, whole)


def test_a_second_signal_stops_at_once(tmp_path):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, recipe=replace(RECIPE, save_every=1000), callbacks=[Recorder(3, twice)])
    assert load_checkpoint(tmp_path / "last").facts["step"] == 0


def test_a_signal_leaves_an_evaluation_to_the_resumed_run(tmp_path, whole):
    calls = itertools.count()

    def slow(task: nn.Module) -> dict[str, float]:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the evaluation went on")
        return evaluate(task)

    first = Trainer(CountingTask(), RandomLoader(), RECIPE, tmp_path, evaluate=slow, device="cpu")
    result = first.train()
    assert result.interrupted and result.step == 10
    assert load_checkpoint(tmp_path / "last").facts["evaluated"] == 5
    recorder = Recorder()
    run(tmp_path, resume=True, callbacks=[recorder])
    assert [event.step for event in recorder.of(Evaluated)] == [10, 15, 20]
    assert_equal_bits(tmp_path, whole)


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker exited"), ConnectionResetError(), EOFError()])
def test_a_loader_whose_workers_heard_the_signal_ends_quietly(tmp_path, error):
    class Dying(RandomLoader):
        def epoch(self, epoch, start=0):
            yield from itertools.islice(super().epoch(epoch, start), 2)
            os.kill(os.getpid(), signal.SIGTERM)
            raise error

    _, result = run(tmp_path, loader=Dying())
    assert result.interrupted and result.step == 2


def test_a_signal_leaves_an_evaluation_that_waits_for_a_loader(tmp_path):
    """Torch's loader catches what interrupts it, and says that its workers, which heard the signal, too, are dead."""

    def waiting(task: nn.Module) -> dict[str, float]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:
            raise RuntimeError("DataLoader worker exited") from error
        pytest.fail("the evaluation went on")

    result = Trainer(CountingTask(), RandomLoader(), RECIPE, tmp_path, evaluate=waiting, device="cpu").train()
    assert result.interrupted and result.step == 5


def test_outside_the_main_thread_no_signal_is_asked_for(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path)[1]))
    thread.start()
    thread.join()
    assert results[0].step == 20


def test_a_stop_is_not_heard_after_it_closed():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        run(tmp_path, resume=True)


def test_a_finished_run_has_nothing_to_resume(tmp_path):
    run(tmp_path)
    recorder = Recorder()
    _, result = run(tmp_path, resume=True, callbacks=[recorder])
    assert result.step == 20 and result.metrics and not recorder.of(StepTaken)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    run(tmp_path)
    with pytest.raises(CheckpointError, match="holds a run already; continue with --resume"):
        run(tmp_path)


def test_a_resumed_run_keeps_what_it_was_started_with(tmp_path):
    run(tmp_path)
    with pytest.raises(CheckpointError, match=r"learning_rate 0\.01, now it is 0\.02"):
        run(tmp_path, resume=True, recipe=replace(RECIPE, learning_rate=0.02))
    with pytest.raises(CheckpointError, match="an epoch had steps 5, now it is 6"):
        run(tmp_path, resume=True, loader=RandomLoader(6))


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path)
    task = CountingTask()
    task.head.append(nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"another model, .* tensors do not fit, .*head\.2"):
        Trainer(task, RandomLoader(), RECIPE, tmp_path, device="cpu").train(resume=True)


def test_a_resumed_run_says_what_changes_its_last_bits(tmp_path, monkeypatch):
    run(tmp_path)
    recorder = Recorder()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    run(tmp_path, resume=True, callbacks=[recorder])
    (note,) = recorder.events[0].notes
    assert "threads 77" in note


def test_nothing_is_drawn_from_the_global_generator(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    task = CountingTask()
    torch.manual_seed(5)
    Trainer(task, RandomLoader(), RECIPE, tmp_path, device="cpu").train()
    assert torch.rand(1) == expected


def test_dropout_differs_from_step_to_step():
    draws = []
    for seed, step in ((1, 0), (1, 1), (2, 0), (1, 0)):
        with step_randomness(seed, step, torch.device("cpu")):
            draws.append(torch.rand(1).item())
    assert len(set(draws)) == 3 and draws[0] == draws[3]


def test_a_loss_that_is_not_finite_names_the_images_and_keeps_the_checkpoint(tmp_path):
    recorder = Recorder()
    with pytest.raises(NonFiniteError) as error:
        run(tmp_path, loader=RandomLoader(poison=(1, 2)), callbacks=[recorder, MetricsFile()])
    said = str(error.value)
    assert "\n" not in said and "the loss is nan in step 8" in said
    assert all(f"image-1-2-{index}.png" in said for index in range(4))
    assert load_checkpoint(tmp_path / "last").facts["step"] == 7
    assert all(tensor.isfinite().all() for tensor in state_of(tmp_path).values())
    assert recorder.events[-2].names[1] == "image-1-2-1.png" and recorder.events[-1].outcome == "failed"
    assert read_metrics(tmp_path)[-1]["kind"] == "nonfinite"


def test_a_gradient_that_is_not_finite_is_refused_too(tmp_path):
    class Steep(CountingTask):
        def total(self, losses):
            return (losses["error"].sum() * 0).sqrt()

    with pytest.raises(NonFiniteError, match=r"the gradient's norm is nan in step 1, images image-0-0-0"):
        Trainer(Steep(), RandomLoader(), RECIPE, tmp_path, device="cpu").train()
    assert load_checkpoint(tmp_path / "last").facts["step"] == 0


def detection_task(dropout: float = 0.0):
    preset = presets.miniature("detr-tiny")
    model = replace(preset.model, transformer=replace(preset.model.transformer, dropout=dropout))
    preset = replace(preset, model=model, dense=replace(preset.dense, weight=1.0))
    torch.manual_seed(0)
    return presets.build_task(preset, presets.build_model(preset, 3), 3)


class SceneLoader(RandomLoader):
    """Images large enough for a backbone, of sizes that need padding, one of them without objects."""

    def batch(self, epoch, position):
        rng = torch.Generator().manual_seed(100 * epoch + position)
        batch = super().batch(epoch, position)
        sizes = [(40, 64), (64, 48), (56, 56), (64, 64)]
        images = [torch.randn(3, *size, generator=rng) for size in sizes]
        targets = [replace(target, size=size) for target, size in zip(batch.targets, sizes, strict=True)]
        targets[2] = replace(targets[2], labels=targets[2].labels[:0], boxes=targets[2].boxes[:0])
        return replace(batch, images=batch.images.from_images(images), targets=tuple(targets))


def test_accumulation_changes_neither_losses_nor_weights(tmp_path):
    """Frozen norm, no dropout: one batch of 4, and 2 or 4 parts of it, with the class loss of unequal counts."""
    ends = []
    for parts in (1, 2, 4):
        recipe = Recipe(batch_size=4, accumulate=parts, epochs=1, learning_rate=1e-3, clip_norm=0.1)
        task, recorder = detection_task(), Recorder()
        Trainer(task, SceneLoader(3), recipe, tmp_path / str(parts), callbacks=[recorder], device="cpu").train()
        ends.append((task.state_dict(), [event.losses for event in recorder.of(StepTaken)]))
    (weights, losses), *others = ends
    assert set(losses[0]) == {"class", "l1", "giou", "dense"}
    for other_weights, other_losses in others:
        for step, other_step in zip(losses, other_losses, strict=True):
            for name, values in step.items():
                assert other_step[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
        for name, tensor in weights.items():
            assert torch.allclose(other_weights[name], tensor, rtol=0, atol=1e-5), name
    start = detection_task().state_dict()
    moved = max((weights[name] - start[name]).abs().max().item() for name in weights)
    assert moved > 1e-3  # there was something to differ in


def test_a_split_batch_keeps_padding_and_order():
    batch = SceneLoader().batch(0, 0)
    parts = batch.split(3)
    assert [len(part) for part in parts] == [2, 2]
    assert torch.equal(torch.cat([part.images.pixels for part in parts]), batch.images.pixels)
    assert torch.equal(torch.cat([part.images.padding for part in parts]), batch.images.padding)
    assert tuple(name for part in parts for name in part.names) == batch.names
    assert [part.targets[0].image_id for part in parts] == [0, 2]
    (alone,) = batch.split(1)
    assert len(alone) == 4


def test_bfloat16_trains_in_float32_weights(tmp_path):
    task, recorder = detection_task(dropout=0.1), Recorder()
    recipe = Recipe(batch_size=4, epochs=1, precision="bf16")
    seen = []
    task.model.decoder.register_forward_hook(
        lambda _module, _inputs, output: seen.append(torch.is_autocast_enabled("cpu"))
    )
    Trainer(task, SceneLoader(2), recipe, tmp_path, callbacks=[recorder], device="cpu").train()
    assert seen == [True, True]
    assert all(parameter.dtype == torch.float32 for parameter in task.parameters())


def test_the_average_is_evaluated_and_deployed(tmp_path):
    evaluated = []
    started = Trainer(
        CountingTask(),
        RandomLoader(),
        RECIPE,
        tmp_path,
        device="cpu",
        evaluate=lambda task: evaluated.append(task) or {},
    )
    started.train()
    average = started.average.task
    assert all(task is average for task in evaluated) and len(evaluated) == 4
    deployed = load_file(tmp_path / "last" / trainer.MODEL)
    assert torch.equal(deployed["head.1.weight"], average.head[1].weight)
    assert not torch.equal(deployed["head.1.weight"], started.task.head[1].weight)
    assert not torch.equal(average.backbone[1].running_mean, started.task.backbone[1].running_mean)
    assert average.backbone[1].num_batches_tracked == started.task.backbone[1].num_batches_tracked


def test_the_average_is_the_formula():
    task = nn.Linear(1, 1, bias=False)
    average = WeightAverage(task)
    expected = task.weight.item()
    for step in range(12):
        with torch.no_grad():
            task.weight.fill_(step)
        average.update(task, step, 0.5)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.task.weight.item() == pytest.approx(expected)


def test_the_statistics_of_batch_norms_are_averaged_like_the_weights():
    task = nn.BatchNorm1d(1)
    average = WeightAverage(task)
    for step in range(12):
        with torch.no_grad():
            for values in (task.weight, task.running_mean):
                values.fill_(step)
        task.num_batches_tracked.fill_(step)
        average.update(task, step, 0.5)
    # The weight started at 1 and the mean at 0. After 12 steps, hardly anything is left of that.
    assert average.task.running_mean.item() == pytest.approx(average.task.weight.item(), abs=1e-3)
    assert 10 < average.task.running_mean.item() < 11
    assert average.task.num_batches_tracked == 11


def test_the_best_checkpoint_is_that_of_the_best_score(tmp_path):
    scores = iter([None, 0.3, 0.2, float("nan")])
    saved = {}

    def save(path: Path, task: nn.Module) -> None:
        saved[path.parent.name] = path
        trainer._save_tensors(path, task)

    recorder = Recorder()
    started = Trainer(
        CountingTask(),
        RandomLoader(),
        RECIPE,
        tmp_path,
        evaluate=lambda _task: {"AP": next(scores)},
        save_model=save,
        callbacks=[recorder],
        device="cpu",
    )
    result = started.train()
    assert result.best == {"AP": 0.3, "step": 10}
    assert load_checkpoint(tmp_path / "best").facts["step"] == 10
    assert [event.best for event in recorder.of(Evaluated)] == [False, True, False, False]
    assert set(saved) == {"last.new", "best.new"}


def test_a_shared_module_is_saved_once(tmp_path):
    class Tied(CountingTask):
        def __init__(self):
            super().__init__()
            self.again = self.head

    Trainer(Tied(), RandomLoader(), RECIPE, tmp_path, device="cpu").train()
    names = state_of(tmp_path)
    assert "task/head.1.weight" in names and "task/again.1.weight" not in names


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


def timed(
    folder: Path, clock: Clock, *, at_step: int = -1, act=lambda: None, resume: bool = False, report: float = 0.0
):
    """A run of 100 seconds on a clock of its own: a step takes 0.5 seconds, an evaluation 2, a checkpoint 0.25.

    A report takes `report` seconds.
    """

    class Slow(RandomLoader):
        def batch(self, epoch, position):
            clock.now += 0.5
            return super().batch(epoch, position)

    def slow_evaluation(task: nn.Module) -> dict[str, float]:
        clock.now += 2
        return evaluate(task)

    def slow_save(path: Path, task: nn.Module) -> None:
        if path.parent.name == "last.new":
            clock.now += 0.25
        trainer._save_tensors(path, task)

    recipe = replace(RECIPE, time=100.0, save_every=20.0, num_evaluations=10)
    recorder = Recorder(at_step, act)

    def slow_report(event: ReportDue) -> None:
        clock.now += report
        recorder.events.append(event)

    recorder.on_report = slow_report
    started = Trainer(
        CountingTask(),
        Slow(),
        recipe,
        folder,
        evaluate=slow_evaluation,
        save_model=slow_save,
        callbacks=[recorder],
        device="cpu",
    )
    return started.train(resume=resume), recorder


def test_a_timed_run_takes_the_time_that_it_is_given(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    result, recorder = timed(tmp_path, clock)
    assert 90 < clock.now - 1000 <= 101
    (plan,) = [event for event in recorder.events if type(event).__name__ == "PlanFixed"]
    assert plan.step_seconds == pytest.approx(0.5) and plan.plan.total_steps == result.step
    rates = [event.learning_rate for event in recorder.of(StepTaken)]
    assert rates[3 : plan.step] == [1e-2] * (plan.step - 3) and rates[-1] < 1e-4
    assert 4 <= len(recorder.of(Evaluated)) <= 6  # a tenth of the time is 5 evaluations


def test_a_timed_run_plans_the_time_of_its_report(tmp_path, monkeypatch):
    """A report that is slow comes after the first evaluation, which measures it, and at the end."""
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    result, recorder = timed(tmp_path, clock, report=8)
    assert 88 < clock.now - 1000 <= 101
    evaluated = [event.step for event in recorder.of(Evaluated)]
    assert len(evaluated) > 2
    assert [event.step for event in recorder.of(ReportDue)] == [evaluated[0], evaluated[-1]]
    assert evaluated[-1] == result.step and load_checkpoint(tmp_path / "last").facts["report_seconds"] == 8


def test_a_report_that_takes_little_of_the_time_follows_every_evaluation(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    _, recorder = timed(tmp_path, clock, report=0.05)
    assert len(recorder.of(ReportDue)) == len(recorder.of(Evaluated)) > 2


def test_a_timed_run_resumes_with_the_plan_that_was_fixed(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    timed(tmp_path / "whole", clock)
    with pytest.raises(Killed):
        timed(tmp_path / "killed", clock, at_step=60, act=kill)
    clock.now += 3600
    timed(tmp_path / "killed", clock, resume=True)
    assert_equal_bits(tmp_path / "whole", tmp_path / "killed")


def test_a_timed_run_stopped_before_its_plan_measures_again(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    result, _ = timed(tmp_path, clock, at_step=5, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert result.interrupted and load_checkpoint(tmp_path / "last").facts["plan"] is None
    clock.now += 3600
    start = clock.now
    result, _ = timed(tmp_path, clock, resume=True)
    assert not result.interrupted and 85 < clock.now - start <= 101


def test_metrics_have_every_step_once(tmp_path):
    recipe = replace(RECIPE, save_every=1000)
    with pytest.raises(Killed):
        run(tmp_path, recipe=recipe, callbacks=[MetricsFile(), Recorder(8, kill)])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "step", "st')
    run(tmp_path, recipe=recipe, resume=True, callbacks=[MetricsFile()])
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 21))
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [5, 10, 15, 20]
    assert len(rows[0]["losses"]["error"]) == 2 and rows[0]["images"] == 4


def test_metrics_are_strict_json(tmp_path):
    writer = MetricsFile()
    run(tmp_path, callbacks=[writer])
    writer._write({"kind": "evaluation", "step": 20, "metrics": {"AP": float("nan")}})
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["metrics"] == {"AP": None}


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (2, 2), (3, 3)])
def test_a_run_of_more_than_5000_steps_has_fewer_lines(tmp_path, epochs, every):
    class Long(RandomLoader):
        def __len__(self):
            return 5000

    recorder = Recorder(9, kill)
    with pytest.raises(Killed):
        run(tmp_path, loader=Long(9), recipe=replace(RECIPE, epochs=epochs), callbacks=[MetricsFile(), recorder])
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(every, 10, every))


def test_curves_and_images_are_drawn(tmp_path):
    images = ValidationImages(lambda task: [("cells", Image.new("RGB", (8, 8), "red" if task.training else "blue"))])
    run(tmp_path, callbacks=[MetricsFile(), Curves(), images])
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.width > 1900 and curves.height > 1000  # two rows of two charts
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [f"step-{step:07d}-cells.jpg" for step in (5, 10, 15, 20)]
    with Image.open(tmp_path / "images" / names[0]) as image:
        assert image.getpixel((4, 4))[2] > 200


def test_metrics_say_which_evaluation_is_the_best(tmp_path):
    scores = iter([0.1, 0.3, 0.2, 0.3])
    run(tmp_path, callbacks=[MetricsFile()], evaluate=lambda _: {"AP": next(scores)})
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "evaluation"]
    assert [row["best"] for row in rows] == [True, True, False, True]


def test_callbacks_get_the_batch_before_its_step(tmp_path):
    order = []

    class Watching(Callback):
        def on_batch(self, event: BatchLoaded) -> None:
            order.append((event.step, event.batch.image_names[0]))
            time.sleep(0.3 * (event.step < 2))

        def on_step(self, event: StepTaken) -> None:
            order.append(event.step)
            assert event.seconds < 0.3  # the time of callbacks is no part of it

    run(tmp_path, recipe=replace(RECIPE, max_steps=6), callbacks=[Watching()])
    assert order[:4] == [(0, "image-0-0-0.png"), 1, (1, "image-0-1-0.png"), 2]
    assert order[-2:] == [(5, "image-1-0-0.png"), 6]


def test_the_time_of_a_run_includes_the_start_of_callbacks(tmp_path):
    class Slow(Callback):
        def on_start(self, event: RunStarted) -> None:
            time.sleep(0.5)

    _, result = run(tmp_path, recipe=replace(RECIPE, max_steps=1), callbacks=[Slow()])
    assert result.seconds > 0.5


class Pausing(Callback):
    """Gives the thread that draws the bar the time to draw the state of one step."""

    def on_step(self, event: StepTaken) -> None:
        if event.step == 7:
            time.sleep(0.5)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_what_matters(tmp_path, terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=200)
    progress = Progress(console, interval=0, metric="AP", headline_metrics=["AP"])
    run(tmp_path, callbacks=[progress, Pausing()])
    said = screen.getvalue()
    for part in (
        "5 steps per epoch",
        "images/s",
        "loss ",
        "error ",
        " left",
        "AP ",
        "the best so far",
        "done: 20 steps",
    ):
        assert part in said, part
    if not terminal:
        assert "epoch 1.2, step 6/20" in said


@pytest.mark.parametrize(("metric", "is_said"), [(0.0, False), (0.0004, False), (0.25, True)])
def test_an_evaluation_at_zero_is_not_called_the_best(metric, is_said):
    screen = io.StringIO()
    progress = Progress(Console(file=screen), metric="AP", headline_metrics=["AP"])
    progress.on_evaluation(Evaluated(5, 1.0, {"AP": metric}, True, None, 2.0, nn.Identity()))
    assert ("the best so far" in screen.getvalue()) == is_said


def test_a_metrics_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        run(tmp_path, callbacks=[MetricsFile()])
