"""A program for test_crashes: it runs consumers in processes of their own and kills them at random points of progress.

``crashing.py URL HOW KILLS SEED``: one consumer at a time, HOW is plainly, asynchronously, transactional, in_stream (a
transactional one with positions in a stream), or together (transactions of several messages); or HOW is slots, and
there are up to five processes at a time.

A consuming process reports each step through a pipe, as one byte. This program draws the point at which a process dies:
how many steps pass first, and the kind of step that is the last one. It also writes the messages, some for each page
that is read, so that every process has something to do, however slow the machine is.

Prints what became of each process as a line of JSON. Standard input must be a pipe that stays open: a process that has
reached its point may wait there to be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import selectors
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Message, PositionConflict, Store
from messagedb_sa.consumer import _partitions

HANDLED = text("INSERT INTO handled (message, stream, position, slot, process) VALUES (:id, :stream, :n, :slot, :pid)")
ENDED = text("INSERT INTO ended (message, process) VALUES (:id, :pid)")

# The steps, as they are reported: a page was read, a handler begins, a handler has written, a position was written,
# a transaction is about to commit, it has committed, the slots' holders were looked at.
READ, BEGUN, WRITTEN, RECORDED, COMMITTING, COMMITTED, LOOKED = "rbwpcCl"

WRITES_POSITION = re.compile(r"write_message|UPDATE message_store\.consumer_positions")

STEPS = {
    "plainly": READ + BEGUN + WRITTEN + RECORDED,
    "asynchronously": READ + BEGUN + WRITTEN + RECORDED,
    "transactional": READ + BEGUN + WRITTEN + RECORDED + COMMITTING + COMMITTED,
    "in_stream": READ + BEGUN + WRITTEN + RECORDED + COMMITTING + COMMITTED,
    "together": READ + BEGUN + WRITTEN + RECORDED + COMMITTING + COMMITTED,
    "slots": READ + BEGUN + WRITTEN + RECORDED + LOOKED,
}

BATCH_SIZE = 10
SLOTS = 4
MOST_STEPS_THAT_PASS = 60
OVERTAKEN = 3


@dataclass
class Point:
    """The first step of a kind after ``passing`` others. ``waits``: the process waits there until it is killed;
    otherwise it goes on, and is killed somewhere after it."""

    step: str
    passing: int
    waits: bool

    def is_reached(self, steps: str) -> bool:
        return self.step in steps[self.passing :]


@dataclass
class Death:
    """What became of a process: ``steps`` are all that it reported. ``point`` is None if it was not to be killed."""

    pid: int
    steps: str
    point: Point | None
    signal: int


# ---- in the consuming process


class Progress:
    """Reports steps to the process that kills this one."""

    def __init__(self, pipe: int, point: Point | None) -> None:
        self._pipe = pipe
        self._point = point
        self._steps = ""

    def __call__(self, step: str) -> None:
        self._steps += step
        os.write(self._pipe, step.encode())
        if self._point is not None and self._point.waits and self._point.is_reached(self._steps):
            sys.stdin.read()
            os._exit(1)

    def of(self, engine: Engine) -> Engine:
        """The engine, whose statements are reported."""

        def executed(connection: Any, cursor: Any, statement: str, parameters: object, *_: Any) -> None:
            if "get_category_messages" in statement:
                self(READ)
            elif "pg_locks" in statement:
                self(LOOKED)
            elif WRITES_POSITION.search(statement) and "account:position" in str(parameters):
                self(RECORDED)

        commits = False

        def committing(_: Connection) -> None:
            nonlocal commits
            commits = True
            self(COMMITTING)

        def checked_in(*_: Any) -> None:
            # SQLAlchemy tells of a commit before it happens only. The connection goes back to the pool after it.
            nonlocal commits
            if commits:
                commits = False
                self(COMMITTED)

        event.listen(engine, "after_cursor_execute", executed)
        event.listen(engine, "commit", committing)
        event.listen(engine.pool, "checkin", checked_in)
        return engine


def facts(message: Message, slot: int | None = None) -> dict[str, object]:
    return {
        "id": message.id,
        "stream": message.stream_name,
        "n": message.position,
        "slot": slot,
        "pid": os.getpid(),
    }


def plainly(url: str, report: Progress) -> None:
    own = create_engine(url, isolation_level="AUTOCOMMIT").connect()

    def handle(message: Message) -> None:
        report(BEGUN)
        own.execute(HANDLED, facts(message))
        report(WRITTEN)

    store = Store(report.of(create_engine(url)))
    Consumer(store, "account", handle, "crashing", record_every=7, batch_size=BATCH_SIZE).run()


def transactional(url: str, report: Progress, **options: Any) -> None:
    def handle(message: Message, connection: Connection) -> None:
        report(BEGUN)
        connection.execute(HANDLED, facts(message))
        Store(connection).write(f"answer-{message.stream_id}", "Answered", {"to": message.id})
        report(WRITTEN)

    store = Store(report.of(create_engine(url)))
    Consumer(store, "account", handle, "crashing", transactional=True, batch_size=BATCH_SIZE, **options).run()


def in_stream(url: str, report: Progress) -> None:
    transactional(url, report, positions="stream")


def together(url: str, report: Progress) -> None:
    transactional(url, report, record_every=7)


def asynchronously(url: str, report: Progress) -> None:
    async def main() -> None:
        engine = create_async_engine(url.replace("psycopg2", "asyncpg"))
        report.of(engine.sync_engine)
        own = await create_async_engine(engine.url, isolation_level="AUTOCOMMIT").connect()

        async def handle(message: Message) -> None:
            report(BEGUN)
            await own.execute(HANDLED, facts(message))
            report(WRITTEN)

        store = AsyncStore(engine)
        await AsyncConsumer(store, "account", handle, "crashing", record_every=7, batch_size=BATCH_SIZE).run()

    asyncio.run(main())


def slots(url: str, report: Progress) -> None:
    from messagedb_sa.stream_name import consumer_group_member

    # Slots move as soon as a process looks, which it does every second otherwise.
    _partitions._SHARE_SECONDS = 0.05
    own = create_engine(url, isolation_level="AUTOCOMMIT").connect()

    def handle(message: Message) -> None:
        report(BEGUN)
        known = facts(message, consumer_group_member(message.stream_name, SLOTS))
        own.execute(HANDLED, known)
        # The longer it takes, the surer is it seen if another process has the slot too.
        time.sleep(0.001)
        own.execute(ENDED, known)
        report(WRITTEN)

    store = Store(report.of(create_engine(url, poolclass=NullPool)))
    options: Any = {"record_every": 7, "batch_size": BATCH_SIZE, "poll_seconds": 0.02}
    Consumer(store, "account", handle, "crashing", slots=SLOTS, **options).run()


# ---- in the process that kills


class Process:
    """A process that consumes, forked: to start Python and import everything anew would take far longer."""

    def __init__(
        self,
        consume: Callable[[str, Progress], None],
        url: str,
        point: Point | None = None,
        others: list[Process] | None = None,
    ) -> None:
        self.point = point
        self.steps = ""
        self.pipe, reports = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                for other in [self, *(others or [])]:
                    os.close(other.pipe)
                consume(url, Progress(reports, point))
                status = 0
            except PositionConflict:
                status = OVERTAKEN
            except BaseException:  # noqa: BLE001 - it must not go on as if it were the process that forked
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(reports)

    def listen(self) -> str:
        """The steps since the last call, at least one; none if the process has ended."""
        steps = os.read(self.pipe, 4096).decode()
        self.steps += steps
        return steps

    def wait(self) -> int:
        """The exit status, or the negative number of the signal that ended it."""
        while self.listen():
            pass
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self, by: signal.Signals) -> Death:
        os.kill(self.pid, by)
        status = self.wait()
        assert status == (-by if by == signal.SIGKILL else 0), (status, self.steps)
        return Death(self.pid, self.steps, self.point, by)


class Writer:
    """Writes some messages for each page that is read."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self._store = Store(create_engine(url))
        self._chance = chance
        self.write()

    def write(self) -> None:
        # On the average as many as a page holds.
        messages: Any = [("Opened", {})] * self._chance.randrange(1, 2 * BATCH_SIZE)
        self._store.write_batch(f"account-{self._chance.randrange(20)}", messages)

    def follow(self, steps: str) -> None:
        for _ in range(steps.count(READ)):
            self.write()


