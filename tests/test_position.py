"""Position encodings against the golden values."""

from __future__ import annotations

import pytest
import torch

from golden import Golden, rule
from opendetr.nn.position import LearnedPosition, SinePosition
from opendetr.structures import FeatureMap

GOLDEN = Golden("detr/position_encoding").arrays
PADDING = GOLDEN["mask"].bool()


@pytest.mark.parametrize("half", [32, 128])
def test_sine(half):
    features = FeatureMap(torch.zeros(2, 1, 7, 9), PADDING)
    assert torch.allclose(SinePosition(2 * half)(features), GOLDEN[f"sine_normalized_{half}"], atol=1e-5)


def test_sine_without_padding_equals_no_padding_set():
    features = torch.zeros(2, 1, 7, 9)
    unset = FeatureMap(features, torch.zeros(2, 7, 9, dtype=torch.bool))
    assert torch.equal(SinePosition(64)(FeatureMap(features)), SinePosition(64)(unset))


def test_learned():
    position = LearnedPosition(64)
    with torch.no_grad():
        position.row_embed.weight.copy_(rule("backbone.1.row_embed.weight", [50, 32]))
        position.col_embed.weight.copy_(rule("backbone.1.col_embed.weight", [50, 32]))
    assert torch.allclose(position(FeatureMap(torch.zeros(2, 1, 7, 9), PADDING)), GOLDEN["learned_32"], atol=1e-6)


def test_learned_says_when_the_image_is_too_large():
    with pytest.raises(ValueError, match="51x9 cells does not fit a table of 50"):
        LearnedPosition(64)(FeatureMap(torch.zeros(1, 1, 51, 9)))
