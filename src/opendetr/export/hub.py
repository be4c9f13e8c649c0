"""A detector goes to a repository of Hugging Face's hub, from where "hf:owner/name" loads it."""

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
_READABLE = "transformers reads it too, with `from_pretrained`."
_OURS_ALONE = "transformers has no such model ({reason}), so the file is one of OpenDETR's own."


def push(
    model: Detector,
    preset: Preset,
    categories: Categories,
    repository: str,
    *,
    scores: Mapping[str, float] | None = None,
    private: bool = False,
) -> str:
    """Upload a detector in the layout of Hugging Face, or in our own where transformers has no such model.

    Args:
        model: the detector.
        preset: what it is made of.
        categories: what its labels stand for.
        repository: "owner/name"; is made if missing, and gets a new commit if not.
        scores: what the page says about its quality, such as {"AP": 0.42}.
        private: make a new repository private.

    Returns:
        The address of its page.

    Raises:
        ConfigError: the repository's name is none.
        WeightsError: the hub cannot be reached, or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{repository}: expected owner/name, as in anna/blood-cells")
    from huggingface_hub import HfApi

    with TemporaryDirectory() as place:
        folder = Path(place)
        readers = _write(model, preset, categories, folder)
        page = _page(preset, categories, repository, scores or {}, readers)
        (folder / "README.md").write_text(page, encoding="utf-8")
        try:
            hub = HfApi()
            address = hub.create_repo(repository, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{preset.name} from OpenDETR")
        except hub_errors() as error:
            raise WeightsError(f"hf:{repository}: {_reason(error)}") from None
    return str(address)


def _write(model: Detector, preset: Preset, categories: Categories, folder: Path) -> str:
    """Write the files; returns the sentence that says who can read them."""
    reason = not_for_huggingface(model, preset)
    if reason is None:
        export_huggingface(model, preset, categories, folder)
        return _READABLE
    save_weights(folder / WEIGHTS, model, ModelCard(to_dict(preset), categories, {}))
    return _OURS_ALONE.format(reason=reason)


def _page(preset: Preset, categories: Categories, name: str, scores: Mapping[str, float], transformers: str) -> str:
    used = [label for label, is_used in zip(categories.names, categories.used, strict=True) if is_used]
    rows = "".join(f"| {score} | {value:.3f} |\n" for score, value in scores.items())
    return _CARD.format(
        name=name,
        task="image-segmentation" if preset.has_masks else "object-detection",
        preset=preset.name,
        count=len(used),
        classes=textwrap.shorten(", ".join(used), 400, placeholder=" ..."),
        scores=f"\n| score on its validation images | |\n|---|---|\n{rows}" if rows else "",
        transformers=transformers,
    )


def _reason(error: Exception) -> str:
    """What went wrong, in one line, and what to do where that is known."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return "the hub does not know who you are; log in with `hf auth login`, or set HF_TOKEN"
    if code == 403:
        return "the hub does not let you write there; check the owner's name and what your token may do"
    return f"cannot be uploaded ({textwrap.shorten(str(error), 160, placeholder=' ...')})"
