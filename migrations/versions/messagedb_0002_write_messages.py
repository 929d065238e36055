"""write_messages: an additional function that writes batches

Revision ID: messagedb_0002
Create Date: 2026-11-24
"""

from messagedb_sa._revisions import run, switch

revision = "messagedb_0002"
down_revision = "messagedb_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0002", "function_write_messages")
    if switch("role", default=True):
        run("0002", "privileges")


def downgrade() -> None:
    run("0002", "drop_function_write_messages")
