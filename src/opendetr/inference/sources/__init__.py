"""Image sources: files, folders, patterns, URLs, videos, cameras and images in memory."""

from opendetr.inference.sources.clips import Clip, find_clips
from opendetr.inference.sources.reading import Source, count_images, each_image, folders_of, is_endless, is_one_image

__all__ = ["Clip", "Source", "count_images", "each_image", "find_clips", "folders_of", "is_endless", "is_one_image"]
