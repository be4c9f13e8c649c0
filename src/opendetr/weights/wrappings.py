"""Finds the state dict in a checkpoint, however a trainer has wrapped it.

Trainers put it under a key ("model", "state_dict"), prefix its names ("module." of data parallel, "_orig_mod." of a
compiled model, "model." of Lightning), and keep an average of the weights (EMA) beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_AVERAGES = (
    *("model_ema", "ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "params_ema"),
    *("averaged_model", "swa_model"),
)
_WEIGHTS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_COMPILED = "_orig_mod."
_TRANSFORMERS = ("model.encoder.", "model.decoder.")  # in the layout of transformers, "model." is part of the names
# Modules of a Lightning module beside the model, and the counter of torch's average of weights.
_BESIDE = ("criterion", "loss", "losses", "loss_fn", "loss_fun", "metric", "metrics", "matcher", "n_averaged")


def unwrapped(content: Any) -> tuple[dict[str, Tensor] | None, str | None]:
    """The state dict in the content of a checkpoint.

    Returns:
        The tensors with their names in the model, None if there are none; and the key of an average of the weights
        that is used instead of the weights beside it.
    """
    if not isinstance(content, Mapping):
        return None, None
    named = _named(content, _WEIGHTS)
    weights, inside = _split(_tensors(content) if named is None else named[1])
    average = _named(content, _AVERAGES) or inside
    if average is None:
        return weights, None
    key, found = average
    # An average of the parameters alone has no statistics of norms: these are those of the weights.
    if weights is not None and found.keys() < weights.keys():
        found = {**weights, **found}
    return found, key


def _named(content: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, dict[str, Tensor]] | None:
    """The first of the keys with tensors under it, at any depth, and these tensors with their names in the model."""
    for key in keys:
        value = content.get(key)
        if not isinstance(value, Mapping):
            continue
        state = _tensors(value)
        if state is None:
            inner = _named(value, (*_WEIGHTS, *_AVERAGES, "shadow"))
            state = None if inner is None else inner[1]
        if state:
            return key, without_prefixes(state)
    return None


def _tensors(value: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """A state dict, whose values are tensors; None for other mappings."""
    state = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
    return state if state and len(state) == len(value) else None


def _split(state: dict[str, Tensor] | None) -> tuple[dict[str, Tensor] | None, tuple[str, dict[str, Tensor]] | None]:
    """The weights and the average of the weights in a state dict that has both, under prefixes such as "ema."."""
    if state is None:
        return None, None
    state = without_prefixes(state)
    for key in _AVERAGES:
        inside = {name.removeprefix(f"{key}."): value for name, value in state.items() if name.startswith(f"{key}.")}
        others = {name: value for name, value in state.items() if not name.startswith(f"{key}.")}
        if inside and others:
            return without_prefixes(others), (key, without_prefixes(inside))
    return state, None


def without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that all names have in common, and without what lies beside the model."""
    state = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    while True:
        inside = [name for name in state if name.partition(".")[0] not in _BESIDE]
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in inside)), None)
        if not inside or prefix is None or any(name.startswith(_TRANSFORMERS) for name in inside):
            return state
        state = {name.removeprefix(prefix): state[name] for name in inside}
