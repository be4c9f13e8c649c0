"""UP-DETR against the numbers that the original implementation gave: pre-training, fewer patches, and the detector."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from golden import Golden, image, objects, rule, target
from golden_scaled import close, pairs
from opendetr.categories import coco_categories, patch_categories
from opendetr.losses import SetCriterion
from opendetr.postprocess import detect
from opendetr.presets import create_task, get_preset
from opendetr.presets.up_detr import PretrainingPreset
from opendetr.structures import ImageBatch, Output, Target
from opendetr.tasks import PretrainingTask, Task
from opendetr.weights import load_weights
from opendetr.weights.name_maps import our_name
from opendetr.weights.up_detr import OFFICIAL

PRETRAINING = (
    "pretrain_eval",
    "pretrain_eval_3patches",
    "pretrain_train",
    "pretrain_train_shuffle_postnorm",
    "pretrain_5patches_trainable_cnn_norecon",
)
LOSSES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou", "feature": "loss_feature"}


@functools.cache  # the goldens share most weights
def scaled_rule(name: str, shape: tuple[int, ...], factors: tuple[tuple[str, float], ...]) -> Tensor:
    """The value of the rule, multiplied by every factor whose pattern is found in the name."""
    value = rule(name, list(shape))
    for pattern, factor in factors:
        if re.search(pattern, name):
            value = value * factor
    return value


class PatchGolden(Golden):
    """A golden with scaled weights, patches and what is drawn for them."""

    def state(self) -> dict[str, Tensor]:
        """The state dict under the official names."""
        factors = tuple(map(tuple, self["fill_scale"]))
        return {name: scaled_rule(name, tuple(shape), factors) for name, shape in self["state_dict"].items()}

    def images(self) -> ImageBatch:
        """The padded batch."""
        return ImageBatch.from_images([cell_image("image_0", 96, 128), cell_image("image_1", 128, 104)])

    @property
    def num_patches(self) -> int:
        """The number of patches that the images have."""
        return int(re.search(r"targets_\{b\}', (\d+)", self["inputs"]["targets"])[1])

    def patches(self) -> Tensor:
        """(B, M, 3, 128, 128)."""
        rows = [[cell_image(f"patch_{b}_{p}", 128, 128) for p in range(self.num_patches)] for b in range(2)]
        return torch.stack([torch.stack(row) for row in rows])

    def targets(self) -> list[Target]:
        """The objects of each image; patches have the label 1."""
        if "patches" not in self["inputs"]:
            return [target(*objects(f"targets_{b}", count, 91)) for b, count in enumerate((3, 6))]
        boxes = [objects(f"targets_{b}", self.num_patches, 2)[1] for b in range(2)]
        return [target(torch.ones(len(of_image), dtype=torch.int64), of_image) for of_image in boxes]

    def draws(self) -> tuple[Tensor | None, Tensor | None]:
        """The queries that get the features of their patch (B, Q), and the learned query of each (B, Q)."""
        kept, order = (self.arrays.get(name) for name in ("query_mask_keep", "query_shuffle_idx"))
        return (
            None if kept is None else kept[..., 0].T,
            None if order is None else order.expand(2, -1),
        )


def cell_image(name: str, height: int, width: int) -> Tensor:
    """A noisy image of 4 x 4 coloured cells."""
    rows, columns = (torch.arange(length) * 4 // length for length in (height, width))
    return 0.5 * image(name, height, width) + 1.5 * image(f"{name}/coarse", 4, 4)[:, rows][:, :, columns]


def pretraining_task(golden: Golden) -> PretrainingTask:
    """The published pre-training with the options that the golden's run had."""
    config, preset = golden["config"], get_preset("up-detr-r50")
    assert isinstance(preset, PretrainingPreset)
    model = replace(
        preset.model,
        backbone=replace(preset.model.backbone, frozen_stages=5 if config["fre_cnn"] else 2),
        transformer=replace(preset.model.transformer, dropout=config["dropout"], norm_first=config["pre_norm"]),
        num_patches=config["num_patches"],
        query_shuffle=config["query_shuffle"],
        reconstruct=config["feature_recon"],
    )
    scoring = preset.criterion.classification.scoring()
    built = model.build(scoring.num_logits(golden["num_classes"]), scoring)
    return PretrainingTask(built, SetCriterion(preset.criterion), preset.reconstruction)


class Run:
    """A forward and a backward pass with the inputs of a golden."""

    def __init__(self, name: str) -> None:
        self.golden = PatchGolden(f"updetr/{name}")
        further: tuple[Tensor | None, ...] = ()
        if "patches" in self.golden["inputs"]:
            further = (self.golden.patches(), *self.golden.draws())
        with torch.device("meta"):  # initial weights take time
            if further:
                self.task: Task = pretraining_task(self.golden)
            else:
                self.task = create_task("up-detr-r50-finetuned", num_classes=self.golden["num_classes"])
        self.model = self.task.to_empty(device="cpu").model
        self.report = load_weights(self.model, self.golden.state())
        self.task.train(self.golden["mode"].startswith("train"))
        self.output: Output = self.model(self.golden.images(), *further)
        self.targets = self.golden.targets()
        self.losses = self.task.losses(self.output, self.targets)
        self.task.total(self.losses).backward()


