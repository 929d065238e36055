"""Compares two stores, message by message: by digests on both servers, and where these differ, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection

from messagedb_sa import Store
from messagedb_sa import _arguments as arguments
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._operation import Operation
from messagedb_sa.store._statements import END_OF_ALL
from messagedb_sa.transfer import _statements as statements
from messagedb_sa.transfer._raw import RawMessage, engine_of, pages, scalar
from messagedb_sa.transfer._results import Difference, OnProgress, Verified


def verify(
    source: Store, target: Store, *, up_to: int | None = None, on_progress: OnProgress | None = None
) -> Verified:
    """Compare all messages of two stores: all eight fields of each, and their order in ``$all``.

    Both servers make digests of 10,000 messages at a time, at the same time. Only where these differ, the messages
    themselves are read. Data and metadata are compared as the database holds them: 1.0 is not 1, and NULL is not JSON's
    null. The table ``consumer_positions`` is not compared.

    ``up_to`` is the last global position to compare; None compares all. While the source is written to, pass the
    ``last_global_position`` of a copy. It stops after ten differences.

    ``on_progress`` is called after each step with the global position that was reached, and the last one.
    """
    engines = engine_of("source", source), engine_of("target", target)
    end = statements.END if up_to is None else arguments.integer("up_to", up_to)
    compared, after = 0, -statements.END
    differences: list[Difference] = []
    with engines[0].connect() as first, engines[1].connect() as second, ThreadPoolExecutor(2) as threads:
        both = first, second
        last = min(end, max(run_alone(each, Operation(END_OF_ALL, {}, scalar)) for each in both))
        while len(differences) < statements.NO_OF_PROBLEMS:
            parameters = {"after": after, "end": end}
            digest = Operation(statements.DIGEST, parameters, lambda rows: tuple(rows[0]))
            digests = list(threads.map(run_alone, both, (digest, digest)))
            ends = [each[1] for each in digests if each[1] is not None]
            if not ends:
                break
            reached = min(ends)
            if digests[0] == digests[1]:
                compared += digests[0][0]
            else:
                for one, other in _side_by_side(first, second, after, reached):
                    compared += one is not None
                    if one != other:
                        differences.append(_difference(one, other))
                        if len(differences) == statements.NO_OF_PROBLEMS:
                            reached = differences[-1].global_position
                            break
            after = reached
            if on_progress is not None:
                on_progress(after, last)
    return Verified(compared, max(after, 0), differences)


def _side_by_side(
    source: Connection, target: Connection, after: int, end: int
) -> Iterator[tuple[RawMessage | None, RawMessage | None]]:
    """The messages of both by their global positions; None for what only the other has."""
    one, other = (
        (message for page in pages(each, statements.READ_ALL, after, end) for message in page)
        for each in (source, target)
    )
    left, right = next(one, None), next(other, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.global_position < right.global_position):
            yield left, None
            left = next(one, None)
        elif left is None or right.global_position < left.global_position:
            yield None, right
            right = next(other, None)
        else:
            yield left, right
            left, right = next(one, None), next(other, None)


def _difference(source: RawMessage | None, target: RawMessage | None) -> Difference:
    known: Any = source or target
    if target is None:
        what = "missing in the target"
    elif source is None:
        what = "only in the target"
    else:
        what = ", ".join(
            name for name, one, other in zip(RawMessage._fields, source, target, strict=True) if one != other
        )
    return Difference(known.global_position, known.stream_name, known.position, known.id, what)
