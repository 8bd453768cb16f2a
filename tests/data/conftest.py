"""The tokenizer of the tiny Aria, for tests of rows and batches."""

from __future__ import annotations

import pytest
from transformers import AriaProcessor

from aria_finetune.data.chat import ChatTokenizer


@pytest.fixture(scope="session")
def tiny_chat(tiny_aria_processor: AriaProcessor) -> ChatTokenizer:
    return ChatTokenizer(tiny_aria_processor.tokenizer)
