"""What a consumer logs, each with the facts as fields of the record."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy.exc import DBAPIError

from messagedb_sa._error_texts import text_of
from messagedb_sa.consumer._options import Settings
from messagedb_sa.consumer._partition import Partition
from messagedb_sa.message import Message

logger = logging.getLogger("messagedb_sa.consumer")


class ConsumerLog:
    def __init__(self, settings: Settings) -> None:
        self._consumer = {"category": settings.category, "identifier": settings.identifier}

    def __call__(
        self,
        level: int,
        text: str,
        partition: Partition | None = None,
        message: Message | None = None,
        exc_info: BaseException | None = None,
        **fields: Any,
    ) -> None:
        if not logger.isEnabledFor(level):
            return
        fields |= self._consumer
        if partition is not None and partition.key.group_size is not None:
            fields |= {"group_member": partition.key.group_member, "group_size": partition.key.group_size}
        if message is not None:
            fields |= {
                "stream_name": message.stream_name,
                "position": message.position,
                "global_position": message.global_position,
                "message_type": message.type,
                "message_id": message.id,
            }
        shown = ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
        try:
            # Not the error itself: logging asks whether it is true, and it may have a __len__.
            info = None if exc_info is None else (type(exc_info), exc_info, exc_info.__traceback__)
            logger.log(level, "consumer %s (%s)", text, shown, extra=fields, exc_info=info)
        except Exception:
            # Python cannot format every error.
            if exc_info is None:
                raise
            text = f"{text}: {first_line(exc_info)}"
            logger.log(level, "consumer %s (%s)", text, shown, extra=fields)


def first_line(error: BaseException) -> str:
    """The error without the statement and the parameters that SQLAlchemy adds."""
    shown = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(error).__name__}: {text_of(shown).strip().partition(chr(10))[0]}"
