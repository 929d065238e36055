"""An application that was there before the store: a table of its own, with an Alembic history of its own."""

from sqlalchemy import Column, Integer, MetaData, Table, Text

metadata = MetaData()
products = Table(
    "products", metadata, Column("number", Integer, primary_key=True), Column("name", Text, nullable=False)
)
