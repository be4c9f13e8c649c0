"""Deformable DETR against the numbers of the original implementation, and against transformers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golden import FOLDER, Golden, rule, target
from golden_scaled import (
    ScaledGolden,
    check_detections,
    check_losses,
    check_stages,
    check_start,
    close,
    joined,
    official_losses,
    pairs,
)
from opendetr.models.deformable import (
    DeformableDETRConfig,
    DeformableTransformerConfig,
    TwoStageDETRConfig,
    TwoStageOutput,
)
from opendetr.nn.backbone import BackboneConfig
from opendetr.presets import Preset, build_model, build_task, create, create_task, get_preset, miniature
from opendetr.scoring import Sigmoid
from opendetr.structures import FeatureMap, ImageBatch, Output, Predictions, Target
from opendetr.tasks import DetectionTask
from opendetr.training.optimizer import parameter_groups
from opendetr.weights import load_weights, read_state
from opendetr.weights.deformable import FAMILY
from opendetr.weights.name_maps import our_name

VARIANTS = {
    "standard": "deformable-detr-r50",
    "single_scale": "deformable-detr-r50-single-scale",
    "single_scale_dc5": "deformable-detr-r50-single-scale-dc5",
    "refine": "deformable-detr-r50-refine",
    "two_stage": "deformable-detr-r50-two-stage",
}
ROWS = FAMILY.official
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def _tokens(levels: list[Tensor]) -> Tensor:
    """(B, D, h, w) each -> (B, N, D)."""
    return torch.cat([level.flatten(2).mT for level in levels], 1)


@dataclass(frozen=True)
class Run:
    """What one model made of its golden's images, gradients included.

    Attributes:
        golden: what is expected.
        task: the model and its losses; the parameters hold the gradients of the total.
        levels: what the encoder reads.
        output: what the model predicts.
        references: (B, Q, L, 2 or 4) of every decoder layer, where its queries look on each level.
        losses: of the golden's targets.
    """

    golden: ScaledGolden
    task: DetectionTask
    levels: tuple[FeatureMap, ...]
    output: Output
    references: list[Tensor]
    losses: dict[str, Tensor]

    def tokens(self) -> dict[str, Tensor]:
        """(B, N, D) each: what goes into the encoder, its positions, and what comes out."""
        memory = self.output.memory
        return {
            "enc_in": _tokens([level.values for level in self.levels]),
            "pos_flat": _tokens([level.position for level in memory]),
            "memory": _tokens([level.values for level in memory]),
        }


@pytest.fixture(scope="module", params=VARIANTS)
def run(request: pytest.FixtureRequest) -> Run:
    golden = ScaledGolden(f"deformable/{request.param}")
    preset = get_preset(VARIANTS[request.param])
    preset = replace(preset, model=replace(preset.model, num_queries=golden["config"]["num_queries"]))
    model = build_model(preset, golden["num_classes"]).eval()
    load_weights(model, golden.state())
    task, references, images = build_task(preset, model, golden["num_classes"]), [], golden.images()
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda module, inputs: references.append(inputs[2]))
    output = model(images)
    losses = task.losses(output, golden.targets())
    task.total(losses).backward()
    with torch.no_grad():
        levels = model.project_features(output.features, images.padding)
    return Run(golden, task, levels, output, references, losses)


# -------------------------------------------------------------------------------------------------------------- presets


@each_variant
def test_presets_hold_the_published_configuration(variant):
    golden, preset = ScaledGolden(f"deformable/{variant}"), get_preset(VARIANTS[variant])
    ours = _published_names(preset)
    assert {name: golden["config"][name] for name in ours} == ours
    assert preset.model.num_queries == 300
    assert preset.recipe.batch_size == 32  # over the authors' 16 devices
    with torch.device("meta"):
        model = create(VARIANTS[variant])
    assert sum(p.numel() for p in model.parameters()) == golden["params_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == golden["params_trainable"]


def _published_names(preset: Preset) -> dict[str, object]:
    model, transformer, criterion, recipe = preset.model, preset.model.transformer, preset.criterion, preset.recipe
    return {
        "backbone": f"resnet{model.backbone.depth}", "dilation": model.backbone.dilation,
        "num_feature_levels": transformer.num_levels, "enc_n_points": transformer.num_points,
        "dec_n_points": transformer.num_points, "with_box_refine": model.refine,
        "two_stage": isinstance(model, TwoStageDETRConfig),
        "hidden_dim": transformer.width, "nheads": transformer.num_heads, "dim_feedforward": transformer.ffn_width,
        "enc_layers": transformer.encoder_layers, "dec_layers": transformer.decoder_layers,
        "dropout": transformer.dropout,
        "focal_alpha": criterion.classification.alpha, "cls_loss_coef": criterion.class_weight,
        "bbox_loss_coef": criterion.l1_weight, "giou_loss_coef": criterion.giou_weight,
        "set_cost_class": criterion.matcher.class_cost, "set_cost_bbox": criterion.matcher.l1_cost,
        "set_cost_giou": criterion.matcher.giou_cost,
        "lr": recipe.learning_rate, "lr_backbone": recipe.backbone_learning_rate, "epochs": recipe.epochs,
        "lr_linear_proj_mult": recipe.sampling_rate_factor, "lr_drop": recipe.step_at * recipe.epochs,
        "clip_max_norm": recipe.clip_norm, "weight_decay": recipe.weight_decay, "seed": recipe.seed,
    }  # fmt: skip


@each_variant
def test_every_parameter_learns_at_the_published_rate(variant):
    golden, preset = ScaledGolden(f"deformable/{variant}"), get_preset(VARIANTS[variant])
    with torch.device("meta"):
        model = create(VARIANTS[variant])
    groups = parameter_groups(model, preset.recipe)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    expected = {our_name(name, ROWS, rates): _published_rate(name, golden["config"]) for name in golden["state_dict"]}
    assert rates == pytest.approx({name: expected[name] for name in rates}, rel=1e-9)
    assert {group["weight_decay"] for group in groups} == {golden["config"]["weight_decay"]}


def _published_rate(name: str, config: dict[str, object]) -> float:
    """By parts of the official name."""
    if any(part in name for part in config["lr_backbone_names"]):
        return config["lr_backbone"]
    is_slow = any(part in name for part in config["lr_linear_proj_names"])
    return config["lr"] * (config["lr_linear_proj_mult"] if is_slow else 1)


# -------------------------------------------------------------------------------------------------------------- outputs


def test_outputs(run):
    arrays, output = run.golden.arrays, run.output
    close(output.final.logits, arrays["pred_logits"])
    close(output.final.boxes, arrays["pred_boxes"])
    count = run.golden["slices"]["aux_queries"]
    close(output.layers[2].logits[:, :count], arrays["aux_2.pred_logits"])
    close(output.layers[2].boxes[:, :count], arrays["aux_2.pred_boxes"])


def test_memory(run):
    arrays, tokens, channels = run.golden.arrays, run.tokens(), run.golden["slices"]["memory_channels"]
    assert [list(level.values.shape[-2:]) for level in run.levels] == arrays["spatial_shapes"].tolist()
    close(tokens["enc_in"][:, :6, :channels], arrays["encoder_input_head"])
    close(tokens["pos_flat"][:, :6], arrays["encoder_pos_head"])
    close(tokens["memory"][:, :6, :channels], arrays["memory_head"])
    close(tokens["memory"][:, -6:, :channels], arrays["memory_tail"])


def test_references(run):
    arrays = run.golden.arrays
    names = [name for name in ("init_reference", "inter_references_0") if name in arrays]
    for expected, placed in zip((arrays[name] for name in names), run.references, strict=False):
        ratios = arrays["valid_ratios"].repeat(1, 1, expected.shape[-1] // 2)
        close(placed[:, : expected.shape[1]], expected[:, :, None] * ratios[:, None])


def test_statistics_of_every_stage(run):
    arrays, output, model = run.golden.arrays, run.output, run.task.model
    first = run.references[0][:, :, 0]
    first = first / arrays["valid_ratios"][:, :1].repeat(1, 1, first.shape[-1] // 2)
    after = torch.stack([layer.boxes for layer in output.layers]) if model.refine else first.expand(6, -1, -1, -1)
    features = output.features[-min(len(run.levels), 3) :]
    stages = {f"backbone.{index}": level.values for index, level in enumerate(features)} | run.tokens()
    stages |= {"hs": output.queries, "init_ref": first, "inter_ref": after}
    check_stages(run.golden, stages | {"pred_logits": output.final.logits, "pred_boxes": output.final.boxes})


def test_proposals(run):
    if run.golden["enc"] is None:
        assert not isinstance(run.output, TwoStageOutput)
        return
    arrays, proposals = run.golden.arrays, run.output.proposals
    close(proposals.boxes, arrays["enc.pred_boxes"])
    close(proposals.logits[..., 0], arrays["enc.class0_logits"])
    head = arrays["enc.pred_logits_head"]
    close(proposals.logits[:, : head.shape[1]], head)
    best = proposals.logits[..., 0].topk(run.task.model.num_queries).indices
    assert torch.equal(best, arrays["enc.topk_indexes"])


# ----------------------------------------------------------------------------------------------------- matching, losses


def _check_matching(golden: Golden, task: DetectionTask, output: Output, targets: list[Target]) -> None:
    matches, num_images = task.match(output, targets), len(targets)
    names = [*(f"aux_{index}" for index in range(len(output.layers) - 1)), "final"]
    found = {name: pairs(matches, layer, num_images) for layer, name in enumerate(names)}
    if isinstance(output, TwoStageOutput):
        objects = [replace(each, labels=torch.zeros_like(each.labels)) for each in targets]
        found["enc"] = pairs(task.match(replace(output, layers=(output.proposals,)), objects), 0, num_images)
    assert found == golden["hungarian"]


def test_matching_and_losses(run):
    _check_matching(run.golden, run.task, run.output, run.golden.targets())
    check_losses(run.losses, run.golden.record)
    assert run.task.total(run.losses).item() == pytest.approx(run.golden["total_loss"], rel=1e-4)
    ones = {name: torch.ones(6) for name in ("class", "l1", "giou")}
    proposals = {f"proposal_{name}": torch.ones(1) for name in ones}  # the original lists their weights in any case
    assert official_losses(ones | proposals, (2, 5, 2)) == run.golden["weight_dict"]


def test_gradients(run):
    gradients = {name: p.grad for name, p in run.task.model.named_parameters() if p.requires_grad}
    expected = run.golden["gradient_l2"]
    norms = {name: gradients[our_name(name, ROWS, gradients)].norm().item() for name in expected}
    assert norms == pytest.approx(expected, rel=1e-3)
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert total == pytest.approx(run.golden["gradient_l2_all_trainable"], rel=1e-3)


@each_variant
def test_postprocessing(variant):
    golden = Golden(f"deformable/{variant}")
    stored = Predictions(golden.arrays["pred_logits"], golden.arrays["pred_boxes"], Sigmoid())
    check_detections(golden, stored, golden["inputs"]["orig_sizes_hw"])


@pytest.fixture
def synthetic() -> tuple[Golden, DetectionTask, TwoStageOutput, list[Target]]:
    golden, name = Golden("deformable/criterion"), VARIANTS["two_stage"]
    arrays = golden.arrays
    inputs = {name: arrays[name].requires_grad_() for name in arrays if name.startswith("in.")}
    layers = [
        Predictions(inputs[f"in.{prefix}pred_logits"], inputs[f"in.{prefix}pred_boxes"], Sigmoid())
        for prefix in ("aux0.", "aux1.", "", "enc.")
    ]
    targets = [target(arrays[f"target{index}.labels"], arrays[f"target{index}.boxes"]) for index in range(3)]
    output = TwoStageOutput(tuple(layers[:3]), torch.zeros(3, 3, 20, 1), (), (), proposals=layers[3])
    return golden, create_task(name, model=build_model(miniature(name), 91)), output, targets


def test_criterion(synthetic):
    golden, task, output, targets = synthetic
    _check_matching(golden, task, output, targets)
    losses = task.losses(output, targets)
    check_losses(losses, golden.record)
    total = task.total(losses)
    assert total.item() == pytest.approx(golden["total"], rel=1e-4)
    total.backward()
    for layer, prefix in zip((*output.layers, output.proposals), ("aux0.", "aux1.", "", "enc."), strict=True):
        close(layer.logits.grad, golden.arrays[f"grad.{prefix}pred_logits"], 1e-5)
        close(layer.boxes.grad, golden.arrays[f"grad.{prefix}pred_boxes"], 1e-5)


def test_criterion_without_targets(synthetic):
    golden, task, output, _ = synthetic
    losses = task.losses(output, [target(torch.zeros(0), torch.zeros(0, 4))] * 3)
    check_losses(losses, golden["all_targets_empty"])
    assert task.total(losses).item() == pytest.approx(golden["all_targets_empty"]["total"], rel=1e-4)


def test_criterion_postprocessing(synthetic):
    golden, _, output, _ = synthetic
    check_detections(golden, output.final, golden["postprocess_target_sizes_hw"])


# ------------------------------------------------------------------------------------------------------- initialisation


@each_variant
def test_random_start(variant):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = create(VARIANTS[variant]).state_dict()
    record = json.loads((FOLDER / "deformable" / f"init_{variant}.json").read_text())
    normal = ("query_embed.weight", "transformer.level_embed")
    check_start(own, record["stats"], ROWS, normal, fixed=r".*sampling_offsets\.bias|.*bbox_embed\.\d\.layers\.2\.bias")


# --------------------------------------------------------------------------------------------------------- transformers

_KINDS = {
    "levels": ({}, DeformableDETRConfig(), 4),
    "one level": ({"num_feature_levels": 1}, DeformableDETRConfig(), 1),
    "refine": ({"with_box_refine": True}, DeformableDETRConfig(refine=True), 4),
    "two stages": (
        {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 12}, TwoStageDETRConfig(), 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", _KINDS)
def test_transformers_gives_the_same(tmp_path: Path, kind: str):
    transformers = pytest.importorskip("transformers")
    options, model, num_levels = _KINDS[kind]
    stages = ["stage4"] if num_levels == 1 else ["stage2", "stage3", "stage4"]
    backbone = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_features=stages
    )
    sizes = {"d_model": 64, "num_queries": 12, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96,
             "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
    config = transformers.DeformableDetrConfig(backbone_config=backbone, num_labels=5, **sizes, **options)
    theirs = transformers.DeformableDetrForObjectDetection(config).eval()
    theirs.load_state_dict({name: rule(name, list(value.shape)) for name, value in theirs.state_dict().items()})
    theirs.save_pretrained(tmp_path)
    transformer = DeformableTransformerConfig(
        width=64, num_heads=4, ffn_width=96, encoder_layers=2, decoder_layers=3, num_levels=num_levels
    )
    config = replace(model, backbone=BackboneConfig(depth=18), transformer=transformer, num_queries=12)
    ours = config.build(5, Sigmoid()).eval()
    own = set(ours.state_dict())
    saved = read_state(tmp_path / "model.safetensors")
    state = {our_name(name, FAMILY.huggingface.reading, own): value for name, value in joined(saved).items()}
    for name in own - state.keys():  # transformers shares class heads between layers, and saves the first alone
        state[name] = state[re.sub(r"heads\.\d", "heads.0", name)]
    load_weights(ours, state)
    generator = torch.Generator().manual_seed(0)
    batch = ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in ((96, 160), (128, 104))])
    with torch.no_grad():
        expected = theirs(batch.pixels, pixel_mask=(~batch.padding).long())
        found = ours(batch)
    close(found.final.logits, expected.logits)
    close(found.final.boxes, expected.pred_boxes)
    if isinstance(found, TwoStageOutput):
        close(found.proposals.logits, expected.enc_outputs_class)
        close(found.proposals.boxes, expected.enc_outputs_coord_logits.sigmoid())
