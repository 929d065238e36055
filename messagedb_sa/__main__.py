"""``python -m messagedb_sa``: the command ``messagedb``."""

from messagedb_sa.cli import main

if __name__ == "__main__":
    main()
