"""Every model of the catalogue: built, run at the edges, counted, and its random start measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from torch import Tensor, nn

import opendetr
from inputs import batch_for, further_inputs, run_model
from opendetr.config import ConfigError, parse_assignment, replaced, to_dict
from opendetr.models.deformable import TwoStageOutput
from opendetr.models.detector import Detector
from opendetr.models.mdetr import MDETR
from opendetr.nn.layers import MLP
from opendetr.presets import (
    Preset,
    build_model,
    build_task,
    create,
    get_preset,
    list_models,
    miniature,
    preset_from_dict,
    registry,
    trained_from_nothing,
)
from opendetr.structures import FeatureMap, ImageBatch, Output, Target
from opendetr.training.run import best_by

NUM_CLASSES = 4
# State-dict tensors (those with several names counted once), all parameters and trainable ones of the published
# models, frozen norms being no parameters.
OFFICIAL = {
    "detr-r50": (458, 41_524_768, 41_302_368),
    "detr-r50-dc5": (458, 41_524_768, 41_302_368),
    "detr-r101": (713, 60_464_672, 60_242_272),
    "detr-r101-dc5": (713, 60_464_672, 60_242_272),
    "detr-r50-panoptic": (490, 42_899_288, 42_676_888),
    "detr-r50-dc5-panoptic": (490, 42_899_288, 42_676_888),
    "detr-r101-panoptic": (745, 61_839_192, 61_616_792),
    "conditional-detr-r50": (564, 43_418_401, 43_196_001),
    "conditional-detr-r50-dc5": (564, 43_418_401, 43_196_001),
    "conditional-detr-r101": (819, 62_358_305, 62_135_905),
    "conditional-detr-r101-dc5": (819, 62_358_305, 62_135_905),
    "deformable-detr-r50-single-scale": (509, 34_066_593, 33_844_193),
    "deformable-detr-r50-single-scale-dc5": (509, 34_066_593, 33_844_193),
    "deformable-detr-r50": (521, 40_069_665, 39_847_265),
    "deformable-detr-r50-refine": (561, 40_849_660, 40_627_260),
    "deformable-detr-r50-two-stage": (574, 41_181_529, 40_959_129),
    "up-detr-r50": (466, 42_619_079, 19_164_167),
    "up-detr-r50-finetuned": (460, 41_525_280, 41_302_880),
    # The pooler of RoBERTa, 590,592 parameters, is frozen, because nothing depends on it.
    "mdetr-r101": (920, 185_382_724, 185_160_324 - 590_592),
    "mdetr-enb3": (889, 152_581_036, 152_581_036 - 590_592),
    "mdetr-enb5": (1131, 169_714_164, 169_714_164 - 590_592),
    "transtrack-r50": (695, 47_097_170, 46_874_770),
    "motr-r50": (623, 44_135_392, 43_912_992),
}

everyone = pytest.mark.parametrize("name", list_models())


def small(name: str) -> Detector:
    """Untrained, but with box heads whose last layer does not start at zero: the boxes depend on the image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(miniature(name), NUM_CLASSES)
        for module in model.modules():
            if isinstance(module, MLP) and not module.layers[-1].weight.any():
                nn.init.normal_(module.layers[-1].weight, std=0.3)
    return model


def images(*sizes: tuple[int, int]) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, height, width, generator=generator) for height, width in sizes])


def target(num_objects: int, size: tuple[int, int] = (64, 64)) -> Target:
    generator = torch.Generator().manual_seed(num_objects)
    boxes = 0.2 + 0.3 * torch.rand(num_objects, 4, generator=generator)
    masks = torch.rand(num_objects, *size, generator=generator) > 0.5
    return Target(torch.arange(num_objects) % NUM_CLASSES, boxes, size, size, image_id=0, masks=masks)


def expected_queries(output: Output, num_queries: int) -> int:
    """Q, or as many as there are proposals to start from."""
    return min(num_queries, output.proposals.boxes.shape[1]) if isinstance(output, TwoStageOutput) else num_queries


def projected_levels(model: Detector, size: tuple[int, int], seed: int) -> tuple[FeatureMap, ...]:
    """What the encoder reads of an image of this size, with random values."""
    with torch.no_grad():
        levels = model.project_features(model.backbone(images(size)))
    generator = torch.Generator().manual_seed(seed)
    return tuple(FeatureMap(torch.randn(level.values.shape, generator=generator)) for level in levels)


def laid_into(wide: FeatureMap, seen: FeatureMap) -> FeatureMap:
    """`seen` in the upper left corner of `wide`, the rest of which becomes padding."""
    h, w = seen.values.shape[-2:]
    values = wide.values.clone()  # what lies under the padding is arbitrary
    values[..., :h, :w] = seen.values
    padding = torch.ones(len(values), *values.shape[-2:], dtype=torch.bool)
    padding[:, :h, :w] = False
    return FeatureMap(values, padding)


# ---------------------------------------------------------------------------------------------------------------- edges


