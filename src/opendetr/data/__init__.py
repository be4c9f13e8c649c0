"""Datasets: formats, records, images, masks, augmentation, and the batches made of them."""

from opendetr.data.formats.recognise import open_data
from opendetr.data.images import ImageError
from opendetr.data.records import DataError

__all__ = ["DataError", "ImageError", "open_data"]
