"""Several processes train as one: the same losses and weights, one end for all, and `--resume` goes on.

This file is also the program that trains (`python test_processes.py FOLDER`): it imports everything once and then forks
the processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from inputs import batch_for
from opendetr import distributed, presets
from opendetr.data import count_noun
from opendetr.data.formats.recognise import open_data
from opendetr.data.loader import TrainLoader, train_loader
from opendetr.structures import Batch, ImageBatch, Target
from opendetr.synthetic import write_scenes
from opendetr.training.callbacks import MetricsFile, read_metrics
from opendetr.training.checkpoint import load_checkpoint
from opendetr.training.events import Callback, StepTaken
from opendetr.training.trainer import STATE, Trainer

STEPS = 20
SEEDS = (3, 4)
WAYS = ("2x1", "1x2", "1x1")  # processes x images in a micro-batch
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
CANNOT_FORK = 77  # exit code
FRESH = "OPENDETR_TEST_IN_FRESH_PROCESS"
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def in_processes(count: int, work: Callable[[], None]) -> list[int]:
    """Do the work in forked processes that a launcher might have started; their exit codes.

    A process in which autograd has started threads cannot be forked. Then the whole test is repeated in a fresh one.
    """
    port, children = free_port(), []
    for number in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(count), RANK=str(number),
                              LOCAL_RANK=str(number), LOCAL_WORLD_SIZE=str(count))  # fmt: skip
            try:
                distributed.join_processes("cpu")
                work()
                os._exit(0)
            except BaseException as error:
                traceback.print_exc()
                os._exit(CANNOT_FORK if "fork-based multiprocessing" in str(error) else 1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if CANNOT_FORK in codes and FRESH not in os.environ:
        repeat_in_a_fresh_process()
    return codes


def repeat_in_a_fresh_process() -> None:
    """Run the current test in a separate process. It is reported as skipped if it passes there."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PYTEST")} | {FRESH: "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "", test]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    pytest.skip("passed in a separate process, because autograd has started threads in this one")


class Stopper(Callback):
    """Asks for a stop, as Ctrl-C in one process does."""

    def __init__(self, at_step: int) -> None:
        self._at_step = at_step

    def on_step(self, event: StepTaken) -> None:
        if event.step == self._at_step:
            os.kill(os.getpid(), signal.SIGINT)


def train(
    data_folder: Path,
    folder: Path,
    accumulate: int = 1,
    *,
    seed: int = SEEDS[0],
    steps: int = STEPS,
    double: bool = False,
    stop_at: int = 0,
    resume: bool = False,
) -> None:
    """A detector with frozen norm and without dropout; evaluation and average included."""
    torch.set_num_threads(1)
    if double:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  what insists on float32 does no longer
    data = open_data(data_folder)["train"]
    preset = presets.miniature("detr-tiny")
    recipe = replace(preset.recipe, batch_size=4, accumulate=accumulate, max_steps=steps, warmup_steps=3,
                     ema_decay=0.9, num_evaluations=2, precision="fp32", learning_rate=3e-4, seed=seed)  # fmt: skip
    transformer = replace(preset.model.transformer, dropout=0.0)
    model = replace(preset.model, transformer=transformer)
    preset = replace(preset, model=model, dense=replace(preset.dense, weight=1.0), recipe=recipe)
    num_classes = len(data.categories)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = presets.build_task(preset, presets.build_model(preset, num_classes), num_classes)
    share = (distributed.rank(), distributed.world_size())
    loader = train_loader(data, preset.data, batch_size=recipe.batch_size, seed=recipe.seed, share=share)
    Trainer(
        task,
        DoubleLoader(loader) if double else loader,
        recipe,
        folder,
        evaluate=lambda task: {"AP": sum(distributed.gather(1.0))},
        callbacks=[MetricsFile(), Stopper(stop_at)],
        device="cpu",
    ).train(resume=resume)


def train_in(way: str, data: Path, folder: Path, **options: Any) -> list[int]:
    """Train in one of the `WAYS`; the exit codes."""
    count, accumulate = int(way[0]), 2 if way == "1x1" else 1
    return in_processes(count, lambda: train(data, folder, accumulate, **options))


class DoubleLoader:
    """The batches of a loader in float64."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self._loader.epoch(epoch, start):
            images = replace(batch.images, pixels=batch.images.pixels.double())
            yield replace(
                batch, images=images, targets=tuple(replace(t, boxes=t.boxes.double()) for t in batch.targets)
            )


class DyingLoader:
    """A loader whose own processes are killed after three batches, in one of the training processes."""

    def __init__(self, loader: TrainLoader, rank: int) -> None:
        self._loader, self._rank = loader, rank

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for position, batch in enumerate(self._loader.epoch(epoch, start)):
            if position == 3 and distributed.rank() == self._rank:
                for child in psutil.Process().children():
                    child.kill()
            yield batch


def lose_loader_processes(data_folder: Path, folder: Path, rank: int) -> None:
    """Train while the loader processes of one process die; note how each process ends."""
    data = open_data(data_folder)["train"]
    share = (distributed.rank(), distributed.world_size())
    preset = presets.miniature("detr-tiny")
    config = replace(preset.data, num_workers=1)
    loader = train_loader(data, config, batch_size=2, seed=0, share=share)
    task = presets.create_task("detr-tiny", presets.build_model(preset, 12), 12)
    recipe = replace(preset.recipe, epochs=100, precision="fp32")
    try:
        Trainer(task, DyingLoader(loader, rank), recipe, folder, device="cpu").train()
    except ValueError as error:
        (folder / f"end-{share[0]}.txt").write_text(f"{type(error).__name__}: {error}")


def main(folder: Path) -> None:
    """Train the same in three ways and two precisions, once with an interruption, and once to a bad end."""
    data = folder / "scenes"
    write_scenes(data, counts={"train": 18, "val": 2})
    codes = []
    for way in WAYS:
        codes += train_in(way, data, folder / way)
        for seed in SEEDS:
            codes += train_in(way, data, folder / f"{way}-float64-{seed}", seed=seed, double=True)
            codes += train_in(way, data, folder / f"{way}-float32-{seed}", seed=seed, steps=2)
    codes += in_processes(2, lambda: train(data, folder / "stopped", stop_at=7))
    steps = load_checkpoint(folder / "stopped" / "last").facts["step"]
    codes += in_processes(2, lambda: train(data, folder / "stopped", resume=True))
    codes += in_processes(2, lambda: lose_loader_processes(data, folder / "lost", 1))
    print(json.dumps({"codes": codes, "stopped_at": steps}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"codes": [0] * len(told["codes"]), "stopped_at": 7}, done.stderr
    return folder


def rows_of(folder: Path, kind: str = "step") -> list[dict]:
    return [row for row in read_metrics(folder) if row["kind"] == kind]


@needs_fork
@pytest.mark.parametrize("way", ["2x1", "1x1"])
@pytest.mark.parametrize("seed", SEEDS)
def test_two_processes_are_one_batch_is_one_accumulation(runs, seed, way):
    """In float64, where rounding is too small to decide anything, the whole run is the same."""
    ours, theirs = (runs / f"{each}-float64-{seed}" for each in (way, "1x2"))
    rows, reference = rows_of(ours), rows_of(theirs)
    assert [row["step"] for row in reference] == list(range(1, STEPS + 1))
    assert set(reference[0]["losses"]) == {"class", "l1", "giou", "dense"}
    for row, expected in zip(rows, reference, strict=True):
        assert row["images"] == 4
        for number in ("loss", "gradient_norm"):
            assert row[number] == pytest.approx(expected[number], rel=1e-10), number
        for term, values in expected["losses"].items():
            assert row["losses"][term] == pytest.approx(values, rel=1e-10), term
    tensors, others = (load_file(each / "last" / STATE) for each in (theirs, ours))
    assert others.keys() == tensors.keys() and any(tensor.dtype == torch.float64 for tensor in tensors.values())
    for key, tensor in tensors.items():
        torch.testing.assert_close(others[key], tensor, rtol=1e-10, atol=1e-11, msg=lambda text, key=key: key + text)
    losses = [row["loss"] for row in reference]
    assert max(losses) > min(losses) + 0.5  # there was something to differ in


@needs_fork
@pytest.mark.parametrize("way", ["2x1", "1x1"])
@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_gradients_of_the_same_weights_are_equal_in_float32(runs, seed, way):
    """Only the first step has the same weights: later on a value near 0 may be rounded to another sign."""
    (row, *_), (expected, *_) = (rows_of(runs / f"{each}-float32-{seed}") for each in (way, "1x2"))
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    for term, values in expected["losses"].items():
        assert row["losses"][term] == pytest.approx(values, rel=1e-5, abs=1e-6), term


@needs_fork
def test_evaluation_gathers(runs):
    assert [row["metrics"]["AP"] for row in rows_of(runs / "2x1", "evaluation")] == [2.0, 2.0]
    assert [row["metrics"]["AP"] for row in rows_of(runs / "1x2", "evaluation")] == [1.0, 1.0]


@needs_fork
def test_a_signal_in_one_process_stops_all_and_resume_is_exact(runs):
    ours, theirs = (load_file(runs / name / "last" / STATE) for name in ("2x1", "stopped"))
    assert ours.keys() == theirs.keys() and len(ours) > 200
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert rows_of(runs / "stopped")[-1]["step"] == STEPS


@needs_fork
def test_a_loader_process_that_dies_ends_all_and_the_main_one_says_why(runs):
    ends = [(runs / "lost" / f"end-{number}.txt").read_text() for number in (0, 1)]
    assert all(end.startswith("ProcessError: a loader process died") and "\n" not in end for end in ends)
    assert load_checkpoint(runs / "lost" / "last").facts["step"] == 0


# ---------------------------------------------------------------------------------------------------- the command line


class Command:
    """`opendetr train` in a process of its own, whose standard error is read as it comes."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-m", "opendetr", "train", *map(str, options), "--device", "cpu"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                                        env=ENVIRONMENT)  # fmt: skip
        self.lines: list[str] = []

    def wait_for(self, words: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if words in line:
                return
        pytest.fail("\n".join(self.lines))

    def end(self) -> int:
        assert self.process.stderr is not None
        self.lines += [line.rstrip() for line in self.process.stderr]
        return self.process.wait(60)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith(("error:", "Traceback"))]


