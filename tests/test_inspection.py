"""Collected attention weights of every model, against a plain computation and against the outputs that they lead to.

Shape letters: B batch, Q queries, N keys or tokens of the memory, D width, H heads, d width of a head, L levels,
P points.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inputs import run_model
from opendetr.models.conditional import ConditionalAttention, QueryAttention
from opendetr.models.detector import Detector
from opendetr.models.masks import MaskAttention, MaskedDetector
from opendetr.nn import (
    AttentionModule,
    DeformableAttention,
    MultiHeadAttention,
    attention_weights,
    collect_attention,
    scaled_dot_product_attention,
)
from opendetr.presets import build_model, list_models, miniature
from opendetr.structures import ImageBatch
from opendetr.training.activation_checkpointing import recompute_blocks

everyone = pytest.mark.parametrize("name", list_models())
SIZES = ((96, 64), (64, 128))  # both images are padded, by whole cells of stride 32

Arguments = dict[str, Any]
Record = dict[str, list[tuple[Arguments, Tensor]]]


def sharp_model(name: str) -> Detector:
    """A miniature whose attention differs from query to query, which untrained attention hardly does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(miniature(name), num_classes=4).eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, AttentionModule):
                    for parameter in module.parameters():
                        parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def padded_images() -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in SIZES])


def run(model: Detector) -> list[Tensor]:
    """All outputs of a forward pass with dropout from seed 5; a model with masks computes some of either image."""
    torch.manual_seed(5)
    output = run_model(model, padded_images(), continued=True)
    layers = (*output.layers, *getattr(output, "tracks", ()))
    outputs = [tensor for layer in layers for tensor in (layer.logits, layer.boxes)]
    if isinstance(model, MaskedDetector):
        outputs.append(model.masks(output, torch.tensor([1, 0, 1]), torch.tensor([3, 0, 1])))
    return outputs


def record_calls(model: nn.Module) -> Record:
    """What every attention module is called with and returns from now on."""
    record: Record = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, AttentionModule):

            def keep(module: nn.Module, args: tuple, kwargs: dict, output: Tensor, name: str = name) -> None:
                bound = inspect.signature(module.forward).bind(*args, **kwargs)
                bound.apply_defaults()
                record[name].append((bound.arguments, output))

            module.register_forward_hook(keep, with_kwargs=True)
    return record


# ---------------------------------------------------------------------------------------------- the plain computation


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("...d,ed->...e", x.double(), weight.double()) + bias.double()


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def products(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """(B, Q, D), (B, N, D) -> (B, H, Q, N), dot products head by head."""
    q, k = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key))
    return torch.einsum("bqhd,bnhd->bhqn", q, k)


def normalised(scores: Tensor, padding: Tensor | None, over: tuple[int, ...] = (-1,)) -> Tensor:
    """Softmax over some axes, without what `padding`, of a shape like that of `scores`, hides."""
    shares = (scores - scores.amax(over, keepdim=True)).exp()
    if padding is not None:
        shares = shares * ~padding
    return shares / shares.sum(over, keepdim=True)


def in_rows(padding: Tensor | None) -> Tensor | None:
    return None if padding is None else padding[:, None, None, :]


def weighted_values(weights: Tensor, value: Tensor) -> Tensor:
    """(B, H, Q, N), (B, N, D) -> (B, Q, D)."""
    values = value.reshape(*value.shape[:2], weights.shape[1], -1)
    return torch.einsum("bhqn,bnhd->bqhd", weights.double(), values).flatten(2)


