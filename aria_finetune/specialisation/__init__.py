"""Which experts see: how experts specialise in images, videos, documents and text."""

from aria_finetune.specialisation.maps import MapOptions, map_experts

__all__ = ["MapOptions", "map_experts"]
