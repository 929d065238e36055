"""The examples in message-db-py's README, word for word; without pip these tests are skipped."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markdown_it import MarkdownIt
from sqlalchemy import create_engine

from messagedb_sa import Store
from messagedb_sa.compat import MessageDB

from .support import SEARCH_PATH, numbers


@pytest.fixture(params=["Store", "compat.MessageDB"])
def ours(request: pytest.FixtureRequest, messagedb_url: str, old: MessageDB) -> Iterator[Any]:
    if request.param == "compat.MessageDB":
        yield old
        return
    # Their example of SQL does not name the schema.
    engine = create_engine(messagedb_url, connect_args={"options": SEARCH_PATH})
    yield Store(engine)
    engine.dispose()


@pytest.fixture
def programs(client: Any) -> list[str]:
    (installed,) = Path(client.__file__).parents[1].glob("message_db_py-*.dist-info")
    metadata: Any = Distribution.at(installed).metadata
    readme = metadata["Description"] or metadata.get_payload()
    return [each.content for each in MarkdownIt().parse(readme) if (each.type, each.info) == ("fence", "python")]


def test_their_examples_work_if_the_class_is_ours(
    programs: list[str], ours: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class MessageDB:
        """What they make is ours."""

        def __new__(cls, *_: Any, **__: Any) -> Any:
            return ours

        @classmethod
        def from_url(cls, _: str) -> Any:
            return ours

    monkeypatch.setitem(sys.modules, "message_db", SimpleNamespace(MessageDB=MessageDB))
    next_positions: dict[int, int] = defaultdict(int)
    names: dict[str, Any] = {
        "CONNECTION_URL": "",
        "MessageDB": MessageDB,
        "my_pool": None,
        # Positions are inclusive.
        "get_last_processed_position": next_positions.__getitem__,
        "update_last_processed_position": lambda member, last: next_positions.update({member: last + 1}),
    }
    for n in range(11):
        ours.write("user-updates", "UserUpdated", {"n": n})
        ours.write(f"user_updates-{n}", "UserUpdated", {"n": n})
    results: list[dict[str, Any]] = []
    for program in programs:
        # Their signatures have names that they do not import.
        exec(compile(f"from __future__ import annotations\n{program}", "README.md", "exec"), names)
        results.append(dict(names))
    quickstart, _, written, *_, groups, _ = results
    assert quickstart["message"]["data"] == {"name": "John Doe"}
    assert quickstart["message"]["stream_name"] == "user_stream"
    assert written["position"] == 0
    assert names["last_message"]["metadata"] == {"source": "web_app"}
    assert names["last_position"] == 2
    shares = [numbers(groups[f"messages_{member}"]) for member in range(3)]
    assert sorted(n for share in shares for n in share) == list(range(11))
    # Each member of their group handled each message once.
    assert capsys.readouterr().out.count("processing: {'n': ") == 11
    assert set(next_positions) == {0, 1, 2}
