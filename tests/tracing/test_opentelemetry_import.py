"""The global provider, and life without OpenTelemetry installed."""

from __future__ import annotations

import subprocess
import sys

from messagedb_sa import Store


def test_without_a_provider_the_global_one_is_used_even_if_it_is_set_later() -> None:
    run("""
        from datetime import datetime
        from messagedb_sa import Message, Tracing
        tracing = Tracing()
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        message = Message("", "a-1", "T", 0, 1, None, None, datetime.now())
        with tracing.handling(message, category="a"):
            span = trace.get_current_span()
        assert span.name == "process a", span
        assert span.instrumentation_scope.name == "messagedb_sa"
        assert span.instrumentation_scope.version
    """)


def test_opentelemetry_is_not_imported_if_nothing_is_traced() -> None:
    run("""
        import sys
        import messagedb_sa
        messagedb_sa.Store.from_url("postgresql://"), messagedb_sa.AsyncStore
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    """)


def test_everything_but_tracing_and_metrics_works_without_opentelemetry(messagedb_url: str, store: Store) -> None:
    run(
        """
        import importlib, pkgutil, sys

        class Refusing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "opentelemetry":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Refusing())
        import messagedb_sa

        for module in pkgutil.iter_modules(messagedb_sa.__path__):
            if module.name != "migrations":
                importlib.import_module(f"messagedb_sa.{module.name}")
        for name in messagedb_sa.__all__:
            getattr(messagedb_sa, name)
        store = messagedb_sa.Store.from_url(sys.argv[1])
        store.write("account-1", "Opened", {})
        store.write_batch("account-1", [("Opened", {})])
        store.write_streams([("account-1", [("Opened", {})])])
        assert [each.metadata for each in store.read("account-1")] == [None] * 3
        store.engine.dispose()
        for make in (messagedb_sa.Tracing, messagedb_sa.Metrics):
            try:
                make()
            except messagedb_sa.MessageDBError as error:
                assert 'pip install "messagedb-sa[opentelemetry]"' in str(error)
            else:
                raise AssertionError("no error")
        """,
        messagedb_url,
    )


def run(program: str, *arguments: str) -> None:
    lines = program.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    code = "\n".join(line[indent:] for line in lines)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
