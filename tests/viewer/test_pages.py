"""What the pages show."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from messagedb_sa import InvalidArgument, MessageTypes, Store, follow
from messagedb_sa.viewer import _statements as statements
from messagedb_sa.viewer import viewer
from messagedb_sa.viewer._messages import PER_PAGE

from ..support import insert
from .support import browser, get, rows_of

FILL = """
    INSERT INTO message_store.messages (stream_name, position, type, data, metadata)
    SELECT 'account-' || n % 2, n / 2, CASE n % 10 WHEN 7 THEN 'Rare' ELSE 'Usual' END, '{}',
        jsonb_build_object('userId', n % 10)
    FROM generate_series(0, %d - 1) AS n
"""


def fill(store: Store, number: int) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql(FILL.replace("%d", str(number)).replace("%", "%%"))


def test_an_empty_store_says_what_to_do(client: TestClient) -> None:
    for path in ("/", "/categories", "/all"):
        assert "This store has no messages yet." in get(client, path).text
    assert "There is no message in this stream" in get(client, "/stream", name="account-1").text
    assert "There is no message in this category" in get(client, "/category", name="account").text
    assert "There is no stream in this category" in get(client, "/streams", category="account").text
    assert "Nothing is found for account-1" in get(client, "/search", q="account-1").text


def test_the_overview_shows_the_last_messages_and_their_categories(store: Store, client: TestClient) -> None:
    for number in range(20):
        store.write(f"account-{number}", "Opened", {"n": number})
    store.write("order-1", "Placed", {"item": "lamp"})
    shown = get(client, "/").text
    assert '{"item": "lamp"}' in shown
    assert '{"n": 19}' in shown
    assert '{"n": 3}' not in shown
    assert "Categories of the last 21 messages account 20 order 1" in shown
    assert "Messages a minute, by category" in shown
    assert "Messages a minute, by type" in shown


def test_a_time_far_in_the_future_does_not_empty_the_charts(store: Store, client: TestClient) -> None:
    store.write("account-1", "Opened", {})
    insert(store, "account-1", 1, "Later", "{}", "'infinity'")
    shown = get(client, "/").text
    assert "after the year 9999" in shown
    assert re.search(r"Messages a minute, by type .* Opened 1 As a table", shown)


def test_categories_and_their_streams(store: Store, client: TestClient) -> None:
    for name in ("account-2", "account-1", "account-1", "order-7"):
        store.write(name, "Opened", {})
    assert "account 3 Streams 3" in get(client, "/categories").text
    assert "order 1 Streams 4" in get(client, "/categories").text
    assert re.search("account-1 1 3 .* account-2 0 1", get(client, "/streams", category="account").text)
    by_name = get(client, "/streams", category="account", order="name").text
    assert re.search("account-1 1 3 .* account-2 0 1", by_name)
    assert "order-7" not in by_name


def test_streams_are_found_by_name_or_by_id(store: Store, client: TestClient) -> None:
    for number in range(PER_PAGE + 20):
        store.write(f"account-{number:03}", "Opened", {})
    for wanted in ("account-042", "042"):
        answer = client.get("/streams", params={"category": "account", "find": wanted})
        assert str(answer.url).endswith("/stream?name=account-042")
    shown = get(client, "/streams", category="account", find="0665").text
    assert "There is no stream account-0665 . These come after it." in shown
    assert "account-067" in shown
    assert "account-066" not in shown.replace("account-0665", "")


def test_the_streams_of_a_category_by_name_go_on_from_page_to_page(store: Store, client: TestClient) -> None:
    for number in range(2 * PER_PAGE + 3):
        store.write(f"account-{number:03}", "Opened", {})
    seen: list[str] = []
    url: str | None = "streams?category=account&order=name"
    while url is not None:
        html = client.get(url).text
        seen += re.findall(r">(account-\d+)<", html)
        found = re.search(r'<a href="(streams[^"]*)" rel="next">', html)
        url = found[1].replace("&amp;", "&") if found else None
    assert seen == [f"account-{number:03}" for number in range(2 * PER_PAGE + 3)]


@pytest.mark.parametrize("order", [None, "oldest"])
@pytest.mark.parametrize("path", ["stream?name=account-1", "category?name=account", "all?"])
def test_a_list_leads_from_one_end_to_the_other_and_back(
    store: Store, client: TestClient, path: str, order: str | None
) -> None:
    number = 2 * PER_PAGE + 7
    fill(store, 2 * number if path.startswith("stream") else number)
    first = 0 if path.startswith("stream") else 1
    expected = list(range(first, first + number))
    onward, back = "Older", "Newer"
    if order is None:
        expected.reverse()
    else:
        path, onward, back = f"{path}&order={order}", back, onward
    seen, links = rows_of(client, f"/{path}")
    assert back not in links
    while onward in links:
        positions, links = rows_of(client, links[onward])
        seen += positions
    assert seen == expected
    pages = [positions]
    while back in links:
        positions, links = rows_of(client, links[back])
        pages.insert(0, positions)
    assert [position for page in pages for position in page] == expected


@pytest.fixture
def few_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "LOOKED_AT", 100)


@pytest.mark.usefixtures("few_looked_at")
@pytest.mark.parametrize("wanted", ["type=Rare", "metadata=userId%3D7", "metadata=%7B%22userId%22%3A7%7D"])
def test_a_list_of_some_messages_looks_at_a_bounded_number_on_each_page(
    store: Store, client: TestClient, wanted: str
) -> None:
    fill(store, 230)
    if "userId%3D" in wanted:
        with store.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE message_store.messages SET metadata = '{\"userId\": \"7\"}' WHERE type = 'Rare'"
            )
    seen, links = rows_of(client, f"/category?name=account&{wanted}")
    assert seen == list(range(228, 130, -10))
    assert "This page looked at 100 messages." in get(client, f"/category?name=account&{wanted}").text
    while "Older" in links:
        positions, links = rows_of(client, links["Older"])
        seen += positions
    assert seen == list(range(228, 0, -10))


@pytest.mark.usefixtures("few_looked_at")
def test_a_message_that_has_what_is_looked_for_at_the_very_end_of_what_is_looked_at_does_not_end_the_list(
    store: Store, client: TestClient
) -> None:
    fill(store, 150)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE message_store.messages SET type = 'Usual'")
        connection.exec_driver_sql(
            "UPDATE message_store.messages SET type = 'Rare' WHERE global_position IN (51, 50, 49, 3)"
        )
    seen, links = rows_of(client, "/all?type=Rare")
    assert seen == [51]
    assert rows_of(client, links["Older"])[0] == [50, 49, 3]


def test_a_message_has_its_data_and_metadata_as_they_are_stored(store: Store, client: TestClient) -> None:
    data = '{"price": 1.50, "big": 123456789012345678901234567890, "list": [true, null, "x"], "empty": {}}'
    insert(store, "account-1", 0, "Opened", data, "'2026-11-26 12:30:01.5'", '{"userId": "7"}')
    store.write("account-1", "Closed", None)
    shown = get(client, "/message", stream="account-1", position=0).text
    for each in ("price 1.50", "big 123456789012345678901234567890", "list [3] true null x", "empty {}", "userId 7"):
        assert each in shown
    assert "2026-11-26 12:30:01.500 UTC" in shown
    assert "Next" in shown
    assert "Previous" not in shown
    last = get(client, "/message", global_position=2).text
    assert "Previous" in last
    assert "Next" not in last
    assert last.count("NULL") == 2


def test_a_message_can_be_downloaded_as_json(store: Store, client: TestClient) -> None:
    id = uuid4()
    store.write("account-1", "Opened", {"owner": "Ada"}, {"userId": "7"}, id=id)
    answer = client.get("/raw", params={"id": str(id)})
    assert answer.json() == {"owner": "Ada"}
    assert answer.headers["content-disposition"] == f'attachment; filename="{id}-data.json"'
    assert client.get("/raw", params={"id": str(id), "part": "metadata"}).json() == {"userId": "7"}
    assert client.get("/raw", params={"id": str(id), "part": "all"}).status_code == 400
    assert client.get("/raw", params={"id": str(uuid4())}).status_code == 404


def chain(store: Store) -> list[Any]:
    """An order, a payment that it causes, two messages that this causes, and one more."""
    written: list[Any] = []

    def write(stream: str, type: str, cause: int | None = None) -> None:
        metadata = {"correlationStreamName": "order-1"} if cause is None else follow(written[cause])
        store.write(stream, type, {}, metadata)
        written.append(store.read_last_message(stream))

    write("order-1", "Placed")
    write("payment-1", "Captured", 0)
    write("email-1", "Sent", 1)
    write("parcel-1", "Packed", 1)
    write("parcel-1", "Shipped", 3)
    store.write("order-2", "Placed", {}, {"correlationStreamName": "order-2"})
    return written


@pytest.mark.usefixtures("indexes")
def test_a_message_shows_where_it_came_from_and_what_it_caused(store: Store, client: TestClient) -> None:
    messages = chain(store)
    html = client.get("/message", params={"id": messages[1].id}).text
    graph = html.partition('<svg width="')[2].partition("</svg>")[0]
    assert re.findall(r'<text class="type"[^>]*>(\w+)', graph) == ["Placed", "Captured", "Sent", "Packed", "Shipped"]
    assert re.findall(r'href="message\?id=([^"]*)"', graph) == [each.id for each in messages]
    assert re.findall(r'aria-current="true">\s*<title>(\w+) in', graph) == ["Captured"]
    places = [(int(x), int(y)) for x, y in re.findall(r'<rect x="(\d+)" y="(\d+)"', graph)]
    assert places == [(0, 0), (28, 64), (56, 128), (56, 192), (84, 256)]
    alone = get(client, "/message", global_position=6).text
    assert "none names it as its cause" in alone


@pytest.mark.usefixtures("indexes")
def test_messages_that_cause_each_other_in_a_circle_are_shown_once(store: Store, client: TestClient) -> None:
    for name, cause in (("a-1", "b-1"), ("b-1", "a-1")):
        metadata = {"causationMessageStreamName": cause, "causationMessagePosition": 0}
        insert(store, name, 0, "Odd", "{}", metadata=json.dumps(metadata))
    html = client.get("/message", params={"stream": "a-1", "position": 0}).text
    assert sorted(re.findall(r'<text class="stream"[^>]*>([^<]*)', html)) == ["a-1", "b-1"]


def test_without_the_index_effects_and_correlations_are_not_looked_up(store: Store, client: TestClient) -> None:
    messages = chain(store)
    shown = get(client, "/message", id=messages[1].id).text
    assert "messagedb_sa.schema.causation_index()" in shown
    assert "Placed in order-1" in shown
    assert "Sent in email-1" not in shown
    assert "messagedb_sa.schema.correlation_index()" in get(client, "/correlation", name="order-1").text


@pytest.mark.usefixtures("indexes")
def test_a_correlation_has_the_messages_of_all_categories(store: Store, client: TestClient) -> None:
    chain(store)
    positions, links = rows_of(client, "/correlation?name=order-1")
    assert positions == [1, 2, 3, 4, 5]
    assert links == {}
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO message_store.messages (stream_name, position, type, data, metadata)"
            " SELECT 'parcel-9', n, 'T', '{}', '{\"correlationStreamName\": \"order-1\"}'"
            " FROM generate_series(0, 99) AS n"
        )
    positions, links = rows_of(client, "/correlation?name=order-1")
    while "Newer" in links:
        more, links = rows_of(client, links["Newer"])
        positions += more
    assert positions == [1, 2, 3, 4, 5, *range(7, 107)]


@pytest.mark.usefixtures("indexes")
def test_search_finds_by_id_position_name_correlation_and_metadata(store: Store, client: TestClient) -> None:
    first = chain(store)[0]

    def found(text: str) -> str:
        answer = client.get("/search", params={"q": text})
        assert answer.status_code == 200
        return str(answer.url).removeprefix("http://localhost/")

    assert found(first.id) == f"message?id={first.id}"
    assert found(first.id.replace("-", "").upper()) == f"message?id={first.id}"
    assert found(" 3 ") == "message?global_position=3"
    assert found("email-1") == "stream?name=email-1"
    assert found("parcel") == "category?name=parcel"
    assert found("order-1") == "search?q=order-1"
    shown = get(client, "/search", q="order-1").text
    assert "Stream order-1 Placed" in shown
    assert "Correlation order-1 Placed" in shown
    assert found("correlationStreamName=order-2") == "all?metadata=correlationStreamName%3Dorder-2"
    assert rows_of(client, "/" + found('{"correlationStreamName": "order-2"}'))[0] == [6]
    for nothing in (str(uuid4()), "99", "order", "-", "nothing-here", "{not json"):
        assert found(nothing).startswith(("search", "category?name=order"))


def test_messages_of_registered_classes_are_shown_as_they_are_stored(store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Opened:
        owner: str

    insert(store, "account-1", 0, "Opened", '{"other": "field"}')
    with browser(viewer(Store(store.engine, types=types))) as client:
        assert "other field" in get(client, "/message", global_position=1).text
        assert '{"other": "field"}' in get(client, "/all").text


def test_a_stream_without_an_id_has_a_page(store: Store, client: TestClient) -> None:
    store.write("settings", "Changed", {"n": 1})
    store.write("settings-1", "Changed", {"n": 2})
    assert rows_of(client, "/stream?name=settings")[0] == [0]
    assert rows_of(client, "/category?name=settings")[0] == [2, 1]


def test_a_viewer_needs_a_store_on_an_engine(store: Store, messagedb_engine: Engine) -> None:
    with messagedb_engine.connect() as connection, pytest.raises(InvalidArgument, match="must be on an engine"):
        viewer(Store(connection))
    with pytest.raises(InvalidArgument, match=r"store=Engine.*: must be a Store or an AsyncStore"):
        viewer(messagedb_engine)  # type: ignore[arg-type]
