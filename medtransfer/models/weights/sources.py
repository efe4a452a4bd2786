"""How weights are named, and what can be said of a name without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medtransfer.errors import WeightsError

SOURCES = (
    "imagenet, timm:TAG, radimagenet, radimagenet:PATH, file:PATH, file:PATH#NETWORK, "
    "study:FOLDER or none"
)
# Mei et al. 2022, doi:10.1148/ryai.210315. Published files by architecture, and about how many MB
# they have.
RADIMAGENET = {
    "resnet50": ("ResNet50.pt", 94.3),
    "densenet121": ("DenseNet121.pt", 28.4),
    "inception_v3": ("InceptionV3.pt", 87.5),
}
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


def unknown_source(source: str) -> WeightsError:
    """The error about a source that is of no kind."""
    return WeightsError(f"unknown weights {source!r}: use {SOURCES}.")


def unknown_tag(name: str, tag: str, tags: Sequence[str]) -> WeightsError:
    """The error about weights that timm does not publish for an architecture."""
    return WeightsError(
        f"timm publishes no weights {tag!r} for {name}. There are: {', '.join(tags) or 'none'}."
    )


def refuse_radimagenet(name: str) -> None:
    """Refuses an architecture that RadImageNet was not trained with.

    Raises:
        WeightsError: with those that it was trained with.
    """
    if name not in RADIMAGENET:
        raise WeightsError(
            f"RadImageNet is published for {', '.join(RADIMAGENET)}, not for {name}."
        )


def refuse_source(name: str, source: str) -> None:
    """Refuses a source of weights that cannot be one, or whose file or folder is not there.

    Args:
        name: of the architecture.
        source: of its weights.

    Raises:
        WeightsError: no such kind of source, file or folder.
    """
    kind, _, rest = source.partition(":")
    if not (kind in _WITH_PATH and rest) and kind != "radimagenet" and source not in _ALONE:
        raise unknown_source(source)
    if kind == "radimagenet":
        refuse_radimagenet(name)
    path = Path(rest).expanduser()
    if kind in {"file", "radimagenet"} and rest:
        refuse_no_file(split_network(path)[0])
    if kind == "study" and not path.exists():
        raise WeightsError(f"{path}: no such folder. Give study:FOLDER, the folder of a run.")
