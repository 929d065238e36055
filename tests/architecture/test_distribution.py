"""What is published: the wheel and the sdist hold all that users need, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from ..support import REPOSITORY

pytest.importorskip("build")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it, as ``python -m build`` publishes them."""
    source = tmp_path_factory.mktemp("source") / "repository"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    folder = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def sources() -> set[str]:
    """The files of the package in the repository, by their place in the installed one."""
    return {
        str(Path(target) / path.relative_to(REPOSITORY / folder))
        for folder, target in (("messagedb_sa", "messagedb_sa"), ("migrations", "messagedb_sa/migrations"))
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = message_from_string(archive.read(metadata).decode())
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    assert names == sources()
    assert facts["Name"] == "messagedb-sa"
    assert facts["Requires-Python"] == ">=3.10"
    assert facts["License-Expression"] == "MIT"
    core = {line.partition(">")[0] for line in facts.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert core == {"SQLAlchemy", "alembic", "psycopg2-binary"}
    assert {"embedded", "test", "dev"} <= set(facts.get_all("Provides-Extra", []))
    assert "# messagedb_sa" in facts.get_payload()


def test_the_sdist_holds_all_that_the_wheel_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name.replace("messagedb_sa/migrations/", "migrations/") for name in sources()}
    assert wanted <= names
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_package_index_can_show_the_readme(built: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
