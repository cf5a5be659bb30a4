"""Reclassify the ZTF alert archive with AppleCiDEr's multimodal networks."""

__version__ = "0.1.0"
