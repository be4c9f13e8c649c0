"""Uploads a detector to the Hugging Face Hub, from which "hf:owner/name" loads it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from opendetr.categories import Categories
from opendetr.config import ConfigError, to_dict
from opendetr.export.checkpoints import (
    WEIGHTS_FILE,
    export_huggingface,
    huggingface_difference,
    huggingface_unsupported_reason,
)
from opendetr.models import Detector
from opendetr.presets import Preset
from opendetr.scoring import ScoreThresholds
from opendetr.weights import ModelCard, WeightsError, hub_errors, save_weights

_CARD = """---
library_name: opendetr
pipeline_tag: {task}
tags:
- detr
- {task}
---

# {name}

A {preset} detector of {count} classes: {classes}.
{metrics}
```python
import opendetr

detector = opendetr.load("hf:{name}")
detections = detector.predict("photo.jpg")
```

or `opendetr predict photo.jpg --weights hf:{name}`. {loaders}
"""
_LOADERS_BOTH = "Hugging Face Transformers also loads it, with `from_pretrained`."
_LOADER_OPENDETR = "Hugging Face Transformers does not support this model ({reason}), so only OpenDETR can load it."


def push(
    model: Detector,
    preset: Preset,
    categories: Categories,
    repository: str,
    *,
    metrics: Mapping[str, float] | None = None,
    thresholds: ScoreThresholds | None = None,
    private: bool = False,
) -> str:
    """Upload a detector as a model of Hugging Face Transformers, or in OpenDETR's layout if that does not support it.

    Args:
        model: the detector.
        preset: the configuration of the detector.
        categories: the classes of the detector's labels.
        repository: "owner/name". A missing repository is created; an existing one gets a new commit.
        metrics: metrics of the detector for the page of the repository, such as {"AP": 0.42}.
        thresholds: score thresholds that OpenDETR predicts with.
        private: whether a new repository is private.

    Returns:
        The URL of the repository.

    Raises:
        ConfigError: the name of the repository is not valid.
        WeightsError: the Hub cannot be reached, or rejects the upload.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{repository}: expected owner/name, as in anna/blood-cells")
    from huggingface_hub import HfApi

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loaders = _write(model, preset, categories, folder, thresholds)
        page = _page(preset, categories, repository, metrics or {}, loaders)
        (folder / "README.md").write_text(page, encoding="utf-8")
        try:
            hub = HfApi()
            address = hub.create_repo(repository, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{preset.name} from OpenDETR")
        except hub_errors() as error:
            raise WeightsError(f"hf:{repository}: {_reason(error)}") from None
    return str(address)


def _write(
    model: Detector, preset: Preset, categories: Categories, folder: Path, thresholds: ScoreThresholds | None
) -> str:
    """Write the files. Returns a sentence for the page about which libraries can load them."""
    reason = huggingface_unsupported_reason(model, preset)
    if reason is None:
        export_huggingface(model, preset, categories, folder, thresholds=thresholds)
        return f"{_LOADERS_BOTH} Note: {huggingface_difference(preset)}."
    save_weights(folder / WEIGHTS_FILE, model, ModelCard(to_dict(preset), categories, {}, thresholds))
    return _LOADER_OPENDETR.format(reason=reason)


def _page(preset: Preset, categories: Categories, name: str, metrics: Mapping[str, float], loaders: str) -> str:
    used = [label for label, is_used in zip(categories.names, categories.used, strict=True) if is_used]
    rows = "".join(f"| {metric} | {value:.3f} |\n" for metric, value in metrics.items())
    return _CARD.format(
        name=name,
        task="image-segmentation" if preset.has_masks else "object-detection",
        preset=preset.name,
        count=len(used),
        classes=textwrap.shorten(", ".join(used), 400, placeholder=" ..."),
        metrics=f"\n| metric on the validation images | |\n|---|---|\n{rows}" if rows else "",
        loaders=loaders,
    )


def _reason(error: Exception) -> str:
    """Why an upload failed, in one line, and what to do if that is known."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return "not logged in to the Hub; log in with `hf auth login`, or set HF_TOKEN"
    if code == 403:
        return "no permission to write to this repository; check the owner's name and the permissions of your token"
    return f"the upload failed ({textwrap.shorten(str(error), 160, placeholder=' ...')})"
