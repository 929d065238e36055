"""Reads along metadata: the messages of a correlation, the causes of a message, and its effects."""

from __future__ import annotations

from sqlalchemy import (
    CTE,
    BigInteger,
    Executable,
    Text,
    and_,
    case,
    cast,
    literal_column,
    not_,
    select,
    true,
)

from messagedb_sa import _arguments as arguments
from messagedb_sa import _metadata_indexes as keys
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message
from messagedb_sa.schema import messages
from messagedb_sa.store._operation import Page, Read
from messagedb_sa.store._rows import MessageRows
from messagedb_sa.store._statements import READ_ALL, number_parameter, text_parameter


def read_correlation(found: MessageRows, stream_name: str, position: int, no_of_messages: int) -> Page:
    parameters = {
        "correlation": arguments.text("correlation_stream_name", stream_name),
        "position": arguments.integer("position", position, minimum=0),
        "batch_size": _limit(no_of_messages),
    }
    return Page(_READ_CORRELATION, parameters, found.all, plain=found.plain, by="global_position")


def read_causes(found: MessageRows, message: Message, no_of_messages: int) -> Read[list[Message]]:
    return _read(_READ_CAUSES, found, message, no_of_messages)


def read_effects(found: MessageRows, message: Message, no_of_messages: int) -> Read[list[Message]]:
    return _read(_READ_EFFECTS, found, message, no_of_messages)


def _read(statement: Executable, found: MessageRows, message: Message, no_of_messages: int) -> Read[list[Message]]:
    if not isinstance(message, Message):
        raise InvalidArgument("message", message, "must be a Message, as reads and consumers return it")
    limit = _limit(no_of_messages)
    parameters = {
        "stream_name": arguments.text("message.stream_name", message.stream_name),
        "message_position": arguments.integer("message.position", message.position, minimum=0),
        # The message itself comes first.
        "nearest": None if limit is None else limit + 1,
    }
    return Read(statement, parameters, found.all, plain=found.plain)


def _limit(no_of_messages: int) -> int | None:
    limit = arguments.integer("no_of_messages", no_of_messages, minimum=-1, maximum=2**63 - 2)
    return None if limit == -1 else limit


def _read_correlation() -> Executable:
    correlation, wanted = keys.correlation(messages.c.metadata), text_parameter("correlation")
    # CASE, since PostgreSQL would take two comparisons for twice as selective. It would expect one message, and sort.
    return READ_ALL.where(
        correlation.is_not(None),
        keys.hashed(correlation) == keys.hashed(wanted),
        case((correlation == wanted, true())),
    )


def _causes() -> Executable:
    metadata = messages.c.metadata
    position = keys.causation_position(metadata)
    is_position = position.regexp_match(literal_column("'^(0|[1-9][0-9]{0,17})$'"))
    its_cause = (
        keys.causation_stream(metadata).label("cause"),
        case((is_position, cast(position, BigInteger))).label("at"),
    )
    link = select(messages.c.stream_name, messages.c.position, *its_cause)
    chain = link.where(_is_the_message).cte("chain", recursive=True)
    is_cause = and_(messages.c.stream_name == chain.c.cause, messages.c.position == chain.c.at)
    return _nearest(chain.union(link.join_from(chain, messages, is_cause)))


def _effects() -> Executable:
    the_message = select(
        cast(text_parameter("stream_name"), Text).label("stream_name"),
        cast(number_parameter("message_position"), BigInteger).label("position"),
    )
    tree = the_message.cte("tree", recursive=True)
    stream_name, position = keys.causation_stream(messages.c.metadata), keys.causation_position(messages.c.metadata)
    at = cast(tree.c.position, Text)
    is_effect = and_(
        keys.hashed(stream_name) == keys.hashed(tree.c.stream_name),
        keys.hashed(position) == keys.hashed(at),
        stream_name == tree.c.stream_name,
        position == at,
    )
    effects = select(messages.c.stream_name, messages.c.position).join_from(tree, messages, is_effect)
    return _nearest(tree.union(effects))


def _nearest(found: CTE) -> Executable:
    # UNION drops what was found before, so that a circle ends. PostgreSQL finds no more than LIMIT lets through, and
    # finds the nearest first.
    nearest = select(found.c.stream_name, found.c.position).limit(number_parameter("nearest")).subquery("nearest")
    is_nearest = and_(messages.c.stream_name == nearest.c.stream_name, messages.c.position == nearest.c.position)
    return (
        select(*READ_ALL.selected_columns)
        .join_from(nearest, messages, is_nearest)
        .where(not_(_is_the_message))
        .order_by(messages.c.global_position)
    )


_is_the_message = and_(
    messages.c.stream_name == text_parameter("stream_name"), messages.c.position == number_parameter("message_position")
)
_READ_CORRELATION = _read_correlation()
_READ_CAUSES = _causes()
_READ_EFFECTS = _effects()
