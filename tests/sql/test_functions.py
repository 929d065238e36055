"""The twelve functions as SQLAlchemy expressions: what they render, and what they do in a query."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from datetime import timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    insert,
    literal,
    select,
    text,
    true,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from messagedb_sa import Store, functions

host = MetaData()
accounts = Table(
    "accounts",
    host,
    Column("number", Integer, primary_key=True),
    Column("stream", Text, nullable=False),
    Column("command_id", Uuid),
    Column("seen", BigInteger),
)


class Base(DeclarativeBase):
    metadata = host


class Account(Base):
    __table__ = accounts
    number: Mapped[int]
    stream: Mapped[str]


def rendered(expression: Any) -> str:
    """The SQL on one line, without the casts of parameters, which differ between versions of SQLAlchemy."""
    sql = str(expression.compile(dialect=postgresql.dialect(paramstyle="named")))  # type: ignore[no-untyped-call]
    return re.sub(r"(:\w+)::[A-Z]+", r"\1", " ".join(sql.split()))


@pytest.fixture
def connection(store: Store) -> Iterator[Connection]:
    """In a transaction that is rolled back, with the host's table accounts."""
    with store.engine.connect() as connection:
        host.create_all(connection)
        connection.execute(
            insert(accounts),
            [
                {"number": 1, "stream": "account-1", "command_id": uuid4(), "seen": 1},
                {"number": 2, "stream": "account-2", "command_id": uuid4(), "seen": 0},
                {"number": 3, "stream": "account-3", "command_id": uuid4(), "seen": 0},
            ],
        )
        for stream, type, data in [
            ("account-1", "Opened", {"n": 1}),
            ("account-2", "Opened", {"n": 2}),
            ("account-1", "Deposited", {"n": 3}),
        ]:
            connection.execute(select(functions.write_message(uuid4(), stream, type, data, {"by": "test"})))
        yield connection


def test_there_is_a_class_for_each_function_of_the_interface(connection: Connection) -> None:
    in_database = connection.scalars(
        text(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'message_store'::regnamespace"
            " AND prorettype <> 'trigger'::regtype ORDER BY 1"
        )
    )
    assert list(in_database) == functions.__all__


def test_parameters_have_the_names_and_the_order_of_the_database(connection: Connection) -> None:
    for name, arguments in connection.execute(
        text(
            "SELECT proname, proargnames FROM pg_proc WHERE pronamespace = 'message_store'::regnamespace"
            " AND prorettype <> 'trigger'::regtype"
        )
    ):
        signature = inspect.signature(getattr(functions, name))
        assert list(signature.parameters) == (arguments or [])[: len(signature.parameters)]


def test_optional_arguments_are_rendered_by_name_and_only_when_given() -> None:
    assert rendered(select(functions.get_stream_messages("user-1").messages("m"))) == (
        "SELECT m.id, m.stream_name, m.type, m.position, m.global_position, m.data, m.metadata, m.time "
        "FROM message_store.get_stream_messages(:stream_name_1) AS m"
    )
    assert rendered(functions.get_stream_messages("user-1", position=5, condition="true")) == (
        'message_store.get_stream_messages(:stream_name_1, "position" => :position_1, "condition" => :condition_1)'
    )
    assert rendered(
        functions.get_category_messages(
            "user", 1, 10, "account", consumer_group_member=0, consumer_group_size=2, condition="true"
        )
    ) == (
        'message_store.get_category_messages(:category_1, "position" => :position_1, '
        '"batch_size" => :batch_size_1, "correlation" => :correlation_1, '
        '"consumer_group_member" => :consumer_group_member_1, '
        '"consumer_group_size" => :consumer_group_size_1, "condition" => :condition_1)'
    )
    assert rendered(functions.get_last_stream_message("user-1", "Opened")) == (
        'message_store.get_last_stream_message(:stream_name_1, "type" => :type_1)'
    )
    assert rendered(functions.write_message(UUID(int=1), "user-1", "Opened", {}, expected_version=-1)) == (
        "message_store.write_message(:id_1, :stream_name_1, :type_1, :data_1, "
        '"expected_version" => :expected_version_1)'
    )


def test_the_registry_of_func_is_left_alone() -> None:
    assert type(func.message_store.stream_version("a-1")) is not functions.stream_version
    assert type(func.category("a-1")) is not functions.category


def test_scalar_functions_have_typed_results(connection: Connection) -> None:
    name = "account-1+2"
    assert connection.scalar(select(functions.category(name))) == "account"
    assert connection.scalar(select(functions.id(name))) == "1+2"
    assert connection.scalar(select(functions.cardinal_id(name))) == "1"
    assert connection.scalar(select(functions.is_category(name))) is False
    assert connection.scalar(select(functions.hash_64("account"))) == connection.scalar(
        select(functions.acquire_lock(name))
    )
    assert connection.scalar(select(functions.stream_version("account-1"))) == 1
    assert connection.scalar(select(functions.stream_version("account-9"))) is None
    assert connection.scalar(functions.message_store_version()) == "1.3.0"


def test_messages_come_decoded_with_their_time_in_utc(connection: Connection) -> None:
    row = connection.execute(select(functions.get_stream_messages("account-1", position=1).messages())).one()
    assert (row.stream_name, row.type, row.position, row.global_position) == ("account-1", "Deposited", 1, 3)
    assert (row.data, row.metadata) == ({"n": 3}, {"by": "test"})
    assert row.time.tzinfo is timezone.utc
    assert UUID(row.id)


