"""kill -9 at random moments of a real training, resumed each time: the end is the same to the last bit.

This file is also the program that trains and kills (`python test_kill.py FOLDER NUM_KILLS SEED`): it imports everything
once and then forks a process for each session, so that a session costs no start.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from opendetr import presets
from opendetr.data.formats.recognise import open_data
from opendetr.data.loader import train_loader
from opendetr.synthetic import write_scenes
from opendetr.training.callbacks import MetricsFile, read_metrics
from opendetr.training.checkpoint import find_checkpoint, load_checkpoint
from opendetr.training.events import Callback, CheckpointSaved, RunEnded, StepTaken
from opendetr.training.trainer import MODEL, STATE, Trainer, _save_tensors

STEPS_PER_EPOCH = 6
EPOCHS = 7


class Voice(Callback):
    """Writes a line to a pipe for what happens, at once."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def say(self, line: str) -> None:
        os.write(self._pipe, f"{line}\n".encode())

    def on_step(self, event: StepTaken) -> None:
        self.say(f"step {event.step}")

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        self.say("saved")

    def on_end(self, event: RunEnded) -> None:
        self.say(event.outcome)


def train(data_folder: Path, folder: Path, voice: Voice) -> None:
    """One session of a training with all that could spoil a resumed one."""
    torch.set_num_threads(1)
    data = open_data(data_folder)["train"]
    preset = presets.trained_from_nothing(presets.miniature("detr-tiny"))
    model = replace(preset.model, transformer=replace(preset.model.transformer, dropout=0.1))
    augmentation = replace(preset.data.augmentation, multi_scale=True, crop=True)
    recipe = replace(
        preset.recipe,
        batch_size=4,
        accumulate=2,
        epochs=EPOCHS,
        warmup_steps=10,
        ema_decay=0.9,
        num_evaluations=4,
        save_every=0.1,
        precision="fp32",
    )
    num_classes = len(data.categories)
    preset = replace(preset, model=model, recipe=recipe)
    torch.manual_seed(recipe.seed)
    task = presets.build_task(preset, presets.build_model(preset, num_classes), num_classes)
    config = replace(preset.data, augmentation=augmentation, num_workers=2)
    loader = train_loader(data, config, batch_size=recipe.batch_size, seed=recipe.seed)
    assert len(loader) == STEPS_PER_EPOCH

    def save_model(path: Path, task: torch.nn.Module) -> None:
        voice.say("saving")
        _save_tensors(path, task)

    trainer = Trainer(
        task,
        loader,
        recipe,
        folder,
        evaluate=lambda task: {"AP": task.model.class_head.weight.abs().sum().item()},
        save_model=save_model,
        callbacks=[MetricsFile(), voice],
        device="cpu",
    )
    trainer.train(resume=find_checkpoint(folder / "last") is not None)


@dataclass
class Session:
    """What was heard of a session."""

    lines: list[str]
    killed: bool

    @property
    def step(self) -> int:
        steps = [int(line.split()[1]) for line in self.lines if line.startswith("step")]
        return steps[-1] if steps else 0

    @property
    def in_save(self) -> bool:
        return self.killed and self.lines[-1:] == ["saving"]

    @property
    def in_epoch(self) -> bool:
        return self.killed and self.step % STEPS_PER_EPOCH != 0


def run_session(data_folder: Path, folder: Path, chance: random.Random | None, kind: str = "") -> Session:
    """Train in a process of its own; with `chance`, until it is killed a moment after a random line of that kind."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(data_folder, folder, Voice(writer))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    num_steps = chance.randint(1, 3) if chance else sys.maxsize
    heard, lines, killed = b"", [""], False
    while lines[-1] not in ("finished", "failed") and not killed:
        news = os.read(reader, 65536)
        if not news:
            break
        heard += news
        lines = heard.decode().splitlines()
        if chance and sum(line.startswith("step") for line in lines) >= num_steps and lines[-1].startswith(kind):
            time.sleep(chance.uniform(0, 0.15 if kind == "step" else 0.03))
            os.kill(child, signal.SIGKILL)
            killed = True
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.set_blocking(reader, False)  # loader processes have the other end, too, and live a little longer
    with contextlib.suppress(BlockingIOError):
        heard += os.read(reader, 65536)
    os.close(reader)
    assert status == (-signal.SIGKILL if killed else 0), (status, lines[-3:])
    return Session(heard.decode().splitlines(), killed)


def main(folder: Path, num_kills: int, seed: int) -> None:
    """Train one run in peace, another with kills; prints what happened as JSON."""
    chance = random.Random(seed)
    data_folder = folder / "scenes"
    write_scenes(data_folder, counts={"train": 4 * STEPS_PER_EPOCH, "val": 2})
    run_session(data_folder, folder / "whole", None)
    sessions = [
        run_session(data_folder, folder / "killed", chance, "step" if index % 5 < 3 else "saving")
        for index in range(num_kills)
    ]
    last = run_session(data_folder, folder / "killed", None)
    print(
        json.dumps(
            {
                "kills": sum(session.killed for session in sessions),
                "in_save": sum(session.in_save for session in sessions),
                "in_epoch": sum(session.in_epoch for session in sessions),
                "steps": [session.step for session in (*sessions, last)],
            }
        )
    )


def kept(row: dict) -> dict:
    return {name: value for name, value in row.items() if "seconds" not in name}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_kills_change_nothing(tmp_path):
    command = [sys.executable, __file__, str(tmp_path), "10", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 10, told
    assert told["in_epoch"] >= 3 and told["in_save"] >= 2, told
    assert told["steps"][-1] == STEPS_PER_EPOCH * EPOCHS

    whole, killed = (load_checkpoint(tmp_path / name / "last") for name in ("whole", "killed"))
    ours, theirs = whole.tensors(STATE), killed.tensors(STATE)
    assert ours.keys() == theirs.keys() and len(ours) > 300
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    for kind in ("last", "best"):
        models = [(tmp_path / name / kind / MODEL).read_bytes() for name in ("whole", "killed")]
        assert models[0] == models[1]
    rows = [list(map(kept, read_metrics(tmp_path / name))) for name in ("whole", "killed")]
    assert rows[0] == rows[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
