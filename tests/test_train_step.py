"""A step of the trainer is that of a plain torch loop: rates, weight decay, clipping, the average, dropout."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from typer.testing import CliRunner

from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import replaced, to_dict
from opendetr.presets import build_model, get_preset
from opendetr.recipe import Recipe
from opendetr.synthetic import write_scenes
from opendetr.training.events import Callback, StepTaken
from opendetr.training.trainer import Trainer
from opendetr.weights import ModelCard, save_weights
from stand_ins import CountingTask, RandomLoader

STEPS = 10
# Large rates and a large weight decay, so that each of them shows after a few steps.
RECIPE = Recipe(learning_rate=1e-2, backbone_learning_rate=2e-3, weight_decay=0.5, batch_size=4, max_steps=STEPS,
                warmup_steps=3, clip_norm=0.0, step_at=0.6, save_every=1000)  # fmt: skip
STEP = [1 / 3, 2 / 3, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]
COSINE = [1 / 3, 2 / 3, 1, *(0.2 + 0.8 * (1 + math.cos(math.pi * k / 7)) / 2 for k in range(7))]
WITH_COSINE = replace(RECIPE, schedule="cosine", floor=0.2)


class Recorder(Callback):
    """Keeps what the trainer tells of its steps, and the weights after each of them."""

    def __init__(self, task: nn.Module) -> None:
        self.task = task
        self.weights: list[dict[str, Tensor]] = []
        self.norms: list[float] = []
        self.rates: list[float] = []

    def on_step(self, event: StepTaken) -> None:
        self.weights.append(copy_of(self.task))
        self.norms.append(event.gradient_norm)
        self.rates.append(event.learning_rate)


class Seen:
    """What optimizers are given at each of their steps: groups, gradients, and the norm of these."""

    def __init__(self) -> None:
        self.groups: list[list[dict[str, Any]]] = []
        self.norms: list[float] = []

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.groups.append([dict(group) for group in optimizer.param_groups])
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"]]
        self.norms.append(sum(gradient.square().sum().item() for gradient in gradients) ** 0.5)

    def by_name(self, name: str, step: int) -> dict[str, float]:
        """A setting of the groups at a step, for each parameter."""
        return {each: group[name] for group in self.groups[step] for each in group["names"]}


@pytest.fixture
def seen() -> Iterator[Seen]:
    given = Seen()
    handle = register_optimizer_step_pre_hook(given)
    yield given
    handle.remove()


def counting_task(dropout: float = 0.0) -> CountingTask:
    """The stand-in with a norm that treats each image alone, so that micro-batches are as good as the whole batch."""
    task = CountingTask(dropout)
    task.backbone[1] = nn.GroupNorm(2, 8)
    return task


def copy_of(task: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in task.state_dict().items()}


def run(folder: Path, recipe: Recipe = RECIPE, task: nn.Module | None = None, **options: Any) -> Recorder:
    recorder = Recorder(task or counting_task())
    options["callbacks"] = [recorder, *options.get("callbacks", ())]
    resume = options.pop("resume", False)
    Trainer(recorder.task, RandomLoader(), recipe, folder, device="cpu", **options).train(resume=resume)
    return recorder


def plain_loop(factors: list[float], *, decays_vectors: bool = True, clip_norm: float = math.inf) -> list[dict]:
    """The weights after each step of a loop as in torch's tutorials, with the numbers of `RECIPE`."""
    task, loader = counting_task(), RandomLoader()
    groups = [
        {"params": [parameter], "rate": 2e-3 if name.startswith("backbone.") else 1e-2,
         "weight_decay": 0.5 if decays_vectors or parameter.ndim > 1 else 0.0}
        for name, parameter in task.named_parameters()
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups)
    weights = []
    for step, factor in enumerate(factors):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        optimizer.zero_grad()
        loss_of(task, loader, step).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), clip_norm)
        optimizer.step()
        weights.append(copy_of(task))
    return weights


def loss_of(task: CountingTask, loader: RandomLoader, step: int) -> Tensor:
    batch = loader.batch(*divmod(step, len(loader)))
    return task.total(task(batch, task.normaliser([len(target) for target in batch.targets])))


