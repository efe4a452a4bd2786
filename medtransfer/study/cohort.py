"""The cohort of a study, read without torch: a wrong path or name is refused in a second."""

from __future__ import annotations

from collections.abc import Sequence

from medtransfer.config.sections import CohortSection
from medtransfer.config.study_config import StudyConfig
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.contents import ReadOptions
from medtransfer.data.images.medmnist import is_archive
from medtransfer.errors import StudyError
from medtransfer.records.study_folder import StudyFolder


def load_cohort(
    section: CohortSection, salt: str | None = None, columns: Sequence[str] = ()
) -> Cohort:
    """The cohort that a configuration describes; ids from DICOM headers are hashed with the salt,
    `columns` of a manifest are kept.
    """
    outside = section.outside
    if section.boxes is not None and not section.labels and not section.classes:
        where = (
            section.root,
            section.boxes,
            section.manifest,
            section.kinds,
            section.patient,
            section.unnamed,
            section.parts,
        )
        return Cohort.from_boxes(*where, ReadOptions(salt, columns, section.axes, outside))
    if section.manifest is not None and is_archive(section.manifest):
        cohort = Cohort.from_medmnist(section.manifest, section.positive)
    elif section.manifest is not None:
        cohort = Cohort.from_csv(
            section.manifest, section.root, section.labels, section.positive, salt, columns, outside
        )
    else:
        cohort = Cohort.from_folders(section.root, section.classes, section.positive, salt, outside)
    return (
        cohort.with_boxes(section.boxes, section.kinds, section.axes)
        if section.boxes is not None
        else cohort
    )


def read_cohort(config: StudyConfig, cohort: Cohort | None, folder: StudyFolder | None) -> Cohort:
    """The cohort of a study; one that goes on calls its patients as it did before.

    Args:
        config: the study.
        cohort: its images, where they were read already; None: as the configuration says.
        folder: of the study, whose salt is taken up; None: of no study.

    Raises:
        CohortError: the cohort cannot be read.
        StudyError: the study was made with other images or labels.
    """
    section, left_out = config.cohort, config.protocol.leave_out
    columns = tuple(dict.fromkeys((*config.evaluate.subgroups, *([left_out] if left_out else []))))
    salt = folder.read_salt() if folder is not None else None
    if cohort is None:
        return load_cohort(section, salt, columns)
    if folder is None or salt is None or cohort.salt in {"", salt}:
        return cohort
    again = load_cohort(section, salt, columns)
    missing = sorted(set(again.images["image"]) - set(cohort.images["image"]))
    again = again.without(missing) if missing else again
    decisive = ["image", *cohort.labels]
    if again.labels != cohort.labels or not again.images[decisive].equals(cohort.images[decisive]):
        raise StudyError(
            f"{folder.path}: was made with other images or labels. Choose another output."
        )
    return again
