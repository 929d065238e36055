"""Where the URL of the database may be set: in an option, in the environment, in an ini file of Alembic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from configparser import InterpolationError
from contextlib import contextmanager
from typing import TYPE_CHECKING

from messagedb_sa._drivers.urls import checked

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import URL

VARIABLE = "the environment variable MESSAGEDB_URL"


@contextmanager
def interpolation_explained() -> Iterator[None]:
    """ValueError, without the value, if a value in the ini file has a single %."""
    try:
        yield
    except InterpolationError as error:
        # The error's own text has the value in it, and so the password.
        raise ValueError(f"{error.option} in [{error.section}]: write each % as %%") from None


def urls_of(config: Config) -> Iterator[tuple[str, str | None]]:
    """Where the ini file may set a URL, and the URL that is set there: the first one counts."""
    for section in dict.fromkeys((config.config_ini_section, "alembic")):
        if config.file_config.has_section(section):
            with interpolation_explained():
                url = config.get_section_option(section, "sqlalchemy.url")
            yield f"sqlalchemy.url in [{section}]", url


def first_url(sources: Iterable[tuple[str, str | None]], remedy: str) -> tuple[str, URL]:
    """The first URL that is set, checked, and where. Raises ValueError if there is none, or if it is wrong."""
    source, url = next(((source, url) for source, url in sources if url), ("", ""))
    if not url:
        raise ValueError(f"there is no database URL: {remedy}")
    try:
        return source, checked(url)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
