"""A clean adapter folder to hand on: the adapter, tokenizer and processor, and nothing of the run.

Works on files. The base it names can be changed, because a path of this machine means nothing elsewhere.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from aria_finetune.adapter.files import open_adapter
from aria_finetune.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aria_finetune.model.rope import ROPE_FILE
from aria_finetune.redaction import redact_values
from aria_finetune.staging import staged_folder

EXPORTED = (
    ADAPTER_WEIGHTS,
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    ROPE_FILE,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)


def export(adapter: Path, output: Path, *, base: str | None = None) -> list[str]:
    """Write an adapter folder that plain PEFT and transformers load.

    Args:
        adapter: an adapter folder, or the folder of its run.
        output: made by this call.
        base: what `base_model_name_or_path` is to say, such as `rhymes-ai/Aria`; by default what it says now.

    Returns:
        Names of the files written.

    Raises:
        UserError: the output exists, or the adapter folder is damaged.
    """
    files = open_adapter(adapter)
    with staged_folder(output) as folder:
        config = redact_values(files.config | {"base_model_name_or_path": base or files.base_name})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name in EXPORTED:
            if (files.folder / name).is_file():
                shutil.copyfile(files.folder / name, folder / name)
        return sorted(path.name for path in folder.iterdir())
