"""Finds or downloads weights by path, URL or name of a Hugging Face repository."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from opendetr.network import OFFLINE, is_offline, is_url
from opendetr.weights.download import download
from opendetr.weights.errors import WeightsError
from opendetr.weights.reading import weights_file

_HUB = "hf:"
_SETTINGS_FILES = ["config.json", "preprocessor_config.json"]
_SAFE_FILES = ["model*.safetensors", "model.safetensors.index.json"]
_PICKLED_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def is_remote(source: str | Path) -> bool:
    """Whether the source is a URL or a Hugging Face repository."""
    return is_url(source) or (isinstance(source, str) and source.lower().startswith(_HUB))


def local_file(source: str | Path) -> Path:
    """The local path of a weights file, which is downloaded if necessary.

    Args:
        source: a file, a run folder, a Hugging Face folder, a URL (see `download`), or "hf:owner/name".

    Raises:
        WeightsError: the weights are missing or cannot be downloaded.
    """
    if not is_remote(source):
        return weights_file(Path(source))
    text = str(source)
    return weights_file(_from_hub(text[len(_HUB) :])) if text.lower().startswith(_HUB) else download(text)


def hub_errors() -> tuple[type[Exception], ...]:
    """The errors that huggingface_hub raises: OSError, ValueError, and those of its HTTP client."""
    from huggingface_hub import errors

    return OSError, ValueError, getattr(errors, "HTTPError", OSError)


def _from_hub(name: str) -> Path:
    """Download the files of a repository; returns their folder in the cache of huggingface_hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(f"{_HUB}{name}: expected {_HUB}owner/name, as in hf:facebook/detr-resnet-50")
    from huggingface_hub import snapshot_download

    offline = is_offline()
    try:
        for files in (_SAFE_FILES, _PICKLED_FILES):
            folder = Path(snapshot_download(name, allow_patterns=[*_SETTINGS_FILES, *files], local_files_only=offline))
            if any(folder.glob(files[0])):
                return folder
    except hub_errors() as error:
        reason = (
            f"{OFFLINE} is set, and the repository is not cached"
            if offline
            else textwrap.shorten(str(error), 160, placeholder=" ...")
        )
        raise WeightsError(
            f"{_HUB}{name}: cannot be downloaded ({reason}); without a network, copy the files of the repository "
            "and give their folder"
        ) from None
    raise WeightsError(f"{_HUB}{name}: contains neither {_SAFE_FILES[0]} nor {_PICKLED_FILES[0]}")
