"""Copies of a store: exported, imported, copied to another one, and compared.

The functions are synchronous. They take a Store on an Engine, and use connections of their own from it.
"""

from messagedb_sa.transfer._arrow import export_arrow, export_parquet, to_arrow
from messagedb_sa.transfer._copy import copy
from messagedb_sa.transfer._export import export_messages
from messagedb_sa.transfer._import import import_messages
from messagedb_sa.transfer._raw import SETTLE_SECONDS
from messagedb_sa.transfer._results import Difference, Transferred, TransferRefused, Verified
from messagedb_sa.transfer._verify import verify

__all__ = [
    "SETTLE_SECONDS",
    "Difference",
    "TransferRefused",
    "Transferred",
    "Verified",
    "copy",
    "export_arrow",
    "export_messages",
    "export_parquet",
    "import_messages",
    "to_arrow",
    "verify",
]
