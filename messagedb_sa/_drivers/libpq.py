"""How a connection of psycopg2 or psycopg was made, for other clients that connect with libpq."""

from __future__ import annotations

from typing import Any


def connection_string(connection: Any, **settings: str) -> str:
    """The parameters of an open connection, with its password, in libpq's form ``host='localhost' port='5432'``.

    It does not matter where they came from: a URL, arguments, an event, the environment, a password file. ``settings``
    take precedence. Never show the result.
    """
    info = connection.info
    parameters = _given(connection)
    # libpq's defaults, such as the folder of the socket, depend on how it was built.
    for name in ("user", "dbname", "port", *(() if "hostaddr" in parameters else ("host",))):
        parameters.setdefault(name, str(getattr(info, name)))
    if info.password:
        parameters["password"] = info.password
    return " ".join(f"{name}='{_escaped(value)}'" for name, value in {**parameters, **settings}.items())


def _given(connection: Any) -> dict[str, str]:
    """The parameters that are not libpq's defaults, without the password."""
    if hasattr(connection, "dsn"):
        from psycopg2.extensions import parse_dsn  # type: ignore[import-untyped]

        given: dict[str, str] = parse_dsn(connection.dsn)
        # The driver shows another one.
        given.pop("password", None)
    else:
        given = connection.info.get_parameters()
        # A default that this driver reports, and that an older libpq does not know.
        if given.get("sslcertmode") == "allow":
            del given["sslcertmode"]
    return given


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
