"""Datasets: formats, records, images, masks, augmentation, and the batches made of them."""

from opendetr.data.answers import ANSWER_WORDS, AnswerWords, Questions, encode_answer, gqa_decoder
from opendetr.data.captions import CAUTIOUS, CaptionDataConfig
from opendetr.data.collate import collate_samples
from opendetr.data.config import DataConfig, Masks
from opendetr.data.faults import Effect, FaultKind, count_noun
from opendetr.data.formats.recognise import open_data
from opendetr.data.images import ImageError, read_image, read_record, write_map
from opendetr.data.loader import TrainLoader, eval_loader, train_loader
from opendetr.data.masks import (
    TrueSegment,
    coco_truth,
    known_masks,
    map_hashes,
    panoptic_truth,
    read_masks,
    require_scorable,
    thing_outlines,
)
from opendetr.data.paths import require_folder, require_new
from opendetr.data.pixels import to_pixels
from opendetr.data.records import DataError, DataFault, DetectionData, ImageRecord
from opendetr.data.transforms import LabelledImage, Transform, evaluation_transform

__all__ = [
    "ANSWER_WORDS",
    "CAUTIOUS",
    "AnswerWords",
    "CaptionDataConfig",
    "DataConfig",
    "DataError",
    "DataFault",
    "DetectionData",
    "Effect",
    "FaultKind",
    "ImageError",
    "ImageRecord",
    "LabelledImage",
    "Masks",
    "Questions",
    "TrainLoader",
    "Transform",
    "TrueSegment",
    "coco_truth",
    "collate_samples",
    "count_noun",
    "encode_answer",
    "eval_loader",
    "evaluation_transform",
    "gqa_decoder",
    "known_masks",
    "map_hashes",
    "open_data",
    "panoptic_truth",
    "read_image",
    "read_masks",
    "read_record",
    "require_folder",
    "require_new",
    "require_scorable",
    "thing_outlines",
    "to_pixels",
    "train_loader",
    "write_map",
]
