"""Nothing that a header says of a person, a place or a date leaves the readers: of no format,
readable or damaged.
"""

from __future__ import annotations

import logging
import struct
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from medtransfer.data.images.dicom.writing import write_grey_dicom
from medtransfer.data.images.quiet import without_values
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from PIL import Image as Pillow
from PIL import PngImagePlugin

from file_mutants import mutate

NAME, NUMBER, DATE, UID, PLACE = (
    "Quackenbush^Zoë".replace("ë", "e"),
    "MRN4711QX",
    "19470815",
    "9.9.8.7.6.5.4321",
    "St Elsewhere",
)
SECRETS = (NAME, "Quackenbush", NUMBER, DATE, UID, PLACE, "Elsewhere")
TEXT = f"{NAME} {NUMBER} {DATE} {UID} {PLACE}"
GREY = np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8)
VOLUME = np.random.default_rng(1).integers(0, 900, (10, 12, 14)).astype(np.int16)


def dicom(path):
    write_grey_dicom(
        path,
        GREY.astype(np.uint16),
        patient=NUMBER,
        number=1,
        spacing=(1, 1),
        bits=12,
        photometric="MONOCHROME2",
        slope=1,
        intercept=0,
    )
    dataset = pydicom.dcmread(path)
    for keyword in (
        "PatientName",
        "InstitutionName",
        "ImageComments",
        "StudyDescription",
        "SeriesDescription",
        "ProtocolName",
    ):
        setattr(dataset, keyword, NAME if keyword == "PatientName" else TEXT[:60])
    dataset.PatientBirthDate = dataset.StudyDate = DATE
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = UID
    dataset.RescaleType = "Quackenbush"
    block = dataset.private_block(0x0011, TEXT[:40], create=True)
    block.add_new(1, "LO", NAME)
    dataset.save_as(path)


def nifti(path):
    image = nib.Nifti1Image(VOLUME, np.diag([-1, -1, 2, 1]))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = TEXT.encode()[: image.header[field].dtype.itemsize]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", TEXT.encode()))
    nib.save(image, path)


def nrrd(path):
    text = (
        f"NRRD0004\n# {TEXT}\ncontent: {TEXT}\ntype: short\ndimension: 3\nspace: "
        "left-posterior-superior\nsizes: 10 12 14\n"
    )
    text += f'space directions: (1,0,0) (0,1,0) (0,0,2)\nlabels: "{NAME}" "y" "z"\nendian: little\nencoding: raw\nPatient:={TEXT}\n\n'  # noqa: E501
    path.write_bytes(text.encode() + VOLUME.tobytes(order="F"))


def meta(path):
    text = (
        f"ObjectType = Image\nComment = {TEXT}\nNDims = 3\nName = {NAME}\nPatientID = "
        f"{NUMBER}\nStudyDate = {DATE}\nBinaryData = True\n"
    )
    text += "TransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    text += (
        "ElementSpacing = 1 1 2\nDimSize = 10 12 14\nElementType = MET_SHORT\nElementDataFile = "
        "LOCAL\n"
    )
    path.write_bytes(text.encode() + VOLUME.tobytes(order="F"))


def detached(path):
    meta(path)
    path.write_bytes(path.read_bytes().split(b"LOCAL")[0] + f"/home/{NAME}/{NUMBER}.raw\n".encode())


def exif():
    tags = Pillow.Exif()
    tags[0x013B], tags[0x010E], tags[0x8298], tags[0x0132], tags[0x0112] = (
        NAME,
        TEXT,
        PLACE,
        DATE,
        6,
    )
    tags.get_ifd(0x8825)[29] = DATE
    tags.get_ifd(0x8769)[0x9286] = TEXT.encode()
    return tags


