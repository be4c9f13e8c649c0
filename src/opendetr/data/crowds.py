"""Classes whose objects are all crowd regions: tools that export brushed masks mark every one of them as a crowd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from opendetr.data.formats.coco_videos import VIDEO
from opendetr.data.records import DetectionData, ImageRecord


def crowd_only_classes(splits: Iterable[DetectionData]) -> dict[int, int]:
    """Category id -> number of objects, for the classes whose objects are all crowd regions.

    Videos and panoptic maps are left out: their crowd regions are what a benchmark ignores, perhaps a whole class.
    """
    objects, crowds = Counter[int](), Counter[int]()
    for data in splits:
        for image in data.images:
            if VIDEO not in image.extras and image.panoptic_map is None:
                objects.update(obj.category_id for obj in image.objects)
                crowds.update(obj.category_id for obj in image.objects if obj.crowd)
    return {id_: count for id_, count in crowds.items() if count == objects[id_]}


def crowds_as_objects(splits: Mapping[str, DetectionData]) -> dict[str, DetectionData]:
    """The splits with the crowd regions of these classes as single objects."""
    everywhere = crowd_only_classes(splits.values()).keys()
    changed = {}
    for name, data in splits.items():
        here = crowd_only_classes([data]).keys()
        is_all = all(obj.crowd for image in data.images for obj in image.objects)
        ids = here if is_all else everywhere
        changed[name] = replace(data, images=tuple(_as_objects(image, ids) for image in data.images)) if ids else data
    return changed


def _as_objects(image: ImageRecord, category_ids: Iterable[int]) -> ImageRecord:
    objects = tuple(replace(obj, crowd=False) if obj.category_id in category_ids else obj for obj in image.objects)
    return image if objects == image.objects else replace(image, objects=objects)
