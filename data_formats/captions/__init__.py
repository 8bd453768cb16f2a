"""Formats of images with captions or the names of what they show."""
