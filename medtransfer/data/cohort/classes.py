"""Which of two classes counts as 1: by its name, never by its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from medtransfer.errors import CohortError
from medtransfer.text.names import look_alikes, show

# Words that say by themselves which of two classes is the finding that is looked for.
_POSITIVE = frozenset({"malignant", "cancer", "tumour", "tumor", "yes", "positive"})
_NEGATIVE = frozenset({"benign", "normal", "healthy", "no", "negative"})
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "tune", "test", "testing"})
# Names that share so much of their letters are probably one, misspelt.
_ALIKE = 0.8


def choose_folders(
    root: Path, folders: Sequence[str] | None, classes: Sequence[str] | None, positive: str | None
) -> list[str]:
    """The class folders that are meant.

    Args:
        root: for messages. here: folders below it; None where there is no such folder. classes:
            those that were named; all where left out.
        positive: the class that counts as 1, where it was named.

    Raises:
        CohortError: fewer than two, one that is not there, or a class that counts as 1 and is none
            of two.
    """
    if folders is None:
        raise CohortError(
            f"{root}: no such folder. Set cohort.root to the folder that holds the class folders."
        )
    names = list(classes) if classes else list(folders)
    listed = f"Folders in {root}: {', '.join(folders) or 'none'}."
    if len(set(names)) != len(names) or len(names) < 2:
        given = f"{len(names)} given ({', '.join(names) or 'none'})"
        raise CohortError(f"two classes are compared, {given}. {listed} Name two with classes.")
    refuse_odd_classes(names, str(root))
    absent = [name for name in names if name not in folders]
    if absent:
        raise CohortError(f"no class folder {', '.join(absent)}. {listed}")
    if positive is not None and (positive not in names or len(names) != 2):
        raise CohortError(f"positive: {positive!r} is none of two classes ({', '.join(names)}).")
    return names


def refuse_odd_classes(names: Sequence[str], source: str) -> None:
    """Folders of the parts of a set are no classes, and two that look alike are one.

    Raises:
        CohortError: they are such.
    """
    if len(names) > 1 and all(name.strip().lower() in _PARTS for name in names):
        raise CohortError(
            f"{source}: the folders {', '.join(names)} are parts of a set, not classes. Give one "
            "of them, or a manifest with split."
        )
    if alike := look_alikes(names):
        raise CohortError(
            f"{source}: the class folders {' and '.join(map(show, alike[0]))} look alike. Join "
            "them, or name one otherwise."
        )


def find_positive(names: Sequence[str], source: str) -> str:
    """The one of two classes that counts as 1, where the words are unmistakable: malignant against
    benign, yes against no.

    Raises:
        CohortError: they are not.
    """
    positive = guess_positive(names)
    if positive is None:
        raise CohortError(
            f"{source}: which of {' and '.join(names)} counts as 1? Nothing is taken by the "
            "alphabet; name it with positive "
            f"(cohort.positive={names[-1]}, or --positive {names[-1]})."
        )
    return positive


def guess_positive(names: Sequence[str]) -> str | None:
    """See `find_positive`; None where the words do not tell."""
    positives, negatives = (
        [name for name in names if name.strip().lower() in words]
        for words in (_POSITIVE, _NEGATIVE)
    )
    return positives[0] if len(names) == 2 and len(positives) == 1 and len(negatives) == 1 else None


def refuse_opposite(name: str, meaning: str, classes: Sequence[str], source: str) -> None:
    """What counts as 1 in a second cohort must not be what plainly is the opposite of what counts
    as 1 in the study.

    Args:
        name: what was named, a class or a column. meaning: the class that counts as 1 in the study.
        classes: of the study, where they are known. source: names the cohort in messages.

    Raises:
        CohortError: benign was named where the study means malignant, or a class that counts as 0
            in the study, perhaps spelt otherwise.
    """
    words = name.strip().lower(), meaning.strip().lower()
    denied = any(
        re.fullmatch(f"(no|non|not)[ _-]?{re.escape(one)}", other)
        for one, other in (words, words[::-1])
    )
    if denied or any(
        words[0] in one and words[1] in other
        for one, other in ((_NEGATIVE, _POSITIVE), (_POSITIVE, _NEGATIVE))
    ):
        raise CohortError(
            f"{source}: {name} was to count as 1, but in the study 1 means {meaning}, which is "
            "the opposite of it."
        )
    others = [other for other in classes if other != meaning]
    like = max(others, key=lambda other: _likeness(name, other), default=None)
    if like is not None and _likeness(name, like) > max(_ALIKE, _likeness(name, meaning)):
        raise CohortError(
            f"{source}: {name} was to count as 1, but in the study {like} counts as 0, and 1 "
            f"means {meaning}. Name the class, or the "
            f"column, that means {meaning}; if {name} does, rename it."
        )


def match_classes(wanted: Sequence[str], names: Sequence[str], source: str) -> list[str]:
    """The classes of a study among those of a second cohort, by name; others are left to the
    caller.

    Args:
        wanted: classes of the study. here: those of the second cohort. source: names it in
            messages.

    Raises:
        CohortError: a class has another name there; where it is one spelling apart, the message
            asks.
    """
    absent = [name for name in wanted if name not in names]
    if not absent:
        return list(wanted)
    asked = [
        f" Is {near!r} the study's {name!r}?" for name in absent if (near := _nearest(name, names))
    ]
    raise CohortError(
        f"{source}: holds the classes {', '.join(names) or 'none'}, the study was trained on "
        f"{' and '.join(wanted)}.{''.join(asked)} "
        "Classes are matched by name. Rename the folders; or name the class that counts as 1 "
        "there with --positive, if the others are "
        "what the study counts as 0."
    )


def _nearest(name: str, names: Sequence[str]) -> str | None:
    near = max(names, key=lambda other: _likeness(name, other), default=None)
    return near if near is not None and _likeness(name, near) >= _ALIKE else None


def _likeness(name: str, other: str) -> float:
    """Share of the letters that two names have in common, case apart; 1 where they are the same."""
    return difflib.SequenceMatcher(None, other.strip().casefold(), name.strip().casefold()).ratio()
