"""Trying a model: one prompt, a file of them, or a conversation.

Knows models, media and the sources that converters read; nothing of recipes but how a run showed pictures, and nothing of training.
"""