def long_run(folder: Path) -> Command:
    """A command that trains in two processes, in `folder / "run"`, and has taken its first step."""
    write_scenes(folder / "scenes", counts={"train": 8, "val": 2})
    small = ("--batch-size", 2, "--image-size", 64, "--workers", 0, "--set", "model.num_queries=10")
    fresh = ("--weights", "none", "--out", folder / "run", "--epochs", 1000, "--processes", 2)
    command = Command(folder / "scenes", *fresh, *small)
    command.wait_for(", step 1/")
    return command


def test_a_killed_process_ends_the_command_with_one_line(tmp_path):
    command = long_run(tmp_path)
    workers = psutil.Process(command.process.pid).children()
    assert len(workers) == 2
    max(workers, key=lambda worker: int(worker.environ()["RANK"])).kill()
    assert command.end() == 1
    assert command.errors == ["error: another process of this run has ended; continue with --resume"]
    assert command.lines[-1] == command.errors[0]
    assert load_checkpoint(tmp_path / "run" / "last").facts["step"] == 0


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on_in_several_processes(tmp_path):
    command = long_run(tmp_path)
    for _ in range(2):
        command.process.send_signal(signal.SIGINT)
        assert command.end() == 1
        assert len(command.errors) == 1 and "interrupted after" in command.errors[0]
        step = load_checkpoint(tmp_path / "run" / "last").facts["step"]
        assert step >= 1
        command = Command("--resume", tmp_path / "run", "--processes", 2)
        command.wait_for(f"resumed after {count_noun(step, 'step')} on 2 processes")
        command.wait_for("epoch ")
    command.process.send_signal(signal.SIGINT)
    command.end()


