"""Our own files, and the transfer of weights to other classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from folders import write_image
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.config import to_dict
from opendetr.inference.predictor import load
from opendetr.models.detector import Detector
from opendetr.models.detr import DETR
from opendetr.presets import Preset, build_model, list_models, miniature, trained_from_nothing
from opendetr.structures import ImageBatch
from opendetr.weights import (
    ModelCard,
    WeightsError,
    load_weights,
    read_card,
    read_state,
    save_weights,
    transfer,
    weights_file,
)

OLD, NEW = Categories.from_names("abc"), Categories.from_names("xcaz")


def _models(name: str) -> tuple[Detector, Detector]:
    torch.manual_seed(0)
    preset = miniature(name)
    return build_model(preset, preset.num_classes(OLD)), build_model(preset, preset.num_classes(NEW))


def _snapshot(model: Detector) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", list_models())
def test_transfer_row_by_row(name):
    """Every tensor with a row a class, of every head; every other tensor whole."""
    old, new = _models(name)
    before, source = _snapshot(new), _snapshot(old)
    report = transfer(new, source, OLD, NEW)
    classes = (("c", "a"), ("x", "z"), ("b",)) if new.class_rows else ((), (), ())
    assert (report.kept, report.new, report.dropped) == classes
    rows_seen = 0
    for tensor, value in new.state_dict().items():
        if value.shape == source[tensor].shape:
            assert torch.equal(value, source[tensor]), tensor
            continue
        is_objectness = tensor in new.objectness_rows
        assert is_objectness or tensor in new.class_rows, tensor
        expected = {0: 0} if is_objectness else {1: 2, 2: 0, 4: 3}  # c, a, and "no object" where there is one
        for row in range(len(value)):
            wanted = source[tensor][expected[row]] if row in expected else before[tensor][row]
            assert torch.equal(value[row], wanted), (tensor, row)
        rows_seen += 1
    has_own_classes = miniature(name).num_classes(NEW) != len(NEW)  # not those of the dataset
    assert rows_seen == (0 if has_own_classes else len(new.class_rows) + len(new.objectness_rows))


def test_transfer_to_the_same_classes_keeps_everything_that_is_used():
    preset = miniature("deformable-detr-r50-two-stage")
    torch.manual_seed(0)
    old, other = build_model(preset, len(OLD)), build_model(preset, len(OLD))
    transfer(other, old.state_dict(), OLD, OLD)
    for name, value in other.state_dict().items():
        expected = old.state_dict()[name]
        assert torch.equal(value[:1], expected[:1]) if name in other.objectness_rows else torch.equal(value, expected)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        first, second = (model.eval()(ImageBatch(images, None, torch.tensor([[64, 96]]))) for model in (old, other))
    assert torch.equal(first.final.boxes, second.final.boxes)
    assert torch.equal(first.final.logits, second.final.logits)


@pytest.mark.parametrize("name", ["detr-r50", "conditional-detr-r50", "deformable-detr-r50", "deformable-detr-tiny"])
@pytest.mark.parametrize("count", [5, 12, 30])
def test_queries_are_kept_and_new_ones_split_from_them(name, count):
    preset = miniature(name)
    torch.manual_seed(0)
    old = build_model(preset, len(OLD))
    new = build_model(replace(preset, model=replace(preset.model, num_queries=count)), len(OLD))
    transfer(new, old.state_dict(), OLD, OLD)
    assert new.num_queries == count
    for tensor in new.query_rows:
        before, after = old.state_dict()[tensor], new.state_dict()[tensor]
        assert torch.equal(after[: min(count, 12)], before[:count])
        for row in range(12, count):
            moved = (after[row] - before[row % 12]).norm() / before.std() / before.shape[1] ** 0.5
            assert 0.002 < moved < 0.05


def test_transfer_of_other_numbers_of_rows_is_refused():
    """The state has rows for 3 classes and is said to have 2."""
    for name in ("detr-tiny", "deformable-detr-r50-two-stage"):
        old, new = _models(name)
        before = _snapshot(new)
        with pytest.raises(WeightsError, match=f"shape of {new.class_rows[0]}"):
            transfer(new, old.state_dict(), Categories.from_names("ab"), NEW)
        assert all(torch.equal(value, before[key]) for key, value in new.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ our files


@pytest.fixture
def saved(tmp_path) -> Path:
    preset = miniature("deformable-detr-r50")
    torch.manual_seed(0)
    card = ModelCard(to_dict(preset), NEW, {"steps": 3})
    save_weights(tmp_path / "model.safetensors", build_model(preset, len(NEW)), card)
    return tmp_path / "model.safetensors"


def test_our_file_there_and_back(saved):
    card = read_card(saved)
    assert card == ModelCard(json.loads(json.dumps(to_dict(miniature("deformable-detr-r50")))), NEW, {"steps": 3})
    model = build_model(miniature("deformable-detr-r50"), len(NEW))
    report = load_weights(model, saved)
    assert (report.layout, report.num_tensors) == ("opendetr", len(model.state_dict()))


@pytest.mark.parametrize("part", ["transformer", "detector", "model.encoder"])
def test_own_names_may_begin_like_those_of_another_layout(part):
    """A family that is not registered has our layout, whatever its modules are called."""
    preset = miniature("detr-tiny")
    scoring = preset.criterion.classification.scoring()

    class Own(DETR):
        family = "own"

        def __init__(self, num_classes: int) -> None:
            super().__init__(preset.model, scoring.num_logits(num_classes), scoring)
            inner: torch.nn.Module = torch.nn.Linear(4, 4)
            for name in reversed(part.split(".")[1:]):
                inner = torch.nn.ModuleDict({name: inner})
            self.add_module(part.partition(".")[0], inner)

    torch.manual_seed(0)
    first, second = Own(len(OLD)), Own(len(OLD))
    assert load_weights(second, first.state_dict()).layout == "opendetr"
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())
    report = transfer(Own(len(NEW)), first.state_dict(), OLD, NEW)
    assert (report.kept, report.left_out) == (("c", "a"), ())
    cut_off = dict(first.state_dict())
    del cut_off["class_head.bias"]
    with pytest.raises(WeightsError, match=r"opendetr layout\): missing class_head\.bias"):
        load_weights(second, cut_off)


def _with_counters() -> tuple[Preset, Detector]:
    """A model whose norms have counted more batches than float16 can hold."""
    preset = trained_from_nothing(miniature("deformable-detr-r50"))
    torch.manual_seed(0)
    model = build_model(preset, len(NEW))
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(70_001)
    return preset, model


def _assert_loaded(model: Detector, given: dict[str, Tensor]) -> None:
    """Every tensor has the dtype of the model, which is float32 or int64, and the value that was given."""
    state = model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    for name, value in state.items():
        assert value.is_floating_point() == given[name].is_floating_point()
        assert torch.equal(value, given[name].to(value.dtype)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_file_of_half_precision(tmp_path, ending, dtype):
    preset, model = _with_counters()
    given = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in _snapshot(model).items()
    }
    path = tmp_path / f"model.{ending}"
    save_file(given, path) if ending == "safetensors" else torch.save(given, path)
    fresh = build_model(preset, len(NEW))
    load_weights(fresh, path)
    _assert_loaded(fresh, given)
    other = build_model(preset, len(OLD))
    transfer(other, given, NEW, OLD)
    assert {value.dtype for value in other.state_dict().values()} == {torch.float32, torch.int64}
    for name in other.class_rows:
        assert torch.equal(other.get_parameter(name)[[2, 0]], given[name][[1, 2]].float())  # c and a


def test_our_file_in_half_precision(tmp_path):
    """Matrices are halved, and nothing else; what is loaded is float32."""
    preset, model = _with_counters()
    save_weights(tmp_path / "model.safetensors", model, ModelCard(to_dict(preset), NEW, {}), half=True)
    given = read_state(tmp_path / "model.safetensors")
    for name, value in _snapshot(model).items():
        is_matrix = value.is_floating_point() and value.ndim > 1
        expected = value.to(torch.float16) if is_matrix else value
        assert given[name].dtype == expected.dtype and torch.equal(given[name], expected), name
    _assert_loaded(load(tmp_path / "model.safetensors", device="cpu").model, given)


def test_a_file_beside_some_other_config_json_says_nothing(saved):
    torch.save({}, saved.with_name("weights.pth"))
    for content in ('{"model_type": "bert"}', "{}"):
        saved.with_name("config.json").write_text(content)
        assert read_card(saved.with_name("weights.pth")) is None
    assert read_card(saved) is not None


def test_which_file_of_a_folder(tmp_path):
    with pytest.raises(WeightsError, match="contains no weights"):
        weights_file(tmp_path)
    for name in ("pytorch_model.bin", "model.safetensors", "last/model.safetensors", "best/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert weights_file(tmp_path) == tmp_path / name
    assert weights_file(tmp_path / "nothing.pth") == tmp_path / "nothing.pth"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}", b"not weights" * 50])
@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors", "model.safetensors.index.json"])
def test_files_that_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_weights(build_model(miniature("detr-tiny"), 3), tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_reads_nothing_outside_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "outside.bin")
    index = tmp_path / "in" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.bin"}}))
    with pytest.raises(WeightsError, match=r"in.outside\.bin: no such file"):
        load_weights(build_model(miniature("detr-tiny"), 3), index)


# --------------------------------------------------------------------------------------------------------- command line


def _opendetr(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def test_export_and_use(tmp_path):
    preset = miniature("conditional-detr-r50")
    torch.manual_seed(0)
    card = ModelCard(to_dict(preset), NEW, {})
    save_weights(tmp_path / "mine.safetensors", build_model(preset, len(NEW)), card)
    write_image(tmp_path / "image.png")
    words = ("--min-score", 0, "--device", "cpu", "--no-draw")
    found = []
    for weights in (tmp_path / "mine.safetensors", tmp_path / "out"):
        if not weights.exists():
            _opendetr("export", tmp_path / "mine.safetensors", tmp_path / "out", "--format", "huggingface")
        out = tmp_path / f"found-{len(found)}"
        _opendetr("predict", tmp_path / "image.png", "--weights", weights, "--out", out, *words)
        found.append(json.loads((out / "predictions.json").read_text()))
    assert found[0]["annotations"] and found[0] == found[1]
    answer = _opendetr("export", tmp_path / "mine.safetensors", tmp_path / "mine.pth", "--format", "official", "--json")
    assert json.loads(answer.stdout)["classes"] == list(NEW.names)
    assert load_weights(build_model(preset, len(NEW)), tmp_path / "mine.pth").layout == "official"


def test_export_in_one_line(tmp_path):
    assert "contains no weights" in _opendetr("export", tmp_path, tmp_path / "o", "--format", "official", code=1).stderr
    assert "no published weights" in _opendetr("export", "detr-r18", tmp_path, "--format", "official", code=1).stderr
    _opendetr("export", "detr-r18", tmp_path, "--format", "other", code=2)
    _opendetr("export", "detr-r18", tmp_path, code=2)


def test_models_say_where_weights_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path))
    (tmp_path / "detr-r101-2c7b67e5.pth").touch()
    rows = {row["name"]: row["weights"] for row in json.loads(_opendetr("models", "--json").stdout)["models"]}
    assert rows["detr-r50"] == {
        "origin": "download", "file": "detr-r50-e632da11.pth", "hub": None, "MiB": 159, "licence": "Apache-2.0",
        "address": "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth", "AP": 0.42,
        "mask AP": None, "PQ": None, "results": {"AP": 0.42}, "cached": False,
        "path": str(tmp_path / "detr-r50-e632da11.pth"),
    }  # fmt: skip
    assert rows["detr-r101"]["cached"] and rows["detr-r18"] == {}
    assert rows["deformable-detr-r50"]["origin"] == "manual"
    lines = {line.split()[0]: line.rstrip() for line in _opendetr("models").stdout.splitlines() if line.strip()}
    assert lines["detr-r50"].endswith("download, 159 MiB")
    assert lines["detr-r101"].endswith("cached, 232 MiB")
    assert lines["conditional-detr-r50"].endswith("manual download")
    assert lines["detr-r50-panoptic"].endswith("download, 165 MiB")
    assert lines["detr-r18"].endswith("none")