@pytest.fixture(scope="module", autouse=True)
def shared_weights() -> Iterator[None]:
    """Free the memory of the shared weights at the end."""
    yield
    scaled_rule.cache_clear()


@pytest.fixture(scope="module", params=[*PRETRAINING, "finetune_coco"])
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def test_official_names_load_strictly(run):
    assert run.report.layout == "official"
    own = run.model.state_dict()
    assert sorted(our_name(name, OFFICIAL, own) for name in run.golden["state_dict"]) == sorted(own)


def test_outputs(run):
    arrays, output = run.golden.arrays, run.output
    step = 2 if run.golden["num_classes"] == 91 else 1
    close(output.final.logits[:, ::step], arrays["pred_logits"], 5e-4)
    close(output.final.boxes, arrays["pred_boxes"], 5e-4)
    step = 10 if run.golden["num_classes"] == 91 else 1
    before = output.layers[:-1]
    close(torch.stack([layer.logits[:, ::step] for layer in before]), arrays["aux_pred_logits"], 5e-4)
    close(torch.stack([layer.boxes for layer in before]), arrays["aux_pred_boxes"], 5e-4)


def test_features_and_positions(run):
    arrays, output = run.golden.arrays, run.output
    assert torch.equal(run.golden.images().sizes, arrays["mask_valid_hw"])
    close(output.features[-1].values[:, ::16], arrays["backbone_layer4_every16ch"], 5e-4)
    assert torch.equal(output.features[-1].padding, arrays["layer4_mask"])
    close(output.memory[0].position[:, ::16], arrays["pos_every16ch"], 5e-4)


def test_reconstruction(run):
    arrays, output = run.golden.arrays, run.output
    if "pred_feature_l2" not in arrays:
        assert getattr(output, "reconstruction", None) is None
        return
    close(output.reconstruction[-1][:, ::10], arrays["pred_feature_every10"], 5e-4)
    close(output.reconstruction[-1].norm(dim=-1), arrays["pred_feature_l2"], 5e-4)
    close(output.reconstruction[:-1].norm(dim=-1), arrays["aux_pred_feature_l2"], 5e-4)
    close(output.patch_features.flatten(0, 1)[:, ::4], arrays["gt_feature_every4ch"], 5e-4)
    close(output.patch_features.flatten(0, 1).norm(dim=-1), arrays["gt_feature_l2"], 5e-4)


def test_matching(run):
    matches, golden = run.task.match(run.output, run.targets), run.golden
    unstable = golden["matching_layers_unstable_under_uniform_output_noise"]["1e-05"]
    for name, expected in golden["matching"].items():
        layer = len(run.output.layers) - 1 if name == "final" else int(name)
        if name not in unstable:
            assert pairs(matches, layer, 2) == expected, name


def test_losses(run):
    found = {}
    for name, values in run.losses.items():
        *before, final = values.tolist()
        found |= {f"{LOSSES[name]}_{layer}": value for layer, value in enumerate(before)} | {LOSSES[name]: final}
    plain = {name: value for name, value in run.golden["losses"].items() if name.startswith("loss_")}
    assert found == pytest.approx(plain, rel=1e-3)
    assert run.task.total(run.losses).item() == pytest.approx(run.golden["total_loss"], rel=1e-3)
    weights = run.golden["criterion"]["weight_dict"]
    official = {LOSSES[name]: weight for term in run.task.terms.values() for name, weight in term.weights.items()}
    assert official == {name: weights[name] for name in weights if not name[-1].isdigit()}


def test_gradients(run):
    golden, model = run.golden, run.model
    own = dict(model.named_parameters())
    norms = {name: own[our_name(name, OFFICIAL, own)].grad.norm().item() for name in golden["grad_norms"]}
    assert norms == pytest.approx(golden["grad_norms"], rel=1e-2, abs=1e-4)
    gradients = [parameter.grad for parameter in own.values() if parameter.grad is not None]
    assert len(gradients) == golden["num_params_with_grad"]
    assert sum(parameter.requires_grad for parameter in own.values()) == golden["num_trainable_tensors"]
    total = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert total == pytest.approx(golden["grad_norm_total"], rel=1e-2)


def test_post_processing(run):
    golden, output = run.golden, run.output
    categories = coco_categories() if golden["num_classes"] == 91 else patch_categories()
    sizes = torch.tensor(golden["postprocess"]["target_sizes_hw"])
    for index, detections in enumerate(detect(output.final, sizes, categories, raw=True)):
        assert torch.equal(detections.labels, golden.arrays["post_labels"][index])
        close(detections.scores, golden.arrays["post_scores"][index], 5e-4)
        close(detections.boxes, golden.arrays["post_boxes"][index], 0.1)
