"""The table of products"""

import sqlalchemy as sa
from alembic import op

revision = "shop_1"
down_revision = None
branch_labels = ("shop",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "products", sa.Column("number", sa.Integer, primary_key=True), sa.Column("name", sa.Text, nullable=False)
    )


def downgrade() -> None:
    op.drop_table("products")
