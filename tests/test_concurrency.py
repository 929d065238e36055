"""Writers at the same time, from processes' point of view: one connection each, real transactions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, select

from messagedb_sa import NO_STREAM, Store, WrongExpectedVersion, functions

WRITERS = 8
ROUNDS = 25


@pytest.mark.parametrize("batch", [1, 3])
def test_exactly_one_of_the_writers_with_the_same_expected_version_wins_each_round(
    messagedb_url: str, store: Store, batch: int
) -> None:
    engine = create_engine(messagedb_url, pool_size=WRITERS)
    barrier = Barrier(WRITERS)

    def race(writer: int) -> list[tuple[int, int | None]]:
        """Per round: the version expected, and the one reported to a loser (None to a winner)."""
        own = Store(engine)
        seen: list[tuple[int, int | None]] = []
        for round_ in range(ROUNDS):
            expected = round_ * batch - 1
            barrier.wait()
            try:
                messages = [("Won", {"writer": writer, "round": round_})] * batch
                own.write_batch("race-1", messages, expected)
                seen.append((expected, None))
            except WrongExpectedVersion as error:
                seen.append((error.expected_version, error.actual_version))
        return seen

    assert NO_STREAM == -1
    with ThreadPoolExecutor(WRITERS) as threads:
        results = list(threads.map(race, range(WRITERS)))
    engine.dispose()

    for round_, outcomes in enumerate(zip(*results, strict=True)):
        assert sum(actual is None for _, actual in outcomes) == 1
        assert {actual for _, actual in outcomes} == {None, (round_ + 1) * batch - 1}
        assert {expected for expected, _ in outcomes} == {round_ * batch - 1}
    messages = store.read_stream("race-1", no_of_messages=-1)
    assert [message.position for message in messages] == list(range(ROUNDS * batch))
    assert [message.data["round"] for message in messages] == [n // batch for n in range(ROUNDS * batch)]


def test_writers_without_an_expected_version_lose_nothing(messagedb_url: str, store: Store) -> None:
    engine = create_engine(messagedb_url, pool_size=WRITERS)

    def write(writer: int) -> list[int]:
        own = Store(engine)
        return [own.write("crowd-1", "Came", {"writer": writer, "n": n}) for n in range(ROUNDS)]

    with ThreadPoolExecutor(WRITERS) as threads:
        positions = [position for own in threads.map(write, range(WRITERS)) for position in own]
    engine.dispose()
    assert sorted(positions) == list(range(WRITERS * ROUNDS))
    messages = store.read_stream("crowd-1", no_of_messages=-1)
    assert [message.position for message in messages] == sorted(positions)
    for writer in range(WRITERS):
        own_order = [message.data["n"] for message in messages if message.data["writer"] == writer]
        assert own_order == list(range(ROUNDS))


def test_a_writer_waits_for_the_open_transaction_of_its_category_only(messagedb_url: str, store: Store) -> None:
    impatient = Store(create_engine(messagedb_url, connect_args={"options": "-c lock_timeout=200"}))
    with store.engine.connect() as other:
        other.execute(select(functions.write_message(uuid4(), "a-1", "T", {})))
        assert impatient.write("b-1", "T", {}) == 0
        with pytest.raises(Exception, match="lock timeout"):
            impatient.write("a-2", "T", {})
        other.rollback()
    assert impatient.write("a-2", "T", {}) == 0
    impatient.engine.dispose()
