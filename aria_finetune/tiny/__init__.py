"""A small Aria of the real architecture, with weights that can see colours and shapes.

`model.path: tiny` loads it, so the whole tool runs on a laptop. This room holds the pictures it was
trained on, the numbers of its architecture, the script that trained it and the weights that came out.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder with the trained weights, config, tokenizer and processor in the hub layout (bf16)."""
