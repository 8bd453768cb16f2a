"""Headers of plain images, read without Pillow; what is unusual is left to it."""

from aria_finetune.media.headers.reading import read_header

__all__ = ["read_header"]
