"""Where files are kept that can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads and built code are kept: what OPENDETR_CACHE names, else ~/.cache/opendetr."""
    return Path(os.environ.get("OPENDETR_CACHE") or Path.home() / ".cache" / "opendetr")
