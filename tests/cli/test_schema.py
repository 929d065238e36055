"""install, upgrade, downgrade, current and sql."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, func, make_url, select, text

from messagedb_sa import Store, install
from messagedb_sa._revisions import lock_out_other_upgrades

from ..support import HEAD
from ..waits import wait_until_blocked
from .support import Terminal, messagedb, on_terminal, plain, rows, running


@pytest.fixture
def url(empty_database: Engine) -> str:
    return empty_database.url.render_as_string(hide_password=False)


def triggers(engine: Engine) -> object:
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass('message_store.messages')"
        return connection.scalar(text(query))


def test_install_installs_and_then_has_nothing_to_do(empty_database: Engine, url: str) -> None:
    assert rows(messagedb("install", "--json", url=url)) == [{"before": None, "revision": HEAD}]
    assert install.current(empty_database) == HEAD
    assert triggers(empty_database) == 0
    assert rows(messagedb("install", "--json", url=url)) == [{"before": HEAD, "revision": HEAD}]
    done = messagedb("install", "--notify", url=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"The store was at {HEAD} already\n", "")
    assert triggers(empty_database) == 1


def test_install_leaves_an_older_store_as_it_is(empty_database: Engine, url: str) -> None:
    install.upgrade(empty_database, "messagedb_0003")
    done = messagedb("install", url=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("has a store already, which is at messagedb_0003. To upgrade it: messagedb upgrade\n")
    assert install.current(empty_database) == "messagedb_0003"


def test_upgrade_goes_to_the_revision_and_then_to_the_newest(empty_database: Engine, url: str) -> None:
    done = messagedb("upgrade", "messagedb_0003", url=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "The store is at messagedb_0003\n", "")
    assert rows(messagedb("upgrade", "--json", url=url)) == [{"before": "messagedb_0003", "revision": HEAD}]
    assert messagedb("upgrade", "--no-notify", url=url).stdout == f"The store was at {HEAD} already\n"


def test_an_unknown_revision_is_one_line(url: str) -> None:
    done = messagedb("upgrade", "shop_1", url=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "messagedb: Can't locate revision identified by 'shop_1'\n"


def test_without_the_role_it_is_not_made(url: str, without_role: None, empty_database: Engine) -> None:
    assert messagedb("install", "--no-role", url=url).returncode == 0
    with empty_database.connect() as connection:
        assert connection.scalar(select(func.to_regrole("message_store"))) is None


def test_a_role_that_may_not_make_roles_is_told(
    url: str, without_role: None, empty_database: Engine, login: Callable[..., str]
) -> None:
    role = login("messagedb_owner")
    with empty_database.begin() as connection:
        connection.execute(text(f"GRANT CREATE ON DATABASE {connection.engine.url.database} TO {role}"))
    done = messagedb("install", url=make_url(url).set(username=role).render_as_string())
    with empty_database.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("messagedb: the role message_store was not created, because messagedb_owner may not")


def test_two_that_install_at_the_same_time_wait_for_each_other(empty_database: Engine, url: str) -> None:
    with empty_database.connect() as connection, running("install", url=url) as one, running("install", url=url) as two:
        with connection.begin():
            lock_out_other_upgrades(connection)
            wait_until_blocked(empty_database, 2)
        ends = [process.communicate() for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], ends
    # The one that came second has found it done.
    assert sorted(out for out, _ in ends) == [f"The store is at {HEAD}\n", f"The store is at {HEAD}\n"]
    assert install.current(empty_database) == HEAD


def test_a_lock_that_is_held_too_long_is_one_line(empty_database: Engine, url: str) -> None:
    limited = make_url(url).update_query_dict({"options": "-c lock_timeout=50ms"}).render_as_string()
    with empty_database.begin() as connection:
        lock_out_other_upgrades(connection)
        done = messagedb("install", url=limited)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "messagedb: canceling statement due to lock timeout (SQLSTATE 55P03)\n"


def test_a_downgrade_asks_first(empty_database: Engine, url: str) -> None:
    install.upgrade(empty_database)

    def answer(keys: str) -> Callable[[Terminal], None]:
        def then(terminal: Terminal) -> None:
            terminal.read_until("[y/N]")
            terminal.type(keys)

        return then

    for keys in ("n\n", "\n", "\x04"):
        code, shown = on_terminal("downgrade", "base", then=answer(keys), MESSAGEDB_URL=url)
        assert code == 1
        assert f"Remove the store from {make_url(url).render_as_string()}?" in plain(shown).replace("\n", "")
        assert "nothing was changed" in shown
        assert install.current(empty_database) == HEAD
    code, shown = on_terminal("downgrade", "messagedb_0004", then=answer("y\n"), MESSAGEDB_URL=url)
    assert (code, "The store is at messagedb_0004\n" in shown) == (0, True)


def test_ctrl_c_at_the_question_changes_nothing(empty_database: Engine, url: str) -> None:
    install.upgrade(empty_database)

    def interrupt(terminal: Terminal) -> None:
        terminal.read_until("[y/N]")
        terminal.type("\x03")

    code, shown = on_terminal("downgrade", "base", then=interrupt, MESSAGEDB_URL=url)
    assert (code, "Traceback" in shown) == (130, False)
    assert install.current(empty_database) == HEAD


def test_where_nobody_can_be_asked_it_wants_the_option(empty_database: Engine, url: str) -> None:
    install.upgrade(empty_database)
    done = messagedb("downgrade", "base", url=url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("? Nobody can be asked, since this is not a terminal: pass --yes\n")
    assert install.current(empty_database) == HEAD
    assert rows(messagedb("downgrade", "base", "--yes", "--json", url=url)) == [{"before": HEAD, "revision": None}]
    assert install.current(empty_database) is None


def test_messages_are_lost_only_if_one_says_so(empty_database: Engine, url: str) -> None:
    install.upgrade(empty_database)
    Store(empty_database).write_batch("account-1", [("Opened", {}), ("Closed", {})])
    done = messagedb("downgrade", "base", "--yes", url=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "messagedb: this downgrade would delete 2 messages: to allow that, pass --discard-messages\n"
    )
    assert len(Store(empty_database).read("account-1")) == 2
    done = messagedb("downgrade", "base", "--yes", "--discard-messages", url=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "The store is removed\n", "")
    assert messagedb("downgrade", "base", "--yes", url=url).returncode == 4


def test_the_printed_sql_makes_and_removes_a_store(empty_database: Engine) -> None:
    def run(script: subprocess.CompletedProcess[str]) -> None:
        assert script.returncode == 0, script.stderr
        # It has a transaction of its own.
        with empty_database.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql(script.stdout.replace("%", "%%"))

    run(messagedb("sql", "base:messagedb_0004"))
    assert install.current(empty_database) == "messagedb_0004"
    run(messagedb("sql", "messagedb_0004:head", "--notify"))
    assert install.current(empty_database) == HEAD
    assert triggers(empty_database) == 1
    run(messagedb("sql", "--downgrade"))
    assert install.current(empty_database) is None
    run(messagedb("sql"))
    assert install.current(empty_database) == HEAD


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["head"], 2, "must be two revisions"),
        (["base:none"], 1, "Can't locate revision"),
        (["--discard-messages"], 2, "is for a downgrade"),
        (["--downgrade", "--no-role"], 2, "are for an upgrade"),
        (["--downgrade", "base:head"], 1, "not a valid downgrade target"),
    ],
)
def test_where_the_sql_cannot_be_made_nothing_of_it_is_printed(arguments: list[str], code: int, said: str) -> None:
    done = messagedb("sql", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert said in done.stderr
