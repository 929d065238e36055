"""A tour in one program: start a PostgreSQL server, install Message DB with Alembic, and write and read messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import make_url

from messagedb_sa import NO_STREAM, Consumer, Message, Store, WrongExpectedVersion
from messagedb_sa.testing import temporary_server

REPOSITORY = Path(__file__).parents[1]


def show(title: str) -> None:
    print(f"\n== {title}", flush=True)


def greet(message: Message) -> None:
    if message.data["owner"].isalpha():
        print(f"Hello {message.data['owner']}")


def main() -> None:
    show("Start a throwaway PostgreSQL server")
    with temporary_server() as url:
        folder = Path(str(make_url(url).query["host"]))
        print(f"in {folder}", flush=True)

        show("Install Message DB: alembic -x url=… upgrade head")
        alembic = Path(sys.executable).with_name("alembic")
        subprocess.run([alembic, "-x", f"url={url}", "upgrade", "head"], cwd=REPOSITORY, check=True)

        store = Store.from_url(url)
        print(f"The store has Message DB {store.version()}")

        show("Write to a stream, and check its version")
        store.write("account-1", "Opened", {"owner": "Ada"}, expected_version=NO_STREAM)
        last = store.write_batch("account-1", [("Deposited", {"amount": 100}), ("Withdrawn", {"amount": 30})])
        print(f"account-1 is at version {last}")
        try:
            store.write("account-1", "Closed", {}, expected_version=0)
        except WrongExpectedVersion as error:
            print(f"A writer with an old version is refused: {error}")

        show("Read the stream")
        for message in store.iter_stream("account-1"):
            print(
                f"{message.time:%H:%M:%S}  {message.stream_name}  {message.position}  {message.type:<10} {message.data}"
            )

        show("Share the category among the three members of a consumer group, stream by stream")
        for number in range(2, 13):
            store.write(f"account-{number}", "Opened", {"owner": f"Owner {number}"})
        for member in range(3):
            messages = store.read_category("account", consumer_group_member=member, consumer_group_size=3)
            streams = sorted({message.cardinal_id or "" for message in messages}, key=int)
            print(f"member {member}: {len(messages)} messages of accounts {', '.join(streams)}")

        show("Handle messages with a consumer, which continues where it stopped")
        consumer = Consumer(store, "account", {"Opened": greet}, "greeter")
        print(f"{consumer.run_until_caught_up()} messages handled")
        store.write("account-13", "Opened", {"owner": "Grace"})
        print(f"{consumer.run_until_caught_up()} messages handled")
        (status,) = store.consumers("account")
        print(f"{status.identifier} is at global position {status.position}, {status.lag} messages behind")

        show("Stop the server and remove its files")
        store.engine.dispose()
    print(f"{folder} exists: {folder.exists()}")


if __name__ == "__main__":
    main()
