"""The weights that the authors of the models have published: where they are, and what they reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opendetr.files import cache_folder
from opendetr.weights.download import download
from opendetr.weights.errors import WeightsError

LICENCE = "Apache-2.0"  # of all of them


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file of weights.

    Attributes:
        file: its name in the cache.
        place: its address; where that carries no hash to compare with, the place to get it from by hand.
        ap: AP on COCO val2017 that its authors give, in 0..1.
        mask_ap: AP of its masks there, where it has any, in 0..1.
        pq: panoptic quality on COCO panoptic val2017, likewise.
        megabytes: its size in MiB, where its authors give one.
        hub: the same weights as a repository of Hugging Face's, where there is one that the authors name.
        is_checked: whether the name carries the hash, so that it can be downloaded and checked.
    """

    file: str
    place: str
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


def _detr(
    file: str, ap: float, megabytes: int, *, mask_ap: float | None = None, pq: float | None = None
) -> PublishedWeights:
    place = f"https://dl.fbaipublicfiles.com/detr/{file}"
    return PublishedWeights(file=file, place=place, ap=ap, mask_ap=mask_ap, pq=pq, megabytes=megabytes, is_checked=True)


def _conditional(variant: str, ap: float, hub: str | None = None) -> PublishedWeights:
    file = f"ConditionalDETR_{variant}_epoch50.pth"
    place = f"https://github.com/DeppMeng/ConditionalDETR/releases/download/v1.0/{file}"
    return PublishedWeights(file=file, place=place, ap=ap, hub=hub)


def _deformable(name: str, identity: str, ap: float) -> PublishedWeights:
    place = f"https://drive.google.com/file/d/{identity}/view"
    return PublishedWeights(file=f"{name}.pth", place=place, ap=ap)


# Names, addresses and figures are those of the authors' repositories. By name of the catalogue.
PUBLISHED: Mapping[str, PublishedWeights] = {
    "detr-r50": _detr("detr-r50-e632da11.pth", 0.420, 159),
    "detr-r50-dc5": _detr("detr-r50-dc5-f0fb7ef5.pth", 0.433, 159),
    "detr-r101": _detr("detr-r101-2c7b67e5.pth", 0.435, 232),
    "detr-r101-dc5": _detr("detr-r101-dc5-a2e86def.pth", 0.449, 232),
    "detr-r50-panoptic": _detr("detr-r50-panoptic-00ce5173.pth", 0.388, 165, mask_ap=0.311, pq=0.434),
    "detr-r50-dc5-panoptic": _detr("detr-r50-dc5-panoptic-da08f1b1.pth", 0.402, 165, mask_ap=0.319, pq=0.446),
    "detr-r101-panoptic": _detr("detr-r101-panoptic-40021d53.pth", 0.401, 237, mask_ap=0.330, pq=0.451),
    "conditional-detr-r50": _conditional("r50", 0.410, hub="microsoft/conditional-detr-resnet-50"),
    "conditional-detr-r50-dc5": _conditional("r50dc5", 0.437),
    "conditional-detr-r101": _conditional("r101", 0.428),
    "conditional-detr-r101-dc5": _conditional("r101dc5", 0.450),
} | {
    name: _deformable(name, identity, ap)
    for name, identity, ap in (
        ("deformable-detr-r50-single-scale", "1WEjQ9_FgfI5sw5OZZ4ix-OKk-IJ_-SDU", 0.394),
        ("deformable-detr-r50-single-scale-dc5", "1m_TgMjzH7D44fbA-c_jiBZ-xf-odxGdk", 0.415),
        ("deformable-detr-r50", "1nDWZWHuRwtwGden77NLM9JoWe-YisJnA", 0.445),
        ("deformable-detr-r50-refine", "1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI", 0.462),
        ("deformable-detr-r50-two-stage", "15I03A7hNTpwuLNdfuEmW9_taZMNVssEp", 0.469),
    )
}
