"""The text of an error of any class, also of one that cannot be shown."""

from __future__ import annotations


def text_of(error: BaseException) -> str:
    """The error's text. Anybody may have written its class: a ``__str__`` that raises must not hide the error."""
    try:
        return str(error)
    except Exception as failed:  # noqa: BLE001 - whatever it is
        return f"(no text: its __str__ raised {type(failed).__name__})"
