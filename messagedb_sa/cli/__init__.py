"""The command ``messagedb``: look at a store, change it, and run one on your own machine."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of the process, and exit. The manual lists the exit codes."""
    try:
        from messagedb_sa.cli._app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit(f'messagedb: the package {error.name} is missing: pip install "messagedb-sa[cli]"')
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run())
