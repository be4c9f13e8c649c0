"""Reads and writes the configuration files of a Hugging Face model.

config.json holds the architecture and the class names, preprocessor_config.json the image sizes. A value that a file
omits has the default of the published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opendetr.categories import Categories
from opendetr.models import Detector
from opendetr.weights.errors import WeightsError
from opendetr.weights.family import NO_FORMAT, HuggingFaceFormat, WeightFamily, families
from opendetr.weights.reading import read_json

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"

# Each of our model settings and the corresponding names in config.json.
_SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("transformer.width", ("d_model",)),
    ("transformer.num_heads", ("encoder_attention_heads", "decoder_attention_heads")),
    ("transformer.ffn_width", ("encoder_ffn_dim", "decoder_ffn_dim")),
    ("transformer.encoder_layers", ("encoder_layers",)),
    ("transformer.decoder_layers", ("decoder_layers",)),
    ("transformer.dropout", ("dropout",)),
    ("num_queries", ("num_queries",)),
)
_LAYERS = {18: ("basic", [2, 2, 2, 2]), 50: ("bottleneck", [3, 4, 6, 3]), 101: ("bottleneck", [3, 4, 23, 3])}
UNUSED = "N/A"  # the name of labels that are never predicted
_MEAN, _DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_BILINEAR = 2


def config_beside(path: Path) -> Path | None:
    """The config.json next to a weights file, or None if there is none or its model type is not supported."""
    config = path.parent / CONFIG_FILE
    if not config.is_file():
        return None
    return config if read_json(config).get("model_type") in {known.model_type for known in _formats()} else None


def _formats() -> list[HuggingFaceFormat]:
    return [family.huggingface for family in families() if family.huggingface is not None]


def _format_of(config: Mapping[str, Any]) -> HuggingFaceFormat:
    """The format that matches the architecture in a config.json, else the first one with its model type."""
    fitting = [known for known in _formats() if known.model_type == config["model_type"]]
    named = (known for known in fitting if known.architecture in (config.get("architectures") or ()))
    return next(named, fitting[0])


# ------------------------------------------------------------------------------------------------------------- reading


def settings_of(path: Path) -> tuple[dict[str, Any], Categories]:
    """Read our settings and the classes from a config.json and the preprocessor_config.json next to it.

    Returns:
        The settings, as `presets.preset_from_dict` expects them, and the classes of the labels.

    Raises:
        WeightsError: the described model is not supported.
    """
    config = read_json(path)
    known = _format_of(config)
    try:
        settings: dict[str, Any] = {"model": _model_of(config, known, path)}
        known.read_further(config, settings)
        categories = known.categories(_categories_of(config))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: does not describe a supported model ({error!r})") from None
    settings["name"] = known.preset_name(settings["model"], config)
    data = _sizes(path.parent / PREPROCESSOR_FILE) | settings.get("data", {})
    return settings | ({"data": data} if data else {}), categories


def _model_of(config: Mapping[str, Any], known: HuggingFaceFormat, path: Path) -> dict[str, Any]:
    model: dict[str, Any] = {"transformer": {}, "backbone": _backbone_of(config, path)}
    for ours, theirs in (*_SETTINGS, *known.settings):
        values = [config[name] for name in theirs if name in config]
        if any(value != values[0] for value in values):
            raise WeightsError(f"{path}: {' and '.join(theirs)} differ, which is not supported")
        if values:
            _put(model, ours, values[0])
    if known.has_position_type and config.get("position_embedding_type", "sine") != "sine":
        raise WeightsError(f"{path}: position_embedding_type {config['position_embedding_type']!r} is not supported")
    return model


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *groups, leaf = name.split(".")
    for group in groups:
        tree = tree[group]
    tree[leaf] = value


def _backbone_of(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    own: Mapping[str, Any] = config.get("backbone_config") or {}
    if own.get("model_type") == "resnet":
        layers = (own.get("layer_type", "bottleneck"), own.get("depths", _LAYERS[50][1]))
        depths = [depth for depth, known in _LAYERS.items() if known == layers]
        halves = [half for half in (False, True) if depths and _widths(depths[0], half) == _widths_of(own)]
        if halves:
            return {"depth": depths[0], "half_width": halves[0], "dilation": False}
        raise WeightsError(f"{path}: the layers or widths of its ResNet are not supported; use ResNet-18, 50 or 101")
    name = str(own.get("backbone") or config.get("backbone") or "resnet50").partition(".")[0]
    if name not in [f"resnet{depth}" for depth in _LAYERS]:
        raise WeightsError(f"{path}: its backbone {name} is not supported; use ResNet-18, 50 or 101")
    dilation = own.get("output_stride") == 16 or bool(config.get("dilation"))
    return {"depth": int(name.removeprefix("resnet")), "half_width": False, "dilation": dilation}


def _widths(depth: int, half_width: bool) -> tuple[int, list[int]]:
    """Channels of the stem and of the four stages."""
    stem = 32 if half_width else 64
    return stem, [stem * 2**stage * (1 if depth == 18 else 4) for stage in range(4)]


def _widths_of(resnet: Mapping[str, Any]) -> tuple[int, list[int]]:
    return resnet.get("embedding_size", 64), resnet.get("hidden_sizes", [256, 512, 1024, 2048])


def _categories_of(config: Mapping[str, Any]) -> Categories:
    """The classes by label. Labels without a name, or with the name N/A, are never predicted."""
    names = {int(label): str(name) for label, name in config.get("id2label", {0: "LABEL_0", 1: "LABEL_1"}).items()}
    labels = range(max([len(names), *(label + 1 for label in names)]))
    all_names = tuple(names.get(label, UNUSED) for label in labels)
    return Categories(all_names, tuple(labels), used=tuple(name != UNUSED for name in all_names))


def _sizes(path: Path) -> dict[str, Any]:
    """Image sizes from preprocessor_config.json; empty if the file is missing or has none."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if (content.get("image_mean", _MEAN), content.get("image_std", _DEVIATION)) != (_MEAN, _DEVIATION):
        raise WeightsError(f"{path}: image_mean and image_std must be those of ImageNet")
    size: Any = content.get("size")
    longest: Any = content.get("max_size")
    if isinstance(size, dict):
        size, longest = size.get("shortest_edge"), size.get("longest_edge")
    return {"image_size": size, "max_size": longest} if size and longest else {}


