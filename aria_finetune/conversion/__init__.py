"""From a source in any known format to canonical records, written as a data set or read in place.

Knows the formats and the media; knows nothing of models, tokens or recipes.
"""

from aria_finetune.conversion.dataset import is_dataset, read_dataset
from aria_finetune.conversion.engine import read_records
from aria_finetune.conversion.options import SHOWN_REJECTS, ConversionOptions, ConversionReport, Reject
from aria_finetune.conversion.writing import convert

__all__ = [
    "SHOWN_REJECTS",
    "ConversionOptions",
    "ConversionReport",
    "Reject",
    "convert",
    "is_dataset",
    "read_dataset",
    "read_records",
]
