"""The package as a whole: its public names, its floors, its SQL files, its types."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import messagedb_sa

PACKAGE = Path(messagedb_sa.__file__).parent
MIGRATIONS = resources.files("messagedb_sa.migrations")

# A module imports from floors below its own, or beside it, never from above.
FLOORS = [
    {
        "arguments",
        "conversion",
        "driver",
        "errors",
        "garbage",
        "json_text",
        "message",
        "positions",
        "schema",
        "signals",
        "stream_name",
        "urls",
        "waiting",
    },
    {"functions", "install", "message_types", "postgres", "revisions", "settling", "tracing"},
    {"operations", "consumer_options"},
    {"execution", "combining", "monitoring", "slots"},
    {"store", "async_store", "consuming"},
    {"consumer", "async_consumer", "pytest_plugin", "compat"},
]
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "_postgres_keeper"))


def imports_of(module: str) -> set[str]:
    """The modules of this package that a module imports anywhere, except for type checkers only."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    only_for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in only_for_types:
            if node.module == "messagedb_sa":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("messagedb_sa."):
                found.add(node.module.split(".")[1])
    return {name if name in MODULES else "store" for name in found}


def test_every_module_has_a_floor() -> None:
    assert sorted(module for floor in FLOORS for module in floor) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_from_a_floor_above_its_own(module: str) -> None:
    (own,) = (number for number, floor in enumerate(FLOORS) if module in floor)
    above = set().union(*FLOORS[own + 1 :])
    assert imports_of(module) & above == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_in_its_first_line_what_it_is_for(module: str) -> None:
    documentation = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text()))
    assert documentation
    assert documentation.splitlines()[0]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "async_consumer",
        "async_store",
        "compat",
        "consumer",
        "errors",
        "functions",
        "install",
        "message",
        "message_types",
        "postgres",
        "schema",
        "store",
        "stream_name",
        "tracing",
    ],
)
def test_all_names_exactly_the_public_names_in_order(name: str) -> None:
    module = importlib.import_module(f"messagedb_sa.{name}" if name else "messagedb_sa")
    # As ruff sorts them: constants, classes, functions.
    by_kind = sorted(module.__all__, key=lambda each: (not each.isupper(), not each[0].isupper(), each))
    assert module.__all__ == by_kind
    for each in module.__all__:
        assert getattr(module, each) is not None
    own = {
        each
        for each, value in vars(module).items()
        if not each.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    assert own - set(module.__all__) <= {"T"}


def test_the_package_offers_its_names_to_dir_and_refuses_others() -> None:
    assert set(messagedb_sa.__all__) <= set(dir(messagedb_sa))
    with pytest.raises(AttributeError, match="no attribute 'Shop'"):
        messagedb_sa.Shop  # type: ignore[attr-defined]  # noqa: B018
    for name in messagedb_sa.__all__:
        assert getattr(messagedb_sa, name) is not None


def test_every_sql_file_is_run_in_exactly_one_place() -> None:
    files = sorted(
        f"{folder.name}/{file.name}" for folder in (MIGRATIONS / "sql").iterdir() for file in folder.iterdir()
    )
    run: list[str] = []
    revisions = [each for each in (MIGRATIONS / "versions").iterdir() if each.name.startswith("messagedb_")]
    for module in (*revisions, PACKAGE / "revisions.py"):
        for call in ast.walk(ast.parse(module.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "run":
                folder, *names = (str(argument.value) for argument in call.args if isinstance(argument, ast.Constant))
                run += [f"{folder}/{name}.sql" for name in names]
    assert sorted(run) == files
    assert len(files) > 30


def test_every_sql_file_is_one_statement_without_its_semicolon() -> None:
    for folder in (MIGRATIONS / "sql").iterdir():
        for file in folder.iterdir():
            outside_bodies = re.sub(r"\$\$.*\$\$|--[^\n]*", "", file.read_text(), flags=re.DOTALL)
            assert ";" not in outside_bodies, file.name


def test_every_name_in_a_function_body_is_qualified() -> None:
    called = re.compile(r"(?<![.\w])(category|id|cardinal_id|is_category|hash_64|acquire_lock|stream_version)\(")
    for file in (MIGRATIONS / "sql" / "0001").iterdir():
        body = "".join(re.findall(r"\$\$.*\$\$", file.read_text(), flags=re.DOTALL))
        assert not called.search(body), file.name
        assert not re.search(r"(FROM|INTO|JOIN) messages\b", body), file.name


def judged(program: str, folder: Path) -> list[str]:
    """The codes of what mypy finds wrong."""
    pytest.importorskip("mypy")
    (folder / "app.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.11", "app.py"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    return [line.rpartition("[")[2].rstrip("]") for line in done.stdout.splitlines() if ": error: " in line]


def test_type_checkers_see_what_users_write(tmp_path: Path) -> None:
    program = """
from typing import assert_type
from uuid import uuid4
from sqlalchemy import create_engine, select
from messagedb_sa import NO_STREAM, Message, NewMessage, Store, functions, install, schema, stream_name
from messagedb_sa.postgres import temporary_server

store = Store(create_engine("postgresql://"))
assert_type(Store.from_url("postgresql://", pool_size=1), Store)
assert_type(store.write("a-1", "T", {"n": 1}, expected_version=NO_STREAM, id=uuid4()), int)
assert_type(store.write_batch("a-1", [("T", {}), ("T", {}, {}), NewMessage("T", {})]), int)
assert_type(store.read("a-1", select(schema.messages)), list[Message])
assert_type(store.read_last_message("a-1"), Message | None)
assert_type(store.stream_version("a-1"), int | None)
assert_type(store.read("$all", allow_holes=True), list[Message])
assert_type([*store.iter_all(settle_seconds=0)], list[Message])
for message in store.iter_category("a"):
    assert_type(message, Message)
    assert_type(message.position, int)
    assert_type(message.cardinal_id, str | None)
    fields: dict[str, object] = dict(message)
with store.engine.connect() as connection:
    assert_type(connection.scalars(select(functions.stream_version("a-1"))).one(), int | None)
install.upgrade(store.engine)
assert_type(install.current(store.engine), str | None)
assert_type(stream_name.consumer_group_member("a-1", 3), int | None)
with temporary_server(settings={"fsync": "on"}) as url:
    assert_type(url, str)
store.write("a-1", "T", {}, expected_version="1")  # wrong
store.write_batch("a-1", ["T"])  # wrong
"""
    assert judged(program, tmp_path) == [
        "call-overload",
        "list-item",
    ]


def test_type_checkers_see_what_users_write_with_message_types(tmp_path: Path) -> None:
    program = """
from dataclasses import dataclass
from typing import Any, assert_type
import attrs
import msgspec
import pydantic
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from messagedb_sa import AsyncStore, MessageNotDecodable, MessageTypes, NewMessage, Store

types = MessageTypes()

@types.register
@dataclass(frozen=True)
class Opened:
    owner: str

@types.register(name="PaidIn", version=2)
@attrs.frozen
class Deposited:
    amount: int

@types.register()
class Withdrawn(msgspec.Struct):
    amount: int

@types.register
class Closed(pydantic.BaseModel):
    reason: str

class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

assert_type(
    types.register(Money, encode=lambda money: {"n": money.cents}, decode=lambda data: Money(data["n"])), type[Money]
)

@types.upcast("PaidIn", from_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"amount": data["amount"] * 100}

types.check()
assert_type(in_cents({}), dict[str, Any])
assert_type(Deposited(1).amount, int)
assert_type(types.name_of(Deposited), str)
assert_type(types.new_message(Money(1), {"by": "Ada"}), NewMessage)
store = Store(create_engine("postgresql://"), types=types)
assert_type(Store.from_url("postgresql://", types=types, pool_size=1), Store)
for each in (Opened("Ada"), Deposited(1), Withdrawn(1), Closed(reason="none"), Money(1)):
    assert_type(store.write("a-1", each), int)
assert_type(store.write("a-1", Opened("Ada"), metadata={}, expected_version=-1), int)
assert_type(
    store.write_batch("a-1", [Opened("Ada"), Deposited(1), Withdrawn(1), Closed(reason=""), ("T", {})]), int
)
assert_type(store.write_streams([("a-1", [Opened("Ada")]), ("a-2", [Deposited(1)], 0)]), dict[str, int])

async def main() -> None:
    async_store = AsyncStore(create_async_engine("postgresql+asyncpg://"), types=types)
    assert_type(await async_store.write("a-1", Opened("Ada"), metadata={}), int)
    assert_type(await async_store.write("a-1", "Opened", {}), int)

store.write("a-1", Opened("Ada"), {})  # wrong
store.write("a-1", Opened("Ada"), metadata=[])  # wrong
store.write_batch("a-1", [Money(1)])  # wrong: it can't be told from a mistake, new_message says what it is
types.register(Money, encode=lambda money: {"n": money.pence}, decode=lambda data: Money(data["n"]))  # wrong
"""
    assert judged(program, tmp_path) == [
        "call-overload",
        "call-overload",
        "list-item",
        "attr-defined",
    ]


def test_type_checkers_see_what_users_write_with_tracing(tmp_path: Path) -> None:
    program = """
from typing import assert_type
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine
from messagedb_sa import AsyncStore, Store, Tracing

tracing = Tracing(TracerProvider())
store = Store(create_engine("postgresql://"), tracing=tracing)
assert_type(Store.from_url("postgresql://", tracing=Tracing(), pool_size=1), Store)
assert_type(AsyncStore.from_url("postgresql://", tracing=Tracing()), AsyncStore)
for message in store.iter_category("a"):
    with tracing.handling(message, category="a", identifier="mailer", group_member=1) as nothing:
        assert_type(nothing, None)
Store(create_engine("postgresql://"), tracing=True)  # wrong
Tracing("global")  # wrong
"""
    assert judged(program, tmp_path) == [
        "arg-type",
        "arg-type",
    ]
