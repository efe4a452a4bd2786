"""What is wrong with a cohort: unreadable files, hazards, duplicates, leaks, conflicts,
shortcuts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from medtransfer.data.audit.inspection import inspect_images
from medtransfer.data.audit.shortcuts import Shortcut, probe_shortcuts
from medtransfer.data.audit.similarity import Float, near_duplicates
from medtransfer.data.cohort.clusters import cluster_pairs
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.identity import compare_with_headers, describe_look_alikes
from medtransfer.data.cohort.laterality import tell_sides
from medtransfer.text.account import Account, make_account

# Hazards of one image that call for a hand; the others are handled, or are for the eye.
_ACT = {"constant", "burned_in"}


@dataclass(frozen=True)
class Conflict:
    """Images that contradict each other.

    Attributes:
        kind: duplicate (equal pixels, other labels or patients), near_duplicate (the same for
            near-duplicates), patient_labels (one patient under two labels), patient_split (one
            patient in two parts of the manifest's split), split (near-duplicates in two parts of
            it).
        images: their ids.
        detail: a sentence.
    """

    kind: str
    images: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Audit:
    """Findings about a cohort. Images are named by their id.

    Attributes:
        found, readable: number of images in the cohort, and of those that can be read.
        patients: number of patients; of images where patients are not known.
        patients_known: False where each image stands for a patient.
        by_study: images of which the study stands for the patient, see `Cohort`.
        classes: images by label; "label = 0" and "label = 1" where labels are not the classes of
            folders.
        meaning: by label, what 1 means.
        unreadable: (image, reason).
        hazards: (image, code, sentence): what to know of its pixels.
        duplicates: groups of images with equal decoded pixels.
        near_duplicates: pairs of images that show the same, exact duplicates among them.
        clusters: groups of images linked by such pairs.
        conflicts: see `Conflict`.
        shortcuts: how well facts beside the lesion predict the labels.
        not_looked_for: findings that were left out on request, such as shortcuts.
        actions: what has to be looked at, in sentences; empty for a clean cohort.
        sides: what is to be known of left and right; see `tell_sides`.
        counts: images by shape, spacing, bits, format, modality, scanner and site.
        ignored: files left out of folders, with the reason.
        accounts: what became of the files, rows and annotations that were handed over, see
            `account.Account`.
        notes: what was decided in reading them.
    """

    found: int
    readable: int
    patients: int
    patients_known: bool
    by_study: tuple[str, ...]
    classes: dict[str, int]
    meaning: dict[str, str]
    unreadable: tuple[tuple[str, str], ...]
    hazards: tuple[tuple[str, str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, str], ...]
    clusters: tuple[tuple[str, ...], ...]
    conflicts: tuple[Conflict, ...]
    shortcuts: tuple[Shortcut, ...]
    not_looked_for: tuple[str, ...]
    actions: tuple[str, ...]
    sides: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    ignored: tuple[tuple[str, str], ...]
    accounts: tuple[Account, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The answer of `medtransfer check --json`, and the first part of a study's
        `audit.json`.
        """
        values = asdict(self)
        values["images"] = values.pop("found")
        values["accounts"] = [account.to_dict() for account in self.accounts]
        values["unreadable"] = [
            {"image": image, "reason": reason} for image, reason in self.unreadable
        ]
        values["hazards"] = [
            {"image": image, "hazard": code, "detail": text} for image, code, text in self.hazards
        ]
        values["shortcuts"] = [{**asdict(s), "warns": s.warns} for s in self.shortcuts]
        return values

    def to_frame(self) -> pd.DataFrame:
        """One row per finding: `kind`, `images`, `detail`."""
        rows = [("unreadable", image, reason) for image, reason in self.unreadable]
        rows += [("duplicates", ", ".join(group), "equal pixels") for group in self.duplicates]
        rows += [
            ("near-duplicates", ", ".join(group), "the same pixels, moved or saved again")
            for group in self.clusters
        ]
        rows += [("conflict", ", ".join(c.images), c.detail) for c in self.conflicts]
        rows += [(f"hazard {code}", image, text) for image, code, text in self.hazards]
        rows += [("shortcut", "", str(s)) for s in self.shortcuts if s.warns]
        return pd.DataFrame(rows, columns=["kind", "images", "detail"])

    def __str__(self) -> str:
        who = _tell_patients(self)
        lines = [f"{self.found} images found, {self.readable} readable; {who}"]
        lines += [
            str(account)
            for account in self.accounts
            if account.what != "images" or account.left_out
        ]
        lines += [f"{note[0].upper()}{note[1:]}." for note in self.notes]
        lines += [
            f"{name}: {', '.join(f'{value} ({n})' for value, n in values.items())}"
            for name, values in self._shown_counts()
        ]
        lines += [
            tell_meaning(label, meaning)
            for label, meaning in self.meaning.items()
            if len(self.meaning) == 1 or label != meaning
        ]
        kinds = Counter(code for _, code, _ in self.hazards)
        sentences = {code: text for _, code, text in reversed(self.hazards)}
        lines += [
            f"hazard {code}: {n} image(s); such as: {sentences[code]}"
            for code, n in kinds.most_common()
        ]
        if self.duplicates:
            lines.append(
                f"{len(self.duplicates)} group(s) of images with equal pixels; such as: "
                f"{', '.join(self.duplicates[0][:3])}"
            )
        if self.near_duplicates:
            equal = ", those with equal pixels among them" if self.duplicates else ""
            lines.append(
                f"{len(self.near_duplicates)} pair(s) of near-duplicates in {len(self.clusters)} "
                f"cluster(s){equal}"
            )
        lines += [str(shortcut) for shortcut in self.shortcuts]
        lines += [f"not looked for: {finding}" for finding in self.not_looked_for]
        two = [conflict for conflict in self.conflicts if conflict.kind == "patient_labels"]
        if two:
            lines.append(
                f"{len(two)} patient(s) under two labels, which may be right; such as: "
                f"{two[0].detail}"
            )
        lines += self.sides
        lines += [f"unreadable {image}: {reason}" for image, reason in self.unreadable[:5]]
        lines += [f"To do: {action}" for action in self.actions] or ["Nothing has to be corrected."]
        return "\n".join(lines)

    def _shown_counts(self) -> list[tuple[str, dict[str, int]]]:
        shown = []
        for name, values in {"classes": self.classes, **self.counts}.items():
            stated = {value: n for value, n in values.items() if value}
            if stated:
                first = dict(list(stated.items())[:6])
                rest = len(stated) - len(first)
                shown.append(
                    (
                        name,
                        {
                            **first,
                            **(
                                {f"and {rest} more": sum(stated.values()) - sum(first.values())}
                                if rest
                                else {}
                            ),
                        },
                    )
                )
        return shown


