"""The exception tree, on one page.

```
MedTransferError
├── ConfigError        a configuration or command line that cannot be carried out
├── CohortError        a manifest, folder or label that is wrong
│   └── LeakageError   one patient on both sides of a split
├── ImageError         a file whose pixels cannot be read without doubt
├── WeightsError       an unknown backbone, or weights that do not fit it
├── PredictionsError   a predictions table that cannot be evaluated
├── FileError          a file that medtransfer wrote, and that is damaged or of another format
└── StudyError         a study that cannot go on (folder taken)
    ├── BusyError      another process is doing this run
    └── DivergedError  a training whose loss is no number any more
```

Every message says what is wrong, where (path, row, key) and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


class MedTransferError(Exception):
    """Base of all errors a user can cause and put right."""


class ConfigError(MedTransferError, ValueError):
    """The configuration or the command line is wrong."""


class CohortError(MedTransferError, ValueError):
    """The manifest, the class folders or the labels are wrong."""


class LeakageError(CohortError):
    """The same patient would be on both sides of a split."""


class ImageError(MedTransferError, ValueError):
    """A file is not an image, or its pixels cannot be read without doubt."""


class WeightsError(MedTransferError, ValueError):
    """The backbone is unknown, or the weights are missing or do not fit it."""


class PredictionsError(MedTransferError, ValueError):
    """The predictions table is wrong."""


class FileError(MedTransferError, ValueError):
    """A file that medtransfer wrote is damaged, or of a format that this version cannot read."""


class StudyError(MedTransferError, RuntimeError):
    """The study cannot go on."""


class BusyError(StudyError):
    """Another process is doing this run; not seen outside of a study."""


class DivergedError(StudyError):
    """The loss is not finite any more; not seen outside of a training."""


def list_faults(heading: str, faults: Sequence[str], remedy: str = "", shown: int = 20) -> str:
    """Joins all faults under one heading, so that a user mends them in one go."""
    lines = [heading, *(f"  - {fault}" for fault in faults[:shown])]
    if len(faults) > shown:
        lines.append(f"  - and {len(faults) - shown} more")
    if remedy:
        lines.append(remedy)
    return "\n".join(lines)


def list_unusable(source: object, faults: Sequence[str], remedy: str = "") -> str:
    """All faults of a file or a table that cannot be used before they are corrected."""
    return list_faults(f"{source}: cannot be used as it is", faults, remedy)
