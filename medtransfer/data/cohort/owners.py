"""The patients whom DICOM headers name, and the studies that stand for them where no header does.

What a header names is never shown: ids of patients leave this module as digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from medtransfer.data.cohort.clusters import cluster_pairs
from medtransfer.data.images.dicom.header import open_dicom
from medtransfer.data.images.dicom.image import dicom_files, series_tag
from medtransfer.data.images.reading import split_member
from medtransfer.errors import ImageError
from medtransfer.text.names import look_alikes


def find_owner(path: str) -> tuple[str, str]:
    """Patient and study of an image by its DICOM header; ("", "") where it has none. Not to be
    shown.
    """
    file, member = split_member(path)
    try:
        for candidate in dicom_files(file) if file.is_dir() else [file]:
            header = open_dicom(candidate, pixels=False)
            if not file.is_dir() or not member or series_tag(header) == member:
                return header.owner
    except ImageError:
        pass
    return "", ""


def name_patients(owners: Sequence[tuple[str, str]], salt: str) -> list[str]:
    """Ids for the patients of DICOM headers: digests that cannot be turned back without the salt.

    Images are of one patient where they share the patient id (and its issuer, where several issuers
    occur for that id), or the study. Where all files carry one id, it is a placeholder of an
    anonymiser, and the studies stand for the patients.

    Args:
        owners: (patient, study) of each image, from `ImageFile` or `find_owner`; patient is
            "issuer|id".
        salt: secret of the study.

    Returns:
        One id per image, "" for those without an owner.
    """
    placeholder = is_placeholder(owners)
    issuers: dict[str, set[str]] = {}
    for patient, _ in owners:
        issuer, _, number = patient.partition("|")
        issuers.setdefault(number, set()).update({issuer} - {""})
    numbers_of: dict[str, set[str]] = {}
    for patient, study in owners:
        numbers_of.setdefault(study, set()).update({patient.partition("|")[2]} - {""})
    nodes: dict[str, int] = {}
    links, of_image = [], []
    for patient, study in owners:
        issuer, _, number = patient.partition("|")
        alone = len(issuers[number]) < 2
        keys = (
            [f"patient {number}" if alone else f"patient {issuer}|{number}"]
            if number and not placeholder
            else []
        )
        # A study of several patients is a placeholder too; it serves only where nothing else does.
        keys += [f"study {study}"] if study and (not keys or len(numbers_of[study]) < 2) else []
        rows = [nodes.setdefault(key, len(nodes)) for key in keys]
        links += [(rows[0], row) for row in rows]
        of_image.append(rows[0] if rows else -1)
    name_of = dict(enumerate(nodes))
    for group in cluster_pairs(len(nodes), links):
        first = min(name_of[node] for node in group)
        name_of |= dict.fromkeys(group, first)
    return [
        ""
        if node < 0
        else "p-" + hashlib.sha256(f"{salt}|{name_of[node]}".encode()).hexdigest()[:12]
        for node in of_image
    ]


def alike_owners(images: Sequence[str], owners: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Images, two of each kind, whose headers name patients by ids that look alike; the ids
    themselves are not to be shown.
    """
    of_number: dict[str, str] = {}
    for image, (patient, _) in zip(images, owners, strict=True):
        of_number.setdefault(patient.partition("|")[2], image)
    return [
        tuple(of_number[number] for number in group)
        for group in look_alikes(n for n in of_number if n)
    ]


def known_by_study(images: Sequence[str], owners: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The images of which the study alone stands for the patient, so that two studies of one
    patient pass for two patients.
    """
    named = (
        set()
        if is_placeholder(owners)
        else {study for patient, study in owners if patient.partition("|")[2]}
    )
    return tuple(
        image
        for image, (_, study) in zip(images, owners, strict=True)
        if study and study not in named
    )


def is_placeholder(owners: Sequence[tuple[str, str]]) -> bool:
    """Whether all headers name one patient, and several studies: an anonymiser's word, and no
    id.
    """
    return (
        len({p.partition("|")[2] for p, _ in owners if p}) == 1
        and len({s for _, s in owners if s}) > 1
    )
