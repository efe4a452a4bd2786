"""How weights are named, and what can be said of a name without torch."""

from __future__ import annotations

from pathlib import Path

from medtransfer.errors import WeightsError

SOURCES = (
    "imagenet, timm:TAG, radimagenet, radimagenet:PATH, file:PATH, file:PATH#NETWORK, "
    "study:FOLDER or none"
)
# Those that something must follow, and those that may stand alone.
_WITH_PATH, _ALONE = {"file", "study", "timm"}, {"imagenet", "radimagenet"}


def split_network(path: Path) -> tuple[Path, str]:
    """The file, and the network asked for behind `#` ("" where none is). A file whose name has a
    `#` is that file.
    """
    text = str(path)
    cuts = [index for index, letter in enumerate(text) if letter == "#"]
    for cut in [] if path.exists() else reversed(cuts):
        if Path(text[:cut]).is_file():
            return Path(text[:cut]), text[cut + 1 :]
    return path, ""


def refuse_no_file(path: Path) -> None:
    """Refuses what is no file of weights.

    Raises:
        WeightsError: a folder, or nothing.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {what}. Give the path of a .safetensors or .pth state_dict.")


def refuse_source(source: str) -> None:
    """Refuses a source of weights that cannot be one, or whose file or folder is not there.

    Raises:
        WeightsError: no such kind of source, file or folder.
    """
    kind, _, rest = source.partition(":")
    if not (kind in _WITH_PATH and rest) and kind != "radimagenet" and source not in _ALONE:
        raise WeightsError(f"unknown weights {source!r}: use {SOURCES}.")
    path = Path(rest).expanduser()
    if kind in {"file", "radimagenet"} and rest:
        refuse_no_file(split_network(path)[0])
    if kind == "study" and not path.exists():
        raise WeightsError(f"{path}: no such folder. Give study:FOLDER, the folder of a run.")