def plain_multi_head(module: MultiHeadAttention, a: Arguments) -> Tensor:
    (query_w, key_w, _), (query_b, key_b, _) = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    scores = products(linear(a["query"], query_w, query_b), linear(a["key"], key_w, key_b), module.num_heads)
    hidden = in_rows(a["padding"])
    if a["num_groups"] > 1:
        queries, keys = (torch.arange(scores.shape[axis]) * a["num_groups"] // scores.shape[axis] for axis in (2, 3))
        others = (queries[:, None] != keys)[None, None]
        hidden = others if hidden is None else hidden | others
    return normalised(scores / math.sqrt(query_w.shape[0] / module.num_heads), hidden)


def multi_head_output(module: MultiHeadAttention, a: Arguments, weights: Tensor) -> Tensor:
    value = linear(a["value"], module.in_proj_weight.chunk(3)[2], module.in_proj_bias.chunk(3)[2])
    return apply_linear(module.out_proj, weighted_values(weights, value))


def plain_query(module: QueryAttention, a: Arguments) -> Tensor:
    query, key = (
        apply_linear(of_content, a["content"]) + apply_linear(of_position, a["position"])
        for of_content, of_position in (
            (module.query_content, module.query_position),
            (module.key_content, module.key_position),
        )
    )
    return normalised(products(query, key, module.num_heads) / math.sqrt(query.shape[-1] / module.num_heads), None)


def query_output(module: QueryAttention, a: Arguments, weights: Tensor) -> Tensor:
    return apply_linear(module.out_proj, weighted_values(weights, apply_linear(module.value, a["content"])))


def content_and_spatial_scores(module: ConditionalAttention, a: Arguments) -> tuple[Tensor, Tensor]:
    query, key = apply_linear(module.query_content, a["content"]), apply_linear(module.key_content, a["memory"])
    key_place = apply_linear(module.key_place, a["position"])
    if module.query_position is not None:
        query, key = query + apply_linear(module.query_position, a["query_position"]), key + key_place
    scale = math.sqrt(2 * query.shape[-1] / module.num_heads)
    spatial = products(apply_linear(module.query_place, a["query_place"]), key_place, module.num_heads)
    return products(query, key, module.num_heads) / scale, spatial / scale


def plain_conditional(module: ConditionalAttention, a: Arguments) -> Tensor:
    return normalised(sum(content_and_spatial_scores(module, a)), in_rows(a["padding"]))


def conditional_output(module: ConditionalAttention, a: Arguments, weights: Tensor) -> Tensor:
    return apply_linear(module.out_proj, weighted_values(weights, apply_linear(module.value, a["memory"])))


def plain_mask(module: MaskAttention, a: Arguments) -> Tensor:
    """(n, H, N): the keys come projected, and the softmax runs over all heads and cells, or over the cells."""
    query, padding = apply_linear(module.query, a["queries"]), a["padding"]
    scores = products(query[None], a["key"].double()[None], module.num_heads)[0].transpose(0, 1)
    scores = scores / math.sqrt(query.shape[-1] / module.num_heads)
    over = (2,) if module.softmax_per_head else (1, 2)
    return normalised(scores, None if padding is None else padding[None, None], over=over)


def plain_deformable(module: DeformableAttention, a: Arguments) -> tuple[Tensor, Tensor]:
    batch, queries = a["query"].shape[:2]
    of_samples = (batch, queries, module.num_heads, module.num_levels, module.num_points)
    scores = apply_linear(module.attention_weights, a["query"]).reshape(of_samples)
    offsets = apply_linear(module.sampling_offsets, a["query"]).reshape(*of_samples, 2)
    locations = torch.empty_like(offsets)
    for level, (h, w) in enumerate(a["shapes"]):
        reference = a["reference"][:, :, level].double()[:, :, None, None]
        unit = torch.tensor([1 / h, 1 / w] if module.swap_offsets else [1 / w, 1 / h]).double()
        if reference.shape[-1] == 4:
            unit = reference[..., 2:] / 2 / module.num_points
        locations[:, :, :, level] = reference[..., :2] + offsets[:, :, :, level] * unit
    return locations, normalised(scores, None, over=(3, 4))


def deformable_output(module: DeformableAttention, a: Arguments, sampled: tuple[Tensor, Tensor]) -> Tensor:
    """Bilinear samples by hand: every cell counts by how near its centre is to the location, in cells."""
    value = apply_linear(module.value_proj, a["memory"])
    if a["padding"] is not None:
        value = value * ~a["padding"][..., None]
    values = value.reshape(*value.shape[:2], module.num_heads, -1).split([h * w for h, w in a["shapes"]], 1)
    total = torch.zeros(())
    for level, (h, w) in enumerate(a["shapes"]):
        x, y = (sampled[0].double()[:, :, :, level] * torch.tensor([w, h]) - 0.5).unbind(-1)
        near_x = (1 - (x[..., None] - torch.arange(w)).abs()).clamp(min=0)
        near_y = (1 - (y[..., None] - torch.arange(h)).abs()).clamp(min=0)
        map_ = values[level].reshape(len(value), h, w, module.num_heads, -1)
        total = total + torch.einsum(
            "bqkp,bqkpy,bqkpx,byxkd->bqkd", sampled[1].double()[:, :, :, level], near_y, near_x, map_
        )
    return apply_linear(module.output_proj, total.flatten(2))


PLAIN = {
    MultiHeadAttention: (plain_multi_head, multi_head_output),
    QueryAttention: (plain_query, query_output),
    ConditionalAttention: (plain_conditional, conditional_output),
    DeformableAttention: (plain_deformable, deformable_output),
    MaskAttention: (plain_mask, lambda module, a, weights: weights),
}


def tensors(weights: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The weights alone, or locations and weights."""
    return weights if isinstance(weights, tuple) else (weights,)


# ----------------------------------------------------------------------------------------------------- the whole family


@everyone
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_collected_weights_are_those_of_the_plain_computation(name, training):
    model = sharp_model(name).train(training)
    record, modules = record_calls(model), dict(model.named_modules())
    with collect_attention(model) as attention:
        run(model)
    assert attention.keys() == record.keys()
    for key, calls in record.items():
        plain, output_of = PLAIN[type(modules[key])]
        assert len(attention[key]) == len(calls)
        for (arguments, output), weights in zip(calls, attention[key], strict=True):
            for found, expected in zip(tensors(weights), tensors(plain(modules[key], arguments)), strict=True):
                assert found.dtype == torch.float32
                torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
            if not training:  # then there is no dropout between weights and output
                again = output_of(modules[key], arguments, weights)
                torch.testing.assert_close(output.double(), again.double(), atol=1e-5, rtol=1e-5)


@everyone
@torch.no_grad()
def test_every_attention_module_is_collected_and_its_weights_sum_to_one(name):
    model, preset = sharp_model(name), miniature(name)
    with collect_attention(model) as attention:
        run(model)
    transformer = preset.model.transformer
    of_text = sum(isinstance(module, AttentionModule) for each, module in model.named_modules() if "text." in each)
    of_tracks = sum(any(part in key for part in ("track_", "interaction")) for key in attention)
    expected = transformer.encoder_layers + 2 * transformer.decoder_layers + preset.has_masks + of_text + of_tracks
    assert len(attention) == expected
    modules = dict(model.named_modules())
    own = {key: type(module) for key, module in modules.items() if type(module).__module__.startswith("opendetr")}
    assert attention.keys() == {key for key, kind in own.items() if "Attention" in kind.__name__}
    for key, calls in attention.items():
        assert len(calls) == (2 if isinstance(modules[key], MaskAttention) else 1)  # both images are asked for masks
        for weights in calls:
            over = {DeformableAttention: (-2, -1), MaskAttention: (-2, -1)}.get(type(modules[key]), (-1,))
            over = (-1,) if getattr(modules[key], "softmax_per_head", False) else over
            sums = tensors(weights)[-1].sum(over)
            torch.testing.assert_close(sums, torch.ones_like(sums))


@everyone
@torch.no_grad()
def test_padding_has_no_weight(name):
    model = sharp_model(name)
    record = record_calls(model)
    with collect_attention(model) as attention:
        run(model)
    padded = [
        (weights, arguments["padding"])
        for key, calls in record.items()
        for weights, (arguments, _) in zip(attention[key], calls, strict=True)
        if arguments.get("padding") is not None and isinstance(weights, Tensor)
    ]
    assert padded or "deformable" in name or "transtrack" in name
    for weights, padding in padded:
        assert padding.any()
        hidden = padding[:, None, None] if padding.dim() == 2 else padding  # the mask attention sees one image
        assert not weights.masked_select(hidden).any()


@everyone
@pytest.mark.parametrize("mode", ["eval", "train", "train in bfloat16"])
def test_collecting_changes_no_bit(name, mode):
    model = sharp_model(name).train(mode != "eval")
    passes = []
    for context in (nullcontext(), collect_attention(model), nullcontext()):
        with context as attention, torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in mode):
            outputs = run(model)
        sum(output.float().square().sum() for output in outputs).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert len(gradients) > 10
        passes.append([*outputs, *gradients, torch.get_rng_state()])
        model.zero_grad(set_to_none=True)
        if attention is not None:
            collected = [tensor for calls in attention.values() for weights in calls for tensor in tensors(weights)]
            assert not any(tensor.requires_grad for tensor in collected)
            assert {tensor.dtype for tensor in collected} == {torch.float32}
    for tensors_of_pass in zip(*passes, strict=True):
        assert all(torch.equal(tensor, tensors_of_pass[0]) for tensor in tensors_of_pass[1:])


# --------------------------------------------------------------------------------------------------- one of each kind


one_of_each_kind = pytest.mark.parametrize("name", ["detr-r50-panoptic", "conditional-detr-r50", "deformable-detr-r50"])


@one_of_each_kind
def test_activation_checkpointing_gives_the_same(name):
    model = sharp_model(name).train()
    with collect_attention(model) as expected:
        run(model)
    assert recompute_blocks(model)
    gradients = []
    for observed in (False, True):
        with collect_attention(model) if observed else nullcontext() as attention:
            outputs = run(model)
        sum(output.square().sum() for output in outputs).backward()  # runs the layers again, unobserved
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        model.zero_grad(set_to_none=True)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert attention.keys() == expected.keys()
    for key, calls in attention.items():
        for weights, others in zip(calls, expected[key], strict=True):
            assert all(torch.equal(one, other) for one, other in zip(tensors(weights), tensors(others), strict=True))


@one_of_each_kind
def test_weights_have_gradients_where_they_are_asked_for(name):
    model = sharp_model(name)
    record, modules = record_calls(model), dict(model.named_modules())
    with torch.no_grad():
        run(model)
    for key, calls in record.items():
        module = modules[key]
        tensors(module.weights(**calls[0][0]))[-1].square().sum().backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters()), key


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@torch.no_grad()
def test_no_hook_stays():
    model = sharp_model("detr-r50")
    with collect_attention(model):
        assert hooks_of(model) == 6
    assert hooks_of(model) == 0
    with pytest.raises(KeyboardInterrupt), collect_attention(model):
        raise KeyboardInterrupt
    assert hooks_of(model) == 0


@torch.no_grad()
def test_nothing_is_computed_for_modules_that_are_not_named(monkeypatch):
    model, calls = sharp_model("detr-r50"), []
    weights = MultiHeadAttention.weights
    monkeypatch.setattr(MultiHeadAttention, "weights", lambda *args: calls.append(args[0]) or weights(*args))
    run(model)
    assert not calls
    with collect_attention(model, "decoder.*.cross_attention") as attention:
        run(model)
        run(model)
    assert list(attention) == ["decoder.layers.0.cross_attention", "decoder.layers.1.cross_attention"]
    assert [len(each) for each in attention.values()] == [2, 2]
    assert len(calls) == 4


def test_a_name_that_no_module_has_is_an_error():
    with pytest.raises(ValueError, match=r"no attention module is named 'decoder'; there are encoder\.layers\.0"):
        collect_attention(sharp_model("detr-r50"), "decoder").__enter__()
    with pytest.raises(ValueError, match="the model has no attention modules"):
        collect_attention(nn.Linear(2, 2)).__enter__()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_image_that_is_all_padding_has_no_weights_and_no_attention(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 5, 32, generator=generator).to(dtype) for _ in range(3))
    padding = torch.tensor([[True], [False]]).expand(2, 5)
    weights = attention_weights(query, key, 4, padding)
    assert weights.dtype == torch.float32
    assert not weights[0].any()
    torch.testing.assert_close(weights[1].sum(-1), torch.ones(4, 5))
    assert not scaled_dot_product_attention(query, key, value, 4, padding)[0].any()
