"""An example: a FastAPI application whose orders and messages commit together.

app.py is the application, migrations/ its Alembic history, test_app.py its tests. To run it:

    $ pip install "messagedb-sa[examples]" uvicorn
    $ export DATABASE_URL=postgresql+psycopg2://localhost/orders
    $ alembic -n messagedb upgrade head && alembic upgrade head        (in examples/orders)
    $ uvicorn --factory orders.app:create_app                          (in examples)
"""
