"""The outcome of an evaluation, for people, notebooks and scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.evaluation.intervals.entries import is_unmeasured
from medtransfer.evaluation.sentences.headline import describe_detector, headline
from medtransfer.evaluation.sentences.words import format_interval
from medtransfer.files import read_json, write_json


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """Every number with its interval.

    Attributes:
        data: the content of `report.json`.
        page: the HTML page, where one was written.
    """

    data: Mapping[str, Any]
    page: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return dict(self.data)

    def to_frame(self) -> pd.DataFrame:
        """One row per arm and metric: `arm, recalibrated, metric, estimate, low, high`."""
        rows = []
        for arm, entry in self.data["arms"].items():
            for recalibrated, part in ((False, entry), (True, entry["recalibrated"])):
                if part is None:
                    continue
                flat = {**part, **part.get("brier_parts", {}), **part["calibration"]}
                numbers = {
                    key: v
                    for key, v in flat.items()
                    if isinstance(v, dict)
                    and {"estimate", "low"} <= set(v)
                    and not is_unmeasured(v)
                }
                rows += [
                    (arm, recalibrated, key, v["estimate"], v["low"], v["high"])
                    for key, v in numbers.items()
                ]
        return pd.DataFrame(
            rows, columns=["arm", "recalibrated", "metric", "estimate", "low", "high"]
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that are not empty, by name: `metrics`, `comparisons`, `operating_points`,
        `subgroups`, `learning_curve`; of detection `lesions`, `lesion_sizes`, `lesion_comparisons`;
        and `at_budget` and `lesions_at_budget`, comparisons at the end of the budget where arms
        were trained until level.
        """
        detection = self.data.get("detection", {"arms": {}, "comparisons": []})
        points = [
            {"arm": arm, **point}
            for arm, entry in self.data["arms"].items()
            for point in entry.get("operating_points", [])
        ]
        groups = [
            {
                **{
                    key: row[key]
                    for key in (
                        "column",
                        "group",
                        "patients",
                        "positive_patients",
                        "images",
                        "suppressed",
                    )
                },
                "arm": arm,
                **numbers,
            }
            for row in self.data.get("subgroups", [])
            for arm, numbers in (row["arms"] or {"": {}}).items()
        ]
        rows = {
            "comparisons": self.data["comparisons"],
            "operating_points": points,
            "subgroups": groups,
            "learning_curve": self.data["learning_curve"],
            "lesions": [
                {"arm": arm, "metric": name, **value}
                for arm, entry in detection["arms"].items()
                for name, value in entry.items()
                if isinstance(value, dict) and "estimate" in value
            ],
            "lesion_sizes": [
                {"arm": arm, **row}
                for arm, entry in detection["arms"].items()
                for row in entry["by_size"]
            ],
            "lesion_comparisons": detection["comparisons"],
            "at_budget": [entry for entry in self._at_budget if "delta_auc" in entry],
            "lesions_at_budget": [entry for entry in self._at_budget if "delta_ap_50" in entry],
        }
        return {
            "metrics": self.to_frame(),
            **{name: _flatten(entries) for name, entries in rows.items() if entries},
        }

    @property
    def one_class(self) -> bool:
        """Whether all images have the same label, where there is one label."""
        prevalence = self.data["prevalence"]
        return isinstance(prevalence, float) and prevalence in {0.0, 1.0}

    @property
    def sentences(self) -> list[str]:
        """The three first lines, then the verdict on each pair of arms, then on the probabilities
        of each arm.
        """
        verdicts = headline(self.data)
        if detection := self.data.get("detection"):
            verdicts += [
                str(entry["verdict"])
                for entry in (*detection["comparisons"], *self._at_budget)
                if "delta_ap_50" in entry
            ]
            verdicts += [describe_detector(arm, entry) for arm, entry in detection["arms"].items()]
            if self.one_class:  # of images with a lesion against those without nothing can be said
                return verdicts
        verdicts += [
            str(entry["verdict"])
            for entry in (*self.data["comparisons"], *self._at_budget)
            if "delta_auc" in entry
        ]
        for entry in self.data["arms"].values():
            verdicts += [
                str(part["trust"])
                for part in (entry, entry["recalibrated"])
                if part is not None and part["trust"]
            ]
        return verdicts

    @property
    def _at_budget(self) -> list[dict[str, Any]]:
        """Comparisons at the end of the budget, of images and of lesions."""
        parts = (self.data.get("at_budget"), self.data.get("detection", {}).get("at_budget"))
        return [entry for part in parts if part for entry in part["comparisons"]]

    @classmethod
    def load(cls, path: str | Path) -> EvaluationReport:
        """Reads `report.json`, as `save` wrote it.

        Args:
            path: of the file.

        Raises:
            FileError: it is no JSON object, or of a format that this version cannot read.
            FileNotFoundError: there is no such file.
        """
        return cls(read_json(Path(path)))

    def save(self, path: Path) -> None:
        """Writes `report.json`.

        Args:
            path: of the file.

        Raises:
            ValueError: a number is infinite or NaN, which JSON does not have.
        """
        json.dumps(self.data, allow_nan=False)
        write_json(path, self.data)

    def show(self) -> None:
        """Shows the report: as HTML in a notebook, as text elsewhere."""
        try:
            from IPython import get_ipython
            from IPython.display import HTML, display

            if get_ipython() is not None:
                display(HTML(self._repr_html_()))  # type: ignore[no-untyped-call]
                return
        except ImportError:
            pass
        print(self)  # noqa: T201

    def __str__(self) -> str:
        lines = [
            *self.sentences,
            *(line for frame in self._frames() for line in ("", frame.to_string())),
        ]
        lines += [f"Note: {text}" for text in (*self.data["growth"], *self.data["warnings"])]
        accounts = [
            *self.data.get("accounts", ()),
            *self.data.get("detection", {}).get("accounts", ()),
        ]
        lines += [f"Account: {account['sentence']}" for account in accounts]
        return "\n".join(lines) + (f"\nPage: {self.page}" if self.page else "")

    def _frames(self) -> list[pd.DataFrame]:
        """The tables that are shown: lesions first, and no table of images where all have the same
        label.
        """
        lesions = self.tables().get("lesions")
        if lesions is None:
            return [_widen(self.to_frame())]
        images = [] if self.one_class else [_widen(self.to_frame())]
        return [_widen(lesions.assign(recalibrated=False)), *images]

    def _repr_html_(self) -> str:
        sentences = "".join(f"<p>{html.escape(s)}</p>" for s in self.sentences)
        tables = "".join(frame.to_html(escape=True) for frame in self._frames())
        notes = "".join(
            f"<li>{html.escape(text)}</li>"
            for text in (*self.data["growth"], *self.data["warnings"])
        )
        page = f"<p>Page: <code>{html.escape(str(self.page))}</code></p>" if self.page else ""
        return f"<div>{sentences}{tables}<ul>{notes}</ul>{page}</div>"


def _widen(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows `arm, recalibrated, metric, estimate, low, high` as a table of metrics by arms, in
    words.
    """
    frame = frame.copy()
    frame["text"] = [
        format_interval(
            {"estimate": None if pd.isna(e) else e, "low": None if pd.isna(low) else low, "high": h}
        )
        for e, low, h in zip(frame["estimate"], frame["low"], frame["high"], strict=True)
    ]
    frame["arm"] = frame["arm"] + frame["recalibrated"].map({True: ", recalibrated", False: ""})
    order = list(dict.fromkeys(frame["metric"]))
    wide = frame.pivot_table(
        index="metric", columns="arm", values="text", aggfunc="first", sort=False
    ).loc[order]
    wide.index.name, wide.columns.name = None, None
    return wide.fillna("–")


def _flatten(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per entry, nested numbers as `outer_inner`; lists, such as thresholds by fold, are
    left out.
    """

    def flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        row: dict[str, Any] = {}
        for key, value in entry.items():
            if isinstance(value, Mapping):
                row |= flat(value, f"{prefix}{key}_")
            elif not isinstance(value, list):
                row[prefix + key] = value
        return row

    return pd.DataFrame([flat(entry) for entry in entries])
