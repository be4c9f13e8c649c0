"""Configuration of scenes, and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opendetr.data import DataError

_THINGS = {
    "round": ("disc", "ring", "crescent", "drop"),
    "polygon": ("triangle", "square", "hexagon", "cross"),
    "symbol": ("star", "heart", "arrow", "gear"),
}
_STUFF = {"above": ("sky",), "ground": ("grass", "water", "sand")}
# Stuff has the colours of its paint, so that a drawn mask does not look like another class. Things have any colour.
_STUFF_COLOURS = {"sky": (150, 195, 240), "grass": (90, 150, 60), "water": (20, 95, 150), "sand": (222, 196, 140)}
_FIRST_STUFF_ID = 20
_SMALLEST_SIZE = 32


def _number_categories(names: Mapping[str, tuple[str, ...]], first_id: int, isthing: int) -> list[dict[str, Any]]:
    """COCO category records with consecutive ids, in the order of ``names`` (supercategory to names)."""
    pairs = [(name, supercategory) for supercategory, members in names.items() for name in members]
    return [
        {"id": category_id, "name": name, "supercategory": supercategory, "isthing": isthing}
        | ({"color": list(_STUFF_COLOURS[name])} if name in _STUFF_COLOURS else {})
        for category_id, (name, supercategory) in enumerate(pairs, start=first_id)
    ]


CATEGORIES: list[dict[str, Any]] = _number_categories(_THINGS, 1, 1) + _number_categories(_STUFF, _FIRST_STUFF_ID, 0)
"""COCO category records: things have the ids 1 to 12, stuff 20 to 23."""

CATEGORY_NAMES = {category["id"]: category["name"] for category in CATEGORIES}
STUFF_IDS = [category["id"] for category in CATEGORIES if not category["isthing"]]
THING_NAMES = tuple(name for members in _THINGS.values() for name in members)
_THING_IDS = [category["id"] for category in CATEGORIES if category["isthing"]]


def require(satisfied: bool, message: str) -> None:
    """Raise DataError about a setting unless its condition is satisfied."""
    if not satisfied:
        raise DataError(f"SceneConfig: {message}")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Size of scenes, and number, size and classes of their objects.

    Attributes:
        size: height and width of the image in pixels.
        min_objects: minimum number of objects drawn in a scene.
        max_objects: maximum number of objects drawn in a scene. The number is log-uniform between the two.
        min_scale: minimum of the longer side of an object, as a fraction of ``size``.
        max_scale: maximum of the longer side of an object. The side is log-uniform between the two.
        max_per_category: maximum number of objects of one class in a scene.
        clustering: probability that an object is placed next to an earlier one instead of at a random place.
        crowd_visibility: an object is marked as crowd if a smaller fraction of it is visible.
        classes: names of the things to draw, by default all; fewer classes are easier to distinguish.

    Raises:
        DataError: a setting is invalid.
    """

    size: int = 256
    min_objects: int = 1
    max_objects: int = 16
    min_scale: float = 0.06
    max_scale: float = 0.70
    max_per_category: int = 13
    clustering: float = 0.4
    crowd_visibility: float = 0.2
    classes: tuple[str, ...] = THING_NAMES

    def __post_init__(self) -> None:
        """Raise DataError for invalid settings."""
        unknown = [name for name in self.classes if name not in THING_NAMES]
        require(not unknown, f"classes: unknown classes {', '.join(unknown)}; choose from {', '.join(THING_NAMES)}")
        require(
            len(set(self.classes)) == len(self.classes) > 0, f"classes={self.classes}: name at least one, each once"
        )
        limit = self.max_per_category * len(self.classes)
        require(self.size >= _SMALLEST_SIZE, f"size={self.size}: must be at least {_SMALLEST_SIZE} pixels")
        require(
            1 <= self.min_objects <= self.max_objects <= limit,
            f"min_objects={self.min_objects}, max_objects={self.max_objects}: need 1 <= min <= max <= {limit}, "
            f"which is {len(self.classes)} classes times max_per_category={self.max_per_category}",
        )
        require(
            0 < self.min_scale <= self.max_scale <= 1,
            f"min_scale={self.min_scale}, max_scale={self.max_scale}: need 0 < min <= max <= 1",
        )
        for name in ("clustering", "crowd_visibility"):
            require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)}: must lie in [0, 1]")

    @property
    def category_ids(self) -> list[int]:
        """The category ids of `classes`, ascending."""
        return [category_id for category_id in _THING_IDS if CATEGORY_NAMES[category_id] in self.classes]

    @classmethod
    def hard(cls) -> SceneConfig:
        """A harder configuration: up to 40 objects, with sides from 3 % of the image."""
        return cls(max_objects=40, min_scale=0.03)


DEFAULT_CONFIG = SceneConfig()
EASY_SCENES = SceneConfig(size=128, min_objects=2, max_objects=6, min_scale=0.12, classes=("disc",))
"""Small scenes of one class, with objects of 15 pixels or more: a DETR learns them in minutes without a GPU."""
