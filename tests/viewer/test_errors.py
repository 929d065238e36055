"""When the database does not answer, has no store, or does not permit it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, Store
from messagedb_sa._drivers.urls import for_asynchronous_code
from messagedb_sa.viewer import viewer

from ..support import as_role
from .support import browser, crawl, get

PAGES = ["/", "/all", "/categories", "/streams?category=a", "/stream?name=a-1", "/category?name=a", "/search?q=a-1"]
PAGES += ["/message?global_position=1", "/raw?id=01a219be-1583-7dbb-9334-84da874ebddd", "/correlation?name=a-1"]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_without_a_connection_each_page_says_so_without_the_password(driver: str) -> None:
    url = make_url(f"postgresql+{driver}://someone:very-secret@127.0.0.1:1/app")
    is_async = driver == "asyncpg"
    store = AsyncStore(create_async_engine(url)) if is_async else Store(create_engine(url))
    with browser(viewer(store), raise_server_exceptions=False) as client:
        for path in PAGES:
            answer = client.get(path)
            assert answer.status_code == 503
            assert "The database does not answer" in answer.text
            assert "very-secret" not in answer.text
            assert "Traceback" not in answer.text


def test_after_a_lost_connection_the_next_page_has_a_new_one(store: Store) -> None:
    engine = create_engine(store.engine.url, pool_size=1, max_overflow=0)
    with browser(viewer(Store(engine))) as client:
        get(client, "/all")
        with engine.connect() as connection:
            backend = connection.scalar(text("SELECT pg_backend_pid()"))
        with store.engine.connect() as other:
            assert other.scalar(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": backend})
        assert "The database does not answer" in get(client, "/all", 503).text
        get(client, "/all")
    engine.dispose()


def test_a_database_without_a_store_says_how_to_install_one(empty_database: Engine) -> None:
    client = browser(viewer(Store(empty_database)))
    for path in PAGES[:7]:
        shown = get(client, path, 503).text
        assert "No store here" in shown
        assert "messagedb_sa.install.upgrade(engine)" in shown


def test_a_role_that_may_read_sees_every_page(store: Store, login: Callable[..., str]) -> None:
    store.write("account-1", "Opened", {"owner": "Ada"})
    reader = login("viewer_reader")
    with store.engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA message_store TO {reader}"))
        connection.execute(text(f"GRANT SELECT ON message_store.messages TO {reader}"))
    engine = as_role(store.engine, reader)
    try:
        with browser(viewer(Store(engine))) as client:
            for path in PAGES:
                if "raw" not in path:
                    assert client.get(path.replace("a-1", "account-1")).status_code == 200, path
            pages = crawl(client, "/all")
            assert any("owner Ada" in page.text for page in pages.values())
    finally:
        with store.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {reader}"))


def test_a_role_that_may_not_read_is_told_what_to_grant(
    store: Store, login: Callable[..., str], messagedb_url: str
) -> None:
    nobody = login("viewer_nobody")
    url = for_asynchronous_code(make_url(messagedb_url)).set(username=nobody)
    both = Store(as_role(store.engine, nobody)), AsyncStore(create_async_engine(url, poolclass=NullPool))
    for each in both:
        with browser(viewer(each)) as client:
            for path in ("/", "/all", "/categories", "/message?global_position=1"):
                shown = get(client, path, 403).text
                assert "A privilege is missing" in shown
                assert "GRANT message_store TO viewer_nobody" in shown


def test_a_statement_that_takes_too_long_is_no_traceback(store: Store) -> None:
    engine = create_engine(store.engine.url, connect_args={"options": "-c statement_timeout=1ms"}, poolclass=NullPool)
    with store.engine.begin() as connection:
        connection.execute(text("LOCK TABLE message_store.messages IN ACCESS EXCLUSIVE MODE"))
        shown = get(browser(viewer(Store(engine))), "/all", 503).text
    assert "canceling statement due to statement timeout" in shown


def test_an_error_of_our_own_is_a_page_and_the_servers_to_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    app = viewer(store)
    monkeypatch.setattr("messagedb_sa.viewer._messages.PER_PAGE", "a mistake, with very-secret in it")
    answer = browser(app, raise_server_exceptions=False).get("/all")
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "very-secret" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    with pytest.raises(TypeError):
        browser(app).get("/all")