def test_the_printed_command_is_the_same_for_every_machine(tmp_path):
    command = [
        sys.executable,
        "-m",
        "opendetr",
        "train",
        str(tmp_path),
        "--nodes",
        "2",
        "--processes=4",
        "--lr",
        "1e-4",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout.split()
    assert said[:5] == ["torchrun", "--nnodes", "2", "--nproc-per-node", "4"]
    assert said[said.index("-m") :] == ["-m", "opendetr", "train", str(tmp_path), "--lr", "1e-4"]


# ---------------------------------------------------------------------------------------------------------- the pieces


@pytest.mark.parametrize("name", presets.list_models())
def test_every_trained_parameter_gets_a_gradient_without_objects(name):
    """Several processes wait for the gradient of each."""
    preset = presets.trained_from_nothing(presets.miniature(name))
    task = presets.build_task(preset, presets.build_model(preset, 3), 3)
    images = ImageBatch.from_images([torch.rand(3, 64, 64), torch.rand(3, 48, 64)])
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    targets = tuple(Target(*nothing, size, size, number) for number, size in enumerate([(64, 64), (48, 64)]))
    batch = batch_for(task.model, images, targets)
    task.total(task(batch, task.normaliser(batch.loss_counts))).backward()
    without = [name for name, each in task.named_parameters() if each.requires_grad and each.grad is None]
    assert [name for name in without if not name.startswith(task.optional_parameters)] == []


def test_what_does_not_fit_the_machine_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(distributed.DeviceError, match="3 processes, but this machine has 2 GPUs"):
        distributed.join_processes("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(distributed.DeviceError, match="one process only"):
        distributed.join_processes("mps")


def test_one_process_agrees_with_itself():
    with distributed.together():
        pass
    with pytest.raises(KeyError), distributed.together():
        raise KeyError
    with pytest.raises(ValueError, match="mine"), distributed.together():
        raise ValueError("mine")
    assert distributed.from_main(3) == 3
    with pytest.raises(RuntimeError, match="gloo"), distributed.naming_lost_processes():
        raise RuntimeError("gloo: connection closed")  # of one process alone: a fault, not a lost process


if __name__ == "__main__":
    main(Path(sys.argv[1]))
