"""Readers and writers of annotation formats, and how a folder's format is recognised."""

from opendetr.data.formats.recognise import TRAIN_NAMES, Format, open_data, open_split, read_splits, recognise
from opendetr.data.formats.splits import pooled, stratified

__all__ = [
    "TRAIN_NAMES",
    "Format",
    "open_data",
    "open_split",
    "pooled",
    "read_splits",
    "recognise",
    "stratified",
]
