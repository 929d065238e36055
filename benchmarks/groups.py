"""What a page costs a member of a consumer group, compared with a page of as many messages without a group."""

from __future__ import annotations

from contextlib import closing

import data
from contenders import Ours
from measure import Call, Comparison
from report import at_most, duration, page, progress, shown, table
from sizes import Sizes
from sqlalchemy import create_engine
from sqlalchemy.schema import CreateIndex

from messagedb_sa import Store, install
from messagedb_sa.schema import consumer_group_index
from messagedb_sa.testing import temporary_database

GROUP_SIZES = (2, 10, 100, 1000)
CATEGORY = "ledger"
MEMBER, ALL = "as a member", "without a group"
MEMBERS = 10
SHORT_GROUP, SHORT = 10, 10
BOUND = 1.3


def run(server: str, sizes: Sizes) -> str:
    """Measure, and return the report."""
    # So that members of the largest group have a page, and some more than others.
    length = min(1000, sizes.grouped // max(GROUP_SIZES))
    with temporary_database(server) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        progress(f"groups: loading {sizes.grouped:,} messages")
        data.load(url, data.category(CATEGORY, sizes.grouped, sizes.grouped // 100))
        progress(f"groups: {len(GROUP_SIZES)} indexes")
        with engine.begin() as connection:
            for size in GROUP_SIZES:
                connection.execute(CreateIndex(consumer_group_index(size)))
        engine.dispose()
        data.settle(url)
        with closing(Ours(url)) as ours:
            rows = [_row(ours.store, size, length, sizes) for size in GROUP_SIZES]
            # It shows what is the same for pages of any length.
            rows.append(_row(ours.store, SHORT_GROUP, SHORT, sizes))
    header = ["members", "messages", "a page as a member", "a page without a group", "times as long", "bound"]
    return page("Consumer groups", table(header, rows), _how(sizes, length))


def _row(store: Store, size: int, length: int, sizes: Sizes) -> list[str]:
    progress(f"groups: {size:,} members, {length:,} messages")
    members: list[int] = []
    for member in range(size):
        if len(store.read_category(CATEGORY, 1, length, member, size)) == length:
            members.append(member)
        if len(members) == MEMBERS:
            break
    calls = {
        # Two numbers for each member: the call before the measurement and the measured call are the same member's.
        MEMBER: Call(lambda n: store.read_category(CATEGORY, 1, length, members[n // 2 % len(members)], size)),
        ALL: Call(lambda n: store.read_category(CATEGORY, 1, length)),
    }
    samples = Comparison(calls, 1, length).run(sizes.scaled(150))
    ratio = samples.ratio(MEMBER, ALL)
    times = [duration(samples.median(name)) for name in (MEMBER, ALL)]
    return [f"{size:,}", f"{length:,}", *times, shown(ratio), at_most(ratio, BOUND)]


def _how(sizes: Sizes, length: int) -> str:
    streams = sizes.grouped // 100
    return f"""\
The category has {sizes.grouped:,} messages in {streams:,} streams, which were written round-robin. There is an index
for each size of the group. The first {length:,} messages of up to {MEMBERS} members are read, and alternately the first
{length:,} of the category. A member's messages are apart in the table: with 1,000 members, almost each is on a page of
its own, while 1,000 messages without a group are on about 40. What else a member's page costs is the same for a short
page and a long one.
"""
