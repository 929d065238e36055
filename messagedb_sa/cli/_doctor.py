"""The command that looks for what is wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode
from messagedb_sa.cli._output import Column, Output, print_marked

commands = Commands()

_COLUMNS = (*map(Column, ("code", "severity", "found", "remedy", "sql")),)
_CODES = {"ok": ExitCode.DONE, "warning": ExitCode.WARNINGS, "error": ExitCode.FAILED}
_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@commands.add("doctor")
def doctor(
    database: Database,
    output: Output,
    seconds: Annotated[
        float, typer.Option("--long", metavar="SECONDS", min=0, help="How long a transaction may be open.")
    ] = 60.0,
) -> None:
    """Look for what is wrong with the store, or may go wrong, and say what to do. Changes nothing."""
    from messagedb_sa import install

    with database.engine() as engine:
        findings = install.diagnose(engine, long_transaction_seconds=seconds)
    if output.json:
        output.rows(_COLUMNS, findings)
    else:
        for finding in findings:
            # With --json there is also what you may want to do if all is well.
            remedy = [] if finding.remedy is None else [finding.remedy, *(f"{each.strip()};" for each in finding.sql)]
            below = [] if finding.severity == "ok" else remedy
            print_marked(finding.severity, _STYLES[finding.severity], f"{finding.code}: {finding.found}", below)
    found = {finding.severity for finding in findings}
    worst = next(each for each in ("error", "warning", "ok") if each in found)
    raise typer.Exit(_CODES[worst])
