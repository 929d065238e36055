"""What an application tells its driver to make of values does not change what messages are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from typing import Any

import psycopg2.extensions  # type: ignore[import-untyped]
import pytest
from psycopg.adapt import Loader
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, Store

from ..support import DRIVERS, Awaited, consumer_on

OIDS = {"timestamp": 1114, "timestamptz": 1184, "varchar": 1043, "int8": 20}
OWN_SQL = "SELECT * FROM message_store.messages ORDER BY global_position"


class Text(str):
    pass


class Moment(datetime):
    def __sub__(self, other: Any) -> Any:
        raise NotImplementedError


def time_of(value: str, cls: type[datetime] = datetime) -> datetime:
    return cls.strptime(value, "%Y-%m-%d %H:%M:%S.%f")


CASES = [
    pytest.param("timestamp", lambda value: time_of(value).replace(tzinfo=timezone.utc), id="aware times"),
    pytest.param("timestamp", lambda value: time_of(value).astimezone(timezone(timedelta(hours=9))), id="local times"),
    pytest.param("timestamp", lambda value: value, id="times as text"),
    pytest.param("timestamp", lambda value: time_of(value).timestamp(), id="times as seconds"),
    pytest.param("timestamp", lambda value: date.fromisoformat(value[:10]), id="dates"),
    pytest.param("timestamp", lambda value: time_of(value, Moment), id="times of another class"),
    pytest.param("varchar", lambda value: value.encode(), id="texts as bytes"),
    pytest.param("varchar", Text, id="texts of another class"),
    pytest.param("int8", float, id="numbers as float"),
    pytest.param("int8", str, id="numbers as text"),
]


@contextmanager
def converting(driver: str, url: str, name: str, convert: Callable[[str], Any], **options: Any) -> Iterator[Store]:
    """A store on this driver, whose connections convert PostgreSQL's text of this type."""
    with_driver = make_url(url).set(drivername=f"postgresql+{driver}")
    is_async = driver in ("psycopg_async", "asyncpg")
    engine: Any = (create_async_engine if is_async else create_engine)(with_driver, **options)

    class Converted(Loader):
        def load(self, data: Any) -> Any:
            return convert(bytes(data).decode())

    @event.listens_for(engine.sync_engine if is_async else engine, "connect")
    def register(connection: Any, _: Any) -> None:
        if driver == "psycopg2":
            caster = psycopg2.extensions.new_type((OIDS[name],), "CONVERTED", lambda value, _: value and convert(value))
            psycopg2.extensions.register_type(caster, connection)
        elif driver == "asyncpg":
            codec = {"schema": "pg_catalog", "encoder": str, "decoder": convert, "format": "text"}
            connection.run_async(lambda own: own.set_type_codec(name, **codec))
        else:
            getattr(connection, "driver_connection", connection).adapters.register_loader(name, Converted)

    if not is_async:
        yield Store(engine)
        engine.dispose()
        return
    loop = asyncio.new_event_loop()
    store: Any = Awaited(AsyncStore(engine), loop)
    yield store
    loop.run_until_complete(engine.dispose())
    loop.close()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("name", "convert"), CASES)
def test_messages_are_the_same(
    messagedb_url: str, store: Store, driver: str, name: str, convert: Callable[[str], Any]
) -> None:
    store.write_batch("account-1", [("Opened", {"n": 0}, {"trace": "t-1"}), ("Closed", None)])
    written = store.read("account-1")
    converted: list[str] = []

    def noting(value: str) -> Any:
        converted.append(value)
        return convert(value)

    with converting(driver, messagedb_url, name, noting) as converts:
        assert converts.read("account-1") == written
        assert converts.read("account") == written
        assert converts.read("$all", allow_holes=True) == written
        assert converts.read("account-1", OWN_SQL) == written
        # psycopg2 is not always asked to convert times, but of this query it does.
        assert converted
        assert list(converts.iter_category("account", batch_size=1)) == written
        assert converts.read_last_message("account-1") == written[-1]
        assert [type(each) for each in converts.read("account-1")[0]] == [type(each) for each in written[0]]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("name", "convert"), [case for case in CASES if case.values[0] == "timestamp"])
def test_consumers_and_their_status_are_the_same(
    messagedb_url: str, store: Store, driver: str, name: str, convert: Callable[[str], Any]
) -> None:
    store.write_batch("account-1", [("Opened", {"n": 0}), ("Closed", {"n": 1})])
    with converting(driver, messagedb_url, name, convert) as converts:
        handled: list[Any] = []
        consumer_on(converts, "account", handled.append, "mailer").run_until_caught_up()
        assert handled == store.read("account-1")
        store.write("account-1", "Opened", {})
        assert converts.consumers("account") == store.consumers("account")
        assert store.consumers("account")[0].lag == 1


@pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY"])
def test_the_sessions_date_style_does_not_matter(each_driver_url: str, store: Store, style: str) -> None:
    store.write("account-1", "Opened", {})
    engine = create_engine(each_driver_url)

    @event.listens_for(engine, "connect")
    def set_style(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET datestyle TO '{style}'")
        connection.commit()

    assert Store(engine).read("account") == store.read("account")
    engine.dispose()


@pytest.fixture(params=["psycopg2", "psycopg"])
def each_driver_url(request: pytest.FixtureRequest, messagedb_url: str) -> str:
    url = make_url(messagedb_url).set(drivername=f"postgresql+{request.param}")
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize("is_observed", [False, True])
def test_times_are_read_as_they_are_stored(each_driver_url: str, store: Store, is_observed: bool) -> None:
    fractions = ["", ".5", ".12", ".123", ".1234", ".12345", ".123456", ".000001", ".100000"]
    texts = [f"{day} 23:05:09{each}" for day in ("0001-01-01", "0999-12-31", "2026-02-28") for each in fractions]
    with store.engine.begin() as connection:
        for position, time in enumerate(texts):
            connection.execute(
                text(
                    "INSERT INTO message_store.messages (stream_name, position, type, time)"
                    " VALUES ('account-1', :position, 'Opened', CAST(CAST(:time AS text) AS timestamp))"
                ),
                {"position": position, "time": time},
            )
    expected = [datetime.fromisoformat(f"{each:0<26}" if "." in each else each) for each in texts]
    engine = create_engine(each_driver_url)
    executed: list[str] = []
    if is_observed:
        event.listen(engine, "before_cursor_execute", lambda *arguments: executed.append(arguments[2]))
    reader = Store(engine)
    for messages in (reader.read("account-1"), [*reader.iter_category("account", batch_size=1)]):
        assert [message.time for message in messages] == [each.replace(tzinfo=timezone.utc) for each in expected]
        assert {message.time.tzinfo for message in messages} == {timezone.utc}
    last = reader.read_last_message("account-1")
    assert last is not None
    assert last.time == expected[-1].replace(tzinfo=timezone.utc)
    assert bool(executed) is is_observed
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_local_times_of_own_sql_are_utc_whatever_they_are_converted_to(
    messagedb_url: str, store: Store, driver: str
) -> None:
    """The driver gives no hint whether it was the server or the application that made a time aware."""
    store.write("account-1", "Opened", {})
    own = (
        "SELECT id, stream_name, type, position, global_position, data, metadata, time AT TIME ZONE 'utc' AS time"
        " FROM message_store.messages, set_config('timezone', 'Asia/Tokyo', true)"
    )
    with converting(driver, messagedb_url, "timestamptz", lambda value: value) as converts:
        assert converts.read("account-1", own) == store.read("account-1")
