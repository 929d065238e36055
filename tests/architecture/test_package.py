"""The package as a whole: its public names, its levels, its SQL files, its types."""

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

# From the ground up. A module imports from its own level and from the levels below it, never from above.
LEVELS = [
    {"_drivers"},
    {
        "errors",
        "stream_name",
        "message",
        "query",
        "_arguments",
        "_ids",
        "_clock",
        "_error_texts",
        "_forks",
        "_json_values",
        "_metadata_fields",
        "_privileges",
    },
    {
        "schema",
        "functions",
        "_metadata_indexes",
        "message_types",
        "_message_types",
        "_class_codecs",
        "_round_trips",
        "_pydantic_schemas",
        "entity",
        "_folding",
        "_state_cache",
        "_state_codecs",
        "_spans",
        "_attempts",
        "_instruments",
        "tracing",
        "metrics",
        "_revisions",
        "_diagnosis",
        "_diagnosis_statements",
        "_url_sources",
        "install",
    },
    {"store"},
    {"consumer"},
    {"subscription"},
    {"health", "transfer"},
    {"compat", "testing", "viewer"},
    {"cli", "__main__"},
]
# Runs by itself, on the standard library alone, and is not imported.
PROGRAMS = {"testing._keeper"}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.parent.name not in ("migrations", "versions")
)
NAMES: list[str] = importlib.import_module("messagedb_sa").__all__
PUBLIC = [
    each for each in MODULES if each == "__init__" or not (each[0] == "_" or "._" in each or each.endswith("plugin"))
]


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module: str) -> set[str]:
    """The modules of this package that a module imports anywhere, except for type checkers only."""
    tree = ast.parse(path_of(module).read_text())
    only_for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in only_for_types:
            assert node.level == 0, f"{module}: imports are absolute"
            home, _, rest = (node.module or "").partition(".")
            if home == "messagedb_sa":
                for alias in node.names:
                    name = f"{rest}.{alias.name}" if rest else alias.name
                    found.add(name if name in MODULES else rest or "store")
    return found


def level_of(module: str) -> int:
    (number,) = (number for number, level in enumerate(LEVELS) if module.partition(".")[0] in level)
    return number


@pytest.mark.parametrize("module", sorted({*MODULES} - {"__init__"}))
def test_no_module_imports_from_a_level_above_its_own(module: str) -> None:
    assert [each for each in imports_of(module) if level_of(each) > level_of(module)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    imported = {module: imports_of(module) - {module} for module in MODULES if module != "__init__"}
    while free := [module for module, others in imported.items() if not others & imported.keys()]:
        for module in free:
            del imported[module]
    assert imported == {}


def test_the_keeper_of_throwaway_servers_needs_the_standard_library_only() -> None:
    assert imports_of("testing._keeper") == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_in_its_first_line_what_it_is_for(module: str) -> None:
    documentation = ast.get_docstring(ast.parse(path_of(module).read_text()))
    assert documentation
    assert documentation.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("name", PUBLIC)
def test_all_names_exactly_the_public_names_in_order(name: str) -> None:
    module = importlib.import_module("messagedb_sa" if name == "__init__" else f"messagedb_sa.{name}")
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
    assert own - set(module.__all__) <= {"T", "D_co"}


def test_the_package_offers_its_names_to_dir_and_refuses_others() -> None:
    assert set(NAMES) <= set(dir(messagedb_sa))
    with pytest.raises(AttributeError, match="no attribute 'Shop'"):
        messagedb_sa.Shop  # type: ignore[attr-defined]  # noqa: B018
    for name in NAMES:
        assert getattr(messagedb_sa, name) is not None


def test_every_sql_file_is_used_exactly_once() -> None:
    files = sorted(
        f"{folder.name}/{file.name}" for folder in (MIGRATIONS / "sql").iterdir() for file in folder.iterdir()
    )
    run: list[str] = []
    revisions = [each for each in (MIGRATIONS / "versions").iterdir() if each.name.startswith("messagedb_")]
    for module in (*revisions, PACKAGE / "_revisions.py"):
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


WITH_A_STORE = """
from typing import assert_type
from uuid import uuid4
from sqlalchemy import create_engine, select
from messagedb_sa import NO_STREAM, Message, NewMessage, Store, functions, install, schema, stream_name
from messagedb_sa.testing import temporary_server

store = Store(create_engine("postgresql://"))
assert_type(Store.from_url("postgresql://", pool_size=1), Store)
assert_type(store.write("a-1", "T", {"n": 1}, expected_version=NO_STREAM, id=uuid4()), int)
assert_type(store.write_batch("a-1", [("T", {}), ("T", {}, {}), NewMessage("T", {})]), int)
assert_type(store.read("a-1", select(schema.messages)), list[Message])
assert_type(store.read_last_message("a-1"), Message | None)
assert_type(store.stream_version("a-1"), int)
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
store.write("a-1", "T", {}, 7)  # wrong: metadata is an object
store.write_batch("a-1", ["T"])  # wrong
"""

WITH_MESSAGE_TYPES = """
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

WITH_TRACING = """
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

WITH_METRICS_AND_HEALTH = """
from typing import assert_type
from opentelemetry.sdk.metrics import MeterProvider
from sqlalchemy import create_engine
from messagedb_sa import AsyncStore, Consumer, ConsumerState, Metrics, Store, health

metrics = Metrics(MeterProvider(), by_type=True)
store = Store(create_engine("postgresql://"), metrics=metrics)
assert_type(AsyncStore.from_url("postgresql://", metrics=Metrics()), AsyncStore)
assert_type(metrics.observe_consumers(store), None)
consumer = Consumer(store, "a", print)
assert_type(consumer.state(), ConsumerState)
assert_type(health.check([consumer], store=store, expected=[("a", None)]), list[health.Finding])
application: health.ASGIApplication = health.endpoint([consumer], store=store)

async def check(store: AsyncStore) -> bool:
    return not await health.async_check(store=store, max_age=None)

Store(create_engine("postgresql://"), metrics=True)  # wrong
health.check(["a"])  # wrong
"""


def test_type_checkers_see_what_users_write(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    programs = {
        "store": WITH_A_STORE,
        "message_types": WITH_MESSAGE_TYPES,
        "tracing": WITH_TRACING,
        "metrics_and_health": WITH_METRICS_AND_HEALTH,
    }
    for name, program in programs.items():
        (tmp_path / f"app_{name}.py").write_text(program)
    # All at once, and with a cache that stays: most of the time mypy reads SQLAlchemy.
    options = ["--strict", "--python-version", "3.11", "--cache-dir", str(request.config.cache.mkdir("messagedb-mypy"))]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    found = re.findall(r"app_(\w+)\.py:\d+: error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    assert {name: [code for where, code in found if where == name] for name in programs} == {
        "store": [
            "call-overload",
            "call-overload",
            "list-item",
        ],
        "message_types": [
            "call-overload",
            "call-overload",
            "list-item",
            "attr-defined",
        ],
        "tracing": [
            "arg-type",
            "arg-type",
        ],
        "metrics_and_health": [
            "arg-type",
            "list-item",
        ],
    }
