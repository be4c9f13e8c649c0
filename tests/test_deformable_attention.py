"""Deformable attention against the original's numbers, against brute force, and its three implementations alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from golden import Golden, rule
from opendetr.nn.deformable_attention import DeformableAttention, _sample_levels, _SampleRows, sample_and_sum
from opendetr.nn.native import library, sample_native

SHAPES = ((6, 4), (3, 2), (2, 5))


def rows(value: Tensor, shapes: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    return _SampleRows.apply(value, shapes, locations, weights)


def native(value: Tensor, shapes: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    if library() is None:
        pytest.skip("needs a C compiler")
    return sample_native(value, shapes, locations, weights)


every = pytest.mark.parametrize("sample", [native, rows, _sample_levels])


def brute_force(value: Tensor, shapes: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    """One sample after another, in float64."""
    batch, queries, heads, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=torch.float64)
    for index in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads, levels, points))).tolist():
        b, q, h, level, _ = index
        height, width = shapes[level]
        start = sum(rows * columns for rows, columns in shapes[:level])
        x, y = (locations[tuple(index)].double() * torch.tensor([width, height]) - 0.5).tolist()
        for row in (int(y // 1), int(y // 1) + 1):
            for column in (int(x // 1), int(x // 1) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[tuple(index)].item()
                    out[b, q, h] += share * value[b, start + row * width + column, h].double()
    return out.flatten(2)


def inputs(batch: int = 2, queries: int = 3, heads: int = 2, points: int = 2, width: int = 4) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in SHAPES)
    value = torch.randn(batch, cells, heads, width, generator=generator)
    locations = 1.6 * torch.rand(batch, queries, heads, 3, points, 2, generator=generator) - 0.3
    weights = torch.rand(batch, queries, heads, 3, points, generator=generator)
    return value, locations, weights


@every
def test_equals_brute_force(sample):
    value, locations, weights = inputs()
    locations[0, 0, 0, 0, 0] = torch.tensor([0.0, 1.0])  # on the edges and far outside
    locations[0, 0, 0, 1, 0] = torch.tensor([-5.0, 7.0])
    expected = brute_force(value, SHAPES, locations, weights)
    torch.testing.assert_close(sample(value, SHAPES, locations, weights).double(), expected, atol=2e-6, rtol=0)


@every
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_place_that_is_not_a_number_spoils_its_own_query_alone(sample, heads):
    value, locations, weights = inputs(heads=heads)
    expected = sample(value, SHAPES, locations, weights).clone().unflatten(-1, (heads, -1))
    locations[1, 2, 0, 0, 0, 0] = torch.nan
    out = sample(value.requires_grad_(), SHAPES, locations.requires_grad_(), weights).unflatten(-1, (heads, -1))
    assert out[1, 2, 0].isnan().all()
    expected[1, 2, 0] = torch.nan
    torch.testing.assert_close(out, expected, equal_nan=True)
    out.sum().backward()
    broken = (~locations.grad.isfinite()).flatten(3).any(-1)
    assert broken.nonzero().tolist() in ([], [[1, 2, 0]])
    assert value.grad[0].isfinite().all()


@pytest.mark.parametrize("sample", [native, rows])
def test_whatever_is_not_finite_is_seen(sample):
    for place, weight in ((torch.inf, 1.0), (-torch.inf, 1.0), (torch.nan, 1.0), (0.5, torch.nan), (7.0, torch.nan)):
        value, locations, weights = inputs(heads=1)
        locations[0, 1, 0, 2, 0], weights[0, 1, 0, 2, 0] = place, weight
        out = sample(value, SHAPES, locations, weights)
        assert out[0, 1].isnan().all() == (sample is native or not math.isinf(place)), (place, weight)
        assert out[1].isfinite().all()


@every
def test_core_op_equals_the_original(sample):
    golden = Golden("deformable/core_op")
    arrays = {name: value.clone() for name, value in golden.arrays.items()}
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (arrays[name].requires_grad_() for name in names)
    output = sample(value, SHAPES, locations, weights)
    torch.testing.assert_close(output, arrays["output"], atol=1e-5, rtol=1e-5)
    output.backward(arrays["grad_output"])
    for name, leaf in zip(names, (value, locations, weights), strict=True):
        torch.testing.assert_close(leaf.grad, arrays[f"grad_{name}"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [1, 4, 16, 32, 40, 64, 80])
def test_native_sums_and_gradients_agree_at_any_width_and_number_of_threads(width):
    leaves = [leaf.requires_grad_() for leaf in inputs(batch=1, queries=37, heads=3, width=width)]
    gradient = torch.randn(1, 37, 3 * width, generator=torch.Generator().manual_seed(1))
    expected = _sample_levels(leaves[0], SHAPES, *leaves[1:])
    expected = expected, *torch.autograd.grad(expected, leaves, gradient)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            sums = native(leaves[0], SHAPES, *leaves[1:])
            found.append((sums, *torch.autograd.grad(sums, leaves, gradient)))
    finally:
        torch.set_num_threads(threads)
    for one, two, five, other in zip(*found, expected, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_native_takes_views_as_they_come():
    leaves = [leaf.requires_grad_() for leaf in inputs()]
    turned = [leaf.transpose(1, 2).contiguous().transpose(1, 2) for leaf in leaves]
    expected, out = (native(each[0], SHAPES, *each[1:]) for each in (leaves, turned))
    assert torch.equal(out, expected)
    gradient = torch.randn(1, 1, 8).expand_as(out)
    for one, other in zip(*(torch.autograd.grad(each, leaves, gradient) for each in (out, expected)), strict=True):
        assert torch.equal(one, other)


def test_where_native_code_is_built_it_is_used(monkeypatch):
    if library() is None:
        pytest.skip("needs a C compiler")
    monkeypatch.setattr("opendetr.nn.deformable_attention._SampleRows", None)
    monkeypatch.setattr("opendetr.nn.deformable_attention._sample_levels", None)
    sample_and_sum(*inputs()[:1], SHAPES, *inputs()[1:])


def test_native_refuses_what_does_not_belong_together():
    value, locations, weights = inputs()
    for others in (
        (value[:, 1:], locations, weights),
        (value[:1], locations, weights),
        (value, locations[:, :, :, :2], weights[:, :, :, :2]),
        (value, locations[..., :1, :], weights),
        (value, locations, weights[:, :, :1]),
    ):
        with pytest.raises(ValueError, match="deformable attention: expected"):
            native(others[0], SHAPES, *others[1:])


def test_native_takes_nothing_for_nothing():
    value, locations, weights = inputs()
    assert native(value, SHAPES, locations[:, :0], weights[:, :0]).shape == (2, 0, 8)
    assert native(value[:0], SHAPES, locations[:0], weights[:0]).shape == (0, 3, 8)


def test_native_is_an_operator_of_torch():
    value, locations, weights = inputs()
    sides = [side for shape in SHAPES for side in shape]
    native(value, SHAPES, locations, weights)
    arguments = [value.detach(), sides, locations.detach(), weights.detach()]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.opendetr.sum_samples.default, arguments, test_utils=tests)
    gradient = torch.randn(2, 3, 8)
    torch.library.opcheck(torch.ops.opendetr.spread_samples.default, [*arguments, gradient], test_utils=tests)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(leaf.detach()) for leaf in (value, locations, weights)]
        assert sample_and_sum(fakes[0], SHAPES, *fakes[1:]).shape == (2, 3, 8)


def test_gradients_of_both_implementations_agree_at_any_piece_size(monkeypatch):
    leaves = [leaf.requires_grad_() for leaf in inputs(batch=3, queries=7)]
    out = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(_sample_levels(leaves[0], SHAPES, *leaves[1:]), leaves, out)
    for samples_at_once in (1, 50, 1 << 20):
        monkeypatch.setattr("opendetr.nn.deformable_attention._SAMPLES_AT_ONCE", samples_at_once)
        actual = torch.autograd.grad(rows(leaves[0], SHAPES, *leaves[1:]), leaves, out)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["2", "4"])
def test_module_equals_the_original(kind):
    golden = Golden("deformable/msda_module")
    arrays = golden.arrays
    module = DeformableAttention(32, 4, 3, 2)
    module.load_state_dict({name: rule(name, shape) for name, shape in golden["state_dict"].items()})
    query, memory = arrays["query"].clone().requires_grad_(), arrays["src"].clone().requires_grad_()
    output = module(query, arrays[f"ref{kind}"], memory, SHAPES, arrays["padding_mask"].bool())
    torch.testing.assert_close(output, arrays[f"output{kind}"], atol=1e-5, rtol=1e-5)
    output.backward(arrays["grad_output"])
    torch.testing.assert_close(query.grad, arrays[f"grad_query{kind}"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(memory.grad, arrays[f"grad_src{kind}"], atol=1e-4, rtol=1e-4)
    norms = {name: parameter.grad.norm().item() for name, parameter in module.named_parameters()}
    assert norms == pytest.approx(golden[f"param_gradient_l2_ref{kind}"], rel=1e-3)


@pytest.mark.parametrize(("width", "heads", "levels", "points"), [(256, 8, 4, 4), (32, 4, 3, 2)])
def test_points_start_where_the_original_puts_them(width, heads, levels, points):
    expected = Golden("deformable/msda_module").arrays[
        f"initial_sampling_offsets_bias_d{width}_l{levels}_h{heads}_p{points}"
    ]
    module = DeformableAttention(width, heads, levels, points)
    torch.testing.assert_close(module.sampling_offsets.bias.detach(), expected, atol=1e-6, rtol=0)


def test_a_compiled_module_gives_the_same():
    module = DeformableAttention(32, 4, 3, 2).eval()
    arrays = Golden("deformable/msda_module").arrays
    arguments = arrays["query"], arrays["ref2"], arrays["src"], SHAPES
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), module(*arguments), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["2", "4"])
def test_an_exported_module_gives_the_same(tmp_path, kind):
    runtime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    module, path = DeformableAttention(32, 4, 3, 2).eval(), tmp_path / "module.onnx"
    arrays = Golden("deformable/msda_module").arrays
    arguments = arrays["query"], arrays[f"ref{kind}"], arrays["src"], SHAPES, arrays["padding_mask"].bool()
    program = torch.onnx.export(module, arguments, path, opset_version=18, dynamo=True, verbose=False)
    assert "GridSample" in {node.op_type for node in program.model.graph}
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    inputs = dict(zip(names, [each.numpy() for each in arguments if isinstance(each, Tensor)], strict=True))
    whole = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where the processor has it
    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", whole)
    for exported in (session.run(None, inputs)[0], compiled(inputs)[0]):
        torch.testing.assert_close(torch.from_numpy(exported), module(*arguments), atol=1e-5, rtol=1e-5)
