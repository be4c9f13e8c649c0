"""The command line."""

from opendetr.cli.main import app

__all__ = ["app"]