# ------------------------------------------------------------------------------------------------------------- writing


def unsupported_reason(family: WeightFamily | None, settings: Mapping[str, Any]) -> str | None:
    """The reason why transformers does not support a model, in a few words; None if it does.

    Args:
        family: the weight family of the model; None if it is not registered.
        settings: the settings of its preset as plain values.
    """
    if family is None or family.huggingface is None:
        return NO_FORMAT if family is None else family.no_huggingface
    backbone = settings["model"]["backbone"]
    reasons = {
        "transformers has no group norm in a ResNet": backbone["norm"] == "group",
        "transformers has no dilated ResNet-18": backbone["dilation"] and backbone["depth"] == 18,
        "transformers has no dilated ResNet of half width": backbone["dilation"] and backbone["half_width"],
    }
    return next(
        (reason for reason, applies in reasons.items() if applies), None
    ) or family.huggingface.unsupported_reason(settings)


def config_json(
    known: HuggingFaceFormat, model: Mapping[str, Any], categories: Categories, detector: Detector
) -> dict[str, Any]:
    """The content of config.json for a model.

    Args:
        known: the Hugging Face format of its family.
        model: its settings as plain values.
        categories: the classes of its labels.
        detector: the model itself.
    """
    names = [name if used else UNUSED for name, used in zip(categories.names, categories.used, strict=True)]
    config: dict[str, Any] = {
        "model_type": known.model_type,
        "architectures": [known.architecture],
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "position_embedding_type": "sine",
        "activation_function": "relu",
    }
    for ours, theirs in (*_SETTINGS, *known.settings):
        config |= dict.fromkeys(theirs, _get(model, ours))
    config |= known.further_config(model, detector)
    return config | _backbone_json(model, 5 - known.num_backbone_levels(model))


def _get(tree: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree


def uses_timm(model: Mapping[str, Any]) -> bool:
    """Whether transformers builds the backbone of a model with timm, given its settings as plain values."""
    return bool(model["backbone"]["dilation"])


def _backbone_json(model: Mapping[str, Any], first_stage: int) -> dict[str, Any]:
    depth, half_width = model["backbone"]["depth"], model["backbone"]["half_width"]
    if uses_timm(model):
        return {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": f"resnet{depth}",
                "backbone_config": None, "dilation": True}  # fmt: skip
    (layer_type, depths), (stem, widths) = _LAYERS[depth], _widths(depth, half_width)
    resnet = {
        "model_type": "resnet", "layer_type": layer_type, "depths": depths, "embedding_size": stem,
        "hidden_sizes": widths, "out_features": [f"stage{stage}" for stage in range(first_stage, 5)],
    }  # fmt: skip
    return {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": resnet,
            "dilation": False}  # fmt: skip


def preprocessor_json(known: HuggingFaceFormat, image_size: int, max_size: int) -> dict[str, Any]:
    """The content of preprocessor_config.json, with the short and the long side of the images in pixels."""
    return {
        "image_processor_type": f"{known.class_prefix}ImageProcessor",
        "format": known.annotations,
        "do_resize": True,
        "size": {"shortest_edge": image_size, "longest_edge": max_size},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _DEVIATION,
        "do_pad": True,
    }
