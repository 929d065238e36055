"""The progress bar, drawn by tqdm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from messagedb_sa.errors import InvalidArgument


class Progress:
    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    @property
    def is_shown(self) -> bool:
        return self._bar is not None

    def begin(self, wanted: bool | None) -> None:
        """``wanted`` None: only if standard error is a terminal, and tqdm is installed."""
        if wanted is False or (wanted is None and not sys.stderr.isatty()):
            return
        try:
            from tqdm import tqdm
        except ImportError:
            if wanted is None:
                return
            raise InvalidArgument("progress", wanted, 'needs tqdm: pip install "messagedb-sa[progress]"') from None
        self._bar = tqdm(desc=self._name, unit=" messages", dynamic_ncols=True)

    def expect(self, backlog: Callable[[], int]) -> None:
        """``backlog`` counts the messages that are still to come; not called without a bar."""
        if self._bar is not None:
            self._bar.total = self._bar.n + backlog()
            self._bar.refresh()

    def advance(self, messages: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(messages)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
