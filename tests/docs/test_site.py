"""The manual as it is built: without a warning, so every link leads somewhere, and with every public name in it."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from ..support import REPOSITORY

MODULES = ("compat", "errors", "functions", "install", "message", "query", "schema", "stream_name", "testing")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-b", "dirhtml", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(REPOSITORY / "docs"), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    # Four lines of a header, and then, compressed, a line for each name: name, kind, and more.
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    found = {line.split()[0] for line in lines if line.split()[1].startswith("py:")}
    package = importlib.import_module("messagedb_sa")
    # A name is documented where it is imported from, or where it belongs.
    names = {f"messagedb_sa.{name}": getattr(package, name) for name in package.__all__}
    for module in MODULES:
        members = importlib.import_module(f"messagedb_sa.{module}")
        names |= {f"messagedb_sa.{module}.{name}": getattr(members, name) for name in members.__all__}
    homes = {
        name: {name, *(f"messagedb_sa.{module}.{name.rpartition('.')[2]}" for module in MODULES)} for name in names
    }
    assert [name for name in names if not homes[name] & found] == []
