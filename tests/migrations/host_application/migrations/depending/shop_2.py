"""A product, and a message about it: this needs the store"""

from uuid import uuid4

from alembic import op
from sqlalchemy import select

from messagedb_sa import functions

revision = "shop_2"
down_revision = "shop_1"
branch_labels = None
depends_on = "messagedb"


def upgrade() -> None:
    op.execute("INSERT INTO products VALUES (1, 'lamp')")
    op.get_bind().execute(select(functions.write_message(uuid4(), "product-1", "Listed", {"name": "lamp"})))


def downgrade() -> None:
    op.execute("DELETE FROM products WHERE number = 1")
