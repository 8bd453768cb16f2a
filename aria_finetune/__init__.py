"""aria-finetune: fine-tune Aria, an open multimodal mixture-of-experts model, on one GPU."""

__version__ = "0.1.0"