def tell_meaning(label: str, meaning: str) -> str:
    """`1 means malignant`, with the column where it has another name."""
    return f"1 means {meaning}" if meaning == label else f"{label}: 1 means {meaning}"


def _tell_patients(findings: Audit) -> str:
    if findings.patients_known:
        return f"{findings.patients} patients"
    if findings.patients < findings.found:
        return (
            f"{findings.patients} patients as far as they are named; other images stand for one "
            "each"
        )
    return "no patient ids: each image stands for a patient"


def audit(
    cohort: Cohort,
    facts: pd.DataFrame | None = None,
    features: Float | None = None,
    group: str = "patient",
    shortcuts: bool = True,
    flip: str = "auto",
) -> Audit:
    """Gathers findings from the facts of the images; reads the images where no facts are given.

    Args:
        cohort: the images.
        facts: from `inspect_images`, in the cohort's order.
        features: (image, dimension), embeddings of the images, where they are there; see
            `near_duplicates`.
        group: patient, or cluster where near-duplicates are kept together, so that they need no
            hand.
        shortcuts: whether facts beside the lesion are tried as predictors of the labels; see
            `probe_shortcuts`.
        flip: how images are to be mirrored in training; see `tell_sides`.
    """
    facts = inspect_images(cohort) if facts is None else facts
    cohort = cohort.fitted(facts) if cohort.annotated is not None else cohort
    good = facts[facts["error"] == ""]
    names = cohort.images["image"].tolist()
    duplicates = tuple(
        tuple(group)
        for _, group in good.groupby("pixel_digest", sort=False)["image"]
        if len(group) > 1
    )
    pairs = [(i, j) for i, j, _ in near_duplicates(facts["thumbnail"].tolist(), features)]
    equal = _linked(duplicates, names)
    linked = cluster_pairs(len(names), [*pairs, *equal])
    near = sorted(set(pairs) | set(equal))
    conflicts = tuple(
        _find_conflicts(
            cohort, duplicates, [tuple(names[i] for i in cluster) for cluster in linked]
        )
    )
    hazards = tuple(
        (image, *hazard)
        for image, of_image in zip(good["image"], good["hazards"], strict=True)
        for hazard in of_image
    )
    unreadable = tuple(
        zip(facts["image"][facts["error"] != ""], facts["error"][facts["error"] != ""], strict=True)
    )
    # Of two classes what predicts the one predicts the other.
    probed = (
        probe_shortcuts(
            cohort.images, facts, cohort.labels[: 1 if _unsaid(cohort) else None], cohort.units
        )
        if shortcuts
        else ()
    )
    result = Audit(
        found=len(facts),
        readable=len(good),
        patients=int(cohort.images["patient"].nunique()),
        patients_known=cohort.patients_known,
        by_study=cohort.by_study,
        classes=_count_classes(cohort),
        meaning=cohort.meaning,
        unreadable=unreadable,
        hazards=hazards,
        duplicates=duplicates,
        near_duplicates=tuple((names[i], names[j]) for i, j in near),
        clusters=tuple(tuple(names[i] for i in cluster) for cluster in linked),
        conflicts=conflicts,
        shortcuts=tuple(probed),
        not_looked_for=() if shortcuts else ("shortcuts",),
        actions=(),
        sides=tell_sides(cohort, flip),
        counts=_count_facts(cohort, good),
        ignored=cohort.ignored,
        accounts=(*cohort.accounts, _account_images(cohort, facts)),
        notes=cohort.notes,
    )
    return Audit(**{**vars(result), "actions": tuple(_list_actions(cohort, result, group, facts))})


