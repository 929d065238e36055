"""What the pages claim beyond what their code blocks show by running."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import ProgrammingError

from messagedb_sa import Consumer, Store, errors, install, schema

from ..support import REPOSITORY, as_role
from .pages import MANUAL, blocks


def code(page: str, language: str, caption: str | None = None) -> list[str]:
    return [block.code for block in blocks(MANUAL / page) if (block.language, block.caption) == (language, caption)]


def test_the_tree_of_errors_is_the_one_of_the_classes() -> None:
    _, _, rest = inspect.cleandoc(errors.__doc__ or "").partition("::\n\n")
    lines = rest.partition("\n\n")[0].splitlines()
    above: list[type] = []
    for line in lines:
        name, _, note = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 4 - 1
        cls = getattr(install if name.startswith("install.") else errors, name.removeprefix("install."))
        del above[depth:]
        bases = {each.__name__ for each in cls.__bases__}
        assert above[-1:] == [] or above[-1].__name__ in bases
        assert note.split()[-1:] == [each for each in bases if each not in ("Exception", *errors.__all__)]
        above.append(cls)
    assert {line.split()[0] for line in lines} - {"install.MigrationRefused"} == {*errors.__all__}


def test_the_quickstart_also_runs_in_the_repository(tmp_path: Path) -> None:
    (program,) = code("start/quickstart.md", "python", "quickstart.py")
    path = tmp_path / "quickstart.py"
    path.write_text(program)
    subprocess.run([sys.executable, "-W", "error", path], cwd=REPOSITORY, check=True)


def test_the_grants_are_all_that_an_applications_role_needs(empty_database: Engine, login: Callable[..., str]) -> None:
    grants = code("operate/managed-host.md", "sql")[0]
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
            assert connection.scalar(select(func.count()).select_from(table)) in (0, 1, 2)
    Consumer(store, "account", lambda *_: None, transactional=True, positions="table").run_until_caught_up()
    assert [status.recorded_in for status in store.consumers("account")] == ["table"]
    with empty_database.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))


def test_with_the_search_path_a_client_in_another_language_names_no_schema(
    login: Callable[..., str], empty_database: Engine
) -> None:
    search_path = code("operate/managed-host.md", "sql")[-1]
    role = login("messagedb_client")
    install.upgrade(empty_database)
    calls = text(
        "SELECT write_message(gen_random_uuid()::varchar, 'account-1', 'Opened', '{}'), stream_version('account-1')"
    )
    with empty_database.begin() as connection:
        connection.execute(text(f"GRANT message_store TO {role}"))
    with pytest.raises(ProgrammingError, match="write_message"), as_role(empty_database, role).begin() as connection:
        connection.execute(calls)
    with empty_database.begin() as connection:
        connection.execute(text(search_path.replace(" app ", f" {role} ")))
    with as_role(empty_database, role).begin() as connection:
        assert connection.execute(calls).one()[0] == 0


def test_a_revision_makes_the_index_of_a_group(
    tmp_path: Path, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (revision,) = code("guide/processes.md", "python", "migrations/versions/group_of_eight.py")
    (env,) = code("operate/alembic.md", "python", "migrations/env.py")
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "group_of_eight.py").write_text(revision)
    (tmp_path / "env.py").write_text(env)
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", empty_database.url.render_as_string(False).replace("%", "%%"))
    install.upgrade(empty_database)
    exists = text("SELECT to_regclass('message_store.messages_consumer_group_of_8') IS NOT NULL")
    for change, revision_id, expected in ((command.upgrade, "head", True), (command.downgrade, "base", False)):
        change(config, revision_id)
        with empty_database.connect() as connection:
            assert connection.scalar(exists) is expected
