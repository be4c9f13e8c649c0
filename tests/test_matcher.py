"""Matching against brute force, and the cases that break matchers."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from golden import set_losses, target
from opendetr.losses.class_terms import SoftmaxClassification
from opendetr.losses.criterion import CriterionConfig, SetCriterion
from opendetr.losses.matcher import MatcherConfig, match, pair_costs
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import Output, Predictions

CLASS_TERM, CONFIG = SoftmaxClassification(), MatcherConfig()


def make_output(num_layers: int, num_images: int, num_queries: int, seed: int = 0) -> Output:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_layers, num_images, num_queries, 5, generator=generator)
    boxes = torch.rand(num_layers, num_images, num_queries, 4, generator=generator) * 0.5 + 0.2
    layers = tuple(Predictions(*layer, SoftmaxNoObject()) for layer in zip(logits, boxes, strict=True))
    return Output(layers, torch.zeros(num_layers, num_images, num_queries, 1), (), ())


def make_targets(counts: list[int], seed: int = 1) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        target(torch.randint(0, 4, (n,), generator=generator), torch.rand(n, 4, generator=generator) * 0.4 + 0.2)
        for n in counts
    ]


def test_equals_brute_force():
    output, targets = make_output(2, 3, 5), make_targets([3, 0, 2])
    costs = pair_costs(output, targets, CLASS_TERM, CONFIG)
    matches = match(pair_costs(output, targets, CLASS_TERM, CONFIG), [len(each) for each in targets])
    first = 0
    for image, count in enumerate([3, 0, 2]):
        for layer in range(2):
            cost = costs[first : first + count, layer]
            least = min(sum(cost[t, q].item() for t, q in enumerate(p)) for p in permutations(range(5), count))
            chosen = (matches.layer == layer) & (matches.image == image)
            found = cost[matches.target[chosen], matches.query[chosen]].sum().item()
            assert chosen.sum() == count
            assert found == pytest.approx(least, abs=1e-5)
        first += count


def test_costs_are_the_published_formula():
    output, targets = make_output(1, 1, 4), make_targets([2])
    costs = pair_costs(output, targets, CLASS_TERM, CONFIG)[:, 0]
    for t, (label, box) in enumerate(zip(targets[0].labels.tolist(), targets[0].boxes, strict=True)):
        for q in range(4):
            logits, guess = output.final.logits[0, q], output.final.boxes[0, q]
            (x0, y0, x1, y1), (u0, v0, u1, v1) = (
                (b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2) for b in (guess, box)
            )
            overlap = max(min(x1, u1) - max(x0, u0), 0) * max(min(y1, v1) - max(y0, v0), 0)
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - overlap
            hull = (max(x1, u1) - min(x0, u0)) * (max(y1, v1) - min(y0, v0))
            giou = overlap / union - (hull - union) / hull
            expected = -logits.softmax(-1)[label] + 5 * (guess - box).abs().sum() - 2 * giou
            assert costs[t, q].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("counts", [[0, 0], [9, 1], [9, 9]])
def test_more_objects_than_queries_and_none_at_all(counts):
    output, targets = make_output(3, 2, 4), make_targets(counts)
    matches = match(pair_costs(output, targets, CLASS_TERM, CONFIG), [len(each) for each in targets])
    assert len(matches) == 3 * sum(min(count, 4) for count in counts)
    criterion = SetCriterion(CriterionConfig())
    losses = set_losses(criterion, output, targets)
    assert all(values.shape == (3,) and values.isfinite().all() for values in losses.values())


def test_a_diverged_model_gives_a_loss_that_says_so():
    output, targets = make_output(1, 1, 4), make_targets([2])
    broken = Predictions(output.final.logits * torch.nan, output.final.boxes, SoftmaxNoObject())
    output = Output((broken,), output.queries, (), ())
    assert set_losses(SetCriterion(CriterionConfig()), output, targets)["class"].isnan().all()


def test_order_of_objects_changes_nothing():
    output, (truth,) = make_output(2, 1, 6), make_targets([4])
    order = torch.tensor([2, 0, 3, 1])
    criterion = SetCriterion(CriterionConfig())
    there = set_losses(criterion, output, [truth])
    back = set_losses(criterion, output, [target(truth.labels[order], truth.boxes[order])])
    for name, values in there.items():
        assert torch.allclose(values, back[name], atol=1e-6)


def test_parts_of_a_step_add_up():
    output, targets = make_output(2, 2, 5), make_targets([3, 1])
    criterion = SetCriterion(CriterionConfig())
    whole = set_losses(criterion, output, targets)
    normaliser = criterion.normaliser([len(target) for target in targets], 5)
    parts = []
    for image in range(2):
        layers = tuple(
            Predictions(p.logits[image : image + 1], p.boxes[image : image + 1], p.scoring) for p in output.layers
        )
        part = Output(layers, output.queries[:, image : image + 1], (), ())
        own = targets[image : image + 1]
        parts.append(criterion(part, own, criterion.match(part, own), normaliser))
    for name, values in whole.items():
        assert torch.allclose(values, parts[0][name] + parts[1][name], atol=1e-6)


def test_strict_scoring_silences_queries_that_say_no_object():
    logits = torch.tensor([[[1.0, 0.0, 3.0], [2.0, 0.0, 0.0]]])
    published, _, _ = SoftmaxNoObject().select(logits)
    strict, labels, queries = SoftmaxNoObject(strict=True).select(logits)
    assert published[0, 0] > 0 and strict[0, 0] == 0
    assert strict[0, 1] == published[0, 1]
    assert SoftmaxNoObject().select(logits, k=1)[2].tolist() == [[1]]
    assert labels.tolist() == [[0, 0]] and queries.tolist() == [[0, 1]]
