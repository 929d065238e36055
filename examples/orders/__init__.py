"""An example: a FastAPI application that commits its orders and their messages in one transaction.

app.py is the application, migrations/ has its Alembic revisions, and test_app.py has its tests. To run it:

    $ pip install "messagedb-sa[examples]" uvicorn
    $ export DATABASE_URL=postgresql+psycopg2://localhost/orders
    $ alembic -n messagedb upgrade head && alembic upgrade head        (in examples/orders)
    $ uvicorn --factory orders.app:create_app                          (in examples)
"""
