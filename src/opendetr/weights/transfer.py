"""Transfers weights to a model with other classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from opendetr.categories import Categories
from opendetr.models import Detector
from opendetr.weights.loading import fitting_part, in_our_layout, load_weights

_SPLIT_NOISE = 0.01  # how far a new query is moved from the one that it is split from, in their standard deviations


@dataclass(frozen=True)
class TransferReport:
    """Which classes a transfer kept.

    Attributes:
        kept: in both, by name: their rows were copied.
        new: only in the new model: their rows are random.
        dropped: only in the old one.
        new_parts: of the model, which the old one did not have: they are random.
        left_out: parts of the old one, which the new model does not have.
    """

    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    new_parts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what}" + (f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else "")
            for what, names in (("kept", self.kept), ("new", self.new), ("dropped", self.dropped))
        ]
        around = f"; new and random: {', '.join(self.new_parts)}" if self.new_parts else ""
        without = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return "classes: " + ", ".join(parts) + around + without


def transfer(model: Detector, state: Mapping[str, Tensor], old: Categories, new: Categories) -> TransferReport:
    """Load weights into a model with other classes: rows of classes of the same name are copied, new ones stay random.

    Rows behind the classes ("no object") are copied too. Where a head has as many rows and only the first of them is
    used, that one is copied. With another number of learned queries the first ones are kept, and new ones split from
    them. Weights of a detector are enough for a model that adds a mask head to it, which then stays random; those of a
    model with a mask head do for the detector in it.

    Args:
        model: the new model; its tensors are those of `state` but for the number of classes.
        state: any layout.
        old, new: what the rows of `state` and of `model` stand for.

    Raises:
        WeightsError: anything else does not fit.
    """
    part = fitting_part(model, state)
    left_out = () if part is state else ("the mask head",)
    state, own = in_our_layout(model, part), model.state_dict()
    new_parts: tuple[str, ...] = ()
    inside = f"{model.detector_part}."
    if model.detector_part is not None and all(name.startswith(inside) for name in state):
        around = {name: value for name, value in own.items() if not name.startswith(inside)}
        new_parts = tuple(dict.fromkeys(name.partition(".")[0] for name in around))
        state |= around
    kept = [name for name in new.names if name in old.names]
    num_others = model.num_logits - len(new)
    of = [old.label_of_name(name) for name in kept] + [len(old) + other for other in range(num_others)]
    to = [new.label_of_name(name) for name in kept] + [len(new) + other for other in range(num_others)]
    for names, from_rows, to_rows in ((model.class_rows, of, to), (model.objectness_rows, [0], [0])):
        for name in names:
            if name not in state or state[name].shape != (len(old) + num_others, *own[name].shape[1:]):
                continue  # load_weights names it
            rows = own[name].clone()
            rows[to_rows] = state[name][from_rows].to(rows)
            state[name] = rows
    for name in model.query_rows:
        if name in state and state[name].shape[1:] == own[name].shape[1:]:
            state[name] = _fitted_queries(state[name], len(own[name]))
    load_weights(model, state)
    return TransferReport(
        tuple(kept),
        tuple(name for name in new.names if name not in old.names),
        tuple(name for name, used in zip(old.names, old.used, strict=True) if used and name not in new.names),
        new_parts,
        left_out,
    )


def _fitted_queries(queries: Tensor, count: int) -> Tensor:
    """(Q, D) -> (count, D): the first ones, and beyond Q copies of all in turn, moved a little so that they part."""
    extra = torch.arange(len(queries), max(count, len(queries))) % len(queries)
    noise = torch.randn(len(extra), queries.shape[1], generator=torch.Generator().manual_seed(0))
    split = queries[extra] + _SPLIT_NOISE * queries.float().std() * noise.to(queries.device)
    return torch.cat((queries[:count], split.to(queries)))
