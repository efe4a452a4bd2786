"""The embedded default cohort: lesions of known truth, written as real DICOM files.

A stand-in for breast ultrasound, to show and to test the whole path. Nothing measured on it says
anything about patients.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from skimage.draw import polygon2mask
from skimage.filters import gaussian

from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from medtransfer.data.phantom.volumes import draw_volume, write_volume
from medtransfer.errors import CohortError

SIZE = 128
SPACING = (0.3, 0.3)
_BITS = 12

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Scanner:
    """How one device renders tissue: grain of the speckle in pixels, gain, fall of signal with
    depth, polarity.
    """

    name: str
    grain: float
    gain: float
    attenuation: float
    photometric: str
    slope: float
    intercept: float


SCANNERS = (
    Scanner("scanner-a", 0.8, 1.0, 0.25, "MONOCHROME2", 1.0, 0.0),
    Scanner("scanner-b", 1.4, 0.75, 0.45, "MONOCHROME1", 0.5, -200.0),
)


def write_phantom(
    folder: str | Path, patients: int = 150, seed: int = 0, volumes: bool = False
) -> Path:
    """Writes the phantom cohort: DICOM images, masks, boxes and a manifest.

    About 40 % of the patients have a malignant lesion (irregular, spiculated, uneven inside), 40 %
    a benign one (a smooth ellipse), 20 % none. Degrees of irregularity overlap between the classes,
    so that no reader can be perfect. A patient has 1 to 3 images, all of one scanner.

    Args:
        folder: new or empty folder.
        patients: number of patients, at least 10.
        seed: of everything drawn; the same seed writes the same bytes.
        volumes: one volume per patient in place of images: a DICOM series or a NIfTI file, drawn
            apart from the lesion.

    Returns:
        Path of `manifest.csv` (`image, patient, site, malignant, lesion`). Beside it `boxes.csv`
        (`image, x0, y0, x1, y1, label`, pixels, upper ends exclusive; of volumes with `z0, z1`),
        `images/*.dcm` and `masks/*.png`; of volumes `images/PATIENT` (a series) or
        `images/PATIENT.nii.gz`, and `masks/PATIENT.nii.gz`.

    Raises:
        CohortError: fewer than 10 patients, or a folder that holds anything but this phantom.
    """
    if patients < 10:
        raise CohortError(f"a phantom cohort needs at least 10 patients, not {patients}")
    folder = Path(folder)
    _claim_folder(
        folder, {"patients": patients, "seed": seed, **({"volumes": 1} if volumes else {})}
    )
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows: list[list[Any]] = []
    boxes: list[list[Any]] = []
    for number in range(patients):
        rng = np.random.default_rng([seed, number])
        kind = ("malignant", "benign", "none")[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
        # The scanner is drawn apart from the lesion: it must not tell the label.
        scanner = SCANNERS[int(rng.integers(2))]
        patient = f"P{number:04d}"
        traits = _draw_traits(kind, rng)
        if volumes:
            volume, mask = draw_volume(
                traits.lesion,
                traits.radius,
                traits.irregularity,
                traits.unevenness,
                traits.contrast,
                scanner.gain,
                rng,
            )
            image, box = write_volume(
                folder,
                patient,
                seed * 1_000_003 + number,
                volume,
                mask,
                as_series=bool(rng.integers(2)),
            )
            rows.append([image, patient, scanner.name, int(kind == "malignant"), kind])
            boxes += [[image, *box, kind]] if box else []
            continue
        for view in range(int(rng.integers(1, 4))):
            name = f"{patient}-{view}"
            pixels, mask = _draw_image(traits, scanner, rng)
            write_grey_dicom(
                folder / "images" / f"{name}.dcm",
                pixels,
                patient=patient,
                number=(seed * 1_000_003 + number) * 10 + view,
                spacing=SPACING,
                encoding=GreyEncoding(_BITS, scanner.photometric, scanner.slope, scanner.intercept),
            )
            Pillow.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
            rows.append(
                [f"images/{name}.dcm", patient, scanner.name, int(kind == "malignant"), kind]
            )
            if mask.any():
                lines, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                boxes.append(
                    [
                        f"images/{name}.dcm",
                        columns[0],
                        lines[0],
                        columns[-1] + 1,
                        lines[-1] + 1,
                        kind,
                    ]
                )
    _write_csv(
        folder / "boxes.csv",
        ["image", "x0", "y0", "x1", "y1", *(["z0", "z1"] if volumes else []), "label"],
        boxes,
    )
    _write_csv(folder / "manifest.csv", ["image", "patient", "site", "malignant", "lesion"], rows)
    return folder / "manifest.csv"


def _claim_folder(folder: Path, settings: dict[str, int]) -> None:
    """Refuses a folder with files of somebody else; marks an empty one."""
    mark = folder / "phantom.json"
    text = json.dumps(settings)
    if mark.is_file() and mark.read_text(encoding="utf-8") == text:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CohortError(
            f"{folder}: is not empty and holds no phantom cohort of {settings['patients']} "
            "patients. Choose another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Traits:
    """What stays the same over the images of one patient."""

    lesion: bool
    radius: float
    elongation: float
    irregularity: float
    spicules: int
    spicule_length: float
    unevenness: float
    contrast: float


def _draw_traits(kind: str, rng: np.random.Generator) -> _Traits:
    # One latent degree of malignancy per patient; the two classes overlap in it.
    degree = float(np.clip(rng.normal(0.74 if kind == "malignant" else 0.24, 0.15), 0.0, 1.0))
    return _Traits(
        lesion=kind != "none",
        radius=float(rng.uniform(15, 27)),
        elongation=float(rng.uniform(1.0, 1.7)),
        irregularity=0.26 * float(np.clip(degree + rng.normal(0, 0.12), 0, 1)),
        spicules=int(rng.integers(5, 12)),
        spicule_length=0.75 * float(np.clip(degree - 0.35 + rng.normal(0, 0.10), 0, 1)),
        unevenness=float(np.clip(degree + rng.normal(0, 0.15), 0, 1)),
        contrast=float(rng.uniform(0.40, 0.70)),
    )


def _draw_image(
    traits: _Traits, scanner: Scanner, rng: np.random.Generator
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Stored display values 0..4095 (bright is bright) and the true mask."""
    rows = np.linspace(0, 1, SIZE)[:, None]
    tissue = 0.55 + 0.06 * _noise(rng, 9.0) + 0.05 * _noise(rng, 3.0)
    # Layers and strands run across, as in fat and fascia; some look like a lesion's edge.
    tissue += 0.06 * gaussian(rng.standard_normal((SIZE, SIZE)), (1.0, 12.0), mode="wrap") * 6
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    if traits.lesion:
        mask = _draw_mask(traits, rng)
        edge = gaussian(mask.astype(float), 1.2)
        inside = 1 - traits.contrast + 0.25 * traits.unevenness * _noise(rng, 2.5)
        tissue = tissue * (1 - edge) + tissue * inside * edge
    for _ in range(int(rng.integers(1, 4))):
        tissue *= 1 - rng.uniform(0.1, 0.35) * _blob(rng)
    speckle = np.hypot(
        *(gaussian(rng.standard_normal((SIZE, SIZE)), scanner.grain, mode="wrap") for _ in range(2))
    )
    speckle /= speckle.mean()
    signal = (
        scanner.gain
        * np.clip(tissue, 0.02, None)
        * (0.68 + 0.32 * speckle)
        * (1 - scanner.attenuation * rows)
    )
    values = np.clip(signal * 3000, 0, 2**_BITS - 1)
    return values.astype(np.uint16), mask


