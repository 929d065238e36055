import os

import shop
from alembic import context
from sqlalchemy import create_engine

from messagedb_sa.schema import include_name

with create_engine(os.environ["MESSAGEDB_URL"]).connect() as connection:
    context.configure(
        connection=connection, target_metadata=shop.metadata, include_schemas=True, include_name=include_name
    )
    with context.begin_transaction():
        context.run_migrations()
