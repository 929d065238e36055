"""get_query_messages: an additional function that reads by types and tags, and checks conditional appends

Revision ID: messagedb_0005
Create Date: 2026-11-26
"""

from messagedb_sa._revisions import run, switch

revision = "messagedb_0005"
down_revision = "messagedb_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0005", "function_get_query_messages")
    if switch("role", default=True):
        run("0005", "privileges")


def downgrade() -> None:
    run("0005", "drop_function_get_query_messages")
