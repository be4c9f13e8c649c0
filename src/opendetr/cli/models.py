"""`opendetr models`."""

from __future__ import annotations

from typing import Any

from opendetr.cli.output import JsonOption, answer, command, table


@command
def models(as_json: JsonOption = False) -> None:
    """List the models of the catalogue.

    Examples:

        opendetr models

        opendetr models --json
    """
    from opendetr.presets import list_models

    rows = [_row(name) for name in list_models()]
    if as_json:
        answer({"models": rows})
        return
    heads = ("name", "parameters", "backbone", "layers", "width", "queries", "image size", "weights")
    lines = [
        (row["name"], f"{row['parameters'] / 1e6:.1f} M", row["backbone"], row["layers"], str(row["width"]),
         str(row["queries"]), str(row["image_size"]), _origin(row["weights"]))
        for row in rows
    ]  # fmt: skip
    print(table([heads, *lines]))


def _row(name: str) -> dict[str, Any]:
    import torch

    from opendetr.presets import create, get_preset, weights_origin

    preset = get_preset(name)
    with torch.device("meta"):
        model = create(name)
    backbone, transformer = preset.model.backbone, preset.model.transformer
    marks = (" of half width" if backbone.half_width else "") + (", dilated" if backbone.dilation else "")
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "backbone": f"ResNet-{backbone.depth}{marks}",
        "layers": f"{transformer.encoder_layers}+{transformer.decoder_layers}",
        "width": transformer.width,
        "queries": preset.model.num_queries,
        "image_size": preset.data.image_size,
        "weights": weights_origin(name),
    }


def _origin(origin: str | None) -> str:
    """Where the weights come from, in two words."""
    return {None: "none", "package": "in the package"}.get(origin, "published, downloaded on first use")
