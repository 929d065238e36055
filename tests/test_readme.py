"""Every code block of the README is run, in the order of the page."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, Message, Store, install, schema
from messagedb_sa.execution import run_joined
from messagedb_sa.operations import HAS_NOTIFY

from .conftest import as_role

REPOSITORY = Path(__file__).parents[1]


class Block(NamedTuple):
    heading: str
    language: str
    code: str


def read_blocks() -> list[Block]:
    tokens = MarkdownIt().parse((REPOSITORY / "README.md").read_text("utf-8"))
    heading, blocks = "", []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            heading = following.content
        elif token.type == "fence":
            blocks.append(Block(heading, token.info, token.content))
    return blocks


BLOCKS = read_blocks()


def code(heading: str, language: str) -> list[str]:
    return [block.code for block in BLOCKS if (block.heading, block.language) == (heading, language)]


def commands(heading: str) -> list[str]:
    return [
        line.removeprefix("$ ") for block in code(heading, "console") for line in block.splitlines() if line.strip()
    ]


def execute(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, "README.md", "exec", dont_inherit=True), names)


def shell(command: str, cwd: Path) -> None:
    scripts = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if name != "MESSAGEDB_URL"}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_block_stands_under_a_heading_that_a_test_below_runs() -> None:
    assert {(block.heading, block.language) for block in BLOCKS} == {
        ("See it run", "console"),
        ("Quickstart", "console"),
        ("Quickstart", "python"),
        ("Quickstart", "text"),
        ("Into an empty database, from Python", "python"),
        ("From a host application's alembic.ini", "ini"),
        ("From a host application's alembic.ini", "console"),
        ("From a host application's alembic.ini", "python"),
        ("In a host's own history", "ini"),
        ("In a host's own history", "console"),
        ("Notifications of new messages", "console"),
        ("Notifications of new messages", "python"),
        ("On a managed host, without a superuser", "sql"),
        *((heading, "python") for heading in PAGES),
        ("In an asynchronous application", "python"),
        ("Seeing how far they are", "sql"),
        ("Async", "console"),
        ("Typed messages", "console"),
        ("Tracing", "console"),
        ("An index for the group", "python"),
        ("Testing your application", "python"),
        ("Coming from message-db-py", "python"),
    }


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    assert commands("See it run") == ["make demo", "make test"]
    for command in commands("See it run"):
        # -n: this very test runs inside of make test; CI runs make demo.
        shell(f"{command} -n", REPOSITORY)


@pytest.mark.parametrize("place", ["anywhere", "in the repository"])
def test_the_quickstart_prints_what_the_readme_says(tmp_path: Path, place: str) -> None:
    assert commands("Quickstart") == ['pip install "messagedb-sa[embedded]"']
    (program,), (printed,) = code("Quickstart", "python"), code("Quickstart", "text")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=REPOSITORY if place == "in the repository" else tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == printed


def test_installing_from_python(empty_database: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = code("Into an empty database, from Python", "python")
    url = empty_database.url.render_as_string(hide_password=False)
    assert "postgresql+psycopg2://localhost/app" in program
    names: dict[str, Any] = {}
    execute(program.replace("postgresql+psycopg2://localhost/app", url), names)
    names["engine"].dispose()
    assert capsys.readouterr().out.strip() == install.current(empty_database)


def test_installing_from_a_hosts_ini(tmp_path: Path, empty_database: Engine) -> None:
    where = "From a host application's alembic.ini"
    (section,), (env,) = code(where, "ini"), code(where, "python")
    write_host(tmp_path, empty_database, f"[alembic]\nscript_location = %(here)s/migrations\n#url\n\n{section}", env)
    for command in commands(where):
        shell(command, tmp_path)
    assert install.current(empty_database) is not None
    assert "CREATE TABLE IF NOT EXISTS message_store.messages" in (tmp_path / "messagedb.sql").read_text()
    shell("alembic revision --autogenerate -m nothing", tmp_path)
    (revision,) = (tmp_path / "migrations" / "versions").glob("*.py")
    assert "drop" not in revision.read_text()


def test_installing_in_a_hosts_own_history(tmp_path: Path, empty_database: Engine) -> None:
    where = "In a host's own history"
    (ini,) = code(where, "ini")
    write_host(tmp_path, empty_database, f"{ini}#url\n", code("From a host application's alembic.ini", "python")[0])
    for command in commands(where):
        shell(command, tmp_path)
    shell("alembic revision --head base --version-path migrations/versions -m first", tmp_path)
    assert len(list((tmp_path / "migrations" / "versions").glob("*.py"))) == 1
    assert Store(empty_database).version() == "1.3.0"


def test_switching_notifications_on_and_off(tmp_path: Path, empty_database: Engine) -> None:
    where = "Notifications of new messages"
    from_python, revision = code(where, "python")

    def on() -> bool:
        with empty_database.connect() as connection:
            return run_joined(connection, HAS_NOTIFY)

    (ini,) = code("From a host application's alembic.ini", "ini")
    configure = "context.configure(connection=connection)"
    write_host(
        tmp_path / "own", empty_database, f"[alembic]\nscript_location = %(here)s/migrations\n#url\n{ini}", configure
    )
    for command, expected in zip(commands(where), (True, False), strict=True):
        shell(command, tmp_path / "own")
        assert on() is expected
    for line, expected in zip(from_python.splitlines(), (True, False), strict=True):
        execute(line, {"install": install, "engine": empty_database})
        assert on() is expected
    install.downgrade(empty_database)
    (ini,) = code("In a host's own history", "ini")
    write_host(tmp_path / "shared", empty_database, f"{ini}#url\n", configure)
    (tmp_path / "shared" / "migrations" / "versions" / "notify.py").write_text(revision)
    for command, expected in (("upgrade heads", True), ("downgrade notify@base", False)):
        shell(f"alembic {command}", tmp_path / "shared")
        assert on() is expected


def test_a_revision_that_makes_an_index_for_a_group(tmp_path: Path, empty_database: Engine) -> None:
    (revision,) = code("An index for the group", "python")
    configure = "context.configure(connection=connection)"
    write_host(tmp_path, empty_database, "[alembic]\nscript_location = %(here)s/migrations\n#url\n", configure)
    (tmp_path / "migrations" / "versions" / "group_of_four.py").write_text(revision)
    install.upgrade(empty_database)
    exists = text("SELECT to_regclass('message_store.messages_consumer_group_of_4') IS NOT NULL")
    for command, expected in (("upgrade head", True), ("downgrade base", False)):
        shell(f"alembic {command}", tmp_path)
        with empty_database.connect() as connection:
            assert connection.scalar(exists) is expected


def write_host(folder: Path, engine: Engine, ini: str, configure: str) -> None:
    url = engine.url.render_as_string(hide_password=False)
    (folder / "migrations" / "versions").mkdir(parents=True)
    (folder / "alembic.ini").write_text(ini.replace("#url", f"sqlalchemy.url = {url.replace('%', '%%')}"))
    (folder / "migrations" / "script.py.mako").write_text((REPOSITORY / "migrations" / "script.py.mako").read_text())
    (folder / "migrations" / "env.py").write_text(
        "from alembic import context\n"
        "from sqlalchemy import MetaData, create_engine\n"
        "target_metadata = MetaData()\n"
        'connection = create_engine(context.config.get_main_option("sqlalchemy.url")).connect()\n'
        f"{configure}\n"
        "with context.begin_transaction():\n"
        "    context.run_migrations()\n"
    )


def test_the_grants_are_all_that_an_applications_role_needs(empty_database: Engine, login: Callable[..., str]) -> None:
    (grants,) = code("On a managed host, without a superuser", "sql")
    role = login("messagedb_app")
    install.upgrade(empty_database, role=False)
    with empty_database.begin() as connection:
        connection.execute(text(grants.replace(" app;", f" {role};")))
    store = Store(as_role(empty_database, role))
    assert store.write_batch("account-1", [("Opened", {}), ("Closed", {})]) == 1
    assert len(store.read("account")) == len(store.read("account-1")) == len(store.read("$all")) == 2
    assert store.stream_identifiers("account") == ["1"]
    assert store.stream_version("account-1") == 1
    with store.engine.connect() as connection:
        for table in schema.metadata.sorted_tables:
            assert connection.scalar(select(func.count()).select_from(table)) in (1, 2)
    with empty_database.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))


PAGES = (
    "Writing",
    "Many writers of one category",
    "One transaction with your own rows",
    "Async",
    "Reading",
    "The whole store",
    "In your own queries",
    "Typed messages",
    "Consumers",
    "Where it begins",
    "When a handler fails",
    "Sharing a category among processes",
    "Seeing how far they are",
    "Consumer groups",
    "Tracing",
    "Errors",
)


def test_the_pages_on_writing_and_reading_run_one_after_the_other(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE customers (name text, stream text)"))
        connection.execute(text("CREATE TABLE orders (number int PRIMARY KEY, item text)"))
    names: dict[str, Any] = {"engine": engine}
    asyncpg_url = messagedb_url.replace("psycopg2", "asyncpg")
    for heading in PAGES:
        for program in code(heading, "python"):
            execute(program.replace("postgresql+asyncpg://localhost/app", asyncpg_url), names)
    assert names["position"] == 0
    assert names["types"][-1] == "Placed"
    assert commands("Async") == ['pip install "messagedb-sa[asyncpg]"']
    assert names["total"] == 210
    assert commands("Typed messages") == ['pip install "messagedb-sa[msgspec]"']
    assert commands("Tracing") == ['pip install "messagedb-sa[opentelemetry]"']
    assert store.stream_identifiers("account") == ["1", "2", "9"]
    (forget,) = code("Seeing how far they are", "sql")
    store.write("account:position-retired", "Recorded", {"position": 1})
    assert "retired" in {status.identifier for status in store.consumers("account")}
    with engine.begin() as connection:
        connection.execute(text(forget))
    assert "retired" not in {status.identifier for status in store.consumers("account")}
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE customers, orders"))
    engine.dispose()
    names["allowing"].dispose()


def test_the_worker_runs_until_it_is_told_to_stop(store: Store, messagedb_url: str) -> None:
    store.write("account-1", "Opened", {"owner": "Ada"})
    program = code("Consumers", "python")[0].replace("postgresql://localhost/app", messagedb_url)
    command = [sys.executable, "-u", "-W", "error", "-c", f"{program}\nmain()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "Hello Ada\n"
        worker.terminate()
        _, logged = worker.communicate()
    assert worker.returncode == 0
    assert "consumer stopped (handled 1, category account, identifier greeter)" in logged
    (status,) = store.consumers("account")
    assert (status.identifier, status.lag) == ("greeter", 0)


def test_a_consumer_is_a_task_of_a_web_application(store: Store, messagedb_url: str) -> None:
    store.write("account-1", "Opened", {"owner": "Ada"})
    greeted: list[Message] = []
    names: dict[str, Any] = {"greet": greeted.append}
    (program,) = code("In an asynchronous application", "python")
    execute(program, names)

    async def main() -> None:
        engine = create_async_engine(messagedb_url.replace("psycopg2", "asyncpg"))
        app = SimpleNamespace(state=SimpleNamespace(store=AsyncStore(engine)))
        async with names["lifespan"](app):
            # pytest-timeout ends it where nobody is greeted.
            while not greeted:
                await asyncio.sleep(0.01)
        await engine.dispose()

    asyncio.run(main())
    (status,) = store.consumers("account")
    assert (status.identifier, status.lag) == ("greeter", 0)


def test_the_page_on_coming_from_message_db_py(messagedb_url: str, store: Store) -> None:
    names: dict[str, Any] = {"url": messagedb_url.replace("+psycopg2", "")}
    for program in code("Coming from message-db-py", "python"):
        execute(program, names)
    assert len(store.read("cart-1")) == 3
    names["messages"].connection_pool.closeall()
    names["store_of_app"].engine.dispose()


def test_the_page_on_testing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESSAGEDB_TEST_URL", raising=False)
    a_test, without_pytest = code("Testing your application", "python")
    pytester.makepyfile(a_test)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    execute(without_pytest, {})
