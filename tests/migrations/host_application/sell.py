"""Installs the store inside a transaction of the application's, with a row and a message, and ends it as told."""

import os
import sys

from shop import products
from sqlalchemy import create_engine, insert

from messagedb_sa import Store, install

with create_engine(os.environ["MESSAGEDB_URL"]).connect() as connection:
    install.upgrade(connection)
    connection.execute(insert(products).values(number=7, name="chair"))
    Store(connection).write("product-7", "Sold", {"name": "chair"})
    if sys.argv[1] == "commit":
        connection.commit()
