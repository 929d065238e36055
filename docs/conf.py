"""The manual: Sphinx, with pages in Markdown (MyST) and the theme furo. `make docs` builds it."""

from __future__ import annotations

import os
from importlib.metadata import version as installed_version
from typing import Any

from sphinx.application import Sphinx

project = "messagedb_sa"
author = "the messagedb_sa contributors"
project_copyright = author
version = release = installed_version("messagedb-sa")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx_copybutton"]
# The figures are reports of make bench, which the page on performance includes.
exclude_patterns = ["_build", "explanation/figures/*.md"]
nitpicky = False

html_theme = "furo"
html_title = "messagedb_sa"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
# Every heading down to this level has an anchor, as on GitHub.
myst_heading_anchors = 3
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# As the source says it: without this, defaults such as BATCH_SIZE are shown as values.
autodoc_preserve_defaults = True
# SQLAlchemy's docstrings refer to its own manual.
autodoc_inherit_docstrings = False
# Messages have a field with the name of the builtin "type".
suppress_warnings = ["ref.python"]
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

# Links into SQLAlchemy's, Alembic's and Python's references need their inventories from the network.
if os.environ.get("READTHEDOCS"):
    intersphinx_mapping = {
        "alembic": ("https://alembic.sqlalchemy.org/en/latest/", None),
        "python": ("https://docs.python.org/3/", None),
        "sqlalchemy": ("https://docs.sqlalchemy.org/en/21/", None),
    }


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _without_what_python_says)


def _without_what_python_says(*arguments: Any) -> None:
    """A field of a named tuple has its class's docstring, and no other."""
    lines = arguments[-1]
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = [""]
