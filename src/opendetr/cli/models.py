"""`opendetr models`."""

from __future__ import annotations

from typing import Any

from opendetr.cli.output import JsonOption, command, number, print_json, table


@command
def models(as_json: JsonOption = False) -> None:
    """List the models of the catalogue, and the sources of their weights.

    AP and PQ are the authors' figures on COCO val2017. Weights whose file names contain a hash are downloaded on first
    use. Others have to be put into the cache manually; --json gives their addresses.

    Examples:

        opendetr models

        opendetr models --json
    """
    from opendetr.presets import list_models

    rows = [_row(name) for name in list_models()]
    if as_json:
        print_json({"models": rows})
        return
    heads = ("name", "parameters", "backbone", "layers", "width", "queries", "image size", "AP", "PQ", "weights")
    lines = [
        (row["name"], f"{row['parameters'] / 1e6:.1f} M", row["backbone"], row["layers"], str(row["width"]),
         str(row["queries"]), str(row["image_size"]), number(row["weights"].get("AP")),
         number(row["weights"].get("PQ")), _origin(row["weights"]))
        for row in rows
    ]  # fmt: skip
    print(table([heads, *lines]))


def _row(name: str) -> dict[str, Any]:
    import torch

    from opendetr.presets import create, get_preset

    preset = get_preset(name)
    with torch.device("meta"):
        model = create(name)
    backbone, transformer = preset.model.backbone, preset.model.transformer
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "backbone": backbone.describe(),
        "layers": f"{transformer.encoder_layers}+{transformer.decoder_layers}",
        "width": transformer.width,
        "queries": preset.model.num_queries,
        "image_size": preset.data.image_size,
        "weights": _weights(name),
    }


def _weights(name: str) -> dict[str, Any]:
    """The facts about the weights of a model; empty if it has none."""
    from opendetr.presets import shipped_weights
    from opendetr.weights import published_files

    shipped, published = shipped_weights(name), published_files().get(name)
    if shipped:
        return {"origin": "package", "file": shipped.name, "MiB": round(shipped.stat().st_size / 2**20), "cached": True}
    if published is None:
        return {}
    return {
        "origin": "download" if published.is_checked else "by hand",
        "file": published.file,
        "address": published.place,
        "hub": published.hub,
        "MiB": published.megabytes,
        "licence": published.licence,
        "AP": published.ap,
        "mask AP": published.mask_ap,
        "PQ": published.pq,
        "cached": published.path.is_file(),
    }


def _origin(weights: dict[str, Any]) -> str:
    """Where the weights come from, in a few words."""
    if not weights:
        return "none"
    origin = {"package": "in the package", "download": "on first use", "by hand": "manual download"}[weights["origin"]]
    size = f"{weights['MiB']} MiB" if weights["MiB"] else None
    is_cached = weights["origin"] != "package" and weights["cached"]
    return ", ".join(filter(None, ("cached" if is_cached else origin, size, weights.get("licence"))))
