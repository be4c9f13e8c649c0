"""The options that the ablations of the DETR paper need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import opendetr
from opendetr.config import ConfigError, replaced
from opendetr.export import export_official
from opendetr.models import DETR
from opendetr.presets import build_model, build_task, get_preset, miniature
from opendetr.structures import Batch, FeatureMap, ImageBatch, Target

NUM_CLASSES = 3


def small(**model: Any) -> DETR:
    """A miniature without dropout, always with the same random weights."""
    preset = replaced(miniature("detr-tiny"), {"model": model})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build_model(preset, NUM_CLASSES).eval()
    assert isinstance(built, DETR)
    return built


def level(seed: int = 1) -> FeatureMap:
    return FeatureMap(torch.randn(1, 32, 3, 4, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def boxes_of(model: DETR, features: FeatureMap) -> torch.Tensor:
    return model.decode(model.encode((features,))).final.boxes


def shuffled(features: FeatureMap) -> FeatureMap:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    return FeatureMap(features.values.flatten(2)[..., order].unflatten(2, (3, 4)))


def test_the_paper_counts_28_million_parameters_without_feed_forward_blocks():
    with torch.device("meta"):
        plain = build_model(get_preset("detr-r50"), 91)
        without = build_model(replaced(get_preset("detr-r50"), {"model": {"transformer": {"ffn_width": 0}}}), 91)
    trained = [sum(each.numel() for each in model.parameters() if each.requires_grad) for model in (plain, without)]
    assert trained[0] == pytest.approx(41.3e6, abs=0.1e6)
    assert trained[1] == pytest.approx(28.7e6, abs=0.1e6)


@pytest.mark.parametrize("name", ["detr-tiny", "conditional-detr-tiny"])
def test_without_feed_forward_blocks_the_rest_is_the_same(name):
    preset = miniature(name)
    plain = build_model(preset, NUM_CLASSES).eval()
    without = build_model(replaced(preset, {"model": {"transformer": {"ffn_width": 0}}}), NUM_CLASSES).eval()
    state = {key: value for key, value in plain.state_dict().items() if "feed_forward" not in key}
    assert without.state_dict().keys() == state.keys()
    without.load_state_dict(state)
    for module in plain.modules():  # a block that adds nothing, between norms that change nothing
        if hasattr(module, "feed_forward"):
            module.feed_forward_residual.forward = lambda x, sublayer: x
    images = ImageBatch.from_images([torch.randn(3, 64, 48)])
    with torch.no_grad():
        assert torch.equal(plain(images).final.boxes, without(images).final.boxes)


@pytest.mark.parametrize("encoder", ["attention", "input", "none"])
@pytest.mark.parametrize("decoder", ["attention", "input", "none"])
def test_cells_are_a_set_only_without_position_encodings(encoder, decoder):
    model, features = small(placement={"encoder": encoder, "decoder": decoder}), level()
    same = torch.allclose(boxes_of(model, features), boxes_of(model, shuffled(features)), atol=1e-5)
    assert same == (encoder == decoder == "none")


def test_placements_differ_and_add_no_weights():
    features, found = level(), []
    for placement in (
        {},
        {"encoder": "input"},
        {"encoder": "none"},
        {"decoder": "input"},
        {"decoder": "none"},
        {"queries": "input"},
    ):
        model = small(placement=placement)
        assert model.state_dict().keys() == small().state_dict().keys()
        found.append(boxes_of(model, features))
    for index, boxes in enumerate(found):
        assert all(not torch.allclose(boxes, other, atol=1e-6) for other in found[:index])


def test_positions_at_the_input_are_added_once():
    model, features = small(placement={"encoder": "input", "decoder": "none"}), level()
    placed = FeatureMap(features.values + model.position(features))
    nowhere = small(placement={"encoder": "none", "decoder": "none"})
    torch.testing.assert_close(boxes_of(model, features), boxes_of(nowhere, placed))


@pytest.mark.parametrize("name", ["conditional-detr-tiny", "mdetr-tiny", "up-detr-tiny"])
def test_other_members_refuse_placements(name):
    preset = replaced(get_preset(name), {"model": {"placement": {"encoder": "none"}}})
    with pytest.raises(ConfigError, match=r"model\.placement"):
        build_model(preset, NUM_CLASSES)


def test_learned_positions_must_be_used():
    with pytest.raises(ConfigError, match="learned positions"):
        small(position="learned", placement={"encoder": "none", "decoder": "none"})


@pytest.mark.parametrize("model", [{"transformer": {"ffn_width": 0}}, {"placement": {"queries": "input"}}])
def test_no_other_implementation_has_these_options(tmp_path, model):
    preset = replaced(miniature("detr-tiny"), {"model": model})
    detector = build_model(preset, NUM_CLASSES)
    with pytest.raises(ConfigError, match="only in OpenDETR"):
        export_official(detector, preset, tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["detr-tiny", "deformable-detr-tiny"])
def test_without_auxiliary_losses_only_the_last_layer_counts(name):
    preset = miniature(name)
    off = replace(preset, criterion=replace(preset.criterion, auxiliary=False))
    targets = tuple(Target(torch.tensor([1]), torch.full((1, 4), 0.4), (64, 64), (64, 64), 0) for _ in range(2))
    batch = Batch(ImageBatch.from_images([torch.randn(3, 64, 64)] * 2), targets)
    model = build_model(preset, NUM_CLASSES)
    plain = build_task(preset, model, NUM_CLASSES)(batch)
    task = build_task(off, model, NUM_CLASSES)
    losses = task(batch)
    for term in ("class", "l1", "giou"):
        assert losses[term][-1] == plain[term][-1]
        assert plain[term][:-1].all()
        assert not losses[term][:-1].any()
    task.total(losses).backward()
    assert all(each.grad is not None for each in task.parameters() if each.requires_grad)


def test_old_checkpoints_have_the_published_options():
    preset = get_preset("detr-r50")
    record = opendetr.config.to_dict(preset)
    del record["model"]["placement"], record["criterion"]["auxiliary"]
    assert opendetr.presets.preset_from_dict(record) == preset
