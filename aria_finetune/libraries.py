"""What is asked of the libraries before they are used: no telemetry, no chatter a person can do nothing about.

Imported by the commands that load a model. Knows nothing else.
"""

from __future__ import annotations

import logging
import os
import warnings

NOISY_LOGGERS = ("bitsandbytes", "transformers", "huggingface_hub", "accelerate", "trl", "peft")


def prepare_libraries(*, debug: bool = False) -> None:
    """Set environment and log levels. With `debug` everything the libraries say is shown.

    `HF_HUB_DISABLE_TELEMETRY` and the tokenizers' thread switch are set where the user has not set them.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are forked after its first use
    if debug:
        return
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 (after the environment is set)

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|peft|trl|accelerate|torch)\b.*")
