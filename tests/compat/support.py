"""What the tests of the replacement for message-db-py share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import make_url

OWN_SQL = "SELECT * FROM get_stream_messages(%(stream_name)s, %(position)s, %(batch_size)s);"


SEARCH_PATH = "-c search_path=message_store,public"


def libpq(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [message["data"]["n"] for message in messages]
