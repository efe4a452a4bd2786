"""The folder of one training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtransfer.errors import FileError
from medtransfer.files import digest_bytes, read_json, write_aside, write_json


@dataclass(frozen=True)
class RunFolder:
    """The files of one training, by their names.

    A folder with `run.json` is a finished training. That file holds the digests of the others, and
    of itself: nothing in the folder is believed without.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def summary(self) -> Path:
        """What decided the training, how it went, and the digests of the other files."""
        return self.path / "run.json"

    @property
    def model(self) -> Path:
        """What the network is, and what reaches it; with the weights, a trained model."""
        return self.path / "model.json"

    @property
    def weights(self) -> Path:
        """The tensors of backbone and head."""
        return self.path / "weights.safetensors"

    @property
    def typicality(self) -> Path:
        """How far the training images reach, for models with a linear head."""
        return self.path / "typicality.safetensors"

    @property
    def tensors(self) -> tuple[Path, Path]:
        """The files that `model.json` stands for."""
        return self.weights, self.typicality

    @property
    def history(self) -> Path:
        """The epochs, a line each."""
        return self.path / "metrics.jsonl"

    @property
    def predictions(self) -> Path:
        """Rows of the tune and the test images."""
        return self.path / "predictions.csv"

    @property
    def candidates(self) -> Path:
        """What a detector found in them."""
        return self.path / "candidates.csv"

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished training."""
        return self.path / "unfinished.pt"

    @property
    def at_budget(self) -> RunFolder:
        """What the network predicted at the end of the budget, where training went on."""
        return RunFolder(self.path / "at-budget")

    @property
    def is_finished(self) -> bool:
        """Whether a training ended here; its files may be damaged."""
        return self.summary.is_file()

    def add_epoch(self, lines: str) -> None:
        """Writes the history anew, with the lines of all epochs."""
        write_aside(self.history, lines)

    def read_history(self) -> list[dict[str, float]]:
        """The epochs; none where they are missing or damaged."""
        try:
            lines = self.history.read_text(encoding="utf-8").splitlines()
            epochs = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError):
            return []
        return epochs if all(isinstance(epoch, dict) for epoch in epochs) else []

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `run.json`, last of all: from then on the training is finished."""
        files = (*self._results(), *self.at_budget._results())
        digests = {str(path.relative_to(self.path)): digest_bytes(path) for path in files}
        write_json(self.summary, {**summary, "files": digests}, sealed=True)

    def _results(self) -> list[Path]:
        return [
            p
            for p in (*self.tensors, self.history, self.predictions, self.candidates)
            if p.is_file()
        ]

    def read_summary(self, whole: bool = True) -> dict[str, Any]:
        """The content of `run.json`.

        Args:
            whole: also check the digests of the other files, where the folder has them.

        Raises:
            FileError: a file is damaged, missing, or of another format.
            FileNotFoundError: no training was finished here.
        """
        summary = read_json(self.summary, sealed=True)
        digests = summary.get("files", {}) if whole else {}
        for name, digest in digests.items():
            path = self.path / name
            try:
                actual = digest_bytes(path)
            except OSError as error:
                raise FileError(
                    f"{path}: cannot be read ({error.strerror or error}), and {self.summary.name} "
                    "lists it."
                ) from error
            if actual != digest:
                raise FileError(
                    f"{path}: is damaged; its content does not fit the digest in "
                    f"{self.summary.name}."
                )
        return summary
