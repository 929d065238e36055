"""For tests: throwaway PostgreSQL servers and databases, backdated messages, and entities without a database."""

from messagedb_sa.testing._backdated import backdated
from messagedb_sa.testing._database import temporary_database
from messagedb_sa.testing._entities import Scenario, given
from messagedb_sa.testing._server import temporary_server

__all__ = ["Scenario", "backdated", "given", "temporary_database", "temporary_server"]