def _account_images(cohort: Cohort, facts: pd.DataFrame) -> Account:
    bad = facts.loc[facts["error"] != "", "image"]
    return make_account(
        "images",
        cohort.root.name,
        len(facts) - len(bad),
        [(image, "cannot be read", False) for image in bad],
    )


def _unsaid(cohort: Cohort) -> bool:
    """Whether there are two classes, and nobody said which counts as 1."""
    return len(cohort.source.get("classes") or ()) == 2 == len(cohort.labels)


def _linked(groups: Sequence[Sequence[str]], names: list[str]) -> list[tuple[int, int]]:
    position = {name: i for i, name in enumerate(names)}
    pairs = []
    for group in groups:
        # A chain is enough: images with any texture are compared with all others anyway.
        rows = sorted(position[name] for name in group)
        pairs += list(itertools.pairwise(rows))
    return pairs


def _find_conflicts(
    cohort: Cohort, duplicates: Sequence[tuple[str, ...]], clusters: Sequence[tuple[str, ...]]
) -> list[Conflict]:
    table = cohort.images.set_index("image")
    labels, conflicts = list(cohort.labels), []
    exact = {frozenset(group) for group in duplicates}
    for kind, word, groups in (
        ("duplicate", "equal pixels", duplicates),
        ("near_duplicate", "the same pixels", clusters),
    ):
        for group in groups:
            rows = table.loc[list(group)]
            differ = [label for label in labels if len(set(rows[label])) > 1]
            if kind == "near_duplicate" and frozenset(group) in exact:
                continue
            if differ:
                which = ", ".join(differ) if len(labels) > 1 else f"{differ[0]} 0 and 1"
                conflicts.append(Conflict(kind, group, f"{word} under different labels ({which})"))
            elif cohort.patients_known and len(set(rows["patient"])) > 1:
                conflicts.append(Conflict(kind, group, f"{word} under different patients"))
            if "split" in rows.columns and len(set(rows["split"])) > 1:
                conflicts.append(
                    Conflict(
                        "split",
                        group,
                        f"{word} in two parts of the split "
                        f"({', '.join(sorted(set(rows['split'])))})",
                    )
                )
    if not cohort.patients_known:
        return conflicts
    for patient, rows in cohort.images.groupby("patient", sort=False):
        if "split" in rows.columns and len(set(rows["split"])) > 1:
            parts = ", ".join(sorted(set(rows["split"])))
            conflicts.append(
                Conflict(
                    "patient_split",
                    tuple(rows["image"]),
                    f"patient {patient} in two parts of the split ({parts})",
                )
            )
        differ = [label for label in labels if len(set(rows[label])) > 1]
        if differ:
            conflicts.append(
                Conflict(
                    "patient_labels",
                    tuple(rows["image"]),
                    f"patient {patient} under two labels ({', '.join(differ)})",
                )
            )
    return conflicts


def _count_classes(cohort: Cohort) -> dict[str, int]:
    classes = cohort.source.get("classes")
    if classes and len(cohort.labels) == 1:
        positive = int(cohort.images[cohort.labels[0]].sum())
        return {
            name: positive if name == cohort.source["positive"] else len(cohort) - positive
            for name in classes
        }
    if classes:
        return {label: int(cohort.images[label].sum()) for label in cohort.labels}
    return {
        f"{label} = {value}": int((cohort.images[label] == value).sum())
        for label in cohort.labels
        for value in (0, 1)
    }


def _count_facts(cohort: Cohort, good: pd.DataFrame) -> dict[str, dict[str, int]]:
    columns = {
        "shapes": [" x ".join(map(str, shape)) for shape in good["shape"]],
        "spacings": [" x ".join(f"{mm:.4g}" for mm in spacing) for spacing in good["spacing"]],
        "bits": good["bits_stored"].astype(str).tolist(),
        "formats": good["format"].tolist(),
        "modalities": good["modality"].tolist(),
        "scanners": good["scanner"].tolist(),
        "sites": cohort.images["site"].tolist() if "site" in cohort.images.columns else [],
    }
    return {name: dict(Counter(values).most_common()) for name, values in columns.items()}


