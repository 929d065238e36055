"""consumer_positions: a table for the positions of consumers, and an index of the positions that are messages

Revision ID: messagedb_0004
Create Date: 2026-11-26
"""

from messagedb_sa._revisions import run, switch

revision = "messagedb_0004"
down_revision = "messagedb_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0004", "table_consumer_positions", "index_messages_recorded")
    if switch("role", default=True):
        run("0004", "privileges")


def downgrade() -> None:
    run("0004", "write_positions_to_streams", "drop_table_consumer_positions", "drop_index_messages_recorded")
