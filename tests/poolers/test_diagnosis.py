"""Diagnosing a store behind PgBouncer: it is found by the process ids, on every driver."""

from __future__ import annotations

import pytest

from messagedb_sa.install import diagnose

from ..support import DRIVERS, on


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_pooler_in_between_is_found_and_its_remedy_is_to_connect_directly(
    pooled_url: str, messagedb_url: str, driver: str
) -> None:
    behind, direct = (on(driver, url, diagnose) for url in (pooled_url, messagedb_url))
    (found,) = (each for each in behind if each.code == "pooler")
    assert (found.severity, "a connection pooler is in between" in found.found) == ("warning", True)
    assert found.remedy is not None
    assert found.remedy.startswith("Connect workers to the server itself")
    assert {each.code for each in behind if each.severity != "ok"} == {"pooler"}
    assert "pooler" in {each.code for each in direct if each.severity == "ok"}
