"""Parked messages in the viewer, what can be done with them, and that nobody else can do it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, DeadLetter, InvalidArgument, Message, Store
from messagedb_sa.viewer import viewer

from ..support import as_role
from .support import browser

SAME = {"Sec-Fetch-Site": "same-origin"}
UNKNOWN = "00000000-0000-4000-8000-000000000007"
TOKEN = "a-token-of-the-tests"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "messagedb_sa.consumer")


def fail(message: Message) -> None:
    raise ValueError(f"no {message.data['n']} <b>today</b>")


def park(store: Store, number: int, identifier: str | None = "mailer") -> list[DeadLetter]:
    for n in range(number):
        store.write(f"account-{n}", "Opened", {"n": n}, {"trace": f"t-{n}"})
    Consumer(store, "account", fail, identifier, on_failure="park").run_until_caught_up()
    return [*store.iter_dead_letters("account")]


@pytest.fixture
def letters(store: Store) -> list[DeadLetter]:
    return park(store, 3)


@pytest.fixture
def acting(either_store: Store | AsyncStore) -> Iterator[TestClient]:
    with browser(viewer(either_store, actions=True)) as client:
        yield client


def form(client: TestClient, action: str, *letters: DeadLetter) -> dict[str, Any]:
    """The fields of the form on the page that asks for confirmation."""
    answer = client.get("/confirm", params={"action": action, "id": [each.id for each in letters]})
    assert answer.status_code == 200, answer.text
    fields: dict[str, Any] = {"id": []}
    for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.text):
        if name == "id":
            fields["id"].append(value)
        else:
            fields[name] = value
    return fields


def open_ids(store: Store) -> set[str]:
    return {each.id for each in store.iter_dead_letters("account")}


# ---- looking


def test_the_list_and_the_page_of_one_show_what_failed_and_why(client: TestClient, letters: list[DeadLetter]) -> None:
    listed = client.get("/parked").text
    for n, letter in enumerate(letters):
        assert f"ValueError: no {n} &lt;b&gt;today&lt;/b&gt;" in listed
        assert f'href="parked-message?id={letter.id}"' in listed
    one = client.get("/parked-message", params={"id": letters[1].id}).text
    for expected in ("ValueError: no 1 &lt;b&gt;", "Traceback", "in fail", "account-1", "t-1", letters[1].message.id):
        assert expected in one
    assert "<form action=" not in one.partition("<main")[2]


def test_those_of_one_category_are_listed_apart(client: TestClient, store: Store, letters: list[DeadLetter]) -> None:
    assert letters[0].id in client.get("/parked", params={"category": "account"}).text
    other = client.get("/parked", params={"category": "order"}).text
    assert "No message is parked in order." in other


def test_a_hundred_are_listed_and_the_page_says_that_there_are_more(client: TestClient, store: Store) -> None:
    ids = [each.id for each in park(store, 101)]
    listed = client.get("/parked").text
    assert [each in listed for each in ids] == [True] * 100 + [False]
    assert "There are more" in listed


@pytest.mark.parametrize(("id", "status"), [("7", 400), (UNKNOWN, 404), ("", 400)])
def test_what_is_not_parked_is_not_found(client: TestClient, store: Store, id: str, status: int) -> None:
    answer = client.get("/parked-message", params={"id": id})
    assert answer.status_code == status
    assert "text/html" in answer.headers["content-type"]


# ---- switched off


def test_without_the_option_nothing_can_be_done(client: TestClient, store: Store, letters: list[DeadLetter]) -> None:
    for path in ("confirm", "resolve"):
        assert client.get(f"/{path}", params={"action": "discard", "id": letters[0].id}).status_code == 404
        given = {"action": "discard", "id": letters[0].id, "token": "0" * 64}
        assert client.post(f"/{path}", data=given, headers=SAME).status_code == 404
    assert len(open_ids(store)) == 3
    assert 'name="action"' not in client.get("/parked").text


@pytest.mark.parametrize("consumers", ["account", [1], [None], 7])
def test_the_consumers_must_be_consumers(store: Store, consumers: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^consumers"):
        viewer(store, actions=True, consumers=consumers)


def test_consumers_need_the_actions_to_be_switched_on(store: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"^consumers=.* is only for actions=True"):
        viewer(store, consumers=[Consumer(store, "account", fail)])


# ---- discarding and replaying


def test_chosen_messages_are_discarded_after_a_confirmation(
    acting: TestClient, store: Store, letters: list[DeadLetter]
) -> None:
    asked = form(acting, "discard", *letters[:2])
    assert len(open_ids(store)) == 3
    done = acting.post("/resolve", data=asked, headers=SAME)
    assert [each.status_code for each in done.history] == [303]
    assert "2 of 2 discarded." in done.text
    assert open_ids(store) == {letters[2].id}
    # Of a form that is sent again, nothing is left to do.
    assert "0 of 2 discarded." in acting.post("/resolve", data=asked, headers=SAME).text


@pytest.mark.parametrize("kind", [Consumer, AsyncConsumer])
def test_chosen_messages_are_replayed_by_their_own_consumer(
    kind: Any, store: Store, messagedb_async_store: AsyncStore, letters: list[DeadLetter]
) -> None:
    handled: list[int] = []

    def handle(message: Message) -> None:
        if message.data["n"] == 1:
            raise ValueError("not yet")
        handled.append(message.data["n"])

    consumer = kind(store if kind is Consumer else messagedb_async_store, "account", handle, "mailer")
    given: Any = store if kind is Consumer else messagedb_async_store
    with browser(viewer(given, actions=True, consumers=[consumer])) as client:
        answer = client.post("/resolve", data=form(client, "replay", *letters[:2]), headers=SAME)
        assert "1 of 2 handled. The others failed again" in answer.text
        assert "ValueError: not yet" in answer.text
        assert (handled, len(open_ids(store))) == ([0], 2)
        assert "1 of 1 handled." in client.post("/resolve", data=form(client, "replay", letters[2]), headers=SAME).text
    assert handled == [0, 2]
    assert open_ids(store) == {letters[1].id}


def test_what_another_consumer_parked_cannot_be_replayed(store: Store) -> None:
    (letter,) = park(store, 1, "statements")
    mailer = Consumer(store, "account", fail, "mailer")
    with browser(viewer(store, actions=True, consumers=[mailer])) as client:
        refused = client.get("/confirm", params={"action": "replay", "id": letter.id})
        assert "made without the consumers that parked 1 of them" in refused.text
        page = client.get("/parked-message", params={"id": letter.id}).text
        assert 'value="discard"' in page
        assert 'value="replay"' not in page


@pytest.mark.parametrize(
    "parameters",
    [{"action": "drop"}, {"action": "discard"}, {"action": "discard", "id": "7"}, {"id": UNKNOWN}],
    ids=["unknown", "none", "no-uuid", "no-action"],
)
def test_a_wrong_choice_is_refused(acting: TestClient, store: Store, parameters: dict[str, str]) -> None:
    assert acting.get("/confirm", params=parameters).status_code == 400


def test_more_than_a_page_has_are_refused(acting: TestClient, store: Store) -> None:
    ids = [str(uuid4()) for _ in range(101)]
    assert acting.get("/confirm", params={"action": "discard", "id": ids}).status_code == 400
    sent = acting.post("/resolve", data={"action": "discard", "id": ids * 3, "token": "0"}, headers=SAME)
    assert sent.status_code == 400


def test_a_role_that_may_only_read_sees_all_and_can_discard_nothing(
    store: Store, letters: list[DeadLetter], login: Callable[..., str]
) -> None:
    role = login("viewer_reader")
    with store.engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA message_store TO {role}"))
        connection.execute(text(f"GRANT SELECT ON message_store.messages TO {role}"))
        connection.execute(text(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA message_store TO {role}"))
    reading = Store(as_role(store.engine, role))
    try:
        with browser(viewer(reading, actions=True)) as client:
            for path in ("/parked", f"/parked-message?id={letters[0].id}", "/consumers", "/live"):
                assert client.get(path).status_code == 200, path
            refused = client.post("/resolve", data=form(client, "discard", letters[0]), headers=SAME)
            assert refused.status_code in (403, 503)
            assert "permission denied" in refused.text or "privilege" in refused.text
        assert len(open_ids(store)) == 3
    finally:
        reading.engine.dispose()
        with store.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))


# ---- forgery


FORGED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "without a token": ({"token": ""}, SAME),
    "with a made-up token": ({"token": "0" * 64}, SAME),
    "from another site": ({}, {"Sec-Fetch-Site": "cross-site"}),
    "from another subdomain": ({}, {"Sec-Fetch-Site": "same-site"}),
    "by an address that was typed": ({}, {"Sec-Fetch-Site": "none"}),
    "from another origin": ({}, {"Origin": "http://evil.example"}),
    "from another port": ({}, {"Origin": "http://localhost:8080"}),
    "from an origin that hides": ({}, {"Origin": "null"}),
    "by no browser": ({}, {}),
    "for another action": ({"action": "replay"}, SAME),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_request_changes_nothing(
    acting: TestClient, store: Store, letters: list[DeadLetter], how: str
) -> None:
    changed, headers = FORGED[how]
    answer = acting.post("/resolve", data={**form(acting, "discard", letters[0]), **changed}, headers=headers)
    assert (answer.status_code, len(open_ids(store))) == (403, 3)


def test_a_token_is_good_for_the_messages_of_its_form_only(
    acting: TestClient, store: Store, letters: list[DeadLetter]
) -> None:
    asked = form(acting, "discard", letters[0])
    for ids in ([letters[1].id], [letters[0].id, letters[1].id]):
        assert acting.post("/resolve", data={**asked, "id": ids}, headers=SAME).status_code == 403
    assert len(open_ids(store)) == 3


def test_a_token_of_another_browser_is_refused(
    either_store: Store | AsyncStore, store: Store, letters: list[DeadLetter]
) -> None:
    app = viewer(either_store, actions=True)
    with browser(app) as ours:
        asked = form(ours, "discard", letters[0])
        # One that has no cookie, and one that has its own.
        theirs = browser(app)
        assert ours.portal is not None
        theirs.portal = ours.portal
        assert theirs.post("/resolve", data=asked, headers=SAME).status_code == 403
        own = form(theirs, "discard", letters[0])
        assert own["token"] != asked["token"]
        assert theirs.post("/resolve", data=asked, headers=SAME).status_code == 403
        assert len(open_ids(store)) == 3
        assert theirs.post("/resolve", data=own, headers=SAME).status_code == 200
        assert len(open_ids(store)) == 2


def test_a_token_ends_with_the_login_that_it_was_made_for(store: Store, letters: list[DeadLetter]) -> None:
    with browser(viewer(store, actions=True, token=TOKEN)) as client:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        client.post("/login", data={"token": TOKEN}, headers=SAME)
        asked = form(client, "discard", letters[0])
        client.cookies.delete("messagedb_viewer")
        assert client.post("/resolve", data=asked, headers=SAME).status_code == 401
        # Not with a bearer's token either: the form is not of that one.
        assert client.post("/resolve", data=asked, headers={**SAME, **bearer}).status_code == 403
    assert len(open_ids(store)) == 3


def test_a_link_changes_nothing(acting: TestClient, store: Store, letters: list[DeadLetter]) -> None:
    asked = form(acting, "discard", letters[0])
    assert acting.get("/resolve", params=asked, headers=SAME).status_code == 405
    assert acting.head("/resolve", params=asked, headers=SAME).status_code == 405
    assert len(open_ids(store)) == 3


def test_the_cookie_is_kept_from_scripts_and_from_other_sites(acting: TestClient, letters: list[DeadLetter]) -> None:
    answer = acting.get("/confirm", params={"action": "discard", "id": letters[0].id})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "; secure" not in cookie


def test_the_form_may_be_sent_to_the_own_origin_only(acting: TestClient, letters: list[DeadLetter]) -> None:
    answer = acting.get("/confirm", params={"action": "discard", "id": letters[0].id})
    policy = answer.headers["content-security-policy"]
    assert "form-action 'self'" in policy
    assert "frame-ancestors 'none'" in policy