def assert_close(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


# --------------------------------------------------------------------------------------------------- a plain torch loop


@pytest.mark.parametrize(
    ("recipe", "factors", "options"),
    [
        (RECIPE, STEP, {}),
        (WITH_COSINE, COSINE, {}),
        (replace(RECIPE, clip_norm=1e-7), STEP, {"clip_norm": 1e-7}),  # AdamW's epsilon makes so small a norm show
        (replace(RECIPE, decay_norms_and_biases=False), STEP, {"decays_vectors": False}),
        (replace(RECIPE, accumulate=4), STEP, {}),
    ],
    ids=["step", "cosine", "clipped", "vectors without decay", "accumulated"],
)
def test_ten_steps_equal_a_plain_torch_loop(tmp_path, recipe, factors, options):
    weights = run(tmp_path, recipe).weights
    assert len(weights) == STEPS
    for after, expected in zip(weights, plain_loop(factors, **options), strict=True):
        assert_close(after, expected)


@pytest.mark.parametrize(("recipe", "factors"), [(RECIPE, STEP), (WITH_COSINE, COSINE)], ids=["step", "cosine"])
def test_the_optimizer_gets_the_rate_of_each_step(tmp_path, seen, recipe, factors):
    recorder = run(tmp_path, recipe)
    for step, factor in enumerate(factors):
        rates = seen.by_name("lr", step)
        assert rates.keys() == dict(recorder.task.named_parameters()).keys()
        for name, rate in rates.items():
            assert rate == pytest.approx(factor * (2e-3 if name.startswith("backbone.") else 1e-2)), (step, name)
    assert recorder.rates == pytest.approx([1e-2 * factor for factor in factors])


@pytest.mark.parametrize("decays_vectors", [True, False])
def test_the_optimizer_gets_the_weight_decay(tmp_path, seen, decays_vectors):
    task = run(tmp_path, replace(RECIPE, decay_norms_and_biases=decays_vectors)).task
    is_decayed = {name: decays_vectors or each.ndim > 1 for name, each in task.named_parameters()}
    for step in range(STEPS):
        assert seen.by_name("weight_decay", step) == {name: 0.5 * decayed for name, decayed in is_decayed.items()}


def test_gradients_are_clipped_to_the_norm_of_the_recipe(tmp_path, seen):
    norms = run(tmp_path / "unclipped").norms
    assert seen.norms == pytest.approx(norms)  # 0 leaves them as they are
    limit = sorted(norms)[STEPS // 2]
    seen.norms.clear()
    reported = run(tmp_path / "clipped", replace(RECIPE, clip_norm=limit)).norms
    assert seen.norms == pytest.approx([min(norm, limit) for norm in reported], rel=1e-4)
    assert min(reported) < 0.95 * limit and max(reported) > 1.05 * limit  # what is told is the norm before clipping


def test_the_gradient_norm_is_that_of_the_whole_batch(tmp_path):
    norms = {parts: run(tmp_path / str(parts), replace(RECIPE, accumulate=parts)).norms for parts in (1, 2, 3, 4)}
    task = counting_task()
    loss_of(task, RandomLoader(), 0).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in task.parameters()]).norm().item()
    assert norms[1][0] == pytest.approx(expected, rel=1e-5)
    for parts in (2, 3, 4):
        assert norms[parts] == pytest.approx(norms[1], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------- the average


def test_the_average_follows_the_weights_of_each_step(tmp_path):
    """Its decay is (1 + step) / (10 + step) up to that of the recipe. Buffers are averaged too, unless of integers."""
    averages: list[dict[str, Tensor]] = []
    task = CountingTask()
    average = copy_of(task)
    recorder = run(tmp_path, replace(RECIPE, ema_decay=0.3, num_evaluations=STEPS), task,
                   evaluate=lambda deployed: averages.append(copy_of(deployed)) or {})  # fmt: skip
    decays = [1 / 10, 2 / 11, 3 / 12, *[0.3] * 7]
    for decay, weights, found in zip(decays, recorder.weights, averages, strict=True):
        for name, tensor in weights.items():
            averaged = decay * average[name] + (1 - decay) * tensor
            average[name] = averaged if tensor.is_floating_point() else tensor
        assert_close(found, average)
        assert torch.equal(found["backbone.1.num_batches_tracked"], weights["backbone.1.num_batches_tracked"])


# -------------------------------------------------------------------------------------------------------------- dropout


class DroppingTask(CountingTask):
    """Keeps which numbers its dropout left, at every forward pass."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.left: list[tuple[bool, ...]] = []

    def forward(self, batch: Any, normaliser: float) -> dict[str, Tensor]:
        self.left.append(tuple(self.head[0](torch.ones(64)).bool().tolist()))
        return super().forward(batch, normaliser)


def left_by_dropout(folder: Path, recipe: Recipe = RECIPE, **options: Any) -> list[tuple[bool, ...]]:
    task = DroppingTask()
    run(folder, recipe, task, **options)
    return task.left


class Stopper(Callback):
    def on_step(self, event: StepTaken) -> None:
        if event.step == 4:
            os.kill(os.getpid(), signal.SIGINT)


def test_dropout_differs_from_step_to_step_and_with_the_seed(tmp_path):
    first = left_by_dropout(tmp_path / "first")
    other = left_by_dropout(tmp_path / "other", replace(RECIPE, seed=43))
    assert len(first) == len(other) == STEPS
    assert len({*first, *other}) == 2 * STEPS


def test_dropout_is_a_function_of_seed_and_step(tmp_path):
    """Neither what was drawn before nor a resumed run changes it."""
    first = left_by_dropout(tmp_path / "first")
    torch.manual_seed(99)
    recipe = replace(RECIPE, num_evaluations=5)
    assert left_by_dropout(tmp_path / "again", recipe, evaluate=lambda _: {"AP": torch.rand(7)[0].item()}) == first
    begun = left_by_dropout(tmp_path / "resumed", callbacks=[Stopper()])
    assert begun == first[:4]
    assert left_by_dropout(tmp_path / "resumed", resume=True) == first[4:]


def test_dropout_differs_between_micro_batches(tmp_path):
    left = left_by_dropout(tmp_path, replace(RECIPE, accumulate=2))
    assert len(left) == len(set(left)) == 2 * STEPS


# ----------------------------------------------------------------------------------------------------- the command line


SMALL = {
    "model": {
        "backbone": {"half_width": True},
        "transformer": {"width": 32, "num_heads": 4, "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 1},
        "num_queries": 10,
    },
    "data": {"num_workers": 0},
    "recipe": {"batch_size": 2, "max_steps": 1, "num_evaluations": 1, "warmup_steps": 0},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"train": 2, "val": 1})
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The file of a detector that was trained before."""
    preset, categories = replaced(get_preset("detr-r18"), SMALL), Categories.from_names(("disc", "ring"))
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    save_weights(path, build_model(preset, len(categories)), ModelCard(to_dict(preset), categories, {}))
    return path


def settings(record: dict[str, Any], *inside: str) -> Iterator[str]:
    """Nested settings as values of `--set`."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from settings(value, *inside, name)
        else:
            yield f"{'.'.join((*inside, name))}={value}"


@pytest.mark.parametrize(
    ("start", "options", "rates"),
    [
        ("weights", [], (1e-4, 1e-5)),
        ("weights", ["--lr", "3e-4"], (3e-4, 3e-5)),
        ("weights", ["--lr", "3e-4", "--set", "recipe.backbone_learning_rate=5e-5"], (3e-4, 1.5e-4)),
        ("weights", ["--lr", "3e-4", "--set", "recipe.learning_rate=0"], (3e-4, 3e-4)),  # 0 has no proportion
        ("none", [], (1e-4, 1e-4)),
        ("none", ["--lr", "3e-4"], (3e-4, 3e-4)),
    ],
)
def test_the_rate_of_the_backbone_keeps_its_proportion(tmp_path, scenes, weights, seen, start, options, rates):
    """Trained from nothing, the backbone learns at the full rate; from weights, at a tenth of it, as published."""
    command = ["train", str(scenes), "--model", "detr-r18", "--out", str(tmp_path / "run"), "--device", "cpu",
               "--weights", str(weights) if start == "weights" else "none", "--image-size", "64"]  # fmt: skip
    for setting in settings(SMALL):
        command += ["--set", setting]
    result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = seen.by_name("lr", 0)
    of_backbone = {name: rate for name, rate in found.items() if ".backbone." in name}
    others = {name: rate for name, rate in found.items() if name not in of_backbone}
    assert of_backbone and others
    assert others == pytest.approx(dict.fromkeys(others, rates[0]))
    assert of_backbone == pytest.approx(dict.fromkeys(of_backbone, rates[1]))