def test_the_engines_json_functions_decode_messages(connection: Connection, messagedb_url: str) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(messagedb_url, json_deserializer=lambda text: f"decoded {text}")
    store = Store(engine)
    store.write("json-1", "Opened", {"n": 1})
    with engine.connect() as other:
        column = functions.get_last_stream_message("json-1").messages().c.data
        assert other.scalar(select(column)) == 'decoded {"n": 1}'
    engine.dispose()


def test_a_column_of_the_applications_table_is_an_argument(connection: Connection) -> None:
    versions = select(accounts.c.number, functions.stream_version(accounts.c.stream)).order_by(accounts.c.number)
    assert [tuple(row) for row in connection.execute(versions)] == [(1, 1), (2, 0), (3, None)]


def test_a_mapped_attribute_is_an_argument(connection: Connection) -> None:
    with Session(connection) as session:
        query = select(Account.number).where(functions.stream_version(Account.stream) == 1)
        assert session.scalars(query).all() == [1]


def test_a_named_argument_can_be_an_expression(connection: Connection) -> None:
    unseen = functions.get_stream_messages(accounts.c.stream, position=accounts.c.seen + 0).messages("unseen").lateral()
    query = select(accounts.c.number, unseen.c.type).join(unseen, true()).order_by(accounts.c.number)
    assert [tuple(row) for row in connection.execute(query)] == [(1, "Deposited"), (2, "Opened")]


def test_messages_join_the_applications_table(connection: Connection) -> None:
    opened = functions.get_category_messages("account").messages("opened")
    query = (
        select(accounts.c.number, opened.c.data)
        .join(opened, opened.c.stream_name == accounts.c.stream)
        .where(opened.c.type == "Opened")
        .order_by(accounts.c.number)
    )
    assert [tuple(row) for row in connection.execute(query)] == [(1, {"n": 1}), (2, {"n": 2})]


def test_lateral_gives_each_row_its_last_message(connection: Connection) -> None:
    last = functions.get_last_stream_message(accounts.c.stream).messages("last").lateral()
    query = select(accounts.c.number, last.c.type).outerjoin(last, true()).order_by(accounts.c.number)
    assert [tuple(row) for row in connection.execute(query)] == [(1, "Deposited"), (2, "Opened"), (3, None)]


def test_messages_can_be_in_a_cte(connection: Connection) -> None:
    history = select(functions.get_category_messages("account").messages()).cte("history")
    query = select(history.c.type, func.count()).group_by(history.c.type).order_by(history.c.type)
    assert [tuple(row) for row in connection.execute(query)] == [("Deposited", 1), ("Opened", 2)]


def test_one_statement_writes_a_message_for_each_row(connection: Connection) -> None:
    written = select(
        accounts.c.number,
        functions.write_message(
            accounts.c.command_id,
            accounts.c.stream,
            "Closed",
            func.jsonb_build_object("number", accounts.c.number),
            expected_version=func.coalesce(functions.stream_version(accounts.c.stream), -1),
        ),
    )
    assert sorted(tuple(row) for row in connection.execute(written)) == [(1, 2), (2, 1), (3, 0)]
    last = connection.execute(select(functions.get_last_stream_message("account-2").messages())).one()
    assert (last.type, last.data) == ("Closed", {"number": 2})
    assert last.id == str(connection.scalar(select(accounts.c.command_id).where(accounts.c.number == 2)))


def test_the_database_may_make_the_id(connection: Connection) -> None:
    for id in (func.gen_random_uuid(), select(accounts.c.command_id).limit(1).scalar_subquery()):
        assert connection.execute(select(functions.write_message(id, "id-1", "T", {}))).scalar_one() >= 0


def test_none_and_an_empty_object_are_different(connection: Connection) -> None:
    connection.execute(select(functions.write_message(uuid4(), "none-1", "T", None, {})))
    row = connection.execute(text("SELECT data, metadata FROM message_store.messages WHERE stream_name = 'none-1'"))
    assert tuple(row.one()) == (None, {})


@pytest.mark.parametrize(
    "build",
    [
        lambda n: select(functions.stream_version(f"user-{n}")),
        lambda n: select(functions.get_stream_messages(f"user-{n}", position=n, batch_size=n).messages("m")),
        lambda n: select(functions.get_category_messages("user", correlation=f"c{n}").messages()),
        lambda n: select(functions.write_message(uuid4(), f"user-{n}", "T", {"n": n}, {"n": n}, -1)),
    ],
)
def test_statements_that_differ_in_values_only_are_compiled_once(store: Store, build: Any) -> None:
    cache: dict[Any, Any] = {}
    with store.engine.connect().execution_options(compiled_cache=cache) as connection:
        for n in (1, 2, 3):
            connection.execute(build(n))
            connection.rollback()
    assert len(cache) == 1


def test_the_statement_cache_distinguishes_the_arguments(connection: Connection) -> None:
    first = select(functions.get_stream_messages("account-1", position=1).messages("m"))
    second = select(functions.get_stream_messages("account-1", batch_size=1).messages("m"))
    assert [row.position for row in connection.execute(first)] == [1]
    assert [row.position for row in connection.execute(second)] == [0]


def test_null_can_be_passed_on_purpose(connection: Connection) -> None:
    query = select(functions.get_stream_messages("account-1", position=literal(None, BigInteger)).messages())
    assert len(connection.execute(query).all()) == 2


def test_types_are_known_to_the_expression(messagedb_engine: Engine) -> None:
    assert isinstance((functions.stream_version("a-1") + 1).type, BigInteger)
    assert rendered(functions.category(accounts.c.stream).like("a%")).startswith("message_store.category(")
