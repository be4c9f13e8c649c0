"""Conditional DETR against the numbers of the original implementation, and against transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golden import FOLDER, Golden, rule, set_losses, target, weighted_total
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
from opendetr.losses.criterion import SetCriterion
from opendetr.models.conditional import ConditionalDecoderLayer, ConditionalDETR, ConditionalDETRConfig
from opendetr.nn.backbone import BackboneConfig
from opendetr.nn.position import embed_coordinates
from opendetr.nn.transformer import TransformerConfig
from opendetr.presets import Preset, create, get_preset
from opendetr.scoring import Sigmoid
from opendetr.structures import ImageBatch, Output, Predictions, Target
from opendetr.weights import load_weights, read_state
from opendetr.weights.conditional import FAMILY
from opendetr.weights.name_maps import our_name

VARIANTS = {"resnet50": "conditional-detr-r50", "resnet50_dc5": "conditional-detr-r50-dc5"}
CRITERION = SetCriterion(get_preset("conditional-detr-r50").criterion)
ROWS = FAMILY.official


@pytest.fixture(scope="module", params=VARIANTS)
def run(request: pytest.FixtureRequest) -> tuple[ScaledGolden, ConditionalDETR, Output]:
    golden = ScaledGolden(f"conditional/{request.param}")
    model = create(VARIANTS[request.param], weights=golden.state(), num_classes=golden["num_classes"]).eval()
    return golden, model, model(golden.images())


# -------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("variant", VARIANTS)
def test_presets_hold_the_published_configuration(variant):
    golden, preset = ScaledGolden(f"conditional/{variant}"), get_preset(VARIANTS[variant])
    ours = _published_names(preset)
    assert {name: golden["config"][name] for name in ours} == ours
    assert preset.recipe.batch_size == (8 if preset.model.backbone.dilation else 16)  # over the authors' 8 devices
    model = create(VARIANTS[variant])
    assert sum(p.numel() for p in model.parameters()) == golden["params_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == golden["params_trainable"]


def _published_names(preset: Preset) -> dict[str, object]:
    model, transformer, criterion, recipe = preset.model, preset.model.transformer, preset.criterion, preset.recipe
    return {
        "backbone": f"resnet{model.backbone.depth}", "dilation": model.backbone.dilation,
        "position_embedding": model.position, "num_queries": model.num_queries,
        "hidden_dim": transformer.width, "nheads": transformer.num_heads, "dim_feedforward": transformer.ffn_width,
        "enc_layers": transformer.encoder_layers, "dec_layers": transformer.decoder_layers,
        "dropout": transformer.dropout, "pre_norm": transformer.norm_first,
        "focal_alpha": criterion.classification.alpha, "cls_loss_coef": criterion.class_weight,
        "bbox_loss_coef": criterion.l1_weight, "giou_loss_coef": criterion.giou_weight,
        "set_cost_class": criterion.matcher.class_cost, "set_cost_bbox": criterion.matcher.l1_cost,
        "set_cost_giou": criterion.matcher.giou_cost,
        "lr": recipe.learning_rate, "lr_backbone": recipe.backbone_learning_rate, "epochs": recipe.epochs,
        "lr_drop": recipe.step_at * recipe.epochs, "clip_max_norm": recipe.clip_norm,
        "weight_decay": recipe.weight_decay, "seed": recipe.seed,
    }  # fmt: skip


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("suffix", ["", "-dc5"])
def test_names_and_shapes_of_every_published_model(depth, suffix):
    with torch.device("meta"):
        own = {
            name: list(value.shape) for name, value in create(f"conditional-detr-r{depth}{suffix}").state_dict().items()
        }
    official = ScaledGolden("conditional/resnet50")["state_dict"]
    heads = {name: shape for name, shape in official.items() if not name.startswith("backbone.")}
    of_detr = dict(Golden(f"detr/detr_resnet{depth}-sharp")["keys"])
    backbone = {name: shape for name, shape in of_detr.items() if name.startswith("backbone.")}
    assert {our_name(name, ROWS, own): shape for name, shape in (backbone | heads).items()} == own
    assert depth == 101 or official == backbone | heads


# -------------------------------------------------------------------------------------------------------------- outputs


def test_outputs(run):
    golden, model, output = run
    arrays = golden.arrays
    close(output.final.logits, arrays["pred_logits"])
    close(output.final.boxes, arrays["pred_boxes"])
    count = golden["slices"]["aux_queries"]
    close(output.layers[2].logits[:, :count], arrays["aux_2.pred_logits"])
    close(output.layers[2].boxes[:, :count], arrays["aux_2.pred_boxes"])
    close(model.decoder.reference_points(model.queries.weight).expand(2, -1, -1), arrays["reference"])


def test_intermediate_arrays_and_statistics(run):
    golden, model, output = run
    memory, channels = output.memory[0], golden["slices"]["channels"]
    top, first = output.features[-1], []
    hook = model.decoder.layers[0].register_forward_hook(lambda module, inputs, result: first.append(result))
    model.decode((memory,))
    hook.remove()
    source, tokens = model.project(top.values), memory.values.flatten(2)
    arrays = golden.arrays
    close(tokens[:, :channels, :6].mT, arrays["memory_head"])
    close(tokens[:, :channels, -6:].mT, arrays["memory_tail"])
    close(source.flatten(2)[:, :channels, :6].mT, arrays["src_head"])
    close(memory.position.flatten(2)[..., :6].mT, arrays["pos_head"])
    close(first[0][:, :8, :channels], arrays["dec0_head"])
    stages = {
        "backbone.0": top.values, "src": source, "pos": memory.position, "memory": tokens.permute(2, 0, 1),
        "dec0": first[0].transpose(0, 1), "hs": output.queries, "reference": arrays["reference"],
        "pred_logits": output.final.logits, "pred_boxes": output.final.boxes,
    }  # fmt: skip
    check_stages(golden, stages)


# ----------------------------------------------------------------------------------------------------- matching, losses


def _check(golden: Golden, output: Output, targets: list[Target], total: float) -> dict[str, Tensor]:
    matches = CRITERION.match(output, targets)
    layers = [*(f"aux_{index}" for index in range(len(output.layers) - 1)), "final"]
    found = {name: pairs(matches, layer, len(targets)) for layer, name in enumerate(layers)}
    assert found == golden["hungarian"]
    losses = set_losses(CRITERION, output, targets)
    check_losses(losses, golden.record)
    assert weighted_total(CRITERION, losses).item() == pytest.approx(total, rel=1e-4)
    return losses


def test_matching_and_losses(run):
    golden, _, output = run
    _check(golden, output, golden.targets(), golden["total_loss"])
    ones = {name: torch.ones(6) for name in ("class", "l1", "giou")}
    assert official_losses(ones, (2, 5, 2)) == golden["weight_dict"]


def test_gradients(run):
    golden, model, _ = run
    model = copy.deepcopy(model)
    weighted_total(CRITERION, set_losses(CRITERION, model(golden.images()), golden.targets())).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    norms = {name: gradients[our_name(name, ROWS, gradients)].norm().item() for name in golden["gradient_l2"]}
    assert norms == pytest.approx(golden["gradient_l2"], rel=1e-3)  # two of them are exactly 0: see the first layer
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert total == pytest.approx(golden["gradient_l2_all_trainable"], rel=1e-3)


def test_postprocessing(run):
    golden, _, _ = run
    stored = Predictions(golden.arrays["pred_logits"], golden.arrays["pred_boxes"], Sigmoid())
    check_detections(golden, stored, golden["inputs"]["orig_sizes_hw"])


@pytest.fixture
def synthetic() -> tuple[Golden, Output, list[Target]]:
    golden = Golden("conditional/criterion")
    arrays = golden.arrays
    inputs = {name: arrays[name].requires_grad_() for name in arrays if name.startswith("in.")}
    prefixes = ("in.aux0.", "in.aux1.", "in.")
    layers = [Predictions(inputs[f"{name}pred_logits"], inputs[f"{name}pred_boxes"], Sigmoid()) for name in prefixes]
    targets = [target(arrays[f"target{index}.labels"], arrays[f"target{index}.boxes"]) for index in range(3)]
    return golden, Output(tuple(layers), torch.zeros(3, 3, 20, 1), (), ()), targets


def test_criterion(synthetic):
    golden, output, targets = synthetic
    losses = _check(golden, output, targets, golden["total"])
    weighted_total(CRITERION, losses).backward()
    for layer, prefix in zip(output.layers, ("aux0.", "aux1.", ""), strict=True):
        close(layer.logits.grad, golden.arrays[f"grad.{prefix}pred_logits"], 1e-5)
        close(layer.boxes.grad, golden.arrays[f"grad.{prefix}pred_boxes"], 1e-5)


def test_criterion_without_targets(synthetic):
    golden, output, _ = synthetic
    losses = set_losses(CRITERION, output, [target(torch.zeros(0), torch.zeros(0, 4))] * 3)
    expected = golden["all_targets_empty"]
    check_losses(losses, expected)
    assert weighted_total(CRITERION, losses).item() == pytest.approx(expected["total"], rel=1e-4)


def test_criterion_postprocessing(synthetic):
    golden, output, _ = synthetic
    check_detections(golden, output.final, golden["postprocess_target_sizes_hw"])


# ---------------------------------------------------------------------------------------------------------------- parts

PARTS = Golden("conditional/parts")


def test_embedding_of_points():
    points = (10 * rule("points.bias", [7, 2, 2])).sigmoid()
    close(points, PARTS.arrays["sine.points"], 1e-6)
    close(embed_coordinates(points.flip(-1), 128), PARTS.arrays["sine.embed"], 1e-5)


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
def test_decoder_layer(is_first):
    layer = ConditionalDecoderLayer(TransformerConfig(ffn_width=64), is_first=is_first).eval()
    prefix, ours = "transformer.decoder.layers.0.", "decoder.layers.0."
    state = {
        our_name(prefix + name, ROWS, ()).removeprefix(ours): rule(name, shape)
        for name, shape in PARTS["state_dict"].items()
    }
    if not is_first:
        state = {name: value for name, value in state.items() if not name.startswith("cross_attention.query_position.")}
    layer.load_state_dict(state)
    shapes = {"tgt": [7, 2, 256], "qpos": [7, 2, 256], "sine": [7, 2, 256], "memory": [9, 2, 256], "pos": [9, 2, 256]}
    inputs = [(10 * rule(f"{name}.bias", shape)).transpose(0, 1) for name, shape in shapes.items()]
    padding = torch.tensor(PARTS["memory_key_padding_mask"], dtype=torch.bool)
    result = layer(*inputs, padding).transpose(0, 1)
    close(result, PARTS.arrays["layer.first" if is_first else "layer.later"])


# ------------------------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("name", VARIANTS.values())
def test_random_start(name):
    """Constants exactly; random tensors by mean, standard deviation and range, each within its sampling error."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = create(name).state_dict()
    record = json.loads((FOLDER / "conditional" / "init_resnet50.json").read_text())  # dilation changes no parameter
    check_start(own, record["stats"], ROWS, normal=["query_embed.weight"])


