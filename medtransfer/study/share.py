"""A share of the runs of a study, as one task of an array does it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from medtransfer.errors import ConfigError

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the runs.

    Attributes:
        number: of this share, from 1.
        of: how many shares there are; 1: all runs are done in one go.

    Raises:
        ConfigError: there is no such share.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ConfigError(
                f"share {self}: shares count from 1 to {self.of}; with a Slurm array, use "
                f"--array=1-{max(1, self.of)}."
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that a text such as `3/8` names.

        Raises:
            ConfigError: it names none.
        """
        match = re.fullmatch(r"(\d{1,9})/([1-9]\d{0,8})", text.strip(), re.ASCII)
        if match is None:
            raise ConfigError(
                f"share {text!r}: expected NUMBER/OF, such as 3/8 for the third of eight."
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def take(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """The items of this share: every so-many-th, so that shares are alike."""
        return items[self.number - 1 :: self.of]


WHOLE = Share()
