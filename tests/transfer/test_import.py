"""Imports: what is kept, what is refused before anything is written, and what may write in the meantime."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from messagedb_sa import InvalidArgument, MissingPrivilege, Store, transfer
from messagedb_sa.transfer import TransferRefused

from ..support import as_role, store_on
from ..waits import wait_until_blocked
from .support import contents, exported, fill_with_hard_ones, imported, roll_back, wait_until_waiting_for_the_table


def line(**fields: Any) -> bytes:
    own = {
        "id": "9b0c2f3e-7a54-4d4c-8f6e-2d6b7f6d1a35",
        "stream_name": "account-1",
        "type": "Opened",
        "position": 0,
        "global_position": 1,
        "data": {},
        "metadata": None,
        "time": "2026-11-26T12:00:00.000000+00:00",
    }
    return json.dumps({name: value for name, value in {**own, **fields}.items() if value is not ...}).encode() + b"\n"


def refused(store: Store, lines: bytes, **options: Any) -> list[str]:
    before = contents(store)
    with pytest.raises(TransferRefused) as refusal:
        imported(store, lines, **options)
    assert contents(store) == before
    assert str(refusal.value) == "\n".join(refusal.value.problems)
    return refusal.value.problems


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_every_value_comes_back_as_it_is_stored(store: Store, target: Store, messagedb_url: str, driver: str) -> None:
    fill_with_hard_ones(store)
    roll_back(store, 5)
    store.write("account-1", "Opened", {})
    with (
        store_on(driver, store.engine.url) as from_here,
        store_on(driver, target.engine.url) as to_there,
    ):
        done = imported(to_there, exported(from_here))
    assert done == transfer.Transferred(len(contents(store)), store.last_global_position("$all"))
    assert contents(target) == contents(store)


def test_the_sessions_settings_do_not_matter(store: Store, target: Store) -> None:
    fill_with_hard_ones(store)
    settings = {"options": "-c DateStyle=German -c TimeZone=Asia/Kathmandu -c IntervalStyle=sql_standard"}
    with (
        store_on("psycopg2", store.engine.url, connect_args=settings) as from_here,
        store_on("psycopg2", target.engine.url, connect_args=settings) as to_there,
    ):
        assert exported(from_here) == exported(store)
        imported(to_there, exported(from_here))
    assert contents(target) == contents(store)


def test_writing_goes_on_after_the_last_global_position(store: Store, target: Store) -> None:
    roll_back(store, 41)
    store.write("account-1", "Opened", {})
    imported(target, exported(store))
    target.write("account-1", "Closed", {}, expected_version=0)
    assert [message.global_position for message in target.read("$all")] == [42, 43]


def test_later_exports_are_imported_after_earlier_ones(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    first = exported(store)
    store.write("account-1", "Closed", {})
    second = exported(store, position=2)
    assert refused(target, second) == [
        "line 1: stream 'account-1' begins at position 1, and must begin at 0, since the store does not have it"
    ]
    imported(target, first)
    imported(target, second)
    assert contents(target) == contents(store)


def test_beside_what_is_there_messages_get_new_global_positions_in_the_same_order(store: Store, target: Store) -> None:
    for n in range(5):
        store.write(f"account-{n % 2}", "Deposited", {"n": n})
        store.write("order-1", "Placed", {"n": n})
    target.write("customer-1", "Registered", {})
    lines = exported(store, "account")
    assert refused(target, lines) == [
        "the file begins at global position 1, but the store has messages up to 1: import into an empty store, or with "
        "new global positions"
    ]
    done = imported(target, lines, new_global_positions=True)
    assert done == transfer.Transferred(5, 6)
    kept = [each._replace(global_position=0) for each in store.read("account")]
    assert [each._replace(global_position=0) for each in target.read("account")] == kept
    assert [each.global_position for each in target.read("account")] == [2, 3, 4, 5, 6]


def test_a_stream_is_continued(store: Store, target: Store) -> None:
    for each in (store, target):
        each.write("account-1", "Opened", {})
    store.write("account-1", "Closed", {})
    imported(target, exported(store, "account-1", position=1), new_global_positions=True)
    assert [message.type for message in target.read("account-1")] == ["Opened", "Closed"]
    assert target.write("account-1", "Reopened", {}) == 2


def test_conflicts_with_the_store_are_named(store: Store) -> None:
    position = store.write("account-1", "Opened", {})
    (there,) = store.read("account-1")
    assert position == 0
    assert refused(store, line(id=there.id, stream_name="account-2"), new_global_positions=True) == [
        f"line 1: the store has a message with the id {there.id}, at position 0 of stream 'account-1'"
    ]
    taken = "line 1: stream 'account-1' begins at position 0, and must begin at 1, since the store has it up to 0"
    assert refused(store, line(), new_global_positions=True) == [taken]
    assert refused(store, line(), new_global_positions=True, allow_gaps=True) == [taken]
    assert refused(store, line(position=2), new_global_positions=True) == [
        "line 1: stream 'account-1' begins at position 2, and must begin at 1, since the store has it up to 0"
    ]
    imported(store, line(position=2), new_global_positions=True, allow_gaps=True)


def test_conflicts_in_the_file_are_named(target: Store) -> None:
    first, second = line(), line(id="00000000-0000-0000-0000-000000000002", position=1, global_position=2)
    assert refused(target, first + b"\n" + line(position=1, global_position=2)) == [
        "line 3: the id 9b0c2f3e-7a54-4d4c-8f6e-2d6b7f6d1a35 is also in line 1"
    ]
    assert refused(target, second + first) == [
        "line 2: position 0 of stream 'account-1' comes after position 1",
        "line 2: global position 1 comes after 2",
    ]
    assert refused(target, second + first, allow_gaps=True)[0] == (
        "line 2: position 0 of stream 'account-1' comes after position 1"
    )
    gap = line(id="00000000-0000-0000-0000-000000000002", position=5, global_position=9)
    assert refused(target, first + gap) == ["line 2: position 5 of stream 'account-1' comes after position 0"]
    imported(target, first + gap, allow_gaps=True)
    assert [message.position for message in target.read("account-1")] == [0, 5]


def test_of_many_conflicts_ten_are_named(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 30)
    assert len(refused(store, exported(store), new_global_positions=True)) == 10


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"nonsense\n", "line 3: invalid input syntax for type json"),
        (b"[]\n", "line 3: must be a JSON object"),
        (b"null\n", "line 3: must be a JSON object"),
        (line(id=...), "line 3: id must be the text of a UUID"),
        (line(id="x"), 'line 3: invalid input syntax for type uuid: "x"'),
        (line(stream_name=7), "line 3: stream_name must be a text"),
        (line(stream_name=None), "line 3: stream_name must be a text"),
        (line(type=[]), "line 3: type must be a text"),
        (line(type="\0"), "line 3: unsupported Unicode escape sequence"),
        (line(position="1"), "line 3: position must be an integer"),
        (line(position=1.5), "line 3: invalid input syntax for type bigint"),
        (line(global_position=2**63), "line 3: "),
        (line(global_position=...), "line 3: global_position must be an integer"),
        (line(data="\0"), "line 3: unsupported Unicode escape sequence"),
        (line(data="\ud800"), "line 3: invalid input syntax for type json"),
        (line(time="2026-11-26T12:00:00"), "line 3: time must be a time in ISO 8601 with its offset"),
        (line(time="2026-11-26"), "line 3: time must be a time in ISO 8601 with its offset"),
        (line(time="2026-13-26T12:00:00Z"), "line 3: date/time field value out of range"),
        (b"\xff\n", "line 3: must be in UTF-8"),
        (b"\0\n", "line 3: must not contain a NUL character"),
        (line()[:-20], "line 3: invalid input syntax for type json"),
    ],
    ids=str,
)
def test_a_line_that_cannot_be_imported_is_named(target: Store, bad: bytes, problem: str) -> None:
    good = [line(id=f"00000000-0000-0000-0000-00000000000{n}", position=n, global_position=n + 5) for n in range(2)]
    (found,) = refused(target, b"".join([*good, bad]))
    assert found.startswith(problem)


def test_times_with_other_offsets_are_the_same_moment(target: Store) -> None:
    imported(target, line(time="2026-11-26T14:00:00.5+02:00"))
    assert target.read("account-1")[0].time.isoformat() == "2026-11-26T12:00:00.500000+00:00"


def test_data_and_metadata_may_be_left_out(target: Store) -> None:
    imported(target, line(data=..., metadata=...))
    assert target.read("account-1")[0][5:7] == (None, None)


def test_an_empty_file_imports_nothing(target: Store) -> None:
    assert imported(target, b"\n  \r\n") == (0, 0, None)


def test_a_compressed_file_is_imported_and_a_damaged_one_is_not(store: Store, target: Store, tmp_path: Path) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(3000)])
    path = tmp_path / "export.jsonl.gz"
    transfer.export_messages(store, "$all", path)
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[: len(whole) // 2], b"plain"):
        path.write_bytes(damaged)
        with pytest.raises(TransferRefused, match=r"^line \d+: the compressed file is damaged"):
            transfer.import_messages(target, path)
        assert contents(target) == []
    path.write_bytes(whole)
    transfer.import_messages(target, path)
    assert contents(target) == contents(store)


def test_progress_is_told(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 1500)
    told: list[Any] = []
    imported(target, exported(store), on_progress=lambda *how: told.append(how))
    assert told == [(1000, None), (1500, None), (1500, 1500)]


def test_a_failure_at_the_end_leaves_nothing(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {})] * 1500)

    def fail(done: int, total: int | None) -> None:
        if total is not None:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        imported(target, exported(store), on_progress=fail)
    assert contents(target) == []
    imported(target, exported(store))


def refused_behind_a_writer(
    store: Store, target: Store, stream_name: str, until_it_waits: Callable[[Engine], None], **options: Any
) -> str:
    """What the import says that has waited for somebody who writes to this stream of the target."""
    lines = exported(store)
    problems: list[str] = []

    def run() -> None:
        with pytest.raises(TransferRefused) as refusal:
            imported(target, lines, **options)
        problems.extend(refusal.value.problems)

    with target.engine.begin() as connection:
        Store(connection).write(stream_name, "Placed", {})
        thread = threading.Thread(target=run)
        thread.start()
        until_it_waits(target.engine)
    thread.join()
    (problem,) = problems
    return problem


def test_a_writer_to_the_same_category_is_waited_for(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    problem = refused_behind_a_writer(store, target, "account-1", wait_until_blocked, new_global_positions=True)
    assert problem.endswith("must begin at 1, since the store has it up to 0")


def test_writers_to_other_categories_are_not_waited_for(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    with target.engine.begin() as connection:
        Store(connection).write("order-1", "Placed", {})
        assert imported(target, exported(store), new_global_positions=True) == (1, 2, None)


def test_to_keep_global_positions_all_writers_are_waited_for(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    problem = refused_behind_a_writer(store, target, "order-1", wait_until_waiting_for_the_table)
    assert problem.startswith("the file begins at global position 1, but the store has messages up to 1")


def test_a_role_that_may_write_imports_with_new_global_positions_only(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    roles = Store(as_role(target.engine, "message_store"))
    with pytest.raises(TransferRefused, match=r"^permission denied for table messages: .* the owner"):
        imported(roles, exported(store))
    with target.engine.begin() as connection:
        connection.execute(text("GRANT UPDATE ON message_store.messages TO message_store"))
    try:
        with pytest.raises(TransferRefused, match=r"^permission denied for sequence .* the owner"):
            imported(roles, exported(store))
        with target.engine.begin() as connection:
            connection.execute(
                text("GRANT UPDATE ON SEQUENCE message_store.messages_global_position_seq TO message_store")
            )
        imported(roles, exported(store))
    finally:
        with target.engine.begin() as connection:
            connection.execute(text("REVOKE UPDATE ON message_store.messages FROM message_store"))
            connection.execute(
                text("REVOKE UPDATE ON SEQUENCE message_store.messages_global_position_seq FROM message_store")
            )
    store.write("account-2", "Opened", {})
    imported(roles, exported(store, "account-2"), new_global_positions=True)
    assert [each._replace(global_position=0) for each in target.read("$all")] == [
        each._replace(global_position=0) for each in store.read("$all")
    ]


def test_a_role_that_may_only_read_imports_nothing(store: Store, target: Store, login: Callable[..., str]) -> None:
    store.write("account-1", "Opened", {})
    reader = login("reader")
    with target.engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA message_store TO {reader}"))
        connection.execute(text(f"GRANT SELECT ON message_store.messages TO {reader}"))
        connection.execute(text(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA message_store TO {reader}"))
    as_reader = Store(as_role(target.engine, reader))
    try:
        with pytest.raises(MissingPrivilege):
            imported(as_reader, exported(store), new_global_positions=True)
    finally:
        with target.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {reader}"))


def test_bad_arguments_are_refused(target: Store, tmp_path: Path) -> None:
    some: Any = io.StringIO("")
    with pytest.raises(InvalidArgument, match="file="):
        transfer.import_messages(target, some)
    some = "no"
    with pytest.raises(InvalidArgument, match="new_global_positions='no'"):
        imported(target, b"", new_global_positions=some)
    with pytest.raises(InvalidArgument, match="allow_gaps='no'"):
        imported(target, b"", allow_gaps=some)
    with pytest.raises(FileNotFoundError):
        transfer.import_messages(target, tmp_path / "nothing")
