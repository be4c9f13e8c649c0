"""The memory that a train step of the published detectors needs on a GPU: for the model, and for each image.

    python runs/training_memory.py
    python runs/training_memory.py --models detr-r50

For each image, the script adds up the tensors that the backward pass of the model needs, in 32 bits, on one image of
half the sides, times four, and a fifth for temporary tensors and the losses. For the model, it counts the weights,
their gradients and AdamW's two moments, and the context of CUDA. It needs no GPU.
"""

from __future__ import annotations

import argparse

import torch

from opendetr import create, list_models
from opendetr.presets import get_preset
from opendetr.structures import ImageBatch
from opendetr.weights import published_files

_SCALE = 2  # of the sides
_OVERHEAD = 1.2
_CONTEXT = 0.7  # GiB


def needed(name: str) -> tuple[float, float]:
    """GiB of the model, and of each image."""
    data = get_preset(name).data
    model = create(name, weights=None).train()
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in saved:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # the address of a storage that was freed would be used again
        return tensor

    pixels = torch.zeros(3, data.image_size // _SCALE, data.max_size // _SCALE)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(ImageBatch.from_images([pixels]))
    del output
    of_weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(size for address, size in saved.items() if address not in of_weights)
    return 4 * weights / 2**30 + _CONTEXT, _OVERHEAD * _SCALE**2 * activations / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+")
    options = parser.parse_args()
    published = [name for name in list_models() if (file := published_files().get(name)) and file.ap]
    for name in options.models or published:
        of_model, of_image = needed(name)
        print(f"{name:40} {of_model:5.2f} GiB and {of_image:5.2f} GiB for each image", flush=True)


if __name__ == "__main__":
    main()
