"""`opendetr models`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.output import JsonOption, command, print_json, table

if TYPE_CHECKING:
    from opendetr.models import Detector
    from opendetr.presets import Preset

_WIDTH = 100  # characters of a line of text
_LEGEND = (
    "size: short side of the images in pixels. AP, PQ: published values on COCO val2017. "
    "time: for one image of this size on a CPU, relative to detr-r50."
)
_ADVICE = (
    "Without a GPU or for small images, use deformable-detr-tiny. To detect the classes of COCO without training, use "
    "detr-r50. To train on small objects, use deformable-detr-r50-two-stage. `opendetr models NAME` explains a model."
)


@command
def models(
    name: Annotated[
        str | None, typer.Argument(help="A model to explain. [default: list all]", show_default=False)
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Also list architecture and weights, in wide rows.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models of the catalogue by family, or explain one of them.

    AP and PQ are the values that the authors published for COCO val2017. Weights whose file names contain a hash are
    downloaded on first use. Download the other weights manually: `opendetr models NAME` gives their address and path.

    Examples:

        opendetr models

        opendetr models deformable-detr-r50

        opendetr models --details

        opendetr models --json
    """
    from opendetr.presets import get_preset, list_models

    if name is not None:
        get_preset(name)
    rows = [_row(model) for model in (list_models() if name is None else [name])]
    if as_json:
        print_json({"models": rows})
    elif name is not None:
        print(_explanation(rows[0]))
    else:
        print(_list(rows, details=details))


def _list(rows: list[dict[str, Any]], *, details: bool) -> str:
    """One table per family with the same columns, a legend, and advice."""
    heads = _DETAILED if details else _SHORT
    head, *lines = table([tuple(heads), *(tuple(cell(row) for cell in heads.values()) for row in rows)]).splitlines()
    families: dict[str, list[str]] = {}
    for row, line in zip(rows, lines, strict=True):
        families.setdefault(_title(row), [head]).append(line)
    blocks = ["\n".join((title, *members)) for title, members in families.items()]
    missing = dict.fromkeys(row["missing"] for row in rows if row["missing"])
    legends = [_LEGEND, *(f'"-" for params: the model {text}.' for text in missing), _ADVICE]
    notes = [textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False) for text in legends]
    return "\n\n".join((*blocks, *notes))


def _title(row: Mapping[str, Any]) -> str:
    """The title of the family of a model."""
    from opendetr.presets import FAMILIES

    family = FAMILIES.get(row["family"])
    return f"{family.title} ({family.paper})" if family else row["family"]


def _millions(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f} M"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


# The columns of the list, and of the list with --details: name -> function that returns the cell of a row.
_SHORT = {
    "name": lambda row: row["name"],
    "params": lambda row: _millions(row["parameters"]),
    "size": lambda row: str(row["image_size"]),
    "AP": lambda row: _percent(row["weights"].get("AP")),
    "PQ": lambda row: _percent(row["weights"].get("PQ")),
    "time": lambda row: "-" if row["relative_time"] is None else f"{row['relative_time']:g}",
    "weights": lambda row: _origin(row["weights"]),
}
_DETAILED = {
    "name": _SHORT["name"],
    "params": _SHORT["params"],
    "backbone": lambda row: row["backbone"],
    "layers": lambda row: row["layers"],
    "width": lambda row: str(row["width"]),
    "queries": lambda row: str(row["queries"]),
    "size": _SHORT["size"],
    "AP": _SHORT["AP"],
    "mask AP": lambda row: _percent(row["weights"].get("mask AP")),
    "PQ": _SHORT["PQ"],
    "time": _SHORT["time"],
    "weights": _SHORT["weights"],
    "licence": lambda row: row["weights"].get("licence") or "-",
}


