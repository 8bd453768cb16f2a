"""aria-finetune: fine-tune Aria, an open multimodal mixture-of-experts model, on one GPU."""

__version__ = "0.1.0"

ADAPTER_FOLDER = "adapter"
"""Where the folder of a run keeps its adapter; whoever takes an adapter folder also takes its run's."""