# --------------------------------------------------------------------------------------------------------- transformers


def test_transformers_gives_the_same(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_features=["stage4"]
    )
    sizes = {"d_model": 64, "num_queries": 12, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96,
             "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
    config = transformers.ConditionalDetrConfig(backbone_config=backbone, num_labels=5, **sizes)
    theirs = transformers.ConditionalDetrForObjectDetection(config).eval()
    theirs.load_state_dict({name: rule(name, list(value.shape)) for name, value in theirs.state_dict().items()})
    theirs.save_pretrained(tmp_path)
    ours = ConditionalDETRConfig(
        backbone=BackboneConfig(depth=18),
        transformer=TransformerConfig(width=64, num_heads=4, ffn_width=96, encoder_layers=2, decoder_layers=3),
        num_queries=12,
    ).build(5, Sigmoid())
    own = set(ours.state_dict())
    saved = read_state(tmp_path / "model.safetensors")
    state = {our_name(name, FAMILY.huggingface.reading, own): value for name, value in saved.items()}
    load_weights(ours.eval(), joined(state))
    generator = torch.Generator().manual_seed(0)
    batch = ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in ((96, 160), (128, 104))])
    with torch.no_grad():
        expected = theirs(batch.pixels, pixel_mask=(~batch.padding).long())
        found = ours(batch).final
    close(found.logits, expected.logits)
    close(found.boxes, expected.pred_boxes)
