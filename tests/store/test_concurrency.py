"""Writers at the same time, from processes' point of view: one connection each, real transactions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, select

from messagedb_sa import NO_STREAM, Store, WrongExpectedVersion, functions

from ..waits import released_together, wait_until_blocked

WRITERS = 8
ROUNDS = 25


@pytest.mark.parametrize("batch", [1, 3])
def test_exactly_one_of_the_writers_with_the_same_expected_version_wins_each_round(
    messagedb_url: str, store: Store, batch: int
) -> None:
    engine = create_engine(messagedb_url, pool_size=WRITERS)

    def write(writer: int, round_: int) -> tuple[int, int | None]:
        """The version expected, and the one reported to a loser (None to the winner)."""
        expected = round_ * batch - 1
        try:
            messages = [("Won", {"writer": writer, "round": round_})] * batch
            Store(engine).write_batch("race-1", messages, expected)
            return expected, None
        except WrongExpectedVersion as error:
            return error.expected_version, error.actual_version

    assert NO_STREAM == -1
    with ThreadPoolExecutor(WRITERS) as threads:
        for round_ in range(ROUNDS):
            with released_together(store.engine, "race-1", WRITERS):
                racing = [threads.submit(write, writer, round_) for writer in range(WRITERS)]
            outcomes = [each.result() for each in racing]
            assert sum(actual is None for _, actual in outcomes) == 1
            assert {actual for _, actual in outcomes} == {None, (round_ + 1) * batch - 1}
            assert {expected for expected, _ in outcomes} == {round_ * batch - 1}
    engine.dispose()
    messages = store.read_stream("race-1", no_of_messages=-1)
    assert [message.position for message in messages] == list(range(ROUNDS * batch))
    assert [message.data["round"] for message in messages] == [n // batch for n in range(ROUNDS * batch)]


def test_writers_without_an_expected_version_lose_nothing(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=WRITERS)

    def write(writer: int) -> list[int]:
        own = Store(engine)
        return [own.write("crowd-1", "Came", {"writer": writer, "n": n}) for n in range(ROUNDS)]

    with ThreadPoolExecutor(WRITERS) as threads:
        with released_together(store.engine, "crowd-1", WRITERS):
            writing = [threads.submit(write, writer) for writer in range(WRITERS)]
        positions = [position for own in writing for position in own.result()]
    engine.dispose()
    assert sorted(positions) == list(range(WRITERS * ROUNDS))
    messages = store.read_stream("crowd-1", no_of_messages=-1)
    assert [message.position for message in messages] == sorted(positions)
    for writer in range(WRITERS):
        own_order = [message.data["n"] for message in messages if message.data["writer"] == writer]
        assert own_order == list(range(ROUNDS))


def test_a_writer_waits_for_the_open_transaction_of_its_category_only(store: Store) -> None:
    with ThreadPoolExecutor(1) as threads, store.engine.connect() as other:
        other.execute(select(functions.write_message(uuid4(), "a-1", "T", {})))
        blocked = threads.submit(store.write, "a-2", "T", {})
        wait_until_blocked(store.engine)
        assert store.write("b-1", "T", {}) == 0
        assert not blocked.done()
        other.rollback()
        assert blocked.result() == 0
