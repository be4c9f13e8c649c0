"""Export checkpoints in the layouts of other libraries, and upload them to the Hugging Face Hub."""

from opendetr.export.checkpoints import export_huggingface, export_official, huggingface_difference
from opendetr.export.hub import push

__all__ = [
    "export_huggingface",
    "export_official",
    "huggingface_difference",
    "push",
]
