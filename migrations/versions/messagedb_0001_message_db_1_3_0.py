"""Message DB 1.3.0: install it, or upgrade an older Message DB

Revision ID: messagedb_0001
Create Date: 2026-11-23
"""

from messagedb_sa._revisions import run, switch, warn_if_role_is_missing

revision = "messagedb_0001"
down_revision = None
branch_labels = ("messagedb",)
depends_on = None


def upgrade() -> None:
    run(
        "0001",
        "adopt",
        "schema",
        "table_messages",
        "type_message",
        "function_category",
        "function_id",
        "function_cardinal_id",
        "function_is_category",
        "function_hash_64",
        "function_acquire_lock",
        "function_stream_version",
        "function_message_store_version",
        "function_write_message",
        "function_get_stream_messages",
        "function_get_category_messages",
        "drop_get_last_stream_message_1_2",
        "function_get_last_stream_message",
        "index_messages_id",
        "index_messages_stream",
        "index_messages_category",
        "view_type_summary",
        "view_stream_summary",
        "view_stream_type_summary",
        "view_type_stream_summary",
        "view_category_type_summary",
        "view_type_category_summary",
    )
    if switch("role", default=True):
        run("0001", "role", "privileges")
        warn_if_role_is_missing()


def downgrade() -> None:
    if not switch("discard_messages", default=False):
        run("0001", "refuse_messages")
    run("0001", "drop_views", "drop_table", "drop_functions", "drop_type", "drop_schema")
    if switch("role", default=True):
        run("0001", "drop_role")
