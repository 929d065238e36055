"""The whole way in one go: a PostgreSQL appears, Alembic installs Message DB in it, messages go in and come out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import make_url

from messagedb_sa import NO_STREAM, Consumer, Message, Store, WrongExpectedVersion
from messagedb_sa.postgres import temporary_server

REPOSITORY = Path(__file__).parents[1]


def show(title: str) -> None:
    print(f"\n== {title}", flush=True)


def greet(message: Message) -> None:
    if message.data["owner"].isalpha():
        print(f"Hello {message.data['owner']}")


def main() -> None:
    show("A PostgreSQL server of our own starts")
    with temporary_server() as url:
        folder = Path(str(make_url(url).query["host"]))
        print(f"in {folder}", flush=True)

        show("Alembic installs Message DB: alembic -x url=… upgrade head")
        alembic = Path(sys.executable).with_name("alembic")
        subprocess.run([alembic, "-x", f"url={url}", "upgrade", "head"], cwd=REPOSITORY, check=True)

        store = Store.from_url(url)
        print(f"The store speaks Message DB {store.version()}")

        show("A stream is opened, and written to by whoever knows its version")
        store.write("account-1", "Opened", {"owner": "Ada"}, expected_version=NO_STREAM)
        last = store.write_batch("account-1", [("Deposited", {"amount": 100}), ("Withdrawn", {"amount": 30})])
        print(f"account-1 is at version {last}")
        try:
            store.write("account-1", "Closed", {}, expected_version=0)
        except WrongExpectedVersion as error:
            print(f"Somebody with old news is turned away: {error}")

        show("What was written is read back")
        for message in store.read_stream("account-1"):
            print(
                f"{message.time:%H:%M:%S}  {message.stream_name}  {message.position}  {message.type:<10} {message.data}"
            )

        show("Three members of a consumer group share the category, each stream with one of them")
        for number in range(2, 13):
            store.write(f"account-{number}", "Opened", {"owner": f"Owner {number}"})
        for member in range(3):
            messages = store.read_category("account", consumer_group_member=member, consumer_group_size=3)
            streams = sorted({message.cardinal_id or "" for message in messages}, key=int)
            print(f"member {member}: {len(messages)} messages of accounts {', '.join(streams)}")

        show("A consumer hands each message to a handler, and goes on from there the next time")
        consumer = Consumer(store, "account", {"Opened": greet}, "greeter")
        print(f"{consumer.run_until_caught_up()} greeted")
        store.write("account-13", "Opened", {"owner": "Grace"})
        print(f"{consumer.run_until_caught_up()} greeted")
        (status,) = store.consumers("account")
        print(f"{status.identifier} is at global position {status.position}, {status.lag} messages behind")

        show("The server stops, and all of it is gone")
        store.engine.dispose()
    print(f"{folder} exists: {folder.exists()}")


if __name__ == "__main__":
    main()
