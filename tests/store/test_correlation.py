"""Metadata that follows a message, and the reads along it: correlation, causes and effects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.schema import CreateIndex, DropIndex

from messagedb_sa import (
    Consumer,
    InvalidArgument,
    Message,
    MessageInput,
    MessageNotDecodable,
    MessageTypes,
    Store,
    follow,
    schema,
)

from ..support import DRIVERS, NESTED, insert, nested_is_refused, on, statements_of

CAUSATION = ("causationMessageStreamName", "causationMessagePosition", "causationMessageGlobalPosition")


def written(store: Store, stream: str, metadata: Any = None) -> Message:
    store.write(stream, "Happened", {}, metadata)
    message = store.read_last_message(stream)
    assert message is not None
    return message


def streams(messages: Iterable[Message]) -> list[str]:
    return [message.stream_name for message in messages]


# ---- follow


def test_what_follows_names_its_cause_and_takes_over_correlation_reply_and_properties(each_store: Store) -> None:
    metadata = {
        "correlationStreamName": "transfer-1",
        "replyStreamName": "transfer-1",
        "properties": {"tenant": "north"},
        "localProperties": {"attempt": 1},
        "schemaVersion": "2",
        "by": "Ada",
        "causationMessageStreamName": "before-1",
    }
    written(each_store, "account-0")
    written(each_store, "account-1")
    message = written(each_store, "account-1", metadata)
    assert follow(message) == {
        "causationMessageStreamName": "account-1",
        "causationMessagePosition": 1,
        "causationMessageGlobalPosition": message.global_position,
        "correlationStreamName": "transfer-1",
        "replyStreamName": "transfer-1",
        "properties": {"tenant": "north"},
    }


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        [],
        "text",
        7,
        {"correlationStreamName": 7, "replyStreamName": ["a"], "properties": "text"},
        {"correlationStreamName": None, "replyStreamName": None, "properties": {}},
    ],
)
def test_a_message_whose_metadata_has_none_of_that_is_followed_by_causation_alone(store: Store, metadata: Any) -> None:
    message = written(store, "account-1")._replace(metadata=metadata)
    assert tuple(follow(message)) == CAUSATION
    assert written(store, "account-2", follow(message)).metadata == follow(message)


def test_own_metadata_wins_and_own_properties_are_added_one_by_one(store: Store) -> None:
    message = written(
        store, "account-1", {"correlationStreamName": "transfer-1", "properties": {"tenant": "north", "locale": "en"}}
    )
    own = {"correlationStreamName": "refund-1", "properties": {"locale": "de", "channel": "web"}, "by": "Ada"}
    followed = follow(message, MappingProxyType(own))
    assert followed["correlationStreamName"] == "refund-1"
    assert followed["properties"] == {"tenant": "north", "locale": "de", "channel": "web"}
    assert followed["by"] == "Ada"
    assert own["properties"] == {"locale": "de", "channel": "web"}


def test_a_field_that_is_none_is_left_out(store: Store) -> None:
    message = written(store, "account-1", {"replyStreamName": "transfer-1", "properties": {"tenant": "north"}})
    assert tuple(follow(message, {"replyStreamName": None, "properties": None, "by": None})) == CAUSATION


def test_what_follows_shares_nothing_with_the_message_that_it_follows(store: Store) -> None:
    message = written(store, "account-1", {"properties": {"tags": ["new"], "limits": {"day": 1}}})
    followed = follow(message)
    followed["properties"]["tags"].append("changed")
    followed["properties"]["limits"]["day"] = 2
    followed["properties"]["more"] = True
    assert message.metadata == {"properties": {"tags": ["new"], "limits": {"day": 1}}}


@pytest.mark.parametrize("field", CAUSATION)
def test_the_cause_cannot_be_another_message_than_the_one_followed(store: Store, field: str) -> None:
    message = written(store, "account-1")
    with pytest.raises(InvalidArgument, match=r"^metadata=.*which follow sets"):
        follow(message, {field: "account-2"})


@pytest.mark.parametrize(
    ("message", "metadata", "argument"),
    [
        (None, None, "message"),
        ({"stream_name": "account-1"}, None, "message"),
        ("account-1", None, "message"),
        (Ellipsis, [], "metadata"),
        (Ellipsis, "text", "metadata"),
        (Ellipsis, {"properties": ["text"]}, "metadata"),
    ],
)
def test_what_cannot_be_followed_is_refused(store: Store, message: Any, metadata: Any, argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}="):
        follow(written(store, "account-1") if message is Ellipsis else message, metadata)


# ---- a correlation


@pytest.fixture
def transfer(each_store: Store) -> Store:
    """A transfer that two accounts answer, step by step, and others beside it."""
    started = written(each_store, "transfer-1", {"correlationStreamName": "transfer-1"})
    withdraw = written(each_store, "account:command-1", follow(started))
    written(each_store, "account-9", {"correlationStreamName": "transfer-11"})
    withdrawn = written(each_store, "account-1", follow(withdraw))
    written(each_store, "account-9")
    recorded = written(each_store, "transfer-1", follow(withdrawn))
    written(each_store, "notice-1", follow(withdrawn))
    written(each_store, "account:command-2", follow(recorded))
    return each_store


OF_TRANSFER = ["transfer-1", "account:command-1", "account-1", "transfer-1", "notice-1", "account:command-2"]


def test_a_correlation_is_read_over_all_categories_by_global_position(transfer: Store) -> None:
    found = transfer.read_correlation("transfer-1")
    assert streams(found) == OF_TRANSFER
    positions = [message.global_position for message in found]
    assert positions == sorted(positions)
    assert streams(transfer.read_correlation("transfer-11")) == ["account-9"]
    assert transfer.read_correlation("transfer-2") == transfer.read_correlation("transfer") == []


def test_a_correlation_is_read_in_pages(transfer: Store) -> None:
    third = transfer.read_correlation("transfer-1")[2]
    assert streams(transfer.read_correlation("transfer-1", third.global_position, 2)) == OF_TRANSFER[2:4]
    assert transfer.read_correlation("transfer-1", no_of_messages=0) == []
    assert streams(transfer.read_correlation("transfer-1", no_of_messages=-1)) == OF_TRANSFER
    assert streams(transfer.iter_correlation("transfer-1", batch_size=2)) == OF_TRANSFER
    assert streams(transfer.iter_correlation("transfer-1", third.global_position)) == OF_TRANSFER[2:]


# ---- causes and effects


@contextmanager
def indexes(engine: Engine) -> Iterator[None]:
    both = schema.correlation_index(), schema.causation_index()
    with engine.begin() as connection:
        for index in both:
            connection.execute(CreateIndex(index))
    yield
    with engine.begin() as connection:
        for index in both:
            connection.execute(DropIndex(index))


@pytest.fixture(params=[False, True], ids=["without indexes", "with indexes"])
def perhaps_indexed(request: pytest.FixtureRequest, each_store: Store, messagedb_engine: Engine) -> Iterator[Store]:
    with indexes(messagedb_engine) if request.param else nullcontext():
        yield each_store


def test_the_causes_of_a_message_go_back_to_the_first(transfer: Store) -> None:
    last = transfer.read_last_message("account:command-2")
    assert last is not None
    assert streams(transfer.read_causes(last)) == ["transfer-1", "account:command-1", "account-1", "transfer-1"]
    first = transfer.read_causes(last)[0]
    assert transfer.read_causes(first) == []


def test_the_effects_of_a_message_are_those_that_follow_it_directly_or_through_others(transfer: Store) -> None:
    (first, *_) = transfer.read_correlation("transfer-1")
    assert streams(transfer.read_effects(first)) == OF_TRANSFER[1:]
    withdrawn = transfer.read_last_message("account-1")
    assert withdrawn is not None
    assert streams(transfer.read_effects(withdrawn)) == ["transfer-1", "notice-1", "account:command-2"]
    last = transfer.read_last_message("account:command-2")
    assert last is not None
    assert transfer.read_effects(last) == []


def test_a_limit_keeps_the_nearest(transfer: Store) -> None:
    last = transfer.read_last_message("account:command-2")
    assert last is not None
    assert streams(transfer.read_causes(last, 2)) == ["account-1", "transfer-1"]
    assert transfer.read_causes(last, 0) == transfer.read_effects(last, 0) == []
    assert len(transfer.read_causes(last, -1)) == 4
    withdrawn = transfer.read_last_message("account-1")
    assert withdrawn is not None
    assert streams(transfer.read_effects(withdrawn, 2)) == ["transfer-1", "notice-1"]
    assert len(transfer.read_effects(withdrawn, -1)) == 3


def test_a_chain_of_thousands_is_read_to_its_end_if_asked_to(store: Store, messagedb_engine: Engine) -> None:
    chain: list[MessageInput] = [
        ("Ticked", {}, {CAUSATION[0]: "timer-1", CAUSATION[1]: n - 1} if n else None) for n in range(3000)
    ]
    store.write_batch("timer-1", chain)
    first, last = store.read_stream("timer-1", 0, 1)[0], store.read_stream("timer-1", 2999, 1)[0]
    with indexes(messagedb_engine):
        assert [each.position for each in store.read_causes(last)] == list(range(1999, 2999))
        assert [each.position for each in store.read_effects(first)] == list(range(1, 1001))
        assert len(store.read_causes(last, -1)) == len(store.read_effects(first, -1)) == 2999


def test_each_read_is_one_statement(transfer: Store) -> None:
    last = transfer.read_last_message("account:command-2")
    assert last is not None
    sent = statements_of(transfer.engine)
    for read in (transfer.read_causes, transfer.read_effects):
        sent.clear()
        read(last)
        assert len([each for each in sent if "messages" in each]) == 1
    sent.clear()
    transfer.read_correlation("transfer-1")
    assert len([each for each in sent if "messages" in each]) == 1


def test_a_deleted_cause_ends_the_chain(store: Store, messagedb_engine: Engine) -> None:
    first = written(store, "a-1")
    second = written(store, "b-1", follow(first))
    third = written(store, "c-1", follow(second))
    with messagedb_engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM message_store.messages WHERE stream_name = 'b-1'")
    assert store.read_causes(third) == []
    assert store.read_effects(first) == []
    # What followed it is still found.
    assert streams(store.read_effects(second)) == ["c-1"]
    assert store.read_causes(second) == []


def test_circles_end(store: Store) -> None:
    # Nobody can follow what is not written yet, but a client may write anything.
    for n in range(3):
        insert(
            store, f"a-{n}", 0, "Odd", "{}", metadata=f'{{"{CAUSATION[0]}": "a-{(n + 1) % 3}", "{CAUSATION[1]}": 0}}'
        )
    itself = f'{{"{CAUSATION[0]}": "b-1", "{CAUSATION[1]}": 0}}'
    insert(store, "b-1", 0, "Odd", "{}", metadata=itself)
    (message,) = store.read_stream("a-0")
    assert streams(store.read_causes(message, -1)) == streams(store.read_effects(message, -1)) == ["a-1", "a-2"]
    (message,) = store.read_stream("b-1")
    assert store.read_causes(message, -1) == store.read_effects(message, -1) == []


# Too long for an index, even compressed.
LONG = "a-" + "".join(sha256(bytes([n])).hexdigest() for n in range(100))
ODD = [
    "null",
    "7",
    '"text"',
    "[]",
    f'["{CAUSATION[0]}", "correlationStreamName"]',
    '{"correlationStreamName": 7}',
    '{"correlationStreamName": ["a-1"]}',
    f'{{"correlationStreamName": "{LONG}"}}',
    *(
        f'{{"{CAUSATION[0]}": "a-1", "{CAUSATION[1]}": {position}}}'
        for position in (
            "null",
            "-1",
            "0.5",
            "1e400",
            str(2**63),
            '""',
            '"text"',
            '"0\\n"',
            '"00"',
            "[0]",
            "{}",
            "true",
        )
    ),
    f'{{"{CAUSATION[0]}": 1, "{CAUSATION[1]}": 0}}',
    f'{{"{CAUSATION[0]}": "a-1"}}',
    f'{{"{CAUSATION[1]}": 0}}',
    f'{{"{CAUSATION[0]}": "{LONG}", "{CAUSATION[1]}": "{LONG}"}}',
]


def test_odd_metadata_names_no_message_and_fails_no_read(perhaps_indexed: Store, store: Store) -> None:
    cause = written(store, "a-1")
    for n, metadata in enumerate(ODD):
        insert(store, "odd-1", n, "Odd", "{}", metadata=metadata)
    odd = perhaps_indexed.read_stream("odd-1")
    assert len(odd) == len(ODD)
    assert perhaps_indexed.read_correlation("a-1") == perhaps_indexed.read_effects(cause) == []
    assert [perhaps_indexed.read_causes(each) for each in odd] == [[]] * len(odd)
    assert len(perhaps_indexed.read_correlation(LONG)) == 1
    for each in odd:
        perhaps_indexed.write("even-1", "Answered", {}, follow(each))


@pytest.mark.parametrize("position", ["0", '"0"'])
def test_a_position_may_be_written_as_text(store: Store, position: str) -> None:
    cause = written(store, "a-1")
    insert(store, "b-1", 0, "Odd", "{}", metadata=f'{{"{CAUSATION[0]}": "a-1", "{CAUSATION[1]}": {position}}}')
    (effect,) = store.read_stream("b-1")
    assert store.read_effects(cause) == [effect]
    assert store.read_causes(effect) == [cause]


@nested_is_refused
def test_a_message_that_cannot_be_decoded_is_named(each_store: Store, store: Store) -> None:
    first = written(store, "a-1", {"correlationStreamName": "a-1"})
    insert(store, "b-1", 0, "Odd", NESTED, metadata=json.dumps(follow(first)))
    last = written(store, "c-1", {"correlationStreamName": "a-1", CAUSATION[0]: "b-1", CAUSATION[1]: 0})
    reads: list[Any] = [
        lambda: each_store.read_correlation("a-1"),
        lambda: each_store.read_causes(last),
        lambda: each_store.read_effects(first),
    ]
    for read in reads:
        with pytest.raises(MessageNotDecodable, match="message 0 of stream 'b-1'"):
            read()
    messages = each_store.iter_correlation("a-1")
    assert next(messages) == first
    with pytest.raises(MessageNotDecodable):
        next(messages)


def test_data_is_of_the_registered_types(store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Happened:
        pass

    typed = Store(store.engine, types=types)
    cause = written(store, "a-1", {"correlationStreamName": "a-1"})
    typed.write("b-1", Happened(), metadata=follow(cause))
    (effect,) = typed.read_effects(cause)
    assert effect.data == Happened()
    assert [each.data for each in typed.read_causes(effect)] == [Happened()]
    assert [each.data for each in typed.iter_correlation("a-1")] == [Happened(), Happened()]


@pytest.mark.parametrize("driver", DRIVERS)
def test_in_a_transaction_they_read_what_it_has_written(messagedb_url: str, store: Store, driver: str) -> None:
    def body(connection: Any) -> None:
        joined = Store(connection)
        cause = written(joined, "a-1", {"correlationStreamName": "a-1"})
        effect = written(joined, "b-1", follow(cause))
        assert joined.read_correlation("a-1") == [cause, effect]
        assert joined.read_causes(effect) == [cause]
        assert joined.read_effects(cause) == [effect]

    on(driver, messagedb_url, body)


def test_a_name_may_be_a_member_of_an_enumeration(store: Store) -> None:
    class Name(str, Enum):
        TRANSFER = "transfer-1"

    message = written(store, "a-1", {"correlationStreamName": "transfer-1"})
    assert store.read_correlation(Name.TRANSFER) == [message]


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda store, _: store.read_correlation(""), "correlation_stream_name"),
        (lambda store, _: store.read_correlation(None), "correlation_stream_name"),
        (lambda store, _: store.read_correlation("a\0"), "correlation_stream_name"),
        (lambda store, _: store.read_correlation("a-1", -1), "position"),
        (lambda store, _: store.read_correlation("a-1", no_of_messages=-2), "no_of_messages"),
        (lambda store, _: store.iter_correlation("a-1", batch_size=0), "batch_size"),
        (lambda store, _: store.read_causes("a-1"), "message"),
        (lambda store, _: store.read_effects(None), "message"),
        (lambda store, message: store.read_effects(message, 1.5), "no_of_messages"),
        (lambda store, message: store.read_causes(message, 2**63), "no_of_messages"),
        (lambda store, message: store.read_effects(message, 2**63 - 1), "no_of_messages"),
        (lambda store, message: store.read_effects(message._replace(position=None)), "message.position"),
        (lambda store, message: store.read_causes(message._replace(stream_name=None)), "message.stream_name"),
    ],
)
def test_what_no_store_could_read_is_refused(store: Store, call: Any, argument: str) -> None:
    message = written(store, "a-1")
    with pytest.raises(InvalidArgument, match=f"^{argument}="):
        call(store, message)


def test_a_dead_letter_is_an_effect_of_the_message_and_belongs_to_its_correlation(store: Store) -> None:
    def fail(_: Message) -> None:
        raise ValueError

    message = written(store, "account-1", {"correlationStreamName": "transfer-1"})
    Consumer(store, "account", fail, "greeter", on_failure="park").run_until_caught_up(progress=False)
    assert streams(store.read_effects(message)) == ["account:dead-greeter"]
    assert streams(store.read_correlation("transfer-1")) == ["account-1", "account:dead-greeter"]
    assert store.read_causes(store.read_effects(message)[0]) == [message]
