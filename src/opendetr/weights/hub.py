"""What a user may name as weights, found or fetched: a path, an address, a repository of Hugging Face's."""

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
    """Whether this names something on the network."""
    return is_url(source) or (isinstance(source, str) and source.lower().startswith(_HUB))


def local_file(source: str | Path) -> Path:
    """The file of weights that a user means, on this machine.

    Args:
        source: a file, a run folder, a folder of Hugging Face's, an address (see `download`), or "hf:owner/name".

    Raises:
        WeightsError: nothing is there, or it cannot be fetched.
    """
    if not is_remote(source):
        return weights_file(Path(source))
    text = str(source)
    return weights_file(_from_hub(text[len(_HUB) :])) if text.lower().startswith(_HUB) else download(text)


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: mostly OSError and ValueError, and errors of the HTTP client that it uses."""
    from huggingface_hub import errors

    return OSError, ValueError, getattr(errors, "HTTPError", OSError)


def _from_hub(name: str) -> Path:
    """The folder with the files of a repository, in the cache of huggingface_hub."""
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
            f"{OFFLINE} is set, and it is not in the cache"
            if offline
            else textwrap.shorten(str(error), 160, placeholder=" ...")
        )
        raise WeightsError(
            f"{_HUB}{name}: cannot be had ({reason}); without a network, copy the files of the repository and name "
            "their folder"
        ) from None
    raise WeightsError(f"{_HUB}{name}: holds neither {_SAFE_FILES[0]} nor {_PICKLED_FILES[0]}")
