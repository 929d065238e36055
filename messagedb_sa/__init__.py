"""Message DB, the event store in PostgreSQL, for SQLAlchemy.

Every public name is listed once, in the ``__all__`` of the module that it belongs to. The names of the modules in
``_NAMES_FROM`` are this package's names too.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from messagedb_sa import compat, functions, health, install, schema, stream_name, testing, transfer
    from messagedb_sa.consumer import *
    from messagedb_sa.entity import *
    from messagedb_sa.errors import *
    from messagedb_sa.message import *
    from messagedb_sa.message_types import *
    from messagedb_sa.metrics import *
    from messagedb_sa.query import *
    from messagedb_sa.store import *
    from messagedb_sa.subscription import *
    from messagedb_sa.tracing import *
else:
    # Lazily, since pytest imports this package at every start for the plugin in it, and SQLAlchemy takes its time. What
    # takes longest to import comes last; tracing and metrics import OpenTelemetry.
    from importlib import import_module

    _NAMES_FROM = (
        "errors",
        "message",
        "query",
        "message_types",
        "entity",
        "store",
        "consumer",
        "subscription",
        "tracing",
        "metrics",
    )
    _MODULES = {
        *_NAMES_FROM,
        "compat",
        "functions",
        "health",
        "install",
        "schema",
        "stream_name",
        "testing",
        "transfer",
    }

    def __getattr__(name):
        if name == "__all__":
            names = {each for module in _NAMES_FROM for each in _module(module).__all__}
            found = sorted(names, key=lambda each: (not each.isupper(), each))
        elif name in _MODULES:
            found = _module(name)
        else:
            if name.startswith("_"):
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            homes = (_module(each) for each in _NAMES_FROM)
            home = next((each for each in homes if name in each.__all__), None)
            if home is None:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            found = getattr(home, name)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *_MODULES, *__getattr__("__all__")})

    def _module(name):
        return import_module(f"{__name__}.{name}")
