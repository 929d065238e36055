"""The official SQL of Message DB, on which message-db-py is measured."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from database import cursor

PACKAGE = "@eventide/message-db"
VERSION = "1.3.1"

# In the order of the official install.sh, without the extension for random UUIDs: PostgreSQL 13 and later have them.
FOLDERS = ("schema", "tables", "types", "functions", "indexes", "views", "roles", "privileges")


def fetch(folder: Path) -> Path:
    """Download the official SQL files into ``folder``, and return their folder. Exits if that fails."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(f"npm is not installed. The benchmarks need it to download {PACKAGE}, the SQL for message-db-py.")
    command = [npm, "install", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(
        [*command, "--prefix", str(folder), f"{PACKAGE}@{VERSION}"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"npm could not download {PACKAGE}@{VERSION}:\n{done.stderr}")
    return folder / "node_modules" / PACKAGE / "database"


def install(url: str, database: Path) -> None:
    """Run the SQL files, and set the search_path of the database, since message-db-py's calls have no schema name."""
    files = [path for folder in FOLDERS for path in sorted((database / folder).glob("*.sql"))]
    with cursor(url) as installing:
        for path in files:
            installing.execute(path.read_text())
        installing.execute("SELECT current_database()")
        ((name,),) = installing.fetchall()
        installing.execute(f'ALTER DATABASE "{name}" SET search_path = message_store, public')
