"""Loggers of the file libraries, silenced while they read: they print values of headers, and remark
on what is checked here.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence(*names: str) -> Iterator[list[warnings.WarningMessage]]:
    """Keeps these loggers silent and collects warnings instead of showing them."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.disabled, logger.propagate) for logger in loggers]
    null = logging.NullHandler()
    for logger in loggers:
        # Disabled for what they log themselves; what their children log ends here.
        logger.disabled, logger.propagate = True, False
        logger.addHandler(null)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        for logger, state in zip(loggers, before, strict=True):
            logger.disabled, logger.propagate = state
            logger.removeHandler(null)


def without_values(text: str) -> str:
    """The first line of a library's message less what it quotes and long numbers: these may name a
    person or a date.

    From the first quotation mark to the last: a quoted name can hold one itself.
    """
    line = text.splitlines()[0] if text else ""
    line = re.sub(r"b?['\"].*['\"]|b?['\"].*$", "…", line)
    return re.sub(r"\b\d[\d.]{5,}\b", "…", line)[:200]
