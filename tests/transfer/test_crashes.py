"""A copy that is killed again and again, while others write to the source, becomes equal to it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, text

from messagedb_sa import Store, transfer

from ..support import LONG, exit_code, fork
from ..waits import wait_until, wait_until_blocked
from .support import contents

KILLS = 20
MESSAGES = 100_000 if LONG else 6_000

# By the official function. Every seventh message is rolled back, and leaves a gap.
FILL = f"""
    DO $$
    BEGIN
      FOR n IN 1..{MESSAGES} LOOP
        BEGIN
          PERFORM message_store.write_message(
            gen_random_uuid()::varchar, 'account-' || mod(n, 100), 'Deposited',
            jsonb_build_object('amount', n * 1.10, 'text', repeat('é', mod(n, 50))), '{{"by" : null}}'
          );
          IF mod(n, 7) = 0 THEN
            RAISE EXCEPTION 'rolled back';
          END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
      END LOOP;
    END
    $$
"""

# A copy waits at the point that is locked: inside of its INSERT, or when it commits.
POINTS = """
    CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM pg_advisory_xact_lock_shared(NEW.global_position);
      RETURN NEW;
    END
    $$;
    CREATE TRIGGER inside BEFORE INSERT ON message_store.messages
      FOR EACH ROW WHEN (NEW.global_position IN ({inside})) EXECUTE FUNCTION wait_here();
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON message_store.messages DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW WHEN (NEW.global_position IN ({at_commit})) EXECUTE FUNCTION wait_here();
"""
NO_POINTS = "DROP FUNCTION wait_here CASCADE"


def in_a_process(body: Callable[[], object]) -> int:
    def ends_with_its_parent() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        body()

    return fork(ends_with_its_parent)


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    assert exit_code(process) == -signal.SIGKILL


def test_a_copy_that_is_killed_twenty_times_is_equal(official: Engine, target: Store, client: Any) -> None:
    engine = create_engine(
        official.url, poolclass=NullPool, connect_args={"options": "-c search_path=message_store,public"}
    )
    source = Store(engine)
    with engine.begin() as connection:
        connection.execute(text(FILL))
        there = list(connection.scalars(text("SELECT global_position FROM message_store.messages")))
    points = sorted(there[(number + 1) * len(there) // (KILLS + 2)] for number in range(KILLS))
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    parent = os.getpid()

    def write() -> None:
        theirs = client.MessageDB.from_url(url, options="-c search_path=message_store,public")
        draw = random.Random(1)
        while os.getppid() == parent:
            theirs.write(f"order-{draw.randrange(20)}", "Placed", {"n": draw.random()})
            with engine.connect() as connection:
                connection.execute(
                    text("SELECT write_message(gen_random_uuid()::varchar, 'customer-1', 'Registered', '{}')")
                )
                (connection.commit if draw.random() < 0.5 else connection.rollback)()

    def copy() -> None:
        transfer.copy(Store(create_engine(engine.url)), Store(create_engine(target.engine.url)))

    def written() -> int:
        return source.last_global_position("$all")

    with target.engine.begin() as connection:
        listed = [", ".join(map(str, points[start::2])) for start in (0, 1)]
        connection.exec_driver_sql(POINTS.format(inside=listed[0], at_commit=listed[1]))
    writer = in_a_process(write)
    copied = [0]
    try:
        with target.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as holding:
            for point in points:
                holding.execute(text("SELECT pg_advisory_lock(:point)"), {"point": point})
            for point in points:
                before = source.last_global_position("order")

                def is_written_to(before: int = before) -> bool:
                    return source.last_global_position("order") > before

                copying = in_a_process(copy)
                wait_until_blocked(target.engine)
                wait_until(is_written_to, "the source is written to")
                kill(copying)
                copied.append(target.last_global_position("$all"))
                assert copied[-1] < point
                holding.execute(text("SELECT pg_advisory_unlock(:point)"), {"point": point})
        assert copied == sorted(copied)
        assert copied[-1] > copied[1]
        copy()
    finally:
        kill(writer)
        with target.engine.begin() as connection:
            connection.exec_driver_sql(NO_POINTS)
    # The rest, now that nobody writes.
    transfer.copy(source, target)
    assert transfer.verify(source, target).is_equal
    assert contents(target) == contents(source)
    assert written() > len(contents(source))
    assert len(source.read("order", no_of_messages=-1)) >= KILLS
