"""Runs a page of the manual as its reader would: block after block, in an empty folder, on an empty database ``app``.

- ``python``: runs in the page's namespace. With a caption, or a file name as its first comment, it is a file instead.
- ``text``, after ``python``: what that printed.
- ``console``: each line after ``$`` is a command, and what follows it is what it prints. If the caption says that you
  stop it, the command must run until it gets SIGINT. What is exported counts for all commands after it.
- ``sql``: the owner of the database executes it. There is a role ``app``.
- ``none``: not run: a picture or a name.
- any other language has a caption: a file.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from sqlalchemy import Engine, create_engine, make_url, text

from messagedb_sa.testing import temporary_database

from ..support import REPOSITORY

MANUAL = REPOSITORY / "docs"
_FILE_NAME = re.compile(r"# (\w+\.py)\n")
_OPTION = re.compile(r":([a-z-]+): *(.*)\n")


class Block(NamedTuple):
    line: int
    language: str
    caption: str | None
    code: str


def blocks(page: Path) -> list[Block]:
    found = []
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        if token.type != "fence":
            continue
        language, options, code = token.info.strip(), {}, token.content
        if language.startswith("{code-block}"):
            language = language.removeprefix("{code-block}").strip()
            while option := _OPTION.match(code):
                options[option[1]] = option[2]
                code = code[option.end() :]
            code = code.lstrip("\n")
        elif language.startswith("{"):
            continue
        elif named := _FILE_NAME.match(code):
            options["caption"] = named[1]
        assert token.map is not None
        found.append(Block(token.map[0] + 1, language, options.get("caption"), code))
    return found


class Reader:
    """Does what a page says, in ``folder``."""

    def __init__(self, page: Path, folder: Path, engine: Engine) -> None:
        self._page = page
        self._folder = folder
        self._engine = engine
        self._printed = ""
        self._exported: dict[str, str] = {}
        self._module = ModuleType("page")
        sys.modules["page"] = self._module

    def read(self) -> None:
        for block in blocks(self._page):
            try:
                self._follow(block)
            except Exception as error:
                raise AssertionError(f"{self._page}:{block.line}: {error}") from error

    def _follow(self, block: Block) -> None:
        if block.language == "none":
            return
        if block.language == "console":
            self._run_commands(block)
        elif block.language == "sql":
            with self._engine.begin() as connection:
                connection.execute(text(block.code.replace(":", r"\:")))
        elif block.language == "text":
            assert block.code == self._printed
        elif block.caption is not None:
            path = self._folder / block.caption
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._with_address(block.code), encoding="utf-8")
            if path.suffix == ".py":
                compile(block.code, str(path), "exec")
        else:
            assert block.language == "python", f"{block.language} without a caption"
            # Lines before it, so that a traceback shows the page's line.
            code = compile(
                "\n" * block.line + self._with_address(block.code), str(self._page), "exec", dont_inherit=True
            )
            with redirect_stdout(StringIO()) as printed:
                exec(code, self._module.__dict__)
            self._printed = printed.getvalue()

    def _with_address(self, code: str) -> str:
        return code.replace("//localhost/app", f"///{self._engine.url.database}")

    def _run_commands(self, block: Block) -> None:
        for entry in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
            command, _, expected = re.sub(r"\\\n *", "", entry).partition("\n")
            words = shlex.split(command)
            if words[:2] == ["pip", "install"]:
                _check_that_it_can_be_installed(words[2:])
            elif words[0] == "export":
                name, _, value = self._with_address(words[1]).partition("=")
                self._exported[name] = value
            elif words[0] == "make":
                # This very test may run inside of make test.
                subprocess.run([*words, "-n"], cwd=REPOSITORY, check=True, capture_output=True)
            elif block.caption and "stop it" in block.caption:
                self._run_until_stopped(command)
            else:
                done = self._shell(command, capture_output=True)
                assert done.returncode == 0, done.stdout + done.stderr
                assert not expected.strip() or done.stdout == expected, done.stdout

    def _shell(self, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options |= {"cwd": self._folder, "env": {**os.environ, **self._exported}, "text": True}
        return subprocess.run(self._with_address(command), shell=True, **options)

    def _run_until_stopped(self, command: str) -> None:
        process = subprocess.Popen(
            shlex.split(self._with_address(command)),
            cwd=self._folder,
            env={**os.environ, **self._exported},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with process:
            lines = [process.stdout.readline()]
            while lines[-1] and not re.search("starts reading|startup complete|runs until", lines[-1]):
                lines.append(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
        assert process.returncode == 0, "".join([*lines, rest])

    def leave(self) -> None:
        del sys.modules["page"]
        for value in list(vars(self._module).values()):
            engine = value if isinstance(value, Engine) else getattr(value, "engine", None)
            if isinstance(engine, Engine):
                engine.dispose()


@contextmanager
def reader(page: Path, folder: Path, server_url: str, environment: dict[str, str]) -> Iterator[Reader]:
    """``environment`` is the one to change, such as os.environ."""
    with temporary_database(server_url) as url:
        server = make_url(url)
        query = {name: str(value) for name, value in server.query.items()}
        address = {
            "PGHOST": query.get("host") or server.host or "",
            "PGPORT": query.get("port") or str(server.port or ""),
            "PGUSER": server.username or "",
            "PGPASSWORD": server.password or "",
        }
        environment.update({name: value for name, value in address.items() if value})
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object THEN END $$"))
        one = Reader(page, folder, engine)
        try:
            yield one
        finally:
            one.leave()
            with engine.begin() as connection:
                connection.execute(text("DROP OWNED BY app"))
            engine.dispose()


def _check_that_it_can_be_installed(requirements: list[str]) -> None:
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    for requirement in requirements:
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[(.+)\])?", requirement).groups()  # type: ignore[union-attr]
        if name == "messagedb-sa" and extras:
            assert set(extras.split(",")) <= set(setup["options.extras_require"]), requirement
