"""Training on captions: resumed with the same bits, in processes and in parts with the same result."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from inputs import CAPTIONS
from opendetr import distributed, open_data
from opendetr.data import train_loader
from opendetr.losses import DenseConfig, DenseSupervision, GroundingSupervision, Normaliser
from opendetr.nn import new_tokenizer
from opendetr.presets import Preset, build_model, build_task, miniature
from opendetr.recipe import Recipe
from opendetr.structures import CaptionBatch, FeatureMap, ImageBatch, Matches, Target
from opendetr.synthetic import write_captioned_scenes
from opendetr.synthetic.described import DescribedConfig
from opendetr.tasks import Task
from opendetr.training import Trainer
from opendetr.training.callbacks import MetricsFile, read_metrics
from opendetr.training.events import Callback
from opendetr.training.trainer import STATE
from opendetr.weights import load_weights
from test_processes import ENVIRONMENT, in_processes, needs_fork

NAMES = ("mdetr-tiny", "mdetr-r18-clevr")  # the text encoder of the package, and RoBERTa; both answer questions
IN_PROCESSES = NAMES[:1]


def preset_of(name: str) -> Preset:
    preset = miniature(name)
    return replace(preset, model=replace(preset.model, questions="scenes"))


def new_task(name: str, *, dropout: bool = True) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        preset = preset_of(name)
        task = build_task(preset, build_model(preset, 255), 255)
    for module in task.modules() if not dropout else ():  # each process draws its own numbers for it
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return task


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "scenes"
    write_captioned_scenes(folder, counts={"train": 4, "val": 1}, config=DescribedConfig(size=64))
    return folder


def train(
    name: str, data: Path, folder: Path, *, dropout: bool = True, callbacks: Sequence[Callback] = (), **options: Any
) -> Any:
    """Two steps, or what is left of them."""
    torch.set_num_threads(1)
    resume = options.pop("resume", False)
    recipe = Recipe(batch_size=4, max_steps=2, precision="fp32", learning_rate=1e-3, **options)
    share = (distributed.rank(), distributed.world_size())
    loader = train_loader(open_data(data)["train"], preset_of(name).data, batch_size=4, seed=5, share=share)
    trainer = Trainer(new_task(name, dropout=dropout), loader, recipe, folder, callbacks=callbacks, device="cpu")
    return trainer.train(resume=resume)


class StopAfterOne(Callback):
    """Asks for a stop after the first step, as Ctrl-C does."""

    def on_step(self, event) -> None:
        if event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_change_the_weights_and_resume_to_the_same_bits(name, scenes, tmp_path):
    whole = train(name, scenes, tmp_path / "whole")
    first = train(name, scenes, tmp_path / "stopped", callbacks=[StopAfterOne()])
    assert (first.step, first.interrupted) == (1, True)
    second = train(name, scenes, tmp_path / "stopped", resume=True)
    assert (whole.step, second.step) == (2, 2)
    ours, theirs = (load_file(tmp_path / folder / "last" / STATE) for folder in ("whole", "stopped"))
    assert ours.keys() == theirs.keys()
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    before = new_task(name).state_dict()
    learned = {key for key in before if not torch.equal(before[key], ours[f"task/{key}"])}
    assert len(learned) > 50
    assert any(key.startswith("model.text.") for key in learned)


# ----------------------------------------------------------------------------------------------------------- processes


def main(data: Path, folder: Path) -> None:
    """Train every model in one process, in two, and in micro-batches."""
    codes = []
    for name in IN_PROCESSES:
        for count, parts in ((1, 1), (2, 1), (1, 2)):
            codes += in_processes(
                count,
                lambda name=name, count=count, parts=parts: train(
                    name,
                    data,
                    folder / f"{name}-{count}-{parts}",
                    dropout=False,
                    accumulate=parts,
                    callbacks=[MetricsFile()],
                ),
            )
    print(json.dumps(codes))


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, __file__, str(scenes), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0] * 4 * len(IN_PROCESSES), done.stderr
    return folder


@needs_fork
@pytest.mark.parametrize("other", ["2-1", "1-2"], ids=["two processes", "two parts"])
@pytest.mark.parametrize("name", IN_PROCESSES)
def test_two_equal_one(name, other, runs):
    """Captions are padded to the longest of all processes: the padding counts in the alignment."""
    one, two = (
        [row for row in read_metrics(runs / f"{name}-{run}") if row["kind"] == "step"] for run in ("1-1", other)
    )
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
        assert ours["losses"].keys() == theirs["losses"].keys() >= {"class", "align", "answer_type", "answer_attr"}
        for term, values in ours["losses"].items():
            assert theirs["losses"][term] == pytest.approx(values, rel=1e-4, abs=1e-5), term


# --------------------------------------------------------------------------------------------------------------- batch


def caption_batch() -> CaptionBatch:
    captions = CAPTIONS[:2]
    tokens = new_tokenizer("words")(captions)
    targets = tuple(
        Target(
            torch.zeros(1, dtype=torch.int64),
            torch.full((1, 4), 0.5),
            (8, 8),
            (8, 8),
            index,
            token_map=tokens.map_of(index, [[(0, 5)]]),
            answers={"type": 0, "binary": index},
        )
        for index in range(2)
    )
    return CaptionBatch(
        ImageBatch.from_images([torch.zeros(3, 8, 8)] * 2), targets, ("a", "b"), captions=captions, tokens=tokens
    )


def test_a_batch_of_captions_pads_splits_and_moves_whole():
    batch = caption_batch()
    length = batch.tokens.num_tokens
    assert batch.extent == (8, 8, length) and batch.pad_to(*batch.extent).extent == batch.extent
    wide = batch.pad_to(10, 9, length + 2)
    assert wide.extent == (10, 9, length + 2)
    assert wide.tokens.ids[:, length:].eq(wide.tokens.pad_id).all() and wide.tokens.padding[:, length:].all()
    assert [target.token_map.shape for target in wide.targets] == [(1, length + 2)] * 2
    assert torch.equal(wide.targets[1].token_map[:, :length], batch.targets[1].token_map)
    second = wide.split(2)[1]
    assert second.captions == CAPTIONS[1:2] and second.extent == wide.extent
    assert torch.equal(second.tokens.spans, wide.tokens.spans[1:])
    assert batch.loss_counts == [(1, ("type", "binary"))] * 2
    assert batch.to("meta").targets[0].token_map.device.type == "meta"


def test_padding_of_captions_changes_no_prediction():
    batch = caption_batch()
    model = new_task("mdetr-tiny").model.eval()
    with torch.no_grad():
        plain = model(batch.images, batch.tokens)
        padded = model(batch.images, batch.pad_to(8, 8, 14).tokens)
        alone = model(batch.images[1:], CAPTIONS[1:2])
    torch.testing.assert_close(plain.final.boxes, padded.final.boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.final.logits, padded.final.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.final.logits[1:], alone.final.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.answers["attr"][1:], alone.answers["attr"], atol=1e-5, rtol=0)


def test_dense_supervision_of_tokens_by_hand():
    """Two cells and three tokens with one feature each; the first cell is in the object, which the second token names.

    The third token is padding.
    """
    supervision = GroundingSupervision(DenseSupervision(DenseConfig(weight=3.0, class_weight=0.7), 1, 1), 1)
    with torch.no_grad():
        for layer in (supervision.align_cells, supervision.align_tokens):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        supervision.bias.fill_(-1.0)
    cells, tokens = torch.tensor([0.5, -0.25]), torch.tensor([1.0, 2.0, 4.0])
    memory = (
        FeatureMap(cells.view(1, 1, 1, 2)),
        FeatureMap(tokens.view(1, 1, 1, 3), torch.tensor([[[False, False, True]]])),
    )
    target = Target(torch.tensor([4]), torch.tensor([[0.25, 0.5, 0.2, 0.2]]), (8, 8), (8, 8), 0,
                    token_map=torch.tensor([[False, True, False]]))  # fmt: skip
    output = replace(new_task("mdetr-tiny").output(caption_batch()), memory=memory)
    matches = Matches(*(torch.zeros(0, dtype=torch.int64) for _ in range(4)))
    loss = supervision(output, [target], matches, Normaliser(2.0, 1.0))["dense_tokens"].item()
    expected = 0.0
    for row, cell in enumerate(cells.tolist()):
        for column, token in enumerate(tokens.tolist()[:2]):
            p = 1 / (1 + math.exp(1.0 - 64 * cell * token / 8))
            is_named = (row, column) == (0, 1)
            expected -= 0.25 * (1 - p) ** 2 * math.log(p) if is_named else 0.75 * p**2 * math.log(1 - p)
    assert loss == pytest.approx(3.0 * 0.7 * expected / 2.0, rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- files


def test_the_average_of_a_checkpoint_is_read_and_said(tmp_path, capsys):
    model = new_task("mdetr-tiny").model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    average = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    torch.save({"model": state, "model_ema": average}, tmp_path / "both.pth")
    torch.save({"model": state, "model_ema": None}, tmp_path / "one.pth")
    load_weights(model, tmp_path / "both.pth")
    assert torch.equal(model.class_head.bias, average["class_head.bias"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "both.pth" in line and "model_ema" in line
    load_weights(model, tmp_path / "one.pth")
    assert torch.equal(model.class_head.bias, state["class_head.bias"])
    assert capsys.readouterr().err == ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
