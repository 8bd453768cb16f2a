"""What a checkpoint says of itself beside its weights: its tokenizer, its image tokens, its padding.

Knows files and config.json; makes no module.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import CheckpointSettings

PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Tokenizers that need no class of their own."""
DEFAULT_PATCH = 14
DEFAULT_QUERIES = {1225: 128, 4900: 256}


def load_tokenizer(checkpoint: CheckpointSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; no code from the hub runs.

    Raises:
        UserError: its files are missing or damaged.
    """
    with explained(checkpoint.folder):
        if _is_plain(checkpoint.folder):
            return PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
        from transformers import AutoTokenizer  # noqa: PLC0415 (two seconds that a plan seldom needs)

        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        if not hasattr(tokenizer, "image_token"):  # checkpoints from before transformers knew Aria
            named = {"image_token": "<|img|>"}
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=False, extra_special_tokens=named
            )
    return tokenizer


def _is_plain(folder: Path) -> bool:
    """Whether it is tokenizer.json and nothing else, so that no class has to be looked for."""
    written = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return written.get("tokenizer_class") in PLAIN and "auto_map" not in written and "image_token" in written


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What can't be read of tokenizer and image processor, as an error that names their files.

    Raises:
        UserError: reading them failed within the block.
    """
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"tokenizer or image processor can't be loaded ({error})",
            where=str(folder),
            fix="the folder needs tokenizer.json, tokenizer_config.json and preprocessor_config.json",
        ) from error


def vision_tokens(checkpoint: CheckpointSettings) -> dict[int, int]:
    """Image tokens of one tile by its side in pixels, from the projector's table of patches and queries."""
    patch = checkpoint.config.get("vision_config", {}).get("patch_size", DEFAULT_PATCH)
    table = checkpoint.config.get("projector_patch_to_query_dict") or DEFAULT_QUERIES
    return {math.isqrt(int(patches)) * patch: int(queries) for patches, queries in table.items()}


def pad_id(checkpoint: CheckpointSettings) -> int:
    """The id that fills up short rows; inside the embedding, which the hub tokenizer's `<pad>` is not."""
    text = checkpoint.config.get("text_config", {})
    for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
        token = text.get(key)
        if isinstance(token, int) and 0 <= token < text.get("vocab_size", 0):
            return token
    return 0
