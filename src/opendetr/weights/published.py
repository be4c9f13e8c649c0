"""A file of weights that the authors of a model have published: where it is, and what it reaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opendetr.files import cache_folder
from opendetr.weights.download import download
from opendetr.weights.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file of weights.

    Attributes:
        file: its name in the cache.
        place: its address; where that carries no hash to compare with, the place to get it from by hand.
        licence: its SPDX identifier.
        ap: AP on COCO val2017 that its authors give, in 0..1.
        mask_ap: AP of its masks there, where it has any, in 0..1.
        pq: panoptic quality on COCO panoptic val2017, likewise.
        megabytes: its size in MiB, where its authors give one.
        hub: the same weights as a repository of Hugging Face's, where there is one that the authors name.
        is_checked: whether the name carries the hash, so that it can be downloaded and checked.
    """

    file: str
    place: str
    licence: str
    ap: float
    mask_ap: float | None = None
    pq: float | None = None
    megabytes: int | None = None
    hub: str | None = None
    is_checked: bool = False

    @property
    def path(self) -> Path:
        """Where it is kept on this machine."""
        return cache_folder() / self.file

    def fetch(self) -> Path:
        """The file: from the cache, or downloaded once where it can be checked.

        A file without a published hash is never downloaded unasked: nothing would tell it from another one. Put into
        the cache by the user it is used.

        Raises:
            WeightsError: it cannot be had; one line that says how.
        """
        if self.is_checked:
            return download(self.place)
        if self.path.is_file():
            return self.path
        other = f", or name hf:{self.hub}" if self.hub else ""
        raise WeightsError(
            f"{self.file}: published without a hash to check it by, so it is not downloaded unasked; get it from "
            f"{self.place} and put it at {self.path}{other}"
        )
