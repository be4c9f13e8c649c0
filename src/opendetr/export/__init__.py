"""Writing a detector for other libraries, and uploading it."""

from opendetr.export.checkpoints import export_huggingface, export_official
from opendetr.export.hub import push

__all__ = [
    "export_huggingface",
    "export_official",
    "push",
]
