"""Datasets: formats, records, images, masks, augmentation, and the batches made of them."""

from opendetr.data.answers import ANSWER_WORDS, AnswerDecoder, AnswerWords, Questions, encode_answer, gqa_decoder
from opendetr.data.captions import CAUTIOUS, CaptionDataConfig, require_captions
from opendetr.data.clips import ClipDataConfig, PairDataConfig, VideoDataConfig, Videos, has_tracks
from opendetr.data.collate import collate_samples
from opendetr.data.config import AugmentationConfig, DataConfig, Masks
from opendetr.data.faults import Effect, FaultKind, count_noun
from opendetr.data.formats.captions import CAPTION, SPANS, text_of
from opendetr.data.formats.coco_videos import DISTRACTOR, FRAME, TRACK, VIDEO, VISIBILITY
from opendetr.data.formats.mot import VideoFolder, open_video
from opendetr.data.formats.recognise import open_data
from opendetr.data.formats.unlabelled import open_images
from opendetr.data.images import ImageError, image_size, read_image, read_record, write_map
from opendetr.data.listing import files_matching, images_in, is_pattern, number_frames
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
    things_of,
)
from opendetr.data.patches import PatchAugmentationConfig, PatchDataConfig, PatchEvaluationBatch
from opendetr.data.paths import require_folder, require_new
from opendetr.data.pixels import image_in, to_pixels
from opendetr.data.records import (
    DataError,
    DataFault,
    DetectionData,
    FaultCount,
    ImageRecord,
    count_faults,
    spread,
    unknown_split,
)
from opendetr.data.resizing import denormalise, resized_shape
from opendetr.data.statistics import DataStatistics
from opendetr.data.transforms import LabelledImage, Transform, evaluation_transform
from opendetr.data.video_files import VideoError, count_frames, decode_video, is_video, video_library

__all__ = [
    "ANSWER_WORDS",
    "CAPTION",
    "CAUTIOUS",
    "DISTRACTOR",
    "FRAME",
    "SPANS",
    "TRACK",
    "VIDEO",
    "VISIBILITY",
    "AnswerDecoder",
    "AnswerWords",
    "AugmentationConfig",
    "CaptionDataConfig",
    "ClipDataConfig",
    "DataConfig",
    "DataError",
    "DataFault",
    "DataStatistics",
    "DetectionData",
    "Effect",
    "FaultCount",
    "FaultKind",
    "ImageError",
    "ImageRecord",
    "LabelledImage",
    "Masks",
    "PairDataConfig",
    "PatchAugmentationConfig",
    "PatchDataConfig",
    "PatchEvaluationBatch",
    "Questions",
    "TrainLoader",
    "Transform",
    "TrueSegment",
    "VideoDataConfig",
    "VideoError",
    "VideoFolder",
    "Videos",
    "coco_truth",
    "collate_samples",
    "count_faults",
    "count_frames",
    "count_noun",
    "decode_video",
    "denormalise",
    "encode_answer",
    "eval_loader",
    "evaluation_transform",
    "files_matching",
    "gqa_decoder",
    "has_tracks",
    "image_in",
    "image_size",
    "images_in",
    "is_pattern",
    "is_video",
    "known_masks",
    "map_hashes",
    "number_frames",
    "open_data",
    "open_images",
    "open_video",
    "panoptic_truth",
    "read_image",
    "read_masks",
    "read_record",
    "require_captions",
    "require_folder",
    "require_new",
    "require_scorable",
    "resized_shape",
    "spread",
    "text_of",
    "thing_outlines",
    "things_of",
    "to_pixels",
    "train_loader",
    "unknown_split",
    "video_library",
    "write_map",
]
