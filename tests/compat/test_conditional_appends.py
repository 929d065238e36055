"""Conditional appends beside the original message-db-py, which writes to the same category; skipped without pip."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import create_engine

from messagedb_sa import AppendCondition, AppendConditionFailed, NewMessage, Query, Store

from ..waits import released_together
from .support import SEARCH_PATH

WRITERS = 16
ROUNDS = 10


@pytest.mark.parametrize("theirs_matches", [False, True])
def test_exactly_one_of_sixteen_writers_on_one_tag_wins_each_round(
    client: Any, url: str, store: Store, theirs_matches: bool
) -> None:
    """Where the message of message-db-py matches too, it counts as a winner if it comes first."""
    engine = create_engine(store.engine.url, pool_size=WRITERS)
    ours = Store(engine)
    theirs = client.MessageDB.from_url(url, options=SEARCH_PATH)
    query = Query("course", ["Subscribed"], ["course:1"])

    def write(writer: int, condition: AppendCondition) -> bool:
        subscribed = NewMessage("Subscribed", {"writer": writer}, {"tags": ["course:1", f"student:{writer}"]})
        try:
            ours.write_batch(f"course-{writer % 3}", [subscribed], condition=condition)
        except AppendConditionFailed:
            return False
        return True

    def write_beside() -> None:
        theirs.write("course-1", "Subscribed" if theirs_matches else "Noted", {}, {"tags": ["course:1"]})

    with ThreadPoolExecutor(WRITERS + 1) as threads:
        for _ in range(ROUNDS):
            known = ours.read_query(query)
            with released_together(store.engine, "course-1", WRITERS + 1):
                beside = threads.submit(write_beside)
                writing = [threads.submit(write, writer, known.condition) for writer in range(WRITERS)]
            beside.result()
            won = sum(each.result() for each in writing)
            new = ours.read_query(query)[len(known) :]
            assert won == sum("writer" in message.data for message in new)
            if theirs_matches:
                # Nobody wins after it.
                assert won == ("writer" in new[0].data)
                assert len(new) == won + 1
            else:
                assert won == len(new) == 1
    theirs.connection_pool.closeall()
    engine.dispose()
    assert len(store.read_stream("course-1")) >= ROUNDS