def _list_actions(cohort: Cohort, findings: Audit, group: str, facts: pd.DataFrame) -> list[str]:
    """Sentences, the gravest first."""
    actions = []
    if findings.unreadable:
        actions.append(
            f"{len(findings.unreadable)} of {findings.found} images cannot be read, such as "
            f"{findings.unreadable[0][0]}: correct them, or leave them "
            "out (in a study cohort.skip_unreadable=true)."
        )
    actions += _ask_about_sources(cohort, findings, facts)
    if findings.by_study:
        actions.append(
            f"the headers of {len(findings.by_study)} image(s) name no patient, or one and the "
            f"same for all, such as {findings.by_study[0]}: "
            "each study counts as a patient, so that two studies of one person may be on both "
            "sides of a split. Give a manifest with a "
            "column patient."
        )
    if _unsaid(cohort):
        first, second = cohort.labels
        actions.append(
            f"which of {first} and {second} counts as 1 is not known: name it (--positive "
            f"{second}; in a study cohort.positive)."
        )
    if "manifest" in cohort.source and not cohort.labels:
        unused = ", ".join(cohort.source.get("unused", [])) or "none"
        actions.append(
            f"no label was checked: no column holds 0 and 1 alone (columns left: {unused}). "
            "Correct it, or name it with --label."
        )
    for label in cohort.labels:
        values = set(cohort.images[label])
        if len(values) == 1 and not (
            values >= set(cohort.needed_classes)
        ):  # a detector needs no image without a lesion
            actions.append(
                f"every image has {label} = {values.pop():g}: both classes are needed to learn "
                "and to evaluate."
            )
    kinds = Counter(conflict.kind for conflict in findings.conflicts)
    contradicting = kinds["duplicate"] + kinds["near_duplicate"]
    if contradicting:
        example = next(c for c in findings.conflicts if c.kind in {"duplicate", "near_duplicate"})
        actions.append(
            f"{contradicting} group(s) of (near-)duplicates carry different labels or patients, "
            f"such as {_name(example)}: "
            "find out which is right."
        )
    if kinds["patient_split"] or kinds["split"]:
        example = next(c for c in findings.conflicts if c.kind in {"patient_split", "split"})
        actions.append(
            f"the manifest's split is leaking: {kinds['patient_split']} patient(s) and "
            f"{kinds['split']} group(s) of near-duplicates "
            f"stand in two parts, such as {_name(example)}. Correct the split, or have one made."
        )
    patient = dict(zip(cohort.images["image"], cohort.images["patient"], strict=True))
    crossing = sum(
        not cohort.patients_known or patient[a] != patient[b] for a, b in findings.near_duplicates
    )
    if crossing and group != "cluster":
        whose = "of different patients" if cohort.patients_known else "without patient ids"
        actions.append(
            f"{crossing} pair(s) of near-duplicates {whose}: set protocol.group=cluster in the "
            "study, "
            "so that no pair is on both sides of a split."
        )
    large = max(findings.clusters, key=len, default=())
    if len(large) > max(10, 0.05 * findings.found):
        actions.append(
            f"one cluster holds {len(large)} images, such as {large[0]}: do they show the same, "
            "or only the same frame?"
        )
    for code in sorted(_ACT):
        images = [image for image, hazard, _ in findings.hazards if hazard == code]
        if images:
            actions.append(
                f"{len(images)} image(s) are flagged {code}, such as {images[0]}: look at them, "
                "and correct or remove them."
            )
    actions += [
        f"{s.source} alone predicts {s.label} with AUC {s.auc:.2f} ({s.low:.2f} to {s.high:.2f}): "
        "find out why, and report results by it."
        for s in findings.shortcuts
        if s.warns
    ]
    return actions


def _ask_about_sources(cohort: Cohort, findings: Audit, facts: pd.DataFrame) -> list[str]:
    """What was left out and could be a picture or a lesion, what boxes leave open, and patients who
    may be others than they are called.
    """
    actions = [
        *(action for account in findings.accounts for action in account.actions),
        *cohort.asks,
    ]
    if cohort.alike:
        whose, names = describe_look_alikes(cohort.alike, bool(cohort.salt))
        said = (
            "write each patient in one way, or say which it is (cohort.look_alikes=same, or "
            "different; check --look-alikes)"
        )
        actions.append(f"{whose}, such as {'; '.join(names[:3])}: {said}.")
    if "manifest" in cohort.source and cohort.patients_known and not cohort.salt:
        of_dicom = set(facts.loc[facts["format"] == "DICOM", "image"])
        actions += compare_with_headers(cohort.images[cohort.images["image"].isin(of_dicom)])
    return actions


def _name(conflict: Conflict) -> str:
    return " and ".join(conflict.images[:3])
