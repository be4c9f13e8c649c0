"""Kinds of faults and warnings about a dataset, and what training does about each."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Effect(StrEnum):
    """What training does about a fault or warning.

    STOPS: training does not start. MISREADS: the annotations probably do not mean what training would read; training
    does not start unless the user allows it. SKIPS: the image, object or annotation is skipped. ADJUSTS: the data is
    used after a change. KEEPS: training does nothing about it; the warning is for the user.
    """

    STOPS = "stops"
    MISREADS = "misreads"
    SKIPS = "skips"
    ADJUSTS = "adjusts"
    KEEPS = "keeps"


class FaultKind(StrEnum):
    """Kind of fault or warning that is reported while a dataset is read and checked."""

    NO_DATA = "no_data"
    BROKEN_FILE = "broken_file"
    WRONG_STRUCTURE = "wrong_structure"
    BAD_CLASSES = "bad_classes"
    MISSING_FIELD = "missing_field"
    BAD_VALUE = "bad_value"
    REPEATED_IMAGE_ID = "repeated_image_id"
    UNKNOWN_IMAGE = "unknown_image"
    UNKNOWN_CLASS = "unknown_class"
    UNSAFE_NAME = "unsafe_name"
    MISSING_IMAGE = "missing_image"
    AMBIGUOUS_NAME = "ambiguous_name"
    MISSING_ANNOTATION = "missing_annotation"
    SIZE_MISMATCH = "size_mismatch"
    NO_LABELS = "no_labels"
    BYTE_SPANS = "byte_spans"
    NORMALISED_BOXES = "normalised_boxes"
    FOREIGN_SCALE = "foreign_scale"
    BOX_FORMAT = "box_format"
    SHIFTED_CLASSES = "shifted_classes"
    EXTRA_NUMBERS = "extra_numbers"
    UNKNOWN_ROTATION = "unknown_rotation"
    UNMATCHED_LABELS = "unmatched_labels"
    DOUBTFUL_SIZE = "doubtful_size"
    CROWD_ONLY = "crowd_only"
    TOO_FEW_QUERIES = "too_few_queries"
    EMPTY_FILE = "empty_file"
    UNREADABLE_IMAGE = "unreadable_image"
    OVERSIZED_IMAGE = "oversized_image"
    TINY_IMAGE = "tiny_image"
    INVALID_ROW = "invalid_row"
    UNLISTED_CLASS = "unlisted_class"
    PIXEL_ROW = "pixel_row"
    INVALID_BOX = "invalid_box"
    NO_AREA = "no_area"
    INVALID_OUTLINE = "invalid_outline"
    NO_OUTLINE = "no_outline"
    EMPTY_MASK = "empty_mask"
    MASK_SIZE = "mask_size"
    UNREADABLE_MAP = "unreadable_map"
    MISSING_SEGMENT = "missing_segment"
    REPEATED_SEGMENT = "repeated_segment"
    SPAN_OUTSIDE = "span_outside"
    EMPTY_SPAN = "empty_span"
    REPEATED_TRACK = "repeated_track"
    OUTSIDE_VIDEO = "outside_video"
    OUT_OF_IMAGE = "out_of_image"
    UNLISTED_SEGMENT = "unlisted_segment"
    SEGMENT_AREA = "segment_area"
    NAMELESS_CLASS = "nameless_class"
    STALE_EXTRA = "stale_extra"
    RESPELLED_NAME = "respelled_name"
    NO_SIZE = "no_size"
    SWAPPED_SIZE = "swapped_size"
    BAD_AREA = "bad_area"
    NEW_ID = "new_id"
    NO_BOX = "no_box"
    ROTATED_BOX = "rotated_box"
    TURNED_IMAGE = "turned_image"
    ANIMATED_IMAGE = "animated_image"
    LOW_CONTRAST = "low_contrast"
    TRUNCATED_IMAGE = "truncated_image"
    VIDEO_SIZE = "video_size"
    MISSING_FRAME = "missing_frame"
    CLASS_CHANGE = "class_change"
    SHORT_TRACK = "short_track"
    CONFIDENCE = "confidence"
    CROWD = "crowd"
    UNLABELLED_IMAGE = "unlabelled_image"
    OMITTED_IMAGE = "omitted_image"
    NO_OBJECTS = "no_objects"
    NO_SPAN = "no_span"
    VOID_MAP = "void_map"
    IN_TRAINING = "in_training"
    COPY_IN_TRAINING = "copy_in_training"
    COPY_IN_SPLIT = "copy_in_split"
    REPEATED_ID = "repeated_id"
    REPEATED_BOX = "repeated_box"
    TWO_CLASSES = "two_classes"
    SMALL_OBJECT = "small_object"
    THIN_BOX = "thin_box"
    LONG_IMAGE = "long_image"
    TOO_MANY_OBJECTS = "too_many_objects"
    UNSEEN_CLASS = "unseen_class"
    RARE_CLASS = "rare_class"
    UNUSED_CLASS = "unused_class"
    ALIKE_NAMES = "alike_names"
    UNLISTED_IMAGE = "unlisted_image"
    ORPHAN_LABELS = "orphan_labels"

    @property
    def effect(self) -> Effect:
        """What training does about it, as one of four categories."""
        return _DESCRIPTIONS[self].effect

    @property
    def consequence(self) -> str:
        """What training does about it, in words, such as "skipped"."""
        return _DESCRIPTIONS[self].consequence

    @property
    def fixable(self) -> bool:
        """Whether `opendetr data check --fix` fixes or removes it in the copy that it writes."""
        return _DESCRIPTIONS[self].fixable

    @property
    def fix(self) -> str:
        """What the user can do about a fault that `Effect.MISREADS` describes, such as "subtract 1"; else empty."""
        return _DESCRIPTIONS[self].fix

    @classmethod
    def allowable(cls) -> tuple[FaultKind, ...]:
        """The kinds that stop training unless the user allows them, see `DataConfig.allow`."""
        return tuple(kind for kind in cls if kind.effect is Effect.MISREADS)

    def describe(self, count: int) -> str:
        """A description with the count, such as "2 boxes without area inside the image"."""
        return f"{count_noun(count, _DESCRIPTIONS[self].noun)} {_DESCRIPTIONS[self].what}"


def count_noun(count: int, noun: str) -> str:
    """A number with its noun in the singular or plural, such as "1,204 boxes"."""
    if count == 1:
        return f"1 {noun}"
    first, *rest = noun.split(" ")
    head_first = rest[:1] == ["of"]  # "list of classes": the first word takes the plural
    word = first if head_first else noun
    stem = word[:-1] + "i" if word.endswith("ry") else word
    plural = stem + ("es" if stem.endswith(("s", "x", "ri")) else "s")
    return f"{count:,} {' '.join([plural, *rest]) if head_first else plural}"


class _Description(NamedTuple):
    """The words that describe a kind.

    Attributes:
        effect: what training does about it, as a category.
        noun: what is counted, in the singular.
        what: what is wrong with it; it must fit the singular and the plural of `noun`.
        consequence: what training does about it, in words.
        fixable: see `FaultKind.fixable`.
        fix: see `FaultKind.fix`.
    """

    effect: Effect
    noun: str
    what: str
    consequence: str
    fixable: bool = False
    fix: str = ""


def _misread(noun: str, what: str, fix: str) -> _Description:
    return _Description(Effect.MISREADS, noun, what, _STOPPED_UNLESS_ALLOWED, fix=fix)


_STOPPED = "training stops"
_STOPPED_UNLESS_ALLOWED = "training stops unless allowed"
_WITH_MASKS = "skipped by training with masks"
_DESCRIPTIONS = {
    FaultKind.NO_DATA: _Description(Effect.STOPS, "folder", "without a dataset to train on", _STOPPED),
    FaultKind.BROKEN_FILE: _Description(Effect.STOPS, "annotation file", "that cannot be parsed", _STOPPED),
    FaultKind.WRONG_STRUCTURE: _Description(Effect.STOPS, "annotation file", "with the wrong structure", _STOPPED),
    FaultKind.BAD_CLASSES: _Description(
        Effect.STOPS, "list of classes", "with contradictory ids, names or counts", _STOPPED
    ),
    FaultKind.MISSING_FIELD: _Description(Effect.STOPS, "entry", "without a required field", _STOPPED, fixable=True),
    FaultKind.BAD_VALUE: _Description(Effect.STOPS, "entry", "with an invalid value", _STOPPED, fixable=True),
    FaultKind.REPEATED_IMAGE_ID: _Description(
        Effect.STOPS, "image", "with the id of another image", _STOPPED, fixable=True
    ),
    FaultKind.UNKNOWN_IMAGE: _Description(
        Effect.STOPS, "annotation", "of an image that is not listed", _STOPPED, fixable=True
    ),
    FaultKind.UNKNOWN_CLASS: _Description(
        Effect.STOPS, "annotation", "of a class that is not listed", _STOPPED, fixable=True
    ),
    FaultKind.UNSAFE_NAME: _Description(Effect.STOPS, "file name", "outside the data folder", _STOPPED, fixable=True),
    FaultKind.MISSING_IMAGE: _Description(Effect.STOPS, "image", "that cannot be found", _STOPPED, fixable=True),
    FaultKind.AMBIGUOUS_NAME: _Description(
        Effect.STOPS, "file name", "fitting several files equally well", _STOPPED, fixable=True
    ),
    FaultKind.MISSING_ANNOTATION: _Description(
        Effect.STOPS, "listed name", "without an annotation", _STOPPED, fixable=True
    ),
    FaultKind.SIZE_MISMATCH: _Description(
        Effect.STOPS, "image", "whose size differs from the annotation", _STOPPED, fixable=True
    ),
    FaultKind.NO_LABELS: _Description(Effect.STOPS, "split", "without any object", _STOPPED),
    FaultKind.BYTE_SPANS: _Description(
        Effect.STOPS, "annotation file", "whose spans count bytes instead of characters", _STOPPED
    ),
    FaultKind.NORMALISED_BOXES: _misread(
        "dataset", "whose boxes look like fractions", "multiply them by the width and height of the image"
    ),
    FaultKind.FOREIGN_SCALE: _misread(
        "dataset", "with most boxes extending far outside the image", "scale them to the size of the image files"
    ),
    FaultKind.BOX_FORMAT: _misread(
        "dataset", "whose boxes look like those of another format", "write them as the format defines them"
    ),
    FaultKind.SHIFTED_CLASSES: _misread(
        "list of classes",
        "whose numbers are probably off by one",
        "subtract 1 from the class numbers of the label files",
    ),
    FaultKind.EXTRA_NUMBERS: _misread(
        "dataset", "whose rows contain more numbers than a box", "remove them, or add kpt_shape for keypoints"
    ),
    FaultKind.UNKNOWN_ROTATION: _misread(
        "dataset", "with rotated boxes in an unknown unit", "replace them by axis-aligned boxes"
    ),
    FaultKind.UNMATCHED_LABELS: _misread(
        "split", "with label files that fit no image", "give every label file the name of its image"
    ),
    FaultKind.DOUBTFUL_SIZE: _misread(
        "image",
        "whose width and height may be swapped in the annotation",
        "correct the annotated size, or annotate this image again",
    ),
    FaultKind.CROWD_ONLY: _misread("split or class", "whose objects are all crowd regions", "set iscrowd to 0"),
    FaultKind.TOO_FEW_QUERIES: _misread("split", "with more objects in most images than the model has queries", ""),
    FaultKind.EMPTY_FILE: _Description(Effect.SKIPS, "image file", "of zero bytes", "skipped", fixable=True),
    FaultKind.UNREADABLE_IMAGE: _Description(Effect.SKIPS, "image", "that cannot be read", "skipped", fixable=True),
    FaultKind.OVERSIZED_IMAGE: _Description(
        Effect.SKIPS, "image", "with too many pixels to decode", "skipped", fixable=True
    ),
    FaultKind.TINY_IMAGE: _Description(
        Effect.SKIPS, "image", "with a side of 16 pixels or less", "skipped by pre-training"
    ),
    FaultKind.INVALID_ROW: _Description(Effect.SKIPS, "row", "that cannot be read", "skipped", fixable=True),
    FaultKind.UNLISTED_CLASS: _Description(
        Effect.SKIPS, "row", "of a class that is not listed", "skipped", fixable=True
    ),
    FaultKind.PIXEL_ROW: _Description(
        Effect.SKIPS, "row", "in pixels instead of fractions of the image", "skipped", fixable=True
    ),
    FaultKind.INVALID_BOX: _Description(
        Effect.SKIPS, "box", "with NaN, negative or inverted sides", "skipped", fixable=True
    ),
    FaultKind.NO_AREA: _Description(Effect.SKIPS, "box", "without area inside the image", "skipped", fixable=True),
    FaultKind.INVALID_OUTLINE: _Description(Effect.SKIPS, "outline", "that cannot be drawn", _WITH_MASKS, fixable=True),
    FaultKind.NO_OUTLINE: _Description(Effect.SKIPS, "object", "without an outline", _WITH_MASKS),
    FaultKind.EMPTY_MASK: _Description(Effect.SKIPS, "outline", "without any pixel inside", _WITH_MASKS, fixable=True),
    FaultKind.MASK_SIZE: _Description(
        Effect.SKIPS, "mask", "whose size differs from the image", _WITH_MASKS, fixable=True
    ),
    FaultKind.UNREADABLE_MAP: _Description(
        Effect.SKIPS, "panoptic map", "that cannot be read", _WITH_MASKS, fixable=True
    ),
    FaultKind.MISSING_SEGMENT: _Description(
        Effect.SKIPS, "segment", "without pixels in the panoptic map", _WITH_MASKS, fixable=True
    ),
    FaultKind.REPEATED_SEGMENT: _Description(
        Effect.SKIPS, "segment", "with the number of another segment", "skipped", fixable=True
    ),
    FaultKind.SPAN_OUTSIDE: _Description(Effect.SKIPS, "span", "outside the caption", "skipped", fixable=True),
    FaultKind.EMPTY_SPAN: _Description(Effect.SKIPS, "span", "without a word", "skipped", fixable=True),
    FaultKind.REPEATED_TRACK: _Description(
        Effect.SKIPS, "row", "with an id that its frame has already", "skipped", fixable=True
    ),
    FaultKind.OUTSIDE_VIDEO: _Description(Effect.SKIPS, "row", "of a frame outside its video", "skipped", fixable=True),
    FaultKind.OUT_OF_IMAGE: _Description(
        Effect.ADJUSTS, "box", "extending outside the image", "clipped for training", fixable=True
    ),
    FaultKind.UNLISTED_SEGMENT: _Description(
        Effect.ADJUSTS, "segment", "in the panoptic map without an annotation", "treated as void"
    ),
    FaultKind.SEGMENT_AREA: _Description(
        Effect.ADJUSTS, "segment", "whose area differs from the annotation", "the area in the map is used"
    ),
    FaultKind.NAMELESS_CLASS: _Description(Effect.ADJUSTS, "class", "without a name", "named by number"),
    FaultKind.STALE_EXTRA: _Description(
        Effect.ADJUSTS,
        "image",
        "whose annotation changed after opendetr.json was written",
        "the entry in opendetr.json is ignored",
        fixable=True,
    ),
    FaultKind.RESPELLED_NAME: _Description(
        Effect.ADJUSTS, "file name", "spelled differently from the file", "the file is found by the end of its name"
    ),
    FaultKind.NO_SIZE: _Description(
        Effect.ADJUSTS, "image", "whose size is not annotated", "the size is read from the file", fixable=True
    ),
    FaultKind.SWAPPED_SIZE: _Description(
        Effect.ADJUSTS,
        "image",
        "whose width and height are swapped in the annotation",
        "the size of the file is used",
        fixable=True,
    ),
    FaultKind.NEW_ID: _Description(
        Effect.ADJUSTS, "entry", "whose id is not a whole number", "numbered anew", fixable=True
    ),
    FaultKind.NO_BOX: _Description(
        Effect.ADJUSTS, "annotation", "without a box", "the box around its outline is used", fixable=True
    ),
    FaultKind.ROTATED_BOX: _Description(
        Effect.ADJUSTS, "box", "rotated in the annotation", "the axis-aligned box around it is used"
    ),
    FaultKind.BAD_AREA: _Description(
        Effect.ADJUSTS,
        "annotation",
        "whose area is not a positive number",
        "the area of the box is used",
        fixable=True,
    ),
    FaultKind.TURNED_IMAGE: _Description(
        Effect.ADJUSTS, "image", "annotated before the EXIF rotation", "used without the rotation"
    ),
    FaultKind.ANIMATED_IMAGE: _Description(
        Effect.ADJUSTS, "image", "with several frames", "only the first frame is used"
    ),
    FaultKind.LOW_CONTRAST: _Description(
        Effect.ADJUSTS, "16-bit image", "of low contrast", "scaled from the darkest to the brightest value"
    ),
    FaultKind.TRUNCATED_IMAGE: _Description(
        Effect.ADJUSTS, "JPEG image", "that breaks off near the end", "used, with a plain colour for what is missing"
    ),
    FaultKind.VIDEO_SIZE: _Description(
        Effect.ADJUSTS, "video", "whose size differs from seqinfo.ini", "the size of the images is used"
    ),
    FaultKind.MISSING_FRAME: _Description(
        Effect.KEEPS, "video", "without some of its frames", "the others are used in their order"
    ),
    FaultKind.CLASS_CHANGE: _Description(Effect.KEEPS, "track", "whose class changes", "kept"),
    FaultKind.SHORT_TRACK: _Description(Effect.KEEPS, "track", "of a single frame", "kept"),
    FaultKind.CONFIDENCE: _Description(
        Effect.KEEPS, "object", "with a confidence below 1", "used like every other object"
    ),
    FaultKind.CROWD: _Description(
        Effect.KEEPS, "crowd region", "evaluated by COCO's crowd rule", "not used in training"
    ),
    FaultKind.UNLABELLED_IMAGE: _Description(
        Effect.KEEPS, "image", "without a label file", "used as an image without objects"
    ),
    FaultKind.OMITTED_IMAGE: _Description(
        Effect.KEEPS, "image", "without a label file", "skipped, as the dataset specifies"
    ),
    FaultKind.NO_OBJECTS: _Description(Effect.KEEPS, "image", "without objects", "kept"),
    FaultKind.NO_SPAN: _Description(Effect.KEEPS, "box", "without a span of the caption", "kept, but it names no word"),
    FaultKind.VOID_MAP: _Description(
        Effect.KEEPS, "panoptic map", "without any segment", "kept as an image without objects"
    ),
    FaultKind.IN_TRAINING: _Description(
        Effect.KEEPS, "image", "also in the training split", "evaluated nevertheless", fixable=True
    ),
    FaultKind.COPY_IN_TRAINING: _Description(
        Effect.KEEPS, "image", "with a copy in the training split", "evaluated nevertheless", fixable=True
    ),
    FaultKind.COPY_IN_SPLIT: _Description(Effect.KEEPS, "image", "repeating another image of the split", "kept"),
    FaultKind.REPEATED_ID: _Description(
        Effect.KEEPS, "annotation", "with the id of another annotation", "renumbered", fixable=True
    ),
    FaultKind.REPEATED_BOX: _Description(
        Effect.KEEPS, "box", "repeating another box of the same class", "kept as two objects", fixable=True
    ),
    FaultKind.TWO_CLASSES: _Description(Effect.KEEPS, "box", "repeating a box of another class", "kept as two objects"),
    FaultKind.SMALL_OBJECT: _Description(Effect.KEEPS, "object", "smaller than 8 pixels at the image size", "kept"),
    FaultKind.THIN_BOX: _Description(Effect.KEEPS, "box", "with an aspect ratio above 20", "kept"),
    FaultKind.LONG_IMAGE: _Description(
        Effect.KEEPS, "image", "with an aspect ratio above 4", "resized until the long side fits"
    ),
    FaultKind.TOO_MANY_OBJECTS: _Description(
        Effect.KEEPS, "image", "with more objects than the model has queries", "the model cannot detect all of them"
    ),
    FaultKind.UNSEEN_CLASS: _Description(
        Effect.KEEPS, "class", "in the validation split but not in the training split", "the AP stays near 0"
    ),
    FaultKind.RARE_CLASS: _Description(Effect.KEEPS, "class", "with few objects", "kept"),
    FaultKind.UNUSED_CLASS: _Description(Effect.KEEPS, "class", "without objects", "kept"),
    FaultKind.ALIKE_NAMES: _Description(
        Effect.KEEPS, "class", "with nearly the name of another class", "kept as two classes"
    ),
    FaultKind.UNLISTED_IMAGE: _Description(Effect.KEEPS, "image file", "that no annotation names", "not used"),
    FaultKind.ORPHAN_LABELS: _Description(Effect.KEEPS, "label file", "without an image in any split", "not used"),
}
