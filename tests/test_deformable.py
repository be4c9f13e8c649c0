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


def test_queries_can_be_given():
    model = build_model(miniature("deformable-detr-r50-refine"), 4).eval()
    memory = levels([(9, 8), (5, 4), (3, 2), (2, 1)], [(6, 4), (3, 2), (2, 1), (1, 1)])
    with torch.no_grad():
        learned = model.decode(memory)
        position, content = model.queries.weight.chunk(2, -1)
        given = model.decode(memory, position=position, content=content, reference=model.reference_of(position[None]))
        assert torch.equal(given.final.boxes, learned.final.boxes)
        assert torch.equal(given.final.logits, learned.final.logits)
        for changed in ({"position": content}, {"content": position}, {"reference": torch.rand(12, 4)}):
            assert not torch.equal(model.decode(memory, **changed).final.logits, learned.final.logits)
        tracks = model.decode(memory, position=position[:5], content=content[:5], reference=learned.final.boxes[:, :5])
        assert tracks.final.boxes.shape == (1, 5, 4)


def test_boxes_given_to_a_two_stage_model_take_the_place_of_its_proposals(two_stage):
    memory = levels([(6, 4), (3, 2), (2, 1), (1, 1)], [(6, 4), (3, 2), (2, 1), (1, 1)])
    with torch.no_grad():
        own = two_stage.decode(memory)
        given = two_stage.decode(memory, reference=torch.full((3, 4), 0.5))
    assert given.final.boxes.shape == (1, 3, 4)
    assert torch.equal(given.proposals.boxes, own.proposals.boxes)


def test_another_decoder_shares_the_heads_and_keeps_its_references():
    model = build_model(miniature("deformable-detr-r50-refine"), 4).eval()
    memory = levels([(6, 4), (3, 2), (2, 1), (1, 1)], [(6, 4), (3, 2), (2, 1), (1, 1)])
    for head in model.box_heads:  # boxes equal the references
        torch.nn.init.zeros_(head.layers[-1].weight)
        torch.nn.init.constant_(head.layers[-1].bias, 0.5)
    position, content = (part[None] for part in model.queries.weight.chunk(2, -1))
    boxes = torch.full((1, 12, 4), 0.5)
    with torch.no_grad():
        for refine, expected in ((False, (0.5, 0.5)), (True, (0.5, 1.0))):
            layers, queries = model.decode_queries(
                memory, position, content, boxes, decoder=model.decoder, refine=refine
            )
            assert queries.shape == (2, 1, 12, 32)
            logits = [layer.boxes.logit() for layer in layers]
            for found, wanted in zip(logits, expected, strict=True):
                torch.testing.assert_close(found, torch.full((1, 12, 4), wanted))