def kill_one_after_another(
    consume: Callable[[str, Progress], None], url: str, kills: int, chance: random.Random
) -> None:
    kinds = STEPS[consume.__name__]
    # Each kind of step gets its share, and two of three processes wait at their point.
    points = [
        Point(kinds[n % len(kinds)], chance.randrange(MOST_STEPS_THAT_PASS), n // len(kinds) % 3 != 2)
        for n in range(kills)
    ]
    chance.shuffle(points)
    writer = Writer(url, chance)
    for point in points:
        while True:
            process = Process(consume, url, point)
            while not point.is_reached(process.steps) and (steps := process.listen()):
                writer.follow(steps)
            if point.is_reached(process.steps):
                os.kill(process.pid, signal.SIGKILL)
            status = process.wait()
            if status == -signal.SIGKILL:
                tell(Death(process.pid, process.steps, point, signal.SIGKILL))
                break
            # What the server was still doing for the last process came after this one had begun, which then stops, also
            # just after its point.
            assert status == OVERTAKEN, status


class Group:
    """Processes that share slots."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self.running: list[Process] = []
        self._url = url
        self._writer = Writer(url, chance)
        self._selector = selectors.DefaultSelector()

    def start(self) -> None:
        """Start one more, and return when it has handled a message, or has no slot."""
        process = Process(slots, self._url, others=self.running)
        self.running.append(process)
        self._selector.register(process.pipe, selectors.EVENT_READ, process)
        while not (WRITTEN in process.steps or self._has_no_slot(process)):
            self.listen()

    def _has_no_slot(self, process: Process) -> bool:
        """As many as there are slots get one, sooner or later. One that has one reads after it has looked."""
        return len(self.running) > SLOTS and process.steps.endswith(3 * LOOKED)

    def listen(self) -> int:
        """Wait for steps of any process; how many there were."""
        number = 0
        for key, _ in self._selector.select():
            steps = key.data.listen()
            assert steps, f"a process ended by itself: {key.data.wait()}"
            self._writer.follow(steps)
            number += len(steps)
        return number

    def end(self, process: Process, by: signal.Signals) -> None:
        self._selector.unregister(process.pipe)
        self.running.remove(process)
        tell(process.end(by))

    def reach(self, process: Process, point: Point) -> None:
        """Return when as many steps of any process have passed, and then one of this kind of this process."""
        passed = 0
        while passed < point.passing:
            passed += self.listen()
        begun = len(process.steps)
        while not (point.step in process.steps[begun:] or process.steps[begun:].endswith(3 * LOOKED)):
            self.listen()
        process.point = point


def kill_those_who_share(url: str, kills: int, chance: random.Random) -> None:
    kinds = STEPS["slots"]
    signals = [signal.SIGKILL, signal.SIGTERM]
    # Every second time the oldest, so that no process keeps its slots to the end.
    plans = [
        (Point(kinds[n % len(kinds)], chance.randrange(200), False), signals[n % 2], n % 4 < 2) for n in range(kills)
    ]
    chance.shuffle(plans)
    group = Group(url, chance)
    for _ in range(SLOTS):
        group.start()
    for point, by, oldest in plans:
        process = group.running[0] if oldest else chance.choice(group.running)
        group.reach(process, point)
        group.end(process, by)
        # From one to five at a time.
        for _ in range(chance.randint(1, SLOTS + 1) - len(group.running)):
            group.start()
    for process in [*group.running]:
        group.end(process, signal.SIGTERM)


def tell(death: Death) -> None:
    print(json.dumps(asdict(death)), flush=True)


def main(url: str, how: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    if how == "slots":
        kill_those_who_share(url, kills, chance)
        return
    if how == "asynchronously":
        # Imported before the processes are forked.
        create_async_engine(url.replace("psycopg2", "asyncpg"))
    consume = {each.__name__: each for each in (plainly, asynchronously, transactional, in_stream, together)}[how]
    kill_one_after_another(consume, url, kills, chance)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
