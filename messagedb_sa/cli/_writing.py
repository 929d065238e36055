"""The command that writes messages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._messages import COLUMNS
from messagedb_sa.cli._output import Output

if TYPE_CHECKING:
    from messagedb_sa import NewMessage

commands = Commands()


@commands.add("write")
def write(
    database: Database,
    output: Output,
    stream: Annotated[str, typer.Argument(metavar="STREAM")],
    type: Annotated[str | None, typer.Argument(metavar="TYPE", show_default=False)] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="JSON, @FILE for a file with it, or - for standard input.", show_default=False
        ),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", "-m", metavar="JSON", help="A JSON object, @FILE, or -.")
    ] = None,
    expected_version: Annotated[
        int | None,
        typer.Option(
            "--expected-version",
            metavar="N",
            help="Write only if this is the position of the stream's last message; -1 if it must be empty.",
        ),
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", metavar="UUID", help="The message's id. Default: a new one.")
    ] = None,
    lines: Annotated[
        str | None,
        typer.Option(
            "--lines",
            metavar="FILE",
            help="Instead of TYPE and DATA, JSON Lines with the messages, or - for standard input: type, data, and if "
            "you like metadata and id. All are written or none.",
        ),
    ] = None,
) -> None:
    """Write a message, or a batch of them, and print the position of the last one."""
    from messagedb_sa import NewMessage

    if lines is not None:
        if type is not None or metadata is not None or id is not None:
            raise Failure("with --lines, TYPE, DATA, --metadata and --id are in the lines", ExitCode.USAGE)
        messages = _messages_of(lines)
    else:
        if type is None or data is None:
            raise Failure("TYPE and DATA are missing, or --lines", ExitCode.USAGE)
        if data == metadata == "-":
            raise Failure("DATA and --metadata cannot both be standard input", ExitCode.USAGE)
        decoded = None if metadata is None else _decoded("--metadata", _content(metadata))
        if decoded is not None and not isinstance(decoded, dict):
            raise Failure("--metadata: must be a JSON object", ExitCode.USAGE)
        messages = [NewMessage(type, _decoded("DATA", _content(data)), decoded, id)]
    with database.store() as store:
        position = store.write_batch(stream, messages, expected_version)
    number = len(messages)
    what = "message" if number == 1 else f"{number} messages, the last one"
    output.result(f"wrote {what} at position {position} of {stream}", stream_name=stream, position=position)


def _content(argument: str) -> str:
    """The argument itself, or what it names."""
    try:
        if argument == "-":
            return sys.stdin.read()
        if argument.startswith("@"):
            return Path(argument[1:]).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"{argument}: must be UTF-8: {error}", ExitCode.USAGE) from None
    except OSError as error:
        raise Failure(f"{argument}: {error.strerror}", ExitCode.USAGE) from None
    return argument


def _decoded(where: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        hint = ""
        if where == "DATA" and text and text[0].isalpha():
            hint = ". Text needs its quotes, for the shell too: '\"text\"'"
        raise Failure(f"{where}: must be JSON: {error}{hint}", ExitCode.USAGE) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"JSON has no {constant}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _messages_of(file: str) -> list[NewMessage]:
    from messagedb_sa import NewMessage

    content = _content(file if file == "-" else f"@{file}")
    found = []
    # Not splitlines: it also splits at characters that JSON allows in a text.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        message = _decoded(where, line)
        if not isinstance(message, dict) or not {"type", "data"} <= message.keys():
            raise Failure(f"{where}: must be a JSON object with type and data", ExitCode.USAGE)
        # What read --json prints can be written again; positions and times are new then.
        if unknown := sorted(message.keys() - {each.name for each in COLUMNS}):
            raise Failure(f"{where}: unknown key {unknown[0]!r}", ExitCode.USAGE)
        found.append(NewMessage(message["type"], message["data"], message.get("metadata"), message.get("id")))
    if not found:
        raise Failure(f"{file}: there are no messages", ExitCode.USAGE)
    return found
