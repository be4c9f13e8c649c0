"""Deformable DETR where the original's numbers do not lead: padding, tiny images, settings that cannot be."""

from __future__ import annotations

import pytest
import torch

from opendetr.config import ConfigError, parse_assignment, replaced
from opendetr.models.deformable import TwoStageDETR
from opendetr.presets import build_model, get_preset, miniature
from opendetr.structures import FeatureMap, ImageBatch


@pytest.fixture
def two_stage() -> TwoStageDETR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(miniature("deformable-detr-r50-two-stage"), 4).eval()


def levels(sizes: list[tuple[int, int]], valid: list[tuple[int, int]]) -> tuple[FeatureMap, ...]:
    """Random values of these sizes, padded but for their upper left corners."""
    made = []
    for number, ((height, width), (h, w)) in enumerate(zip(sizes, valid, strict=True)):
        values = torch.zeros(1, 32, height, width)
        values[..., :h, :w] = torch.randn(1, 32, h, w, generator=torch.Generator().manual_seed(number))
        padding = torch.ones(1, height, width, dtype=torch.bool)
        padding[:, :h, :w] = False
        made.append(FeatureMap(values, padding))
    return tuple(made)


def test_padding_is_proposed_last(two_stage):
    """Even where the class head likes it best."""
    valid = [(6, 4), (3, 2), (2, 1), (1, 1)]
    seen, padded = levels(valid, valid), levels([(9, 8), (5, 4), (3, 2), (2, 1)], valid)
    with torch.no_grad():
        of_padding = two_stage.proposal_content_norm(two_stage.proposal_content.bias)
        two_stage.proposal_class_head.weight[0] = of_padding
        plain, wide = two_stage.decode(two_stage.encode(seen)), two_stage.decode(two_stage.encode(padded))
    scores = wide.proposals.logits[..., 0]
    tokens = torch.cat([level.padding.flatten(1) for level in padded], 1)
    assert scores[tokens].min() > scores[~tokens].max()
    torch.testing.assert_close(wide.final.boxes, plain.final.boxes, atol=1e-5, rtol=0)


def test_an_image_with_fewer_cells_than_queries_has_fewer_queries(two_stage):
    with torch.no_grad():
        output = two_stage(ImageBatch.from_images([torch.zeros(3, 16, 16)]))
    assert output.proposals.boxes.shape == (1, 2 * 2 + 1 + 1 + 1, 4)
    assert output.final.boxes.shape == (1, 7, 4)
    assert two_stage.num_queries == 12


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("deformable-detr-r50-two-stage", "model.refine=false", "model.refine: a two-stage model refines"),
        ("deformable-detr-r50", "model.transformer.num_levels=2", "expected 1, 3, 4 or 5, got 2"),
        ("deformable-detr-r50", "recipe.sampling_rate_factor=2", "recipe.sampling_rate_factor"),
    ],
)
def test_settings_that_cannot_be(name, assignment, message):
    with pytest.raises(ConfigError, match=message) as caught:
        replaced(get_preset(name), parse_assignment(assignment))
    assert "\n" not in str(caught.value)


def test_five_levels():
    preset = replaced(miniature("deformable-detr-r50"), parse_assignment("model.transformer.num_levels=5"))
    model = build_model(preset, 4).eval()
    with torch.no_grad():
        output = model(ImageBatch.from_images([torch.zeros(3, 130, 70), torch.zeros(3, 64, 70)]))
    sizes = [tuple(level.values.shape[-2:]) for level in output.memory]
    assert sizes == [(17, 9), (9, 5), (5, 3), (3, 2), (2, 1)]
    assert [tuple(level.padding.shape[-2:]) for level in output.memory] == sizes
    assert output.final.boxes.isfinite().all()
