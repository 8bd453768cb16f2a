"""Formats of one question about an image, or some, and its answer."""
