"""The classes of a dataset: names, ids, colours and labels."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# COCO's 91 detection classes. The published models have a logit for each, including the 11 that no image uses.
_COCO = [
    "N/A",
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic_light",
    "fire_hydrant",
    "N/A",
    "stop_sign",
    "parking_meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "N/A",
    "backpack",
    "umbrella",
    "N/A",
    "N/A",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports_ball",
    "kite",
    "baseball_bat",
    "baseball_glove",
    "skateboard",
    "surfboard",
    "tennis_racket",
    "bottle",
    "N/A",
    "wine_glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot_dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted_plant",
    "bed",
    "N/A",
    "dining_table",
    "N/A",
    "N/A",
    "toilet",
    "N/A",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell_phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "N/A",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy_bear",
    "hair_drier",
    "toothbrush",
]

# COCO panoptic's stuff classes by id; its things are those above. The published models have 250 classes.
_COCO_STUFF = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}
_COCO_PANOPTIC_ROWS = 250


def spread_colour(index: int) -> tuple[int, int, int]:
    """An RGB colour (0..255) for a label. Hues are a golden angle apart, so neighbouring labels look different."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65 + 0.25 * (index % 2), 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class Categories:
    """An ordered list of classes. A label is the index of a class in it.

    Attributes:
        names: (K) names.
        ids: (K) ids of the classes in the files of the dataset; they need not be consecutive.
        isthing: (K) True for countable things, False for stuff.
        used: (K) False for classes that exist only for compatibility with published weights and are never predicted.
        colours: (K) RGB triples, 0..255.

    Raises:
        ValueError: the fields have different lengths, or two classes have the same id.

    Example:
        >>> categories = Categories.from_names(["cat", "dog"])
        >>> categories.label_of_name("dog"), categories.ids
        (1, (1, 2))
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    isthing: tuple[bool, ...] = ()
    used: tuple[bool, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    _labels: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.names)
        defaults = {
            "isthing": (True,) * count,
            "used": (True,) * count,
            "colours": tuple(spread_colour(index) for index in range(count)),
        }
        for name, default in defaults.items():
            object.__setattr__(self, name, tuple(getattr(self, name)) or default)
        for name in ("ids", *defaults):
            if len(getattr(self, name)) != count:
                raise ValueError(f"Categories.{name}: expected {count} entries, got {len(getattr(self, name))}")
        object.__setattr__(self, "_labels", {id_: label for label, id_ in enumerate(self.ids)})
        if len(self._labels) != count:
            twice = sorted({id_ for id_ in self.ids if self.ids.count(id_) > 1})
            raise ValueError(f"Categories.ids: two categories have the id {twice[0]}; use a different id for each")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> Categories:
        """Make categories with the ids 1..K from their names."""
        return cls(tuple(names), tuple(range(1, len(names) + 1)))

    @classmethod
    def from_coco(cls, records: Iterable[dict[str, Any]]) -> Categories:
        """Make categories from those of a COCO file (`id`, `name`, optionally `isthing`, `color`), sorted by id."""
        rows = sorted(records, key=lambda record: record["id"])
        colours = [tuple(row["color"]) if "color" in row else spread_colour(i) for i, row in enumerate(rows)]
        return cls(
            tuple(str(row["name"]) for row in rows),
            tuple(int(row["id"]) for row in rows),
            tuple(bool(row.get("isthing", 1)) for row in rows),
            colours=tuple(colours),
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain lists for JSON; `from_dict` is the inverse."""
        return {"names": list(self.names), "ids": list(self.ids), "isthing": list(self.isthing),
                "used": list(self.used), "colours": [list(colour) for colour in self.colours]}  # fmt: skip

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Categories:
        """The inverse of `to_dict`. Raises ValueError if a field is missing."""
        try:
            return cls(
                names=tuple(record["names"]),
                ids=tuple(record["ids"]),
                isthing=tuple(record["isthing"]),
                used=tuple(record["used"]),
                colours=tuple(tuple(colour) for colour in record["colours"]),
            )
        except KeyError as error:
            raise ValueError(f"categories: the field {error} is missing") from None

    @property
    def distinct_names(self) -> tuple[str, ...]:
        """(K) names, with the id appended where several classes have the same name."""
        counts = Counter(self.names)
        pairs = zip(self.names, self.ids, strict=True)
        return tuple(name if counts[name] == 1 else f"{name} ({id_})" for name, id_ in pairs)

    @property
    def only_things(self) -> Categories:
        """The same classes, with stuff marked as never predicted."""
        used = tuple(used and isthing for used, isthing in zip(self.used, self.isthing, strict=True))
        return replace(self, used=used)

    def label_of_id(self, category_id: int) -> int:
        """Label of a dataset id. Raises KeyError if the id is unknown."""
        return self._labels[category_id]

    def label_of_name(self, name: str) -> int:
        """Label of a name. Raises ValueError if the name is unknown."""
        return self.names.index(name)


def paired_labels(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """The index in `theirs` of each name in `ours`; -1 if there is none.

    Equal names are paired first. Then names are paired that differ only in capitals, blanks, hyphens and underscores,
    unless several names would fit.
    """
    labels = [theirs.index(name) if name in theirs else -1 for name in ours]
    rest = [name for label, name in enumerate(theirs) if label not in labels]
    without = [name for name, label in zip(ours, labels, strict=True) if label < 0]
    spellings, our_spellings = Counter(map(_plain, rest)), Counter(map(_plain, without))
    for index, name in enumerate(ours):
        plain = _plain(name)
        if labels[index] < 0 and plain and spellings[plain] == our_spellings[plain] == 1:
            labels[index] = theirs.index(next(other for other in rest if _plain(other) == plain))
    return labels


def _plain(name: str) -> str:
    """A name without the differences that `paired_labels` ignores."""
    return re.sub(r"[\s_-]+", "", name.casefold())


def coco_categories() -> Categories:
    """COCO's 91 classes as in the published detectors: the label is the category id, and unused ids are marked."""
    used = tuple(name != "N/A" for name in _COCO)
    names = tuple(name.replace("_", " ") for name in _COCO)
    return Categories(names, tuple(range(len(_COCO))), used=used)


def coco_panoptic_categories() -> Categories:
    """COCO panoptic's 250 classes as in the published models: the label is the category id, unused ids are marked."""
    labels = range(_COCO_PANOPTIC_ROWS)
    things = dict(enumerate(coco_categories().names))
    names = tuple(_COCO_STUFF.get(label, things.get(label, "N/A")) for label in labels)
    return Categories(
        names,
        tuple(labels),
        isthing=tuple(label in things for label in labels),
        used=tuple(name != "N/A" for name in names),
    )


def patch_categories() -> Categories:
    """The two classes of pre-training on patches, as published: label 1 is "patch", label 0 is never predicted."""
    return Categories(("N/A", "patch"), (0, 1), used=(False, True))


def located_categories(count: int) -> Categories:
    """A class for each of `count` patches that are located in an image: "patch", or "patch 1", "patch 2", ..."""
    return Categories.from_names(["patch"] if count == 1 else [f"patch {number}" for number in range(1, count + 1)])
