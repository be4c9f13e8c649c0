"""Loads weights into a model, from any layout that is known for its family."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from opendetr.categories import Categories, coco_categories, coco_panoptic_categories
from opendetr.models import Detector
from opendetr.weights.errors import WeightsError
from opendetr.weights.family import LAYOUTS, Layout, family_of, layout_of
from opendetr.weights.hub import local_file
from opendetr.weights.masks import has_masks, of_detector
from opendetr.weights.name_maps import our_name, packed
from opendetr.weights.reading import read_state

# Beside the parameters: what counts operations, what trainable norms count, weights of a loss.
_STRAY = ("total_ops", "total_params", "num_batches_tracked", "criterion.empty_weight")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` found.

    Attributes:
        layout: "opendetr", "official", "detectron2" or "huggingface".
        num_tensors: tensors that were loaded.
    """

    layout: Layout
    num_tensors: int


def in_our_layout(model: Detector, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in our layout, whatever layout it came in.

    That of a detector without a mask head, for a model with one, becomes the part of the model's that it is.

    Raises:
        WeightsError: the layout has no names for such a model, or two names mean one parameter of it, with different
            values; or the weights are those of a mask head, too, that the model does not have.
    """
    if _has_own_names(model, state):
        return dict(state)
    if model.detector_part is not None and not has_masks(state):
        inside = in_our_layout(model.get_submodule(model.detector_part), state)  # type: ignore[arg-type]
        return {f"{model.detector_part}.{name}": value for name, value in inside.items()}
    if has_masks(state) and model.detector_part is None:
        raise WeightsError("weights of a model with a mask head, and this one has none; choose one that has")
    layout = layout_of(state)
    if layout == "opendetr":
        return dict(state)
    family = family_of(model)
    rows = None if family is None else family.table(layout)
    if rows is None:
        raise WeightsError(f"weights in the {layout} layout, which is not read for {model.family}")
    own = model.state_dict()
    ours: dict[str, Tensor] = {}
    for theirs, value in packed(state).items():
        name = our_name(theirs, rows, own)
        if theirs.endswith(_STRAY) and name not in own:
            continue
        if name in ours and not torch.equal(ours[name], value):
            raise WeightsError(f"{theirs}: this model shares {name} between layers, but these weights do not")
        ours[name] = value
    if layout == "huggingface" and family is not None and family.huggingface is not None:
        ours |= _shared_heads(ours, own, family.huggingface.numbered_heads)
    return ours


def fitting_part(model: Detector, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict, in its own layout, without a mask head that the model does not have."""
    if model.detector_part is not None or not has_masks(state) or _has_own_names(model, state):
        return state
    return {alone: state[name] for name, alone in of_detector(state).items()}


def _has_own_names(model: Detector, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the model's own names, which may begin like those of another layout.

    A registered family may have many names in common with another layout, so all of the model's must be there.
    """
    found = (name in state for name in model.state_dict() if not name.endswith(_STRAY))
    return any(found) if family_of(model) is None else all(found)


def usual_categories(state: Mapping[str, Tensor]) -> Categories:
    """The classes of weights that do not name them: COCO panoptic's with a mask head, else those of COCO."""
    return coco_panoptic_categories() if has_masks(state) else coco_categories()


def require_classes(
    path: Path, model: Detector, state: Mapping[str, Tensor], num_known: int, *, num_others: int
) -> None:
    """Raise WeightsError for weights in our layout that have other classes than the `num_known` whose names are known.

    `num_others` outputs of a class head are of no class ("no object").
    """
    rows = state.get(model.class_rows[0])
    if rows is not None and len(rows) != num_known + num_others:
        raise WeightsError(
            f"{path}: has {len(rows) - num_others} classes and does not say which, and {num_known} are named; give "
            "opendetr.load its own categories, and save it with opendetr.weights.save_weights"
        )


def _shared_heads(ours: Mapping[str, Tensor], own: Collection[str], heads: Iterable[str]) -> dict[str, Tensor]:
    """Heads of later layers: transformers saves the first one alone where all are equal."""
    shared: dict[str, Tensor] = {}
    for head in heads:
        if not any(name.startswith(f"{head}1.") for name in ours):
            firsts = {name: re.sub(r"\d+", "0", name, count=1) for name in own if name.startswith(head)}
            shared |= {name: ours[first] for name, first in firsts.items() if name not in ours and first in ours}
    return shared


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Load weights strictly, for a detector in any layout that is known for its family.

    Args:
        model: receives the weights.
        source: a state dict, or whatever `local_file` finds a file for: a path, an address, "hf:owner/name".

    Raises:
        WeightsError: naming every key that is missing, unknown or of another shape; the model is left as it was.
    """
    where, state = "", source
    if isinstance(source, str | Path):
        where, state = f"{source}: ", read_state(local_file(source))
    assert isinstance(state, Mapping)
    own, layout = model.state_dict(), layout_of(state)
    if isinstance(model, Detector):
        layout = "opendetr" if _has_own_names(model, state) else layout
        first_names = ", ".join(list(state)[:3])
        state = in_our_layout(model, state)
        if layout == "opendetr" and not own.keys() & state.keys():
            known = ", ".join(LAYOUTS)
            raise WeightsError(f"{where}in no known layout (opendetr, {known}); its first names: {first_names}")
    else:
        layout = "opendetr"
    # A frozen norm has no count of batches, and a trainable one does not need it.
    state = {name: value for name, value in state.items() if name in own or not name.endswith(_STRAY)}
    state |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in state}
    faults = _faults(own, state)
    if faults:
        raise WeightsError(f"{where}{len(faults)} keys do not fit this model ({layout} layout): " + "; ".join(faults))
    model.load_state_dict(state)
    return LoadReport(layout, len(state))


def _faults(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What is missing in a state dict, unknown, or of another shape."""
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unknown {name}" for name in state if name not in own]
    return faults + [
        f"shape of {name}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
