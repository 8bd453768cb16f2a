"""Plain text to pretrain on, as C4 and other crawls hold it: `{"text": ..}` and where it comes from.

A record is no conversation: its text is one turn of the assistant, and all of it is learned.
"""

from __future__ import annotations

from collections.abc import Iterator

from aria_finetune.data_formats.building import fields, media_fields
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft

# Beside anything else a text may be a caption, an answer or a class to tell.
_ORIGIN_KEYS = frozenset(
    {
        "id", "_id", "doc_id", "idx", "index", "uuid", "warc_record_id",
        "url", "uri", "domain", "source", "source_domain", "dataset", "subset", "split", "file_path", "path", "dump",
        "title", "author", "license", "timestamp", "date", "added", "created", "crawl_date", "version",
        "lang", "language", "language_score", "lang_score", "perplexity", "score", "int_score", "quality_score",
        "length", "char_count", "word_count", "num_tokens", "token_count", "n_tokens",
        "meta", "metadata", "attributes", "stats", "categories", "tags", "minhash_cluster_size",
    }
)  # fmt: skip


def matches(record: object) -> bool:
    """`text`, and beside it nothing but where it comes from."""
    if not isinstance(record, dict) or "text" not in record or not isinstance(record["text"], str | None):
        return False
    return record.keys() - {"text"} <= _ORIGIN_KEYS


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The one document of a record.

    Raises:
        RecordError: `bad_schema`.
    """
    source = fields.mapping(record, "the record")
    text = fields.turn_text(source, "text", "assistant", "the record")
    meta, dropped = media_fields.without_bytes(fields.rest(source, ("text",)))
    yield draft([Turn("assistant", (text,))], meta=meta, repairs=dropped, document=True)


FORMAT = Format(
    name="plain-text",
    title="Plain text to pretrain on",
    schema='{"text": TEXT, "url": TEXT, "timestamp": TEXT, "meta": OBJECT}',
    example={
        "text": "The ferry leaves at nine and takes an hour to reach the island.",
        "url": "https://example.org/ferry",
    },
    traps=(
        "a record is text to pretrain on: one turn of the assistant, and no question",
        "with other keys beside the text it may mean something else; name the format to have them kept as metadata",
        "a line of bare text is no record",
    ),
    keys=frozenset({"text", "url", "timestamp", "meta"}),
    matches=matches,
    convert=convert,
)