def png(path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", NAME)
    info.add_text("Comment", TEXT, zip=True)
    info.add_itxt("Title", TEXT)
    Pillow.fromarray(GREY).save(path, pnginfo=info, exif=exif())


def jpeg(path):
    Pillow.fromarray(GREY).save(path, exif=exif(), comment=TEXT)


def webp(path):
    Pillow.fromarray(GREY).save(path, exif=exif(), xmp=TEXT.encode(), lossless=True)


def gif(path):
    Pillow.fromarray(GREY).save(path, comment=TEXT.encode())


def pgm(path):
    path.write_bytes(f"P5\n# {TEXT}\n32 24\n255\n".encode() + GREY.tobytes())


def plain_pgm(path):
    path.write_bytes(
        f"P2\n# {TEXT}\n32 24\n255\n{' '.join(map(str, GREY.ravel()))}\n# {TEXT}\n".encode()
    )


def tiff(path):
    tags = [
        (tag, 2, 0, text, True)
        for tag, text in ((315, NAME), (269, TEXT), (316, PLACE), (306, DATE))
    ]
    tifffile.imwrite(path, GREY, description=TEXT, software=PLACE, extratags=tags, metadata=None)


def jp2(path):
    """With a comment box behind the file type box (ISO 15444-1, I.7)."""
    Pillow.fromarray(GREY).save(path)
    data = path.read_bytes()
    path.write_bytes(data + struct.pack(">I", 8 + len(TEXT)) + b"xml " + TEXT.encode())


def archive(path):
    arrays = {f"{part}_{what}": np.zeros((2, 28, 28) if what == "images" else 2, np.uint8) for part in ("train", "val", "test") for what in ("images", "labels")}  # fmt: skip  # noqa: E501
    np.savez(path, **{NAME: np.array([TEXT])}, **arrays)


FILES = {
    "a.dcm": dicom, "a.nii": nifti, "a.nii.gz": nifti, "a.nrrd": nrrd, "a.mha": meta,
    "a.mhd": detached, "a.png": png, "a.jpg": jpeg,
    "a.webp": webp, "a.gif": gif, "a.pgm": pgm, "plain.pgm": plain_pgm, "a.tif": tiff,
    "a.jp2": jp2, "a.npz": archive,
}  # fmt: skip


def shown(path):
    """All that can be seen of a file; the names of its folder and of the test are not its own."""
    try:
        image = read_image(f"{path}#train/1" if path.suffix == ".npz" else path)
        return f"{image!r} {image.provenance}"
    except ImageError as error:
        return str(error).replace(str(path), "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_nothing_that_identifies_leaves_a_reader(tmp_path, name, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / name
    FILES[name](path)
    caplog.clear()  # what was said of writing
    capfd.readouterr()
    content = path.read_bytes()
    assert name.endswith(("gz", "npz")) or b"Quackenbush" in content
    seen = [shown(path)]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    # Cut everywhere, changed at random, and with what was planted moved into the fields of the
    # header.
    damaged = [content[: len(content) * part // 12] for part in range(12)] + [
        mutate(content, rng) for _ in range(60)
    ]
    at = [int(rng.integers(0, min(len(content), 1500))) for _ in range(30)]
    damaged += [
        content[:place] + TEXT.encode() + content[place + len(TEXT) * (place % 2) :] for place in at
    ]
    for data in damaged:
        path.write_bytes(data)
        seen.append(shown(path))
    streams = capfd.readouterr()
    found = {
        secret
        for secret in SECRETS
        for text in [*seen, caplog.text, streams.out, streams.err]
        if secret in text
    }
    assert not found, [text for text in seen if any(secret in text for secret in SECRETS)][:3]


def test_files_that_are_no_images_are_not_quoted(tmp_path):
    for content in (
        f"<html>{TEXT}</html>",
        TEXT,
        f'{{"patient": "{NAME}"}}',
        f"version https://git-lfs {TEXT}",
    ):
        for name in ("a.png", "a.dcm", "a.nii.gz", "a"):
            (tmp_path / name).write_text(content)
            assert not any(secret in shown(tmp_path / name) for secret in SECRETS)


def test_messages_of_libraries_lose_what_they_quote():
    assert without_values(f"Invalid value for VR PN: '{NAME}'") == "Invalid value for VR PN: …"
    assert without_values('value "O\'Brien^Mary" of 19470815 is odd') == "value … of … is odd"
    assert without_values("bad 'O'Brien' here") == "bad … here"
    assert without_values("token b'Quacken\nbush' found") == "token …"
    assert without_values("") == ""


@pytest.mark.filterwarnings("ignore")
def test_values_of_defined_terms_are_not_free_text(tmp_path):
    path = tmp_path / "a.dcm"
    dicom(path)
    dataset = pydicom.dcmread(path)
    for keyword in (
        "Modality",
        "ViewPosition",
        "ImageLaterality",
        "BurnedInAnnotation",
        "PresentationLUTShape",
    ):
        setattr(dataset, keyword, "Quackenbush")
    dataset.save_as(path)
    assert "Quackenbush" not in shown(path)
    for keyword, value in (("PhotometricInterpretation", "Quackenbush"), ("SOPClassUID", UID)):
        changed = pydicom.dcmread(path)
        setattr(changed, keyword, value)
        if keyword == "SOPClassUID":
            del changed.PixelData
        changed.save_as(path)
        assert not any(secret in shown(path) for secret in SECRETS)
