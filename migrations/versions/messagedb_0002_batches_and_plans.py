"""write_messages, for batches, and a plan that holds for reads of categories

Revision ID: messagedb_0002
Create Date: 2026-11-24
"""

from messagedb_sa.revisions import run, switch

revision = "messagedb_0002"
down_revision = "messagedb_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0002", "function_write_messages", "count_rows_not_pages")
    if switch("role", default=True):
        run("0002", "privileges")


def downgrade() -> None:
    run("0002", "count_pages_again", "drop_function_write_messages")
