"""Export of detectors to other libraries, and upload to the Hugging Face hub."""

from opendetr.export.checkpoints import export_huggingface, export_official
from opendetr.export.hub import push

__all__ = [
    "export_huggingface",
    "export_official",
    "push",
]
