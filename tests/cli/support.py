"""Runs the installed command as a shell does: with pipes, or on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("messagedb"))

# Of whoever runs the tests: none of it may matter.
_FOREIGN = re.compile("PG|MESSAGEDB_|_MESSAGEDB|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|TERM|TTY_|TYPER|PYTHON(?!WARN)")


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return {**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", **variables}


def messagedb(*arguments: str, url: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; ``url`` becomes MESSAGEDB_URL."""
    variables = {**options.pop("variables", {}), **({"MESSAGEDB_URL": url} if url else {})}
    options = {"cwd": "/", "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, **options}
    return subprocess.run([PROGRAM, *arguments], env=environment(**variables), **options)


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What the command printed with --json."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def running(*arguments: str, url: str | None = None, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command during the block; killed after it, if it still runs then."""
    variables = {**options.pop("variables", {}), **({"MESSAGEDB_URL": url} if url else {})}
    options = {"cwd": "/", "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    command = options.pop("command", [PROGRAM, *arguments])
    with subprocess.Popen(command, env=environment(**variables), **options) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A terminal of a given width, on which a command runs."""

    def __init__(self, columns: int, lines: int = 24) -> None:
        self._main, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.output = ""

    def read_until(self, text: str) -> None:
        while text not in self.output:
            assert self._read(), f"{text!r} did not come: {self.output!r}"

    def read_to_the_end(self) -> None:
        while self._read():
            pass

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def _read(self) -> bool:
        try:
            read = os.read(self._main, 65536)
        except OSError:
            # Linux: nobody has the other end open any more.
            return False
        self.output += read.decode(errors="replace")
        return bool(read)

    def close(self) -> None:
        os.close(self._main)


def on_terminal(
    *arguments: str,
    columns: int = 80,
    then: Callable[[Terminal], None] = lambda terminal: None,
    command: list[str] | None = None,
    **variables: str,
) -> tuple[int, str]:
    """Run the command on a terminal; ``then`` may type. The exit code and all that was shown, with its sequences."""
    terminal = Terminal(columns)
    process = subprocess.Popen(
        command or [PROGRAM, *arguments],
        env=environment(**variables),
        cwd="/",
        start_new_session=True,
        # Or else Ctrl-C would be a character as any other.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        stdin=terminal.end,
        stdout=terminal.end,
        stderr=terminal.end,
    )
    os.close(terminal.end)
    try:
        then(terminal)
        terminal.read_to_the_end()
        return process.wait(), terminal.output.replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        terminal.close()


def plain(shown: str) -> str:
    """What was shown, without colours and the like."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
