"""What names a person, a place or a date stays where it is: in no file of a study, no log and no
message.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pydicom
import pytest
from medtransfer.data.images.dicom.writing import GreyEncoding, write_grey_dicom
from PIL import Image, PngImagePlugin

from studies import invoke

# Sixteen elements of a header.
HEADER = {
    "PatientName": "Quackenbush^Zoe",
    "PatientID": "MRN4711QX",
    "PatientBirthDate": "19470815",
    "PatientAddress": "Larkspur Lane 5",
    "PatientTelephoneNumbers": "555-0199-77",
    "OtherPatientNames": "Vandersloot",
    "PatientComments": "twin of Ermintrude",
    "StudyDate": "19991231",
    "AccessionNumber": "ACC778899",
    "StudyID": "ST-0815-Q",
    "StudyInstanceUID": "9.9.8.7.6.5.4321",
    "InstitutionName": "St Elsewhere",
    "ReferringPhysicianName": "Bartholomew^Q",
    "OperatorsName": "Wigglesworth",
    "StationName": "ROOM-XK12",
    "StudyDescription": "second opinion Thaddeus",
}
# Ten in manifests, pictures and masks.
COLUMNS = {
    "name": "Hollingberry",
    "birth": "1951-02-03",
    "phone": "0171-555999",
    "address": "Fennimore Road",
    "record": "REC-90210-Z",
}
TEXTS = {
    "Author": "Pemberton",
    "Comment": "seen by Oglethorpe",
    "Description": "Montague, born 1938",
    "Title": "mask of Featherstone",
}
EXIF = "Cholmondeley"
SECRETS = [*HEADER.values(), *COLUMNS.values(), *TEXTS.values(), EXIF]


def write_picture(path, pixels):
    info = PngImagePlugin.PngInfo()
    for key, text in TEXTS.items():
        info.add_text(key, text)
    tags = Image.Exif()
    tags[0x013B] = EXIF
    Image.fromarray(pixels).save(path, pnginfo=info, exif=tags)


@pytest.fixture
def cohort(tmp_path):
    root = tmp_path / "cohort"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        pixels = rng.integers(0, 200, (48, 48)).astype(np.uint16)
        pixels[10:20, 12:24] += 40 * (i % 2)
        if i % 3:
            name = f"images/s{i}.dcm"
            write_grey_dicom(
                root / name,
                pixels,
                patient="x",
                number=i,
                spacing=(1, 1),
                encoding=GreyEncoding(),
            )
            dataset = pydicom.dcmread(root / name)
            for keyword, value in HEADER.items():
                setattr(dataset, keyword, value)
            dataset.SeriesInstanceUID = f"1.2.3.{i}"
            dataset.save_as(root / name)
        else:
            name = f"images/s{i}.png"
            write_picture(root / name, pixels.astype(np.uint8))
        mask = np.zeros((48, 48), np.uint8)
        mask[10:20, 12:24] = 255 * (i % 2)
        write_picture(root / "masks" / f"s{i}.png", mask)
        rows.append({"image": name, "patient": f"p{i}", "malignant": i % 2, **COLUMNS})
    damaged = (root / "images" / "s1.dcm").read_bytes()
    (root / "images" / "s1.dcm").write_bytes(damaged[: len(damaged) - 900])
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)
    return root


@pytest.mark.study
def test_planted_identifiers_are_in_no_artefact(cohort, tmp_path):
    config = tmp_path / "study.yaml"
    config.write_text(
        f"cohort: {{root: {cohort}, manifest: {cohort}/manifest.csv, labels: malignant, boxes: "
        f"masks, skip_unreadable: true}}\n"
        "image: {size: 32}\nprotocol: {folds: 2}\ntrain: {epochs: 1}\nevaluate: {bootstrap: 100}\n"
        "arms:\n  scratch: {backbone: resnet10t, weights: none, budget: 1}\n  formulas: {kind: "
        "features}\n"
    )
    texts = {}
    result = invoke("check", config, "--output", tmp_path / "checked", "--json")
    texts["check"] = result.output
    result = invoke("compare", config, "--output", tmp_path / "study")
    assert result.exit_code == 3, result.output  # one image cannot be read
    texts["compare"] = result.output
    texts["refused"] = invoke(
        "compare", config, "cohort.skip_unreadable=false", "--output", tmp_path / "other"
    ).output
    texts["evaluate"] = invoke(
        "evaluate", tmp_path / "study" / "predictions.csv", "--output", tmp_path / "again"
    ).output
    files = [
        path
        for folder in ("study", "checked", "again", "other")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    ]
    assert len(files) > 20
    for path in files:
        texts[str(path)] = path.read_bytes().decode("latin-1")
    found = {
        (where, secret) for where, text in texts.items() for secret in SECRETS if secret in text
    }
    assert not found
    names = json.loads((tmp_path / "study" / "audit.json").read_text())
    assert names["accounts"]
