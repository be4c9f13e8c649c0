"""Weights published by the authors of a model: address, licence and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from opendetr.files import cache_folder
from opendetr.weights.download import download
from opendetr.weights.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published weights file.

    Attributes:
        file: file name in the cache.
        place: URL of the file, or of a page to download it from manually if there is no hash to check it.
        licence: SPDX identifier, or "not stated" if no source states it.
        ap: box AP on COCO val2017 as published, in 0..1; None for models of other datasets.
        mask_ap: mask AP on COCO val2017, in 0..1; None without masks.
        pq: panoptic quality on COCO panoptic val2017, in 0..1; None without masks.
        figures: further published results by name, in 0..1.
        megabytes: size in MiB; None if not published.
        hub: name of the Hugging Face repository with the same weights, if the authors give one.
        is_checked: whether the file name contains the hash. Only then the file is downloaded.
    """

    file: str
    place: str
    licence: str
    ap: float | None = None
    mask_ap: float | None = None
    pq: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    megabytes: int | None = None
    hub: str | None = None
    is_checked: bool = False

    @property
    def results(self) -> dict[str, float]:
        """The published results by name, in 0..1."""
        on_coco = {"AP": self.ap, "mask AP": self.mask_ap, "PQ": self.pq}
        return {name: value for name, value in on_coco.items() if value is not None} | dict(self.figures)

    @property
    def path(self) -> Path:
        """Path of the file in the cache."""
        return cache_folder() / self.file

    def fetch(self) -> Path:
        """The path of the file in the cache, after a download if necessary.

        A file without a published hash cannot be checked, so it is never downloaded. It is used if the user has put
        it into the cache.

        Raises:
            WeightsError: the file cannot be downloaded. The message says how to get it.
        """
        if self.is_checked:
            return download(self.place)
        if self.path.is_file():
            return self.path
        alternative = f", or use hf:{self.hub}" if self.hub else ""
        raise WeightsError(
            f"{self.file}: published without a hash, so it is not downloaded automatically; download it from "
            f"{self.place} and put it at {self.path}{alternative}"
        )
