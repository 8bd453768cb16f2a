"""Formats of video data sets: questions, choices, captions and moments, one record or several per clip."""
