"""JSON: what goes in comes out."""

from __future__ import annotations

import gc
import json
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy import text as sql

from messagedb_sa import InvalidArgument, Store
from messagedb_sa.store import _json_codec as json_text

from ..support import examples

DIALECT = make_url("postgresql+psycopg2://").get_dialect()()


@pytest.fixture
def store(each_store: Store) -> Store:
    return each_store


BOTH = pytest.mark.parametrize("by", [json_text.STANDARD, json_text.FASTEST], ids=["standard", "msgspec"])

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
# PostgreSQL keeps a number's digits: neither the sign of zero, nor that 1e+16 was a float.
numbers = st.integers() | st.floats(-1e15, 1e15).map(lambda number: number or 0.0)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@settings(max_examples=examples(300))
@given(data=json_values, metadata=st.none() | st.dictionaries(texts, json_values))
def test_any_json_survives_the_store(store: Store, data: Any, metadata: Any) -> None:
    store.write("json-1", "T", data, metadata)
    last = store.read_last_message("json-1")
    assert last is not None
    assert (last.data, last.metadata) == (data, metadata)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**64),
        10**400 + 1,
        {"deep": [10**5000 + 7, {"é": -(10**6000) - 1}, True, None, "x", 1.5]},
        0.1,
        1e15 + 0.5,
        5e-324,
        "\\u0000 is no NUL when its backslash is one",
        "\x01\x1f\x7f\u2028 controls",
        "é 漢 𝄞 👩‍👩‍👧",
        {"𝄞": {"": []}},
        {},
        [],
        "",
        0,
        False,
        [[[[[[[[[[]]]]]]]]]],
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_keeps_what_postgresql_keeps(store: Store, value: Any) -> None:
    store.write("json-1", "T", value, {"value": value})
    (message,) = store.read("json-1")
    assert (message.data, message.metadata) == (value, {"value": value})
    assert type(message.data) is type(value)


@BOTH
@settings(max_examples=examples(300))
@given(values=st.lists(st.none() | json_values, min_size=1))
def test_msgspec_and_the_standard_library_decode_the_same(by: json_text.Library, values: list[Any]) -> None:
    assert json_text.FASTEST is not json_text.STANDARD
    codec = json_text.JSONCodec(DIALECT, by)
    texts = [None if value is None else json.dumps(value) for value in values]
    assert codec.decode(texts) == values
    assert [codec.decode_one(text) for text in texts] == values
    for text, value in zip(texts, values, strict=True):
        assert type(codec.decode_one(text)) is type(value)


class Color(IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(
        [Color.RED, Name("n"), Decimal(1), datetime(2026, 1, 1), UUID(int=1), b"x", {1}, object, 10**400]
    ) | st.just(5000).map(lambda digits: -(10**digits)),
    lambda inner: st.lists(inner)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.sampled_from([1, None, True, 1.5, Name("n"), Color.RED]), inner)
    | st.dictionaries(st.text(), inner).map(OrderedDict),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=examples(1000))
@given(value=anything)
def test_msgspec_and_the_standard_library_encode_and_refuse_the_same(value: Any) -> None:
    def encoded(by: json_text.Library, in_batch: bool) -> Any:
        codec = json_text.JSONCodec(DIALECT, by)
        try:
            text = codec.encode_all([value], "values[{}]".format) if in_batch else codec.encode("value", value)
        except InvalidArgument as error:
            return str(error)
        return None if text is None else json.loads(text, parse_int=Decimal)

    for in_batch in (False, True):
        assert encoded(json_text.FASTEST, in_batch) == encoded(json_text.STANDARD, in_batch)


@BOTH
@pytest.mark.parametrize(
    "text", ["1" * 5000, "1e400", "-1e400", "123456789012345678901234567890", "0.1000000000000000055511151231257827"]
)
def test_numbers_beyond_what_a_decoder_takes_are_as_the_standard_librarys(by: json_text.Library, text: str) -> None:
    expected = json.loads(text, parse_int=lambda digits: int(Decimal(digits)))
    codec = json_text.JSONCodec(DIALECT, by)
    assert codec.decode_one(text) == expected
    assert codec.decode([text, None, text]) == [expected, None, expected]


def test_no_metadata_and_empty_metadata_are_different(store: Store, messagedb_engine: Engine) -> None:
    store.write("json-1", "T", {})
    store.write("json-1", "T", None, {})
    assert [(message.data, message.metadata) for message in store.read("json-1")] == [({}, None), (None, {})]
    with messagedb_engine.connect() as connection:
        nulls = connection.execute(
            sql("SELECT data IS NULL, metadata IS NULL FROM message_store.messages ORDER BY position")
        )
        assert [tuple(row) for row in nulls] == [(False, True), (True, False)]


def test_json_null_written_by_another_client_reads_as_none(store: Store, messagedb_engine: Engine) -> None:
    with messagedb_engine.begin() as connection:
        connection.execute(
            sql("SELECT message_store.write_message(gen_random_uuid()::varchar, 'json-1', 'T', 'null', '[null]')")
        )
    (message,) = store.read("json-1")
    assert (message.data, message.metadata) == (None, [None])