def _explanation(row: Mapping[str, Any]) -> str:
    """The explanation of one model."""
    from opendetr.presets import FAMILIES

    name, weights, family = row["name"], row["weights"], FAMILIES.get(row["family"])
    encoder, decoder = row["layers"].split("+")
    metrics = [f"{key} {_percent(value)}" for key, value in weights.get("results", {}).items()]
    dataset = " on COCO val2017" if weights.get("AP") else ""
    relative = row["relative_time"]
    facts = {
        "backbone": row["backbone"],
        "transformer": f"{encoder} encoder and {decoder} decoder layers of width {row['width']}",
        "queries": f"{row['queries']}, the maximum number of objects in an image",
        "parameters": _millions(row["parameters"]),
        "image size": f"{row['image_size']} pixels on the short side",
        "time": "not measured" if relative is None else f"{relative:g} times that of detr-r50, for one image on a CPU",
        "published": f"{', '.join(metrics)}{dataset}" if metrics else "no metrics",
        "weights": ", ".join(filter(None, (_origin(weights), _licence(weights)))),
    }
    facts |= {"missing": row["missing"]} if row["missing"] else {}
    if weights.get("origin") == "manual" and not weights["cached"]:
        facts |= {"download from": weights["address"], "save as": weights["path"]}
        facts |= {"or use": f"--weights hf:{weights['hub']}"} if weights["hub"] else {}
    usable = (weights and weights["origin"] != "manual") or weights.get("cached")
    out = f"runs/{name}"
    train, data = ("train", "my-data") if row["uses_annotations"] else ("pretrain", "photos")
    commands = {
        train: f"opendetr {train} {data} --model {name} --out {out}",
        row["example"].split()[0]: f"opendetr {row['example']} --weights {name if usable else out}",
    }
    about = textwrap.fill(family.architecture, _WIDTH) if family else ""
    parts = [f"{name}: {row['description']}", about, table(list(facts.items())), table(list(commands.items()))]
    return "\n\n".join(part for part in parts if part)


def _licence(weights: Mapping[str, Any]) -> str | None:
    """The licence of the weights, as a part of a sentence."""
    licence = weights.get("licence")
    return "licence not stated" if licence == "not stated" else licence


def _row(name: str) -> dict[str, Any]:
    from opendetr.presets import RELATIVE_TIME, describe, get_preset

    preset = get_preset(name)
    model, missing = _built(preset)
    backbone, transformer = preset.model.backbone, preset.model.transformer
    return {
        "name": name,
        "family": (model.get_submodule(model.detector_part) if model.detector_part else model).family,
        "description": describe(name),
        "parameters": None if missing else sum(parameter.numel() for parameter in model.parameters()),
        "backbone": backbone.describe(),
        "layers": f"{transformer.encoder_layers}+{transformer.decoder_layers}",
        "width": transformer.width,
        "queries": preset.model.num_queries,
        "uses_annotations": preset.uses_annotations,
        "image_size": preset.data.image_size,
        "example": preset.example,
        "patches": model.max_patches,
        "takes_text": model.takes_text,
        "answers_questions": bool(model.answer_names),
        "relative_time": RELATIVE_TIME.get(name),
        "missing": missing,
        "weights": _weights(name),
    }


def _built(preset: Preset) -> tuple[Detector, str | None]:
    """The model without storage for its weights, and what is missing to build it.

    If an optional package is missing, other parts replace those that need it. The model still has the same inputs.
    """
    import torch

    from opendetr.config import MissingPackageError

    with torch.device("meta"):
        num_classes = preset.num_classes(preset.published_categories())
        try:
            return preset.build_model(num_classes), None
        except MissingPackageError as error:
            return preset.without_extras().build_model(num_classes), error.needs


def _weights(name: str) -> dict[str, Any]:
    """The facts about the weights of a model. Empty if it has none."""
    from opendetr.presets import shipped_weights
    from opendetr.weights import published_files

    shipped, published = shipped_weights(name), published_files().get(name)
    if shipped:
        return {"origin": "package", "file": shipped.name, "MiB": round(shipped.stat().st_size / 2**20), "cached": True}
    if published is None:
        return {}
    return {
        "origin": "download" if published.is_checked else "manual",
        "file": published.file,
        "address": published.place,
        "path": str(published.path),
        "hub": published.hub,
        "MiB": published.megabytes,
        "licence": published.licence,
        "AP": published.ap,
        "mask AP": published.mask_ap,
        "PQ": published.pq,
        "results": published.results,
        "cached": published.path.is_file(),
    }


def _origin(weights: Mapping[str, Any]) -> str:
    """The origin of the weights and their size."""
    if not weights:
        return "none"
    origin = {"package": "in the package", "download": "download", "manual": "manual download"}[weights["origin"]]
    if weights["origin"] != "package" and weights["cached"]:
        origin = "cached"
    return f"{origin}, {weights['MiB']} MiB" if weights["MiB"] else origin
