"""Images and annotations as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from medtransfer.cli.app import app
from medtransfer.data.audit.audit import audit
from medtransfer.data.audit.inspection import inspect_images
from PIL import Image
from typer.testing import CliRunner

BOX = ["x0", "y0", "x1", "y1"]


def pictures(folder: Path, names, size=(96, 80), exif=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(
            np.random.default_rng(i).integers(0, 255, size[::-1], dtype=np.uint8)
        )
        tags = Image.Exif()
        if exif:
            tags[0x0112] = exif
        picture.save(folder / name, **({"exif": tags} if exif else {}))
    return list(names)


def coco(path: Path, names, annotations, **more):
    images = [{"id": i, "file_name": name, **more} for i, name in enumerate(names)]
    path.write_text(
        json.dumps(
            {
                "images": images,
                "categories": [{"id": 1, "name": "tumour"}],
                "annotations": annotations,
            }
        )
    )


def mark(i, image, bbox=(10, 12, 20, 16), **more):
    return {"id": i, "image_id": image, "category_id": 1, "bbox": list(bbox), **more}


def checked(cohort):
    facts = inspect_images(cohort, jobs=1)
    cohort = cohort.fitted(facts)
    return cohort, audit(cohort, facts, shortcuts=False)


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def assert_adds_up(findings):
    assert findings.accounts
    for account in findings.accounts:
        assert account.given == account.used + sum(part.count for part in account.left_out), account


def volume(path: Path, array, affine, code=1):
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code)
    nib.save(image, path)
