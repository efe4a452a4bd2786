"""Files of a hub: from this machine where they are here, else from the hub, else at once a message
that helps.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from medtransfer.errors import WeightsError
from medtransfer.models.weights.files import DIGEST_IN_NAME

# Of a look whether the hub answers: long enough for a slow line, short enough not to be waited for.
_PATIENCE = 1.5


def weights_folder() -> Path:
    """Where files brought by hand are looked for: `$MEDTRANSFER_WEIGHTS`, else
    `medtransfer/weights` in the user's cache folder.
    """
    chosen = os.environ.get("MEDTRANSFER_WEIGHTS")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(chosen).expanduser() if chosen else Path(home) / "medtransfer" / "weights"


def find_file(repository: str, files: Sequence[str], own: Sequence[str]) -> Path | None:
    """A file of a hub that is on this machine.

    Args:
        repository: on the hub, such as `timm/resnet18.a1_in1k`.
        files: names in it, the first that is there is taken.
        own: names under which it may lie in `weights_folder()`.
    """
    for name in own:
        if (weights_folder() / name).is_file():
            return weights_folder() / name
    from huggingface_hub import try_to_load_from_cache

    for name in files:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    return None


def fetch_file(
    repository: str, files: Sequence[str], own: Sequence[str], what: str, megabytes: float
) -> Path:
    """The path of a file of a hub, downloaded where it is not on this machine.

    `HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` (a mirror) and proxies are honoured. Without a
    connection the answer comes within two seconds. A download that breaks off leaves nothing that
    would be used.

    Args:
        repository, files, own: see `find_file`.
        what: the weights, in words.
        megabytes: about how large the file is.

    Raises:
        WeightsError: not here and not to be had, with the file to bring and where to put it.
    """
    found = find_file(repository, files, own)
    if found is not None:
        return found
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
    reason = ""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        reason = "HF_HUB_OFFLINE is set"
    elif not _answers(endpoint):
        reason = f"{urllib.parse.urlsplit(endpoint).hostname} does not answer"
    for name in files if not reason else ():
        try:
            return Path(
                huggingface_hub.hf_hub_download(repository, name, endpoint=endpoint, etag_timeout=5)
            )
        except LocalEntryNotFoundError:
            reason = f"{urllib.parse.urlsplit(endpoint).hostname} answers, and does not give it"
            break
        except EntryNotFoundError:
            reason = f"{repository} holds no {' or '.join(files)}"
        except Exception as error:  # many kinds: refused, not allowed, broken off, disk full
            first_line = next(iter(str(error).strip().splitlines()), "")
            reason = f"{type(error).__name__}: {first_line}".rstrip(": ")
            break
    digests = [(name, match.group(1)) for name in own if (match := DIGEST_IN_NAME.search(name))]
    twins = "".join(
        f", or its twin {name} (SHA-256 begins with {digest}) under its own name there"
        for name, digest in digests
    )
    raise WeightsError(
        f"{what}: not on this machine, and not to be had from the hub ({reason}). Where there is "
        f"a network, download {files[0]} of "
        f"{repository} (about {megabytes:.0f} MB; the hub shows its SHA-256, which is recorded "
        "when it is read) and save it as "
        f"{weights_folder() / own[0]}{twins}, or give weights: file:PATH."
    )


def _answers(endpoint: str) -> bool:
    """Whether the endpoint answers, through the proxy on the way where there is one; its own errors
    are no answer.
    """
    opened: list[bool] = []

    def knock() -> None:
        try:
            # A new opener, as the shared one keeps the proxies it was made with.
            request = urllib.request.Request(endpoint, method="HEAD")
            urllib.request.build_opener().open(request, timeout=_PATIENCE).close()
            opened.append(True)
        except urllib.error.HTTPError as error:
            opened.extend([True] if error.code < 500 else [])
        except (OSError, ValueError):
            pass

    # In a thread, as looking up a name has no time limit of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(opened)
