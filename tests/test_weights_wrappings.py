"""Checkpoints as other trainers leave them: the weights are found, and an average of them is preferred and said."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opendetr.weights import WeightsError, read_state

STATE = {"transformer.a.weight": torch.ones(2, 3), "backbone.0.body.b": torch.full((4,), 2.0)}
OTHER = {name: value * 0 for name, value in STATE.items()}


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "bare": STATE,
    "model": {"model": STATE, "epoch": 3},
    "state_dict": {"state_dict": STATE},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}},
    "data parallel": {"model": prefixed("module.")},
    "bare data parallel": prefixed("module."),
    "compiled": {"model": prefixed("_orig_mod.")},
    "compiled, data parallel": {"state_dict": prefixed("module._orig_mod.")},
    "compiled parts": {"transformer._orig_mod.a.weight": STATE["transformer.a.weight"],
                       "backbone._orig_mod.0.body.b": STATE["backbone.0.body.b"]},
    "lightning": {"state_dict": prefixed("model."), "pytorch-lightning_version": "2", "callbacks": {}},
    "lightning with a loss": {"state_dict": prefixed("model.") | {"criterion.empty_weight": torch.ones(4)}},
    "key in key": {"checkpoint": 1, "model": {"state_dict": prefixed("module.")}},
    "numpy beside": {"model": STATE, "best": np.float64(0.5), "step": np.int64(3), "curve": np.arange(3.0),
                     "flag": np.bool_(True), "args": Namespace(out=Path("runs"), lr=np.float32(1))},
}  # fmt: skip
AVERAGED = {
    "model_ema": {"model": OTHER, "model_ema": STATE},
    "ema": {"model": OTHER, "ema": {"module": STATE, "updates": 5}},
    "ema_state_dict": {"state_dict": prefixed("module.", OTHER), "ema_state_dict": prefixed("module.")},
    "ema_model": {"state_dict": prefixed("model.", OTHER) | prefixed("ema_model.module.")},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_weights_are_found_in_their_wrapping(tmp_path, name, capsys):
    torch.save(WRAPPED[name], tmp_path / "a.pth")
    state = read_state(tmp_path / "a.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("key", AVERAGED)
def test_an_average_is_preferred_and_said(tmp_path, key, capsys):
    torch.save(AVERAGED[key], tmp_path / "a.pth")
    state = read_state(tmp_path / "a.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "average of the weights" in line and f"({key})" in line


def test_an_average_of_the_parameters_alone_keeps_the_other_tensors(tmp_path):
    average = {"transformer.a.weight": torch.full((2, 3), 7.0)}
    torch.save({"model": STATE, "ema": average}, tmp_path / "a.pth")
    state = read_state(tmp_path / "a.pth")
    assert torch.equal(state["transformer.a.weight"], average["transformer.a.weight"])
    assert torch.equal(state["backbone.0.body.b"], STATE["backbone.0.body.b"])


def test_settings_of_an_average_are_no_average(tmp_path, capsys):
    torch.save({"model": STATE, "ema": {"decay": 0.99}}, tmp_path / "a.pth")
    assert torch.equal(read_state(tmp_path / "a.pth")["backbone.0.body.b"], STATE["backbone.0.body.b"])
    assert capsys.readouterr().err == ""


def test_prefixes_in_safetensors(tmp_path):
    save_file(prefixed("module."), tmp_path / "a.safetensors")
    assert read_state(tmp_path / "a.safetensors").keys() == STATE.keys()


def test_a_file_without_weights_says_what_it_has(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"contains no state dict.*it has epoch, optimizer"):
        read_state(tmp_path / "a.pth")


class Command:
    def __reduce__(self):
        return print, ("code",)


def test_code_is_still_refused(tmp_path, capsys):
    torch.save({"model": STATE, "hook": Command()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_state(tmp_path / "a.pth")
    assert capsys.readouterr().out == ""
