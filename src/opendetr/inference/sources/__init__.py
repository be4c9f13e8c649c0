"""Image sources: files, folders, patterns, URLs, videos, cameras and images in memory."""

from opendetr.inference.sources.reading import Source, count_images, each_image, folders_of, is_one_image

__all__ = ["Source", "count_images", "each_image", "folders_of", "is_one_image"]
