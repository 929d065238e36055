"""The README and the manual: each page is followed as a reader would, and each link leads somewhere."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support import REPOSITORY
from .pages import MANUAL, reader

PAGES = [
    Path("README.md"),
    *sorted(path.relative_to(REPOSITORY) for path in MANUAL.rglob("*.md") if not {"_build", "figures"} & {*path.parts}),
]
SITE = "https://messagedb-sa.readthedocs.io/en/latest/"
# Pages that are longer than 250 lines, and why.
LONG_PAGES: dict[str, str] = {}


@pytest.fixture
def folder() -> Iterator[Path]:
    """In every user's reach: if the reader is root, another user runs the PostgreSQL that a page keeps there."""
    with tempfile.TemporaryDirectory(prefix="mdsa-", dir="/tmp") as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_block_of_the_page_does_what_it_says(
    page: Path, folder: Path, messagedb_server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("MESSAGEDB_URL", raising=False)
    monkeypatch.chdir(folder)
    with reader(REPOSITORY / page, folder, messagedb_server_url, os.environ) as one:  # type: ignore[arg-type]
        one.read()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_page_is_longer_than_250_lines_without_a_reason(page: Path) -> None:
    lines = (REPOSITORY / page).read_text("utf-8").count("\n")
    assert (lines > 250) == (str(page) in LONG_PAGES), lines


def test_the_readme_is_short_and_its_links_lead_to_pages_of_the_manual() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    assert text.count("\n") <= 200
    # The package index shows neither pictures nor pages of the repository.
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")] == []
    linked = re.findall(rf"{re.escape(SITE)}([^)]*)", text)
    assert len(linked) > 5
    assert [page for page in linked if page and not (MANUAL / f"{page.rstrip('/')}.md").exists()] == []
