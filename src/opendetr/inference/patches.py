"""Patches that a user gives, to be located in images.

Shape letters: M patches, h w patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendetr.categories import Categories, located_categories
from opendetr.config import ConfigError
from opendetr.data import ImageError
from opendetr.inference.sources.reading import Source, is_one_image, plain_source, read_source
from opendetr.inference.sources.source_image import SourceImage


@dataclass(frozen=True)
class Patches:
    """M patches.

    Attributes:
        inputs: (M, 3, h, w) normalised, the prompt of a session.
        names: M names, for messages.
        sizes: M heights and widths of the original patches, in pixels.
        categories: a class for each patch.
    """

    inputs: Tensor
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    categories: Categories

    def require_smaller_than(self, image: SourceImage) -> None:
        """Raise ImageError if a patch is higher or wider than the image."""
        height, width = image.pixels.shape[:2]
        for name, (patch_height, patch_width) in zip(self.names, self.sizes, strict=True):
            if patch_height > height or patch_width > width:
                raise ImageError(
                    f"{image.source or 'image'}: {width}x{height} pixels, less than {name} with "
                    f"{patch_width}x{patch_height}; give a patch that is no larger than the image"
                )


def read_patches(patches: Any, prepare: Callable[[np.ndarray], Tensor], max_patches: int) -> Patches:
    """Read the patches of a user.

    Args:
        patches: one image or several, each a path, URL, PIL image, array or tensor.
        prepare: (h, w, 3) uint8 RGB -> the input of the model, (3, h, w).
        max_patches: the largest number of patches.

    Raises:
        ImageError: a patch cannot be read.
        ConfigError: there are no patches, or too many.
    """
    plain = plain_source(patches)
    given = [plain] if isinstance(plain, Source) else list(plain)
    if not 1 <= len(given) <= max_patches:
        raise ConfigError(f"patches: the model locates 1 to {max_patches} patches at a time, got {len(given)}")
    read = [_read(plain_source(item)) for item in given]
    categories = located_categories(len(read))
    return Patches(
        torch.stack([prepare(image.pixels) for image in read]),
        tuple(image.source or name for image, name in zip(read, categories.names, strict=True)),
        tuple((image.pixels.shape[0], image.pixels.shape[1]) for image in read),
        categories,
    )


def _read(patch: Source | Iterable[Source]) -> SourceImage:
    """Load one patch. Raises ImageError if it is not an image."""
    if not isinstance(patch, Source) or not is_one_image(patch):
        raise ImageError(f"{patch}: not one image; give each patch as an image")
    return read_source(patch)
