"""The keys of the indexes on metadata. PostgreSQL uses an index only if a query has exactly its expressions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from messagedb_sa._metadata_fields import CAUSATION_POSITION, CAUSATION_STREAM, CORRELATION, TAGS


def correlation(metadata: ColumnElement[Any]) -> ColumnElement[str]:
    return _field(metadata, CORRELATION)


def causation_stream(metadata: ColumnElement[Any]) -> ColumnElement[str]:
    return _field(metadata, CAUSATION_STREAM)


def causation_position(metadata: ColumnElement[Any]) -> ColumnElement[str]:
    """As text: other clients may write what is not a number."""
    return _field(metadata, CAUSATION_POSITION)


def tags(metadata: ColumnElement[Any]) -> ColumnElement[Any]:
    return metadata.op("->", return_type=JSONB())(text(f"'{TAGS}'"))


def hashed(value: ColumnElement[Any]) -> ColumnElement[int]:
    """Indexes have the hash: PostgreSQL does not index long texts, and other clients may write them."""
    return func.message_store.hash_64(value, type_=BigInteger)


def _field(metadata: ColumnElement[Any], name: str) -> ColumnElement[str]:
    # Not a parameter: in a prepared statement, PostgreSQL would not know it for the index's. Nor a literal_column, in
    # which Index would look for its table.
    return metadata.op("->>", return_type=Text())(text(f"'{name}'"))
