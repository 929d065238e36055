"""The page on the architecture names every module, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import messagedb_sa

from ..support import REPOSITORY

PAGE = (REPOSITORY / "docs" / "explanation" / "architecture.md").read_text()
PACKAGE = Path(messagedb_sa.__file__).parent
MODULES = {
    path.stem
    for path in PACKAGE.rglob("*.py")
    if not path.stem.startswith("__") and not {"migrations", "testing"} & {*path.relative_to(PACKAGE).parts}
}


def test_the_picture_has_every_module_and_no_other() -> None:
    (picture,) = re.findall(r"^:class: drawing\n\n(   level.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"\b_?[a-z_]+\b", picture.replace(".py", ""))
    assert {word for word in named if word in MODULES} == MODULES
    assert {word for word in named if word[0] == "_"} <= {*MODULES, "_drivers"}


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(r"\b(?:store/|consumer/)?_?[a-z_]+\.py\b", PAGE))
    assert len(named) > 15
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert {each for each in named if not any(file.endswith(each) for file in files)} == set()


def test_every_name_of_code_that_it_mentions_exists() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for name in set(re.findall(r"\b(?!Async)[A-Z][a-zA-Z]+\.([a-z_]+)\b", PAGE)):
        assert re.search(rf"\bdef {name}\b|\bself\.{name} = |\b{name}: ", code), name