def test_tuples_become_lists(store: Store) -> None:
    store.write("json-1", "T", {"a": (1, (2,))})
    assert store.read("json-1")[0].data == {"a": [1, [2]]}


def test_the_engines_serializer_and_deserializer_are_used(messagedb_url: str, store: Store) -> None:
    engine = create_engine(
        messagedb_url,
        json_serializer=lambda value: json.dumps({"wrapped": str(value)}),
        json_deserializer=lambda text: json.loads(text)["wrapped"],
    )
    own = Store(engine)
    own.write(
        "json-1",
        "T",
        {
            1,
        },
        None,
    )
    own.write_batch("json-1", [("T", 1.5, {})])
    assert [(message.data, message.metadata) for message in own.read("json-1")] == [("{1}", None), ("1.5", "{}")]
    assert [message.data for message in store.read("json-1")] == [{"wrapped": "{1}"}, {"wrapped": "1.5"}]
    engine.dispose()


def test_what_the_engines_serializer_refuses_names_the_value(messagedb_url: str, store: Store) -> None:
    def refuse(value: Any) -> str:
        raise TypeError("no such thing")

    engine = create_engine(messagedb_url, json_serializer=refuse)
    with pytest.raises(InvalidArgument, match=r"data=\{'a': 1\}: must be a value that .* can encode: no such thing"):
        Store(engine).write("json-1", "T", {"a": 1})
    engine.dispose()


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "the engine's json_serializer must return text, got NoneType"),
        (bytearray(b"{}"), "the engine's json_serializer must return text, got bytearray"),
        (b"\xff", "must be a value that the engine's json_serializer can encode: 'utf-8' codec can't decode"),
        (KeyError("a"), "must be a value that the engine's json_serializer can encode: KeyError: 'a'"),
    ],
)
def test_a_serializer_that_returns_no_text_is_named(
    messagedb_url: str, store: Store, returned: Any, reason: str
) -> None:
    def serialize(value: Any) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    own = Store.from_url(messagedb_url, json_serializer=serialize)
    writes: list[Callable[[], object]] = [
        lambda: own.write("json-1", "T", {}),
        lambda: own.write_batch("json-1", [("T", {})]),
    ]
    for write in writes:
        with pytest.raises(InvalidArgument) as caught:
            write()
        assert caught.value.reason.startswith(reason)
    own.engine.dispose()


def test_what_the_engines_serializer_makes_of_nan_is_refused_by_name(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, json_serializer=json.dumps)
    own, nan = Store(engine), {"a": float("nan")}
    writes: list[tuple[Callable[[], object], str]] = [
        (lambda: own.write("json-1", "T", nan), "data"),
        (lambda: own.write("json-1", "T", {}, nan), "metadata"),
        (lambda: own.write("json-1", "T", {}, {"a": "\ud800"}), "metadata"),
        (lambda: own.write_batch("json-1", [("T", {}), ("T", {}, nan)]), "messages[1].metadata"),
    ]
    for write, argument in writes:
        with pytest.raises(InvalidArgument, match="json_serializer") as caught:
            write()
        assert caught.value.argument == argument
    assert store.read("json-1") == []
    engine.dispose()


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_the_engines_serializer_decides_what_has_a_json_form(
    messagedb_url: str, store: Store, ensure_ascii: bool
) -> None:
    def serialize(value: Any) -> bytes:
        return json.dumps(value, default=str, ensure_ascii=ensure_ascii).encode()

    engine = create_engine(messagedb_url, json_serializer=serialize)
    own = Store(engine)
    own.write("json-1", "T", {"when": datetime(2026, 1, 1), "é": "\\u0000 with its backslash"})
    assert store.read("json-1")[0].data == {"when": "2026-01-01 00:00:00", "é": "\\u0000 with its backslash"}
    with pytest.raises(InvalidArgument, match="NUL"):
        own.write("json-1", "T", "\\\0")
    engine.dispose()


def test_an_integer_longer_than_postgresql_keeps_is_refused(store: Store) -> None:
    store.write("json-1", "T", 10**131_071)
    assert store.read("json-1")[0].data == 10**131_071
    with pytest.raises(InvalidArgument, match=r"at \['n'\]: an integer of \d+ bits"):
        store.write("json-1", "T", {"n": 10**140_000})


def test_nesting_beyond_what_python_can_walk_is_refused(store: Store) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        store.write("json-1", "T", deep)


@BOTH
def test_deeply_nested_text_is_decoded_without_a_collection_whose_finalizers_would_fail(by: json_text.Library) -> None:
    depths: list[int] = []

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            depths.append(_deepest(0))

    codec = json_text.JSONCodec(DIALECT, by)
    text = "[" * 5_000 + "]" * 5_000
    before = gc.get_threshold()
    # What there is already takes long to examine.
    gc.collect()
    gc.freeze()
    try:
        # So that one of the collections would run close to the recursion limit.
        for objects in range(100, 1000, 20):
            gc.collect()
            Garbage()
            gc.set_threshold(objects)
            with pytest.raises(RecursionError):
                codec.decode_one(text)
            gc.set_threshold(*before)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
    gc.collect()
    assert depths == [100] * 45


def _deepest(depth: int) -> int:
    return depth if depth == 100 else _deepest(depth + 1)
