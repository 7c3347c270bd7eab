"""Puts the pictures of the example studies into DICOM files, as their facts in `examples.json` say.

    python -m radfm.examples.make PICTURES radfm/examples

PICTURES is a folder with the pictures of the collections, as `examples.json` names them. The JPEG data stay as they
are. The same pictures give the same bytes.
"""

import sys
from datetime import date, timedelta
from pathlib import Path

from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    JPEGBaseline8Bit,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    UltrasoundImageStorage,
    generate_uid,
)

from radfm.examples import Example, about, names

_FIRST_DAY = date(2000, 1, 1)
_CLASSES = {  # modality -> its DICOM code and SOP class
    "X-ray": ("CR", ComputedRadiographyImageStorage),
    "CT": ("CT", CTImageStorage),
    "MRI": ("MR", MRImageStorage),
    "nuclear medicine": ("PT", PositronEmissionTomographyImageStorage),
    "ultrasound": ("US", UltrasoundImageStorage),
}
_ORIENTATIONS = {"axial": [1, 0, 0, 0, 1, 0], "coronal": [1, 0, 0, 0, 0, -1]}


def make(pictures: Path, target: Path) -> None:
    """Writes the files of all studies, a folder each."""
    for example in map(about, names()):
        (target / example.name).mkdir(parents=True, exist_ok=True)
        for number, scan in enumerate(example.scans, 1):
            image = dicom(example, number, scan, pictures / scan["picture"])
            image.save_as(target / example.name / scan["file"], enforce_file_format=True)


def dicom(example: Example, number: int, scan: dict, picture: Path) -> Dataset:
    """A grey JPEG as a DICOM image with what is known of it."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.file_meta.ImplementationClassUID = generate_uid(
        entropy_srcs=["radfm.examples"]
    )  # not pydicom's, of a version
    image.file_meta.ImplementationVersionName = "RADFM"
    image.Modality, image.SOPClassUID = _CLASSES[scan["modality"]]
    image.ImageType = ["DERIVED", "PRIMARY"]
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = (
        generate_uid(entropy_srcs=["radfm.examples", example.name, *parts])
        for parts in ([], [str(number)], [str(number), "image"])
    )
    image.PatientName = image.PatientID = f"example {example.name}"
    image.PatientIdentityRemoved = "YES"
    image.PatientSex = example.sex or ""
    image.PatientAge = "" if example.age is None else f"{example.age:03d}Y"
    image.SeriesNumber = image.InstanceNumber = number
    image.BodyPartExamined = scan["body_part"].upper()
    image.DerivationDescription = f"From {example.collection}, reduced in size and put into DICOM. {example.licence}"
    if plane := scan.get("plane"):
        if plane in _ORIENTATIONS:
            image.ImageOrientationPatient = _ORIENTATIONS[plane]
        else:
            image.ViewPosition = plane
    if "day" in scan:
        image.AcquisitionDate = (_FIRST_DAY + timedelta(scan["day"])).strftime("%Y%m%d")
    with Image.open(picture) as opened:
        image.Columns, image.Rows = opened.size
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.LossyImageCompression = "01"
    image.PixelData = encapsulate([picture.read_bytes()])
    image["PixelData"].VR = "OB"
    return image


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
