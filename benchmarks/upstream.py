"""Message DB as its own project publishes it, for message-db-py to run on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from database import cursor

PACKAGE = "@eventide/message-db"
VERSION = "1.3.1"

# The order of its install.sh, without the extension for random UUIDs, which are built in since PostgreSQL 13.
FOLDERS = ("schema", "tables", "types", "functions", "indexes", "views", "roles", "privileges")


def fetch(folder: Path) -> Path:
    """The folder of the official SQL files, under ``folder``; ends the program where they cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(f"The benchmarks need npm, which is not installed: message-db-py runs on the SQL of {PACKAGE}.")
    command = [npm, "install", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(
        [*command, "--prefix", str(folder), f"{PACKAGE}@{VERSION}"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"npm could not fetch {PACKAGE}@{VERSION}:\n{done.stderr}")
    return folder / "node_modules" / PACKAGE / "database"


def install(url: str, database: Path) -> None:
    """Run the SQL files, and let every connection find the functions without their schema, as message-db-py does."""
    files = [path for folder in FOLDERS for path in sorted((database / folder).glob("*.sql"))]
    with cursor(url) as installing:
        for path in files:
            installing.execute(path.read_text())
        installing.execute("SELECT current_database()")
        ((name,),) = installing.fetchall()
        installing.execute(f'ALTER DATABASE "{name}" SET search_path = message_store, public')
