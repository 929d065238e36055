"""The command ``serve``: the viewer in the browser."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from importlib import import_module
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._output import Column, Output

if TYPE_CHECKING:
    from messagedb_sa import AsyncConsumer, Consumer

commands = Commands()

_STOP_SECONDS = 5


@commands.add("serve")
def serve(
    database: Database,
    output: Output,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="The address to listen at. For any that other machines reach, a token is required."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for a free one.")] = 8420,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="MESSAGEDB_TOKEN",
            show_envvar=True,
            help="What readers must know, 16 characters or more. Other users of this machine see it in the list of "
            "processes, so prefer the variable. Default: none on this machine, else a new one, which is printed.",
            show_default=False,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="A name under which browsers may reach it, such as that of a proxy. May be repeated.",
            show_default=False,
        ),
    ] = None,
    actions: Annotated[
        bool, typer.Option("--actions", help="Let readers discard parked messages, and replay them with --consumers.")
    ] = False,
    consumers: Annotated[
        list[str] | None,
        typer.Option(
            "--consumers",
            metavar="MODULE:NAME",
            help="A Consumer, or a list of them, to replay parked messages with. May be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the store in the browser, until you press Ctrl-C."""
    try:
        import uvicorn

        from messagedb_sa.viewer import viewer
        from messagedb_sa.viewer._live import close_all
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "starlette", "uvicorn"):
            raise
        raise Failure(
            f'the package {error.name} is missing: pip install "messagedb-sa[cli,web]"', ExitCode.USAGE
        ) from None
    from sqlalchemy import create_engine

    from messagedb_sa import Store

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _tell(output, listening, host, token, database)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # It waits for its answers to end, and those of live pages never do.
            await close_all()
            await super().shutdown(sockets)

    if token is None and not _is_loopback(host):
        token = secrets.token_urlsafe(24)
    # Requests are handled in threads, where a signal need not get through.
    engine = create_engine(
        database.url, pool_pre_ping=True, connect_args={"fallback_application_name": "messagedb serve"}
    )
    try:
        store = Store(engine)
        app = viewer(
            store, token=token, allowed_hosts=allowed_host or None, actions=actions, consumers=_imported(consumers)
        )
        store.version()
        listening = _listen(host, port)
        with listening:
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
            Server(config).run([listening])
    except KeyboardInterrupt:
        # That is how it ends.
        return
    finally:
        engine.dispose()


def _tell(output: Output, listening: socket.socket, host: str, token: str | None, database: Database) -> None:
    address, port = listening.getsockname()[:2]
    if ip_address(address).is_unspecified:
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    # What stands after # stays in the browser, which logs in with it.
    url = f"http://{name}:{port}/{'' if token is None else f'#{token}'}"
    if output.json:
        output.values([Column("url")], [url])
    else:
        output.line(f"The viewer of {database.shown} runs until you press Ctrl-C, at")
        output.line("")
        output.line(f"  {url}")
        if token is not None:
            output.line("")
            output.line("Whoever has the whole address can read all messages. It is not encrypted on its way.")
    output.flush()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Failure(f"cannot listen at {host}, port {port}: {reason}. Pass another --host or --port") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _imported(names: list[str] | None) -> list[Consumer | AsyncConsumer]:
    from messagedb_sa import AsyncConsumer, Consumer

    found: list[Consumer | AsyncConsumer] = []
    for name in names or ():
        module, colon, attribute = name.partition(":")
        if not (module and colon and attribute):
            raise Failure(f"--consumers {name!r}: must be MODULE:NAME, such as shop.consumers:all", ExitCode.USAGE)
        # As python -m would find it.
        if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path has texts
            sys.path.insert(0, here)
        try:
            value: Any = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise Failure(f"--consumers {name!r}: {error}", ExitCode.USAGE) from error
        several = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(each, (Consumer, AsyncConsumer)) for each in several):
            raise Failure(f"--consumers {name!r}: must be a Consumer, or a list of them", ExitCode.USAGE)
        found += several
    return found
