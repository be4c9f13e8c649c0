"""Loads weights into a model, from any layout that is supported for its family."""

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
from opendetr.weights.name_maps import our_name, pack_projections
from opendetr.weights.reading import read_state
from opendetr.weights.up_detr import is_pretraining, without_patch_layers

# Tensors that are not parameters: operation counters, batch counters of trainable norms, weights of a loss.
_STRAY = ("total_ops", "total_params", "num_batches_tracked", "criterion.empty_weight")


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`.

    Attributes:
        layout: "opendetr", "official", "detectron2" or "huggingface".
        num_tensors: number of tensors loaded.
    """

    layout: Layout
    num_tensors: int


def in_our_layout(model: Detector, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict from any layout to ours.

    If the model has a mask head and the weights are those of a detector without one, the result is the state of the
    model's detector, with the prefix that it has in the model.

    Raises:
        WeightsError: the layout is not supported for the model; two names with different values belong to one
            parameter of the model; the weights include a mask head and the model has none; or they are those of a
            pre-training model and the model is a detector.
    """
    if is_pretraining(state) and not is_pretraining(model.state_dict()):
        raise WeightsError(
            "these weights are those of a pre-training model; train a detector from them with `opendetr train`"
        )
    if _has_own_names(model, state):
        return dict(state)
    if model.detector_part is not None and not has_masks(state):
        inside = in_our_layout(model.get_submodule(model.detector_part), state)  # type: ignore[arg-type]
        return {f"{model.detector_part}.{name}": value for name, value in inside.items()}
    if has_masks(state) and model.detector_part is None:
        raise WeightsError("these weights include a mask head, but the model has none; choose a model that has one")
    layout = layout_of(state)
    if layout == "opendetr":
        return dict(state)
    family = family_of(model)
    rows = None if family is None else family.table(layout)
    if family is None or rows is None:
        raise WeightsError(f"the {layout} layout of weights is not supported for {model.family}")
    own = model.state_dict()
    ours: dict[str, Tensor] = {}
    for theirs, value in pack_projections(state).items():
        name = our_name(theirs, rows, own)
        if theirs.endswith((*_STRAY, *family.stray)) and name not in own:
            continue
        if name in ours and not torch.equal(ours[name], value):
            raise WeightsError(f"{theirs}: this model shares {name} between layers, but these weights do not")
        ours[name] = value
    if layout == "huggingface" and family.huggingface is not None:
        ours |= _shared_heads(ours, own, family.huggingface.numbered_heads)
    return ours


def fitting_part(model: Detector, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict in its own layout, without the mask head and the patch layers if the model has none."""
    if is_pretraining(state) and not is_pretraining(model.state_dict()):
        state = without_patch_layers(state)
    if model.detector_part is not None or not has_masks(state) or _has_own_names(model, state):
        return state
    return {alone: state[name] for name, alone in of_detector(state).items()}


def _has_own_names(model: Detector, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict uses the model's own names, which may begin like those of another layout.

    The names of a registered family can overlap with those of another layout, so all names of the model must be
    present.
    """
    present = (name in state for name in model.state_dict() if not name.endswith(_STRAY))
    return any(present) if family_of(model) is None else all(present)


def usual_categories(state: Mapping[str, Tensor]) -> Categories:
    """The default classes of weights that do not name them: COCO panoptic with a mask head, else COCO."""
    return coco_panoptic_categories() if has_masks(state) else coco_categories()


def require_classes(
    path: Path, model: Detector, state: Mapping[str, Tensor], num_known: int, *, num_others: int
) -> None:
    """Check that weights in our layout have as many classes as there are known names.

    Args:
        path: the file, for the message.
        model: the model that the weights are for.
        state: the weights in our layout.
        num_known: number of known class names.
        num_others: outputs of the class head that stand for no class, such as "no object".

    Raises:
        WeightsError: the number of classes differs.
    """
    rows = state.get(model.class_rows[0]) if model.class_rows else None
    if rows is not None and len(rows) != num_known + num_others:
        raise WeightsError(
            f"{path}: has {len(rows) - num_others} classes but no class names, and {num_known} are named; pass "
            "its categories to opendetr.load, then save it with opendetr.weights.save_weights"
        )


def _shared_heads(ours: Mapping[str, Tensor], own: Collection[str], heads: Iterable[str]) -> dict[str, Tensor]:
    """The heads of later layers. transformers saves only the first head if all are equal."""
    shared: dict[str, Tensor] = {}
    for head in heads:
        if not any(name.startswith(f"{head}1.") for name in ours):
            firsts = {name: re.sub(r"\d+", "0", name, count=1) for name in own if name.startswith(head)}
            shared |= {name: ours[first] for name, first in firsts.items() if name not in ours and first in ours}
    return shared


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Load weights into a model. All names and shapes must match.

    A detector takes weights in any layout that is supported for its family, other modules only their own state dict.

    Args:
        model: receives the weights.
        source: a state dict, or what `local_file` accepts: a path, a URL or "hf:owner/name".

    Raises:
        WeightsError: keys are missing, unknown or of another shape. The message lists them all. The model is
            unchanged.
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
    """The keys of a state dict that are missing, unknown or of another shape."""
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unknown {name}" for name in state if name not in own]
    return faults + [
        f"shape of {name}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
