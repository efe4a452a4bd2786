"""What was handed over, and what became of it: nothing disappears unsaid, and the counts add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from medtransfer.text.names import show

_EXAMPLES = 5


@dataclass(frozen=True)
class LeftOut:
    """Why some were left out.

    Attributes:
        reason: in a few words.
        count: how many.
        examples: names or rows of the first ones.
        asks: whether it could be a picture or a lesion, so that somebody has to look.
    """

    reason: str
    count: int
    examples: tuple[str, ...]
    asks: bool = False


@dataclass(frozen=True)
class Account:
    """What became of the files of a folder, the rows of a table, or the annotations of a source.

    Attributes:
        what: files, rows, annotations.
        source: their folder or file, as it was named.
        given, used: how many there were, and how many are used.
        left_out: the others, by reason; given = used + those left out.
        notes: how the source was found, where that is not plain.
    """

    what: str
    source: str
    given: int
    used: int
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        total = self.used + sum(part.count for part in self.left_out)
        if total != self.given:
            raise ValueError(
                f"the account of {self.source} does not add up: {self.given} {self.what} given, "
                f"{total} accounted for"
            )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `sentence` says all of it."""
        left_out = [{**asdict(part), "examples": list(part.examples)} for part in self.left_out]
        return {
            **asdict(self),
            "left_out": left_out,
            "notes": list(self.notes),
            "sentence": str(self),
        }

    def __str__(self) -> str:
        parts = [f"{self.source}: {self.given} {self.what}, {self.used} used"]
        for part in self.left_out:
            example = f"; such as {show(part.examples[0])}" if any(part.examples) else ""
            parts.append(f"{part.count} left out ({part.reason}{example})")
        return "; ".join(parts) + "".join(f"; {note}" for note in self.notes)

    @property
    def actions(self) -> list[str]:
        """What somebody has to look at, in sentences."""
        return [
            f"{part.count} of the {self.given} {self.what} in {self.source} are left out "
            f"({part.reason}), such as "
            f"{', '.join(map(show, part.examples[:2]))}: could one of them be a picture, or a "
            "lesion?"
            for part in self.left_out
            if part.asks
        ]


def make_account(
    what: str,
    source: str,
    used: int,
    left_out: Iterable[tuple[str, str, bool]],
    notes: Iterable[str] = (),
) -> Account:
    """An account from the single ones left out: name, reason, and whether it asks for a look; see
    `Account`.
    """
    reasons: dict[tuple[str, bool], list[str]] = {}
    for name, reason, asks in left_out:
        reasons.setdefault((reason, asks), []).append(name)
    parts = tuple(
        LeftOut(reason, len(names), tuple(names[:_EXAMPLES]), asks)
        for (reason, asks), names in reasons.items()
    )
    return Account(
        what, source, used + sum(part.count for part in parts), used, parts, tuple(notes)
    )