def _draw_mask(traits: _Traits, rng: np.random.Generator) -> NDArray[np.bool_]:
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    radius = np.ones_like(angle)
    for order in range(3, 9):
        radius += (
            traits.irregularity
            * rng.normal(0, 1.6 / order)
            * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
        )
    for at in rng.uniform(0, 2 * np.pi, traits.spicules):
        away = np.abs(np.angle(np.exp(1j * (angle - at))))
        radius += traits.spicule_length * rng.uniform(0.5, 1.3) * np.exp(-((away / 0.09) ** 2))
    turn = rng.uniform(0, np.pi)
    x = traits.radius * radius * np.sqrt(traits.elongation) * np.cos(angle)
    y = traits.radius * radius / np.sqrt(traits.elongation) * np.sin(angle)
    margin = 1.1 * traits.radius
    center = rng.uniform(margin, SIZE - margin, 2)
    points = np.stack(
        [
            center[0] + x * np.sin(turn) + y * np.cos(turn),
            center[1] + x * np.cos(turn) - y * np.sin(turn),
        ],
        axis=1,
    )
    return np.asarray(polygon2mask((SIZE, SIZE), points), dtype=bool)


def _blob(rng: np.random.Generator) -> Float:
    """A soft shadow somewhere, 0 to 1: an innocent dark spot."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    center, width = rng.uniform(0, SIZE, 2), rng.uniform(5, 16, 2)
    return np.asarray(
        np.exp(-(((rows - center[0]) / width[0]) ** 2 + ((columns - center[1]) / width[1]) ** 2)),
        dtype=np.float64,
    )


def _noise(rng: np.random.Generator, scale: float) -> Float:
    """Smooth noise of unit variance; `scale` in pixels."""
    field = gaussian(rng.standard_normal((SIZE, SIZE)), scale, mode="wrap")
    return np.asarray(field / field.std(), dtype=np.float64)


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
