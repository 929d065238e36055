"""A host application in an environment of its own, with our built wheel: each documented way to use Alembic with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

from messagedb_sa import Store, install

from ..support import HEAD, REPOSITORY


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a virtual environment that has our wheel and what it depends on, no more."""
    folder = tmp_path_factory.mktemp("environment")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "examples")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    # It needs no pip of its own: ours installs into it.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    here = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*here, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    installed = subprocess.run(
        [*here, "--python", python, "install", wheel],
        capture_output=True,
        text=True,
    )
    if installed.returncode != 0:
        pytest.skip(f"pip does not reach an index: {installed.stderr.strip()}")
    return python.parent


class Host:
    """The application's folder, and its programs run in it."""

    def __init__(self, folder: Path, scripts: Path, engine: Engine) -> None:
        self.folder, self._scripts, self.engine = folder, scripts, engine

    def run(self, program: str, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [self._scripts / program, *arguments],
            cwd=self.folder,
            env={**os.environ, "MESSAGEDB_URL": self.engine.url.render_as_string(hide_password=False)},
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def versions(self, table: str) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(text(f"SELECT version_num FROM {table} ORDER BY 1")))


@pytest.fixture
def host(tmp_path: Path, scripts: Path, empty_database: Engine) -> Host:
    shutil.copytree(Path(__file__).with_name("host_application"), tmp_path / "host")
    return Host(tmp_path / "host", scripts, empty_database)


def test_as_a_section_the_store_has_a_history_of_its_own(host: Host) -> None:
    host.run("alembic", "upgrade", "head")
    host.run("alembic", "-n", "messagedb", "upgrade", "head")
    assert host.versions("alembic_version") == ["shop_1"]
    assert host.versions("messagedb_alembic_version") == [HEAD]
    assert Store(host.engine).write("product-1", "Listed", {}) == 0
    host.run("alembic", "downgrade", "base")
    assert install.current(host.engine) == HEAD


def test_autogenerate_proposes_nothing_about_the_store(host: Host) -> None:
    host.run("alembic", "upgrade", "head")
    host.run("alembic", "-n", "messagedb", "upgrade", "head")
    assert "No new upgrade operations detected" in host.run("alembic", "check")
    env = host.folder / "migrations" / "env.py"
    env.write_text(env.read_text().replace("include_name=include_name", "include_name=None"))
    assert "remove_table" in host.run("alembic", "check", check=False)


def test_in_one_history_a_revision_of_the_hosts_depends_on_the_store(host: Host) -> None:
    in_one = ("-c", "one_history.ini")
    host.run("alembic", *in_one, "upgrade", "shop@head")
    assert host.versions("alembic_version") == ["shop_2"]
    (message,) = Store(host.engine).read("product")
    assert message.data == {"name": "lamp"}
    host.run("alembic", *in_one, "upgrade", "heads")
    assert sorted(host.versions("alembic_version")) == [HEAD, "shop_2"]
    assert "No new upgrade operations detected" in host.run("alembic", *in_one, "check")
    refused = host.run("alembic", *in_one, "downgrade", "messagedb@base", check=False)
    assert "would delete 1 messages" in refused
    assert sorted(host.versions("alembic_version")) == [HEAD, "shop_2"]


def test_in_one_history_the_store_can_come_first(host: Host) -> None:
    in_one = ("-c", "one_history.ini")
    host.run("alembic", *in_one, "upgrade", "messagedb@head")
    assert host.versions("alembic_version") == [HEAD]
    assert not inspect(host.engine).has_table("products")
    host.run("alembic", *in_one, "upgrade", "heads")
    assert len(Store(host.engine).read("product")) == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_inside_the_hosts_transaction_the_store_shares_its_fate(host: Host, end: str) -> None:
    host.run("alembic", "upgrade", "head")
    host.run("python", "sell.py", end)
    with host.engine.connect() as connection:
        sold = connection.scalars(text("SELECT number FROM products")).all()
    assert sold == ([7] if end == "commit" else [])
    assert inspect(host.engine).has_schema("message_store") is (end == "commit")
    assert install.current(host.engine) == (HEAD if end == "commit" else None)
