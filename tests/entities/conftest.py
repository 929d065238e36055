"""The fixtures of the tests of the store, for those of entities."""

from __future__ import annotations

from ..store.conftest import engine

__all__ = ["engine"]
