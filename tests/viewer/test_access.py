"""Who may see the pages, and what protects them in a browser."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from messagedb_sa import InvalidArgument, Store
from messagedb_sa.viewer import viewer
from messagedb_sa.viewer._access import SESSION_SECONDS

from .support import Page, browser, crawl, get

TOKEN = "a-token-of-32-characters-0123456"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(autouse=True)
def written(store: Store) -> None:
    store.write("account-1", "Secret", {})


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "127.9.9.9", "[::1]:80", "x.localhost"])
def test_without_a_token_this_machine_is_answered(store: Store, host: str) -> None:
    client = browser(viewer(store))
    assert client.get("/all", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example", "", "a@localhost:x", "[::1"],
)
def test_without_a_token_no_other_host_name_is_answered(store: Store, host: str) -> None:
    client = browser(viewer(store))
    for path in ("/", "/all", "/static/viewer.css", "/login", "/nothing"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 400
        assert "Secret" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("address", ["10.0.0.7", "2001:db8::1", "testclient"])
def test_without_a_token_no_other_machine_is_answered(store: Store, address: str) -> None:
    answer = browser(viewer(store), address=address).get("/all")
    assert answer.status_code == 403
    assert "Only from this machine" in Page(answer.text).text
    assert "Secret" not in answer.text


FORWARDED = [
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Server", "Forwarded", "Via"),
    *("X-Real-IP", "True-Client-IP", "X-Client-IP", "CF-Connecting-IP"),
]


@pytest.mark.parametrize("name", FORWARDED)
def test_without_a_token_what_a_proxy_passes_on_is_not_taken_for_this_machines(store: Store, name: str) -> None:
    assert browser(viewer(store)).get("/all", headers={name: "10.0.0.7"}).status_code == 403


def test_allowed_hosts_replace_the_names_of_this_machine(store: Store) -> None:
    client = browser(
        viewer(store, authenticated=True, allowed_hosts=["Admin.example.com", "[::1]"]), address="10.0.0.7"
    )
    for host, status in (
        ("admin.example.com:443", 200),
        ("ADMIN.EXAMPLE.COM", 200),
        ("[::1]", 200),
        ("localhost", 400),
    ):
        assert client.get("/all", headers={"Host": host}).status_code == status


def test_an_application_that_checks_requests_itself_opens_the_viewer(store: Store) -> None:
    client = browser(viewer(store, authenticated=True), address="10.0.0.7", host="admin.example.com")
    assert "Secret" in client.get("/all", headers={"X-Forwarded-For": "10.0.0.8"}).text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-token-of-32-characters-12"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xe4\xf6\xfc"},
        {"Cookie": f"messagedb_viewer={TOKEN}"},
        {"Cookie": "messagedb_viewer=99999999999.0123"},
        {"Cookie": "messagedb_viewer=" + "9" * 5000 + ".0123"},
        {"Cookie": "messagedb_viewer=\u0663.0".encode().decode("latin-1")},
    ],
    ids=str,
)
def test_with_a_token_nobody_else_is_answered(store: Store, headers: dict[str, str]) -> None:
    client = browser(viewer(store, token=TOKEN))
    encoded: Any = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/", "/all", "/search", "/message?global_position=1", "/raw", "/nothing", "/parked", "/live"):
        answer = client.get(path, headers=encoded)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Secret" not in answer.text
    assert client.get(f"/all?token={TOKEN}", headers=encoded).status_code == 401


def test_with_a_token_it_is_answered_from_anywhere(store: Store) -> None:
    client = browser(viewer(store, token=TOKEN), address="10.0.0.7", host="admin.example.com")
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert "Secret" in client.get("/all", headers={"Authorization": f"{scheme} {TOKEN}"}).text


def test_a_login_is_a_cookie_that_scripts_and_other_sites_do_not_get(store: Store) -> None:
    app = Starlette(routes=[Mount("/messages", viewer(store, token=TOKEN))])
    client = browser(app, host="admin.example.com", follow_redirects=False)
    asked = client.get("/messages/stream?name=account-1&order=oldest")
    page = Page(asked.text)
    assert page.forms == ["login"]
    answer = client.post("/messages/login", data={"token": TOKEN, "to": "stream?name=account-1&order=oldest"})
    assert (answer.status_code, answer.headers["location"]) == (303, "stream?name=account-1&order=oldest")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path" not in cookie
    assert TOKEN not in cookie
    assert "Secret" in client.get("/messages/all").text
    client.post("/messages/logout", headers={"Origin": "http://admin.example.com"})
    assert client.get("/messages/all").status_code == 401


def test_over_https_the_cookie_is_secure(store: Store) -> None:
    client = TestClient(viewer(store, token=TOKEN), base_url="https://admin.example.com", follow_redirects=False)
    assert "secure" in client.post("/login", data={"token": TOKEN}).headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "to",
    ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "../..", "a\r\nX: y", "\\\\x"],
)
def test_a_login_leads_to_our_pages_only(store: Store, to: str) -> None:
    client = browser(viewer(store, token=TOKEN), follow_redirects=False)
    answer = client.post("/login", data={"token": TOKEN, "to": to})
    assert answer.headers["location"] == "./"
    assert "x" not in answer.headers


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN.upper(), "\0", "\U0001f600", "x" * 100_000])
def test_a_wrong_token_is_refused(store: Store, token: str) -> None:
    client = browser(viewer(store, token=TOKEN))
    answer = client.post("/login", data={"token": token})
    assert answer.status_code == 401
    assert "This is not the token." in Page(answer.text).text
    assert "set-cookie" not in answer.headers


def test_a_login_ends_after_twelve_hours_and_with_its_token(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    client = browser(viewer(store, token=TOKEN))
    client.post("/login", data={"token": TOKEN})
    assert client.get("/all").status_code == 200
    cookie = {"messagedb_viewer": client.cookies["messagedb_viewer"]}
    other = browser(viewer(store, token="another-" + TOKEN), cookies=cookie)
    assert other.get("/all").status_code == 401
    until, _, signature = cookie["messagedb_viewer"].partition(".")
    longer = browser(viewer(store, token=TOKEN), cookies={"messagedb_viewer": f"{int(until) + 1}.{signature}"})
    assert longer.get("/all").status_code == 401
    now = time.time()
    monkeypatch.setattr("messagedb_sa.viewer._access.time.time", lambda: now + SESSION_SECONDS - 60)
    assert client.get("/all").status_code == 200
    monkeypatch.setattr("messagedb_sa.viewer._access.time.time", lambda: now + SESSION_SECONDS + 60)
    assert client.get("/all").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:81"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 405),
        ({"Origin": "http://localhost"}, 405),
    ],
    ids=str,
)
def test_what_changes_something_must_come_from_our_pages(store: Store, headers: dict[str, str], status: int) -> None:
    """405: it got as far as the page, which takes no POST."""
    assert browser(viewer(store)).post("/all", headers=headers).status_code == status


def test_another_site_cannot_log_a_reader_out(store: Store) -> None:
    client = browser(viewer(store, token=TOKEN), follow_redirects=False)
    refused = client.post("/logout", headers={"Origin": "https://evil.example"})
    assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
    assert client.post("/logout", headers={"Origin": "http://localhost"}).status_code == 303


def test_a_program_with_the_token_needs_no_page_of_ours(store: Store) -> None:
    client = browser(viewer(store, token=TOKEN))
    assert client.post("/all", headers=BEARER).status_code == 405


def test_every_answer_has_the_headers_that_protect_it(store: Store) -> None:
    client = browser(viewer(store, token=TOKEN))
    for path in (
        "/",
        "/all",
        "/message",
        "/message?global_position=9",
        "/raw?id=x",
        "/login",
        "/no/such/page",
        "/static/x",
    ):
        for headers in ({}, BEARER):
            answer = client.get(path, headers=headers)
            assert "cache-control" in answer.headers
            assert "server" not in answer.headers
            for name, value in (
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "same-origin"),
                ("cross-origin-resource-policy", "same-origin"),
                ("cache-control", "no-store"),
            ):
                assert answer.headers[name] == value, path
            policy = dict(each.strip().split(" ", 1) for each in answer.headers["content-security-policy"].split(";"))
            assert policy.pop("default-src") == "'none'"
            assert {policy.pop(name) for name in ("frame-ancestors", "base-uri")} == {"'none'"}
            assert set(policy.values()) == {"'self'"}
            assert set(policy) == {"script-src", "style-src", "img-src", "connect-src", "form-action"}


def test_browsers_keep_the_files_that_all_pages_use(store: Store) -> None:
    client = browser(viewer(store, token=TOKEN))
    for name in ("viewer.css", "charts.css", "viewer.js", "theme.js", "live.js", "icon.svg"):
        first = client.get(f"/static/{name}")
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        assert client.get(f"/static/{name}", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"token": "short"}, "token"),
        ({"token": ""}, "token"),
        ({"token": "with a space 0123456789"}, "token"),
        ({"token": "ümlaut-0123456789-0123"}, "token"),
        ({"token": 1234567890123456}, "token"),
        ({"token": TOKEN, "authenticated": True}, "authenticated"),
        ({"authenticated": 1}, "authenticated"),
        ({"allowed_hosts": "localhost"}, "allowed_hosts"),
        ({"allowed_hosts": [""]}, "allowed_hosts"),
        ({"allowed_hosts": ["a:80"]}, "allowed_hosts"),
        ({"allowed_hosts": ["*.example.com"]}, "allowed_hosts"),
        ({"allowed_hosts": 7}, "allowed_hosts"),
        ({"actions": "yes"}, "actions"),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused(store: Store, options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        viewer(store, **options)
    assert caught.value.argument == argument
    assert str(options.get("token") or "0123456789") not in str(caught.value)


@pytest.mark.parametrize(
    ("root_path", "prefix"),
    [("", ""), ("/prefix", "/prefix"), ("/prefix", "")],
    ids=["as it is", "behind a proxy", "behind a proxy that takes its prefix away"],
)
def test_mounted_in_another_application_all_links_stay_inside(store: Store, root_path: str, prefix: str) -> None:
    app = FastAPI()
    app.mount("/admin/messages", viewer(store))
    with browser(app, root_path=root_path) as client:
        root = f"{prefix}/admin/messages/"
        pages = crawl(client, root)
        assert any("Secret" in page.text for page in pages.values())
        assert all(url.startswith(root) for url in pages)
        assert client.get(f"{root}static/viewer.css").status_code == 200
        assert "../static/viewer.css" in client.get(f"{root}no/page").text
        get(client, f"{root}no/page", 404)


def test_without_its_last_slash_the_mount_leads_to_the_overview(store: Store) -> None:
    app = FastAPI()
    app.mount("/messages", viewer(store))
    with browser(app) as client:
        assert str(client.get("/messages").url) == "http://localhost/messages/"