@everyone
@pytest.mark.parametrize("training", [False, True])
def test_every_size_gives_the_same_shapes(name, training):
    model = small(name).train(training)
    config = miniature(name).model
    for sizes in [((1, 1),), ((1, 97),), ((33, 65), (64, 31)), ((64, 64), (64, 64), (1, 1))]:
        with torch.no_grad():
            output = run_model(model, images(*sizes))
        assert len(output.layers) == config.transformer.decoder_layers
        num_queries = expected_queries(output, config.num_queries)
        for layer in output.layers:
            assert layer.logits.shape == (len(sizes), num_queries, model.num_logits)
            assert layer.boxes.shape == (len(sizes), num_queries, 4)
            assert layer.logits.isfinite().all()
            assert (layer.boxes >= 0).all()
            assert (layer.boxes <= 1).all()


@everyone
@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (20, 1)], ids=["none", "one image without", "more than queries"])
def test_losses_and_gradients_are_finite(name, counts):
    preset = trained_from_nothing(miniature(name))
    task = build_task(preset, build_model(preset, NUM_CLASSES), NUM_CLASSES)
    sizes = ((64, 64), (48, 64))
    targets = tuple(target(count, size) for count, size in zip(counts, sizes, strict=True))
    batch = batch_for(task.model, images(*sizes), targets, ("a", "b"))
    losses = task(batch)
    total = task.total(losses)
    total.backward()
    assert total.isfinite()
    needed = {
        each: parameter
        for each, parameter in task.named_parameters()
        if parameter.requires_grad and not each.startswith(task.optional_parameters)
    }
    assert [each for each, parameter in needed.items() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters() if parameter.grad is not None)
    matches = task.match(run_model(task.model, batch.images), batch.targets)
    queries = preset.model.num_queries
    assert len(matches.query) == len(losses["class"]) * sum(min(count, queries) for count in batch.object_counts)


def swaps_offsets(name: str) -> bool:
    """Whether sampling offsets depend on the shape of the padded image, as in the published weights of TransTrack."""
    return getattr(get_preset(name).model.transformer, "swap_offsets", False)


@pytest.mark.parametrize("name", [name for name in list_models() if not swaps_offsets(name)])
def test_more_padding_changes_nothing(name):
    """Beyond the convolutions, which see the padding; the image has hardly more cells than the model has queries."""
    model = small(name).eval()
    seen, wide = projected_levels(model, (48, 32), seed=2), projected_levels(model, (128, 160), seed=3)
    with torch.no_grad():
        plain = model.decode(model.encode(seen))
        padded = model.decode(model.encode(tuple(map(laid_into, wide, seen))))
    for one, other in zip(plain.layers, padded.layers, strict=True):
        torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-5, rtol=0)


@everyone
def test_an_image_that_is_all_padding_harms_nobody(name):
    model = small(name).eval()
    seen = projected_levels(model, (160, 128), seed=3)
    both = []
    for level in seen:
        padding = torch.zeros(2, *level.values.shape[-2:], dtype=torch.bool)
        padding[1] = True
        both.append(FeatureMap(level.values.repeat(2, 1, 1, 1), padding))
    with torch.no_grad():
        memory = model.encode(tuple(both))
        output, alone = model.decode(memory), model.decode(model.encode(seen))
    assert all(level.values.isfinite().all() for level in memory)
    assert output.final.boxes.isfinite().all()
    torch.testing.assert_close(output.final.boxes[:1], alone.final.boxes, atol=1e-5, rtol=0)


@everyone
def test_boxes_and_scores_depend_on_the_image(name):
    """Without which the tests around this one would compare nothing."""
    model = small(name).eval()
    with torch.no_grad():
        output = run_model(model, images((64, 48), (64, 48)))
    for layer in output.layers:
        assert (layer.boxes[0] - layer.boxes[1]).abs().max() > 1e-3
        assert (layer.logits[0] - layer.logits[1]).abs().max() > 1e-3


@everyone
def test_a_batch_answers_as_its_images_do(name):
    model = small(name).eval()
    several = images((64, 48), (64, 48))
    with torch.no_grad():
        together = run_model(model, several).final.boxes
        alone = [model(several[i : i + 1], *further_inputs(model, 1, i)) for i in range(2)]
    torch.testing.assert_close(together, torch.cat([output.final.boxes for output in alone]), atol=1e-5, rtol=0)


@everyone
def test_evaluation_repeats_and_training_has_dropout(name):
    model = small(name)
    batch = images((64, 64))
    with torch.no_grad():
        once, again = run_model(model.eval(), batch), run_model(model, batch)
        other = run_model(model.train(), batch)
    assert torch.equal(once.final.logits, again.final.logits)
    has_dropout = miniature(name).model.transformer.dropout > 0
    assert torch.equal(once.final.logits, other.final.logits) != has_dropout


# --------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes(name):
    with torch.device("meta"):
        model = create(name)
    num_tensors, num_parameters, num_trainable = OFFICIAL[name]
    assert len(model.state_dict()) == num_tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == num_trainable


