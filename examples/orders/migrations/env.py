"""Runs the application's own revisions. For the store's revisions, see the section [messagedb] of alembic.ini."""

import os

from alembic import context
from orders.app import Base
from sqlalchemy import create_engine

from messagedb_sa.schema import include_name

with create_engine(os.environ["DATABASE_URL"]).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, include_name=include_name)
    with context.begin_transaction():
        context.run_migrations()
