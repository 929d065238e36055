"""notify_category: a function for the trigger that notifies consumers; -x notify=on creates the trigger

Revision ID: messagedb_0003
Create Date: 2026-11-25
"""

from messagedb_sa._revisions import notify_off, run

revision = "messagedb_0003"
down_revision = "messagedb_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0003", "function_notify_category")


def downgrade() -> None:
    notify_off()
    run("0003", "drop_function_notify_category")
