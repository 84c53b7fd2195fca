"""The command ``clcalib``."""

from clcalib.cli.app import main

__all__ = ["main"]
