"""Uploads a detector to the Hugging Face hub, from which "hf:owner/name" loads it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from opendetr.categories import Categories
from opendetr.config import ConfigError, to_dict
from opendetr.export.checkpoints import WEIGHTS, export_huggingface, not_for_huggingface
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
{scores}
```python
import opendetr

detector = opendetr.load("hf:{name}")
detections = detector.predict("photo.jpg")
```

or `opendetr predict photo.jpg --weights hf:{name}`. {transformers}
"""
_READABLE = "transformers also loads it, with `from_pretrained`."
_OURS_ALONE = "transformers does not support this model ({reason}), so only OpenDETR can load it."


def push(
    model: Detector,
    preset: Preset,
    categories: Categories,
    repository: str,
    *,
    scores: Mapping[str, float] | None = None,
    thresholds: ScoreThresholds | None = None,
    private: bool = False,
) -> str:
    """Upload a detector in the layout of Hugging Face, or in our own if transformers does not support the model.

    Args:
        model: the detector.
        preset: its configuration.
        categories: the classes of its labels.
        repository: "owner/name". A missing repository is created; an existing one gets a new commit.
        scores: metrics for the page of the model, such as {"AP": 0.42}.
        thresholds: score thresholds that OpenDETR predicts with.
        private: whether a new repository is private.

    Returns:
        The URL of the repository.

    Raises:
        ConfigError: the name of the repository is not valid.
        WeightsError: the hub cannot be reached, or rejects the upload.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{repository}: expected owner/name, as in anna/blood-cells")
    from huggingface_hub import HfApi

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loaders = _write(model, preset, categories, folder, thresholds)
        page = _page(preset, categories, repository, scores or {}, loaders)
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
    reason = not_for_huggingface(model, preset)
    if reason is None:
        export_huggingface(model, preset, categories, folder, thresholds=thresholds)
        return _READABLE
    save_weights(folder / WEIGHTS, model, ModelCard(to_dict(preset), categories, {}, thresholds))
    return _OURS_ALONE.format(reason=reason)


def _page(preset: Preset, categories: Categories, name: str, scores: Mapping[str, float], transformers: str) -> str:
    used = [label for label, is_used in zip(categories.names, categories.used, strict=True) if is_used]
    rows = "".join(f"| {metric} | {value:.3f} |\n" for metric, value in scores.items())
    return _CARD.format(
        name=name,
        task="image-segmentation" if preset.has_masks else "object-detection",
        preset=preset.name,
        count=len(used),
        classes=textwrap.shorten(", ".join(used), 400, placeholder=" ..."),
        scores=f"\n| metric on the validation images | |\n|---|---|\n{rows}" if rows else "",
        transformers=transformers,
    )


def _reason(error: Exception) -> str:
    """The reason of an upload error in one line, with a fix if one is known."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return "not logged in to the hub; log in with `hf auth login`, or set HF_TOKEN"
    if code == 403:
        return "no permission to write to this repository; check the owner's name and the permissions of your token"
    return f"cannot be uploaded ({textwrap.shorten(str(error), 160, placeholder=' ...')})"
