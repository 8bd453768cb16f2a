"""From canonical records to batches: Aria's chat format, image tiles, row plans, mixing and collation.

Knows the tokenizer and the media, not the model.
"""
