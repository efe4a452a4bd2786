"""TRIPOD+AI 2024 and CLAIM 2024: what the software knows is filled in, the rest is left to the authors.

Topics are in our own words; the checklists themselves are Collins et al. 2024 (doi:10.1136/bmj-2023-078378) and Tejani et al. 2024
(doi:10.1148/ryai.240300).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtransfer.evaluation.sentences.words import format_interval

AUTHORS = "TO BE WRITTEN BY THE AUTHORS"

_TRIPOD = (
    ("1", "Title", ""),
    ("2", "Abstract", ""),
    ("3a-c", "Background: context, rationale, health inequalities", ""),
    ("4", "Objectives", ""),
    ("5a-b", "Data: sources, dates", "sources"),
    ("6a-c", "Participants: setting, eligibility, treatments", ""),
    ("7", "Data preparation and quality checks", "preparation"),
    ("8a-c", "Outcome: definition, assessment, blinding", ""),
    ("9a-c", "Predictors: choice, definition, preparation", "preparation"),
    ("10", "Sample size", "size"),
    ("11", "Missing data", "missing"),
    ("12a", "Analysis: how data were used and divided", "partitions"),
    ("12b", "Analysis: type of model and reasons", "model"),
    ("12c", "Analysis: building, tuning, software, uncertainty", "training"),
    ("12d", "Heterogeneity between clusters", "subgroups"),
    ("12e", "Measures of performance and comparison", "measures"),
    ("12f", "Model updating or recalibration", "recalibration"),
    ("12g", "How predictions were calculated", "output"),
    ("13", "Class imbalance", "imbalance"),
    ("14", "Fairness", ""),
    ("15", "Model output and thresholds", "output"),
    ("16", "Differences between development and evaluation data", "shift"),
    ("17", "Ethical approval", ""),
    ("18a-e", "Funding, conflicts, protocol, registration, data sharing", ""),
    ("18f", "Code sharing", "software"),
    ("19", "Patient and public involvement", ""),
    ("20a", "Participants: flow and numbers", "flow"),
    ("20b", "Participants: characteristics", "characteristics"),
    ("20c", "Comparison of development and evaluation data", "shift"),
    ("21", "Numbers of participants and events in each analysis", "numbers"),
    ("22", "Model specification", ""),
    ("23a", "Performance with intervals", "performance"),
    ("23b", "Performance in subgroups", "subgroups"),
    ("24", "Results of updating", "recalibration"),
    ("25", "Interpretation", ""),
    ("26", "Limitations", ""),
    ("27a-c", "Use: poor or missing input, interaction, next steps", ""),
)
_CLAIM = (
    ("1-2", "Title and abstract", ""),
    ("3-4", "Background, aims, hypotheses", ""),
    ("5-6", "Study design and goal", ""),
    ("7", "Data sources", "sources"),
    ("8", "Inclusion and exclusion", ""),
    ("9", "Preprocessing", "preparation"),
    ("10", "Selection of subsets of images", ""),
    ("11", "De-identification", "identity"),
    ("12", "Missing data", "missing"),
    ("13", "Acquisition protocol", "characteristics"),
    ("14-18", "Reference standard, annotators, agreement", ""),
    ("19", "Assignment to partitions", "partitions"),
    ("20", "Level at which partitions are disjoint", "partitions"),
    ("21", "Sample size", "size"),
    ("22", "Model", "model"),
    ("23", "Software", "software"),
    ("24", "Initial parameters", "model"),
    ("25", "Training", "training"),
    ("26", "Selection of the final model", "training"),
    ("27", "Ensembling", "ensemble"),
    ("28", "Measures of performance", "measures"),
    ("29", "Measures of uncertainty and significance", "uncertainty"),
    ("30", "Robustness", "subgroups"),
    ("31", "Explainability", "explain"),
    ("32", "Internal testing", "internal"),
    ("33", "External testing", "external"),
    ("34", "Registration", ""),
    ("35", "Numbers included and excluded", "flow"),
    ("36", "Characteristics of each partition", "characteristics"),
    ("37-38", "Performance with intervals", "performance"),
    ("39", "Failure analysis", "failures"),
    ("40-41", "Limitations and implications", ""),
    ("42", "Protocol and technical details", "software"),
    ("43", "Availability of software, model and data", ""),
    ("44", "Funding", ""),
)


def fill_checklists(
    report: Mapping[str, Any],
    plans: Mapping[str, Any],
    environment: Mapping[str, Any],
    audit: Mapping[str, Any],
    study: Mapping[str, Any],
    gallery: bool,
) -> dict[str, list[dict[str, str]]]:
    """Rows `item, topic, text` of both checklists; what was not done, or cannot be known, is left
    to the authors.

    Args:
        report: `report.json`.
        plans: of the study, by arm; see `write_methods`.
        environment: of the study.
        audit: of the study.
        study: its configuration.
        gallery: whether failures are shown.
    """
    texts = _facts(report, plans, environment, audit, study, gallery)
    lists = {"TRIPOD+AI 2024": _TRIPOD, "CLAIM 2024": _CLAIM}
    return {
        name: [
            {"item": item, "topic": topic, "text": texts.get(key) or AUTHORS}
            for item, topic, key in rows
        ]
        for name, rows in lists.items()
    }


def _facts(
    report: Any, plans: Any, environment: Any, audit: Any, study: Any, gallery: bool
) -> dict[str, str]:
    arms, detection = report["arms"], report.get("detection")
    nameless = bool(audit) and not audit["patients_known"]
    counts = report["positive_images"]
    positives = (
        ", ".join(f"{label}: {n}" for label, n in counts.items())
        if isinstance(counts, dict)
        else counts
    )
    facts = {
        "numbers": f"{report['patients']} {'units (the source names no patients)' if nameless else 'patients'}, {report['images']} test {report['unit']}s, {positives} positive.",
        "measures": "AUC within models, average precision, Brier score, log-loss, calibration intercept, slope, observed / expected, ICI, ECE; see the methods paragraph.",
        "uncertainty": _uncertainty(report),
        "performance": _performance(report) + " All measures: table Numbers.",
    }
    if detection:
        lesions = "; ".join(
            f"{arm}: average precision at 0.5 {format_interval(entry['ap_50'])}"
            for arm, entry in detection["arms"].items()
        )
        facts["measures"] = (
            f"Average precision, FROC, CPM, sensitivity by size; of images with a lesion: {facts['measures']}"
        )
        facts["performance"] = (
            f"{lesions}. Table Lesions found. Of images with a lesion: {facts['performance']}"
        )
    methods = sorted(
        {entry["recalibrated"]["method"] for entry in arms.values() if entry["recalibrated"]}
    )
    if methods:
        facts["recalibration"] = (
            f"Recalibrated on tuning patients ({', '.join(methods)}); before and after in table Numbers."
        )
    sections = report.get("labels") or {report["label"]: report}
    if columns := dict.fromkeys(
        row["column"] for part in sections.values() for row in part.get("subgroups", [])
    ):
        facts["subgroups"] = f"By {', '.join(columns)}: table Subgroups."
    sizes = {
        label: n
        for label, part in sections.items()
        if (n := (part.get("external_validation") or {}).get("patients"))
    }
    if sizes:
        needed = (
            ", ".join(f"{label}: {n}" for label, n in sizes.items())
            if len(sections) > 1
            else f"{next(iter(sizes.values()))}"
        )
        facts["size"] = (
            f"No size was planned by the software; a validation as precise as Riley et al. 2021 ask for needs {needed} {report['unit']}s."
        )
    points = [
        point
        for part in sections.values()
        for entry in part["arms"].values()
        for point in entry.get("operating_points", [])
    ]
    if points:
        facts["output"] = (
            "A probability; thresholds were locked on tuning patients: table Decisions."
        )
    if gallery:
        facts["failures"] = (
            "Hits, misses and false alarms are shown."
            if detection
            else "The worst false positives and negatives are shown: section Failures."
        )
    # A table from elsewhere does not say whose patients these are.
    if report.get("shift"):
        facts["external"] = facts["performance"]
        facts["shift"] = "The two cohorts are compared: section The second cohort."
    if environment:
        facts["internal"] = facts["performance"]
        facts |= _facts_of_study(plans, environment, audit, study)
    return facts


def _uncertainty(report: Any) -> str:
    """What the intervals hold, and what was tested."""
    text = "95 % intervals over patients"
    pairs = report["comparisons"]
    if any(pair["delta_auc"]["covers"] == "training" for pair in pairs):
        text += "; those of differences hold the variation between trainings"
    if any(pair["delta_auc"]["covers"] == "sites" for pair in pairs):
        text += "; those of differences are over sites"
    if pairs:
        text += "; p-values of the difference in AUC alone" + (
            ", after Holm" if len(pairs) > 1 else ""
        )
    return f"{text}. See the methods paragraph."


def _performance(report: Any) -> str:
    """The AUC of every arm; of several labels the mean, then that of each."""
    parts = {"": report, **report.get("labels", {})}
    sentences = []
    for label, part in parts.items():
        kind = f"{label}: " if label else "mean over labels: " if "labels" in report else ""
        sentences.append(
            kind
            + "; ".join(
                f"{arm}: AUC {format_interval(entry['auc'])}" for arm, entry in part["arms"].items()
            )
            + "."
        )
    return " ".join(sentences)


def _facts_of_study(plans: Any, environment: Any, audit: Any, study: Any) -> dict[str, str]:
    flow, cohort = audit["flow"], study["cohort"]
    folders = (
        f"the class folders {', '.join(cohort['classes'])}"
        if cohort["classes"]
        else f"the images below {Path(cohort['root']).name}"
    )
    source = f"the manifest {Path(cohort['manifest']).name}" if cohort["manifest"] else folders
    detects = study.get("task") == "detection"
    versions = environment["versions"]
    commit = f" Commit {environment['git_commit'][:12]}." if environment.get("git_commit") else ""
    named, clusters = audit["patients_known"], flow["group"] == "cluster"
    units = [*(["patient"] if named else []), *(["cluster of near-duplicates"] if clusters else [])]
    disjoint = f"disjoint by {' and '.join(units)}, " if units else ""
    left_out = study["protocol"].get("leave_out")
    division = (
        f"Every {left_out} left out in turn."
        if left_out
        else f"{study['protocol']['folds']} folds, {disjoint}stratified by label."
    )
    one = "an image, or a cluster of near-duplicates," if clusters else "every image"
    nameless = "" if named else f" The source names no patients: {one} counts as one."
    headers = " Patient ids are those of the manifest." if cohort["manifest"] and named else ""
    if "DICOM" in audit["counts"]["formats"]:
        headers += f" Patient ids from DICOM headers{', where it names none,' if headers else ''} are hashed with a salt."
    tuned = (
        "; the epoch was chosen on tuning patients"
        if any(plan["steps"] for plan in plans.values())
        else ""
    )
    return {
        "sources": f"Images of {source}; every file by its SHA-256 in cohort.csv. Origin and dates: {AUTHORS.lower()}.",
        "preparation": f"Read, windowed ({study['image']['window']}) and resized to {study['image']['size']} pixels; hazards and duplicates in audit.json.",
        "missing": f"Files left out: {len(flow['left_out'])}{', with reasons in audit.json' if flow['left_out'] else ''}.",
        "partitions": ("The split of the source was kept." if flow["official_split"] else division)
        + nameless,
        "model": "; ".join(
            f"{arm}: {a['backbone']}, weights {a['weights']['source'] or 'none'}"
            for arm, a in environment["arms"].items()
        )
        + ". Freezing: "
        + "; ".join(f"{arm}: {plan['reason']}" for arm, plan in plans.items()),
        "training": f"Steps, rates, augmentation, early stopping: plan.json, study.yaml, runs/{tuned}.",
        "imbalance": "Focal loss over all anchors."
        if detects
        else "Positives weighted in the loss, the logits corrected for it afterwards.",
        "software": f"medtransfer {versions['medtransfer']}, torch {versions['torch']}; all versions and SHA-256 of weights in environment.json.{commit}",
        "identity": f"Names and birth dates are never copied.{headers}",
        "flow": f"Files: {flow['found']} found, {flow['images']} images, {flow['readable']} readable, {flow['used']} used"
        + (f", of {audit['patients']} patients." if named else "."),
        "ensemble": "None: every model is evaluated by itself.",
    }