@everyone
def test_a_model_trained_from_nothing_is_trained_whole(name):
    with torch.device("meta"):
        model = build_model(trained_from_nothing(get_preset(name)), NUM_CLASSES)
    detector = model.get_submodule(model.detector_part or "")
    unused = detector.text.unused_without_pooling() if isinstance(detector, MDETR) else ()
    frozen = [each for each, parameter in model.named_parameters() if not parameter.requires_grad]
    assert [each.partition("text.")[2] for each in frozen] == list(unused)
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms


def test_the_public_names():
    assert opendetr.list_models() == list_models()
    model = opendetr.create("detr-tiny", weights=None, num_classes=7)
    task = opendetr.create_task("detr-tiny", model=model)
    assert task.model is model
    assert model.class_head.out_features == 8


# ------------------------------------------------------------------------------------------------------- initialisation


def expected_start(name: str, parameter: Tensor, modules: dict[str, nn.Module]) -> tuple[float, float]:
    """Mean and standard deviation with which a parameter starts."""
    owner, _, kind = name.rpartition(".")
    module = modules[owner]
    in_transformer = owner.startswith(("encoder.", "decoder."))
    if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
        return (1.0 if kind == "weight" else 0.0), 0.0
    if isinstance(module, nn.Embedding):
        return (0.0, 1.0) if owner == "queries" else (0.5, 1 / math.sqrt(12))
    if owner.startswith("backbone."):  # He et al. 2015, by the number of outputs
        return 0.0, math.sqrt(2 / (parameter.shape[0] * parameter[0, 0].numel()))
    if in_transformer and parameter.ndim > 1:  # Glorot and Bengio 2010
        return 0.0, math.sqrt(2 / sum(parameter.shape))
    if in_transformer and "attention" in owner:
        return 0.0, 0.0
    fan_in = module.weight[0].numel()  # torch's default: uniform within 1 / sqrt(fan_in)
    return 0.0, 1 / math.sqrt(3 * fan_in)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("position", ["sine", "learned"])
def test_every_parameter_starts_as_published(norm, position):
    preset = get_preset("detr-r18")
    backbone = replace(preset.model.backbone, norm=norm)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(replace(preset, model=replace(preset.model, backbone=backbone, position=position)), 91)
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        mean, spread = expected_start(name, parameter, modules)
        values, sure = parameter.detach().double(), 5 / math.sqrt(parameter.numel())
        assert abs(values.mean().item() - mean) <= sure * spread + 1e-9, name
        if spread and parameter.numel() > 100:
            assert values.std().item() == pytest.approx(spread, rel=sure), name
        elif not spread:
            assert values.eq(mean).all(), name


# --------------------------------------------------------------------------------------------------------------- config


@everyone
@pytest.mark.parametrize("change", [lambda preset: preset, trained_from_nothing], ids=["published", "from nothing"])
def test_config_round_trip(name, change):
    for preset in (change(get_preset(name)), change(miniature(name))):
        text = yaml.safe_dump(to_dict(preset), sort_keys=False)
        assert preset_from_dict(yaml.safe_load(text)) == preset


@dataclass(frozen=True, kw_only=True)
class _OtherPreset(Preset):
    """A member that is measured by recall, and shrinks in another way."""

    def metrics(self, data):
        return ["recall", "precision"]

    def headlines(self, data):
        return ("recall",)

    def miniature(self):
        return replace(self, model=replace(self.model, num_queries=5))


def test_a_preset_of_another_kind_needs_no_branch_elsewhere(monkeypatch):
    """Its class survives settings and configs, and what it overrides is what shared code asks it for."""
    monkeypatch.setitem(registry._PRESETS, "other", lambda: _OtherPreset(name="other"))
    preset = preset_from_dict(to_dict(miniature("other")))
    assert isinstance(preset, _OtherPreset)
    assert preset.model == replace(get_preset("other").model, num_queries=5)
    assert preset.headlines(None) == ("recall",)
    by = {each: replaced(preset, {"recipe": {"best_by": each}}) for each in ("auto", "precision", "AP")}
    assert [best_by(by[each], None) for each in ("auto", "precision")] == ["recall", "precision"]
    with pytest.raises(ConfigError, match="no metric of the validation data is called 'AP'; there are recall, precis"):
        best_by(by["AP"], None)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.num_querys=3", "did you mean model.num_queries"),
        ("recipe.epochs=many", "recipe.epochs"),
        ("recipe.epochs=0", "at least 1"),
        ("recipe=3", "group of settings"),
        ("recipe.epochs", "key=value"),
        ("model.backbone.depth=34", "model.backbone.depth"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(assignment, message):
    with pytest.raises(ConfigError, match=message) as caught:
        replaced(get_preset("detr-tiny"), parse_assignment(assignment))
    assert "\n" not in str(caught.value)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean detr-r50"):
        get_preset("detr-r5O")
