"""Transfers weights to a model with other classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from opendetr.categories import Categories
from opendetr.models import Detector
from opendetr.weights.errors import WeightsError
from opendetr.weights.loading import fitting_part, in_our_layout, load_weights

_USUAL_OBJECT = "person"  # the class that published trackers follow
_SPLIT_NOISE = 0.01  # standard deviation of the noise on a split query, relative to that of the queries


@dataclass(frozen=True)
class TransferReport:
    """The classes and parts that a transfer kept, added and dropped.

    Attributes:
        kept: classes with the same name in both models. Their rows were copied.
        new: classes of the new model only. Their rows are random.
        dropped: classes of the old model only.
        new_parts: parts of the new model only. They are random.
        left_out: parts of the old model only.
        kept_parts: parts whose weights were copied, for weights of a pre-training model, which have no classes.
        has_classes: whether the model has rows for classes. Without them, nothing is kept, new or dropped.
    """

    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    new_parts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    kept_parts: tuple[str, ...] = ()
    has_classes: bool = True

    def __str__(self) -> str:
        """What was kept, added and dropped, in one line; empty if there is nothing to say."""
        skipped = f"; skipped: {', '.join(self.left_out)}" if self.left_out else ""
        if self.kept_parts:
            return f"pre-trained: {', '.join(self.kept_parts)}; new and random: {', '.join(self.new_parts)}{skipped}"
        counts = [
            f"{len(names)} {kind}" + (f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else "")
            for kind, names in (("kept", self.kept), ("new", self.new), ("dropped", self.dropped))
        ]
        classes = "; classes: " + ", ".join(counts) if self.has_classes else ""
        added = f"; new and random: {', '.join(self.new_parts)}" if self.new_parts else ""
        return (classes + added + skipped).removeprefix("; ")


def transfer(model: Detector, state: Mapping[str, Tensor], old: Categories, new: Categories) -> TransferReport:
    """Load weights into a model with other classes.

    Rows of classes with the same name are copied, and so are the rows after the classes ("no object"). Rows of new
    classes stay random. For a class head of which only the first row is used, that row is copied. If the number of
    learned queries differs, the first ones are kept, and further ones are noisy copies.

    A tracker accepts the weights of the detector on which it builds. The parts that the detector lacks start as its
    `completed` says. If the tracker has one class, and the detector does not know it, its rows are those of "person",
    as published.

    A model with a mask head accepts the weights of a detector without one. The mask head then stays random. A detector
    accepts the weights of a model with a mask head, which is skipped.

    Args:
        model: the new model. Its tensors have the shapes of `state`, except for the numbers of classes and queries.
        state: the old weights, in any layout.
        old, new: the classes of `state` and of `model`.

    Raises:
        WeightsError: other names or shapes do not match.
    """
    if model.fixed_classes and old.names != new.names:
        raise WeightsError(
            f"these weights of a {model.family} are for other classes: {', '.join(old.names[:5])}; start from imagenet "
            "or none"
        )
    part = fitting_part(model, state)
    left_out: tuple[str, ...] = () if part is state else ("the mask head",)
    state, own = in_our_layout(model, part), model.state_dict()
    state, new_parts = _with_mask_head(model, state)
    is_base = _is_base(model, state)
    if is_base:
        whole = model.completed(state)
        added = sorted(whole.keys() - state.keys())
        derived = _parts((name for name in added if not torch.equal(whole[name], own[name])), model.added_parts)
        new_parts = tuple(part for part in _parts(added, model.added_parts) if part not in derived)
        left_out += _parts(sorted(state.keys() - whole.keys()), model.added_parts)
        state = whole
    kept = [name for name in new.names if name in old.names]
    pairs = [(name, name) for name in kept]
    if is_base and len(new) == 1 and not kept and _USUAL_OBJECT in old.names:
        pairs = [(_USUAL_OBJECT, new.names[0])]
    num_others = model.num_logits - len(new)
    of = [old.label_of_name(name) for name, _ in pairs] + [len(old) + other for other in range(num_others)]
    to = [new.label_of_name(name) for _, name in pairs] + [len(new) + other for other in range(num_others)]
    for names, from_rows, to_rows in ((model.class_rows, of, to), (model.objectness_rows, [0], [0])):
        for name in names:
            if name not in state or state[name].shape != (len(old) + num_others, *own[name].shape[1:]):
                continue  # load_weights reports it
            rows = own[name].clone()
            rows[to_rows] = state[name][from_rows].to(rows)
            state[name] = rows
    _load(model, state)
    if not model.class_rows:
        return TransferReport((), (), (), new_parts, left_out, has_classes=False)
    return TransferReport(
        tuple(kept),
        tuple(name for name in new.names if name not in old.names),
        tuple(name for name, used in zip(old.names, old.used, strict=True) if used and name not in new.names),
        new_parts,
        left_out,
    )


def transfer_pretrained(
    model: Detector, state: Mapping[str, Tensor], new: Categories, *, random_parts: Collection[str] = ()
) -> TransferReport:
    """Load the weights of a pre-training model into a detector. The class head stays random, as published.

    A mask head stays random, too. The number of learned queries may differ; see `transfer`.

    Args:
        model: the detector.
        state: the weights of the pre-training model, in any layout.
        new: the classes of `model`.
        random_parts: further parts of the detector that stay random, such as "decoder".

    Raises:
        WeightsError: names or shapes do not match.
    """
    part = fitting_part(model, state)
    own = model.state_dict()
    fitted, new_parts = _with_mask_head(model, in_our_layout(model, part))
    prefix = "" if model.detector_part is None else f"{model.detector_part}."
    of_parts = tuple(f"{prefix}{part}." for part in random_parts)
    heads = (*model.class_rows, *model.objectness_rows)
    random = [name for name in own if name in heads or name.startswith(of_parts)]
    fitted |= {name: own[name] for name in random}
    _load(model, fitted)
    kept = [name.removeprefix(prefix) for name in own if name not in random and name.startswith(prefix)]
    return TransferReport(
        (),
        new.names,
        (),
        (*_parts(name.removeprefix(prefix) for name in random), *new_parts),
        _parts(name for name in state if name not in part),
        _parts(kept),
    )


def _is_base(model: Detector, state: Mapping[str, Tensor]) -> bool:
    """Whether these weights, in our layout, are those of a detector on which the model builds."""
    return bool(model.added_parts) and not any(model.added_parts.intersection(name.split(".")) for name in state)


def _parts(names: Iterable[str], added: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The names of the modules that hold some tensors: the outermost one in `added`, else the outermost one."""
    paths = [name.split(".") for name in names]
    return tuple(dict.fromkeys(next((part for part in path if part in added), path[0]) for path in paths))


def _with_mask_head(model: Detector, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of a detector with those of the mask head of `model`, if it has one, and the names of its parts."""
    inside = f"{model.detector_part}."
    if model.detector_part is None or not all(name.startswith(inside) for name in state):
        return dict(state), ()
    around = {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}
    return {**state, **around}, _parts(around)


def _load(model: Detector, state: dict[str, Tensor]) -> None:
    """Load weights in our layout, with as many queries as the model has."""
    own = model.state_dict()
    for name in model.query_rows:
        if name in state and state[name].shape[1:] == own[name].shape[1:]:
            state[name] = _fitted_queries(state[name], len(own[name]))
    load_weights(model, state)


def _fitted_queries(queries: Tensor, count: int) -> Tensor:
    """(Q, D) -> (count, D): the first queries. Beyond Q, noisy copies of all in turn; the noise tells them apart."""
    extra = torch.arange(len(queries), max(count, len(queries))) % len(queries)
    noise = torch.randn(len(extra), queries.shape[1], generator=torch.Generator().manual_seed(0))
    split = queries[extra] + _SPLIT_NOISE * queries.float().std() * noise.to(queries.device)
    return torch.cat((queries[:count], split.to(queries)))
