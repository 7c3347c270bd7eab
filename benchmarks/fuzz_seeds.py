"""Small good files of every format that radfm reads, which `benchmarks/fuzz.py` damages."""

import bz2
import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import gdcm
import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

Files = dict[str, bytes]  # name -> contents; the first is the one that is read


def seed_files() -> dict[str, Files]:
    """Format -> a good file of it, with those that it needs beside it."""
    made = {f"DICOM {name}": {"a.dcm": make()} for name, make in _DICOM.items()}
    made |= {f"DICOM {name}": {"a.dcm": by_gdcm(*image)} for name, image in _GDCM.items()}
    made["DICOM JPEG of 12 bits"] = {"a.dcm": by_gdcm(GREY_16, uid.JPEGExtended12Bit, BitsStored=12, HighBit=11)}
    made |= {f"picture {name}": {f"a.{name.split()[0]}": make()} for name, make in _PICTURES.items()}
    made |= {f"volume {name}": files for name, files in volumes().items()}
    return made | arrays()


def smooth(*shape: int, dtype=np.uint8) -> np.ndarray:
    """Waves over all axes, with noise: neither flat nor random."""
    axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
    waves = sum(np.sin(axis / (2 + i)) for i, axis in enumerate(axes))
    noise = np.random.default_rng(0).normal(0, 0.1, shape)
    scaled = (waves + noise + len(shape)) / (2.6 * len(shape) + 1) * (200 if dtype == np.uint8 else 3000)
    return np.clip(scaled, 0, None).astype(dtype)


# DICOM


def dicom(
    pixels: np.ndarray, syntax=uid.ExplicitVRLittleEndian, stream: list[bytes] | None = None, **elements
) -> bytes:
    """A file. pixels: (H, W), (frames, H, W) or (H, W, 3); stream: the compressed frames, if they are."""
    colour, bits = pixels.shape[-1] == 3, 8 * pixels.dtype.itemsize
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = elements.pop("SOPClassUID", uid.CTImageStorage)
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3.4"
    header.SeriesInstanceUID, header.StudyInstanceUID, header.PatientID = "1.2.3.1", "1.2.3", "P1"
    header.Modality, header.InstanceNumber, header.StudyDate = "CT", 1, "20200131"
    header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 5], [1, 0, 0, 0, 1, 0]
    header.PixelSpacing, header.SliceThickness = [0.7, 0.7], 5
    header.Rows, header.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    header.SamplesPerPixel, header.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    header.BitsAllocated = header.BitsStored = bits
    header.HighBit, header.PixelRepresentation = bits - 1, 0
    if colour:
        header.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        header.NumberOfFrames = len(pixels)
    for keyword, value in elements.items():
        setattr(header, keyword, value)
    header.PixelData = encapsulate(stream) if stream else pixels.tobytes()
    header["PixelData"].VR = "OB" if stream or bits == 8 else "OW"
    header["PixelData"].is_undefined_length = bool(stream)
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compressed(pixels: np.ndarray, syntax) -> bytes:
    """A file that pydicom compresses (RLE, JPEG 2000)."""
    header, file = pydicom.dcmread(io.BytesIO(dicom(pixels))), io.BytesIO()
    header.compress(syntax)
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


def by_gdcm(pixels: np.ndarray, syntax, **elements) -> bytes:
    """A file that gdcm compresses (JPEG lossless, of 12 bits, JPEG-LS)."""
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "a", Path(folder) / "b"
        plain.write_bytes(dicom(pixels, **elements))
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
        change.SetInput(reader.GetImage())
        assert change.Change(), f"gdcm cannot write {syntax.name}"
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(packed))
        assert writer.Write()
        return packed.read_bytes()


def enhanced() -> bytes:
    frames = []
    for i in range(4):
        position, content = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 5.0 * (i % 2)]
        content.DimensionIndexValues, content.TemporalPositionIndex = [1, i % 2 + 1, i // 2 + 1], i // 2 + 1
        frame = Dataset()
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frames.append(frame)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.7], 5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    return dicom(smooth(4, 16, 16, dtype=np.uint16), SOPClassUID=uid.EnhancedMRImageStorage, Modality="MR", **groups)


def palette() -> bytes:
    tables = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = np.arange(256, dtype=np.uint16).tobytes()
    return dicom(smooth(32, 32), Modality="US", PhotometricInterpretation="PALETTE COLOR", **tables)


def nuclear() -> bytes:
    vectors = {"SliceVector": [1, 2, 1, 2], "TimeSlotVector": [1, 1, 2, 2], "NumberOfSlices": 2}
    vectors |= {"FrameIncrementPointer": [0x00540080, 0x00540070], "SpacingBetweenSlices": -4}
    pixels = smooth(4, 16, 16, dtype=np.uint16)
    return dicom(pixels, SOPClassUID=uid.NuclearMedicineImageStorage, Modality="NM", **vectors)


def jpeg(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


GREY, COLOUR = smooth(32, 32), smooth(32, 32, 3)
GREY_16, FRAMES = smooth(32, 32, dtype=np.uint16), smooth(3, 16, 16, dtype=np.uint16)
_WINDOW = {"WindowCenter": 1500, "WindowWidth": 3000, "Modality": "DX", "BitsStored": 12, "HighBit": 11}
_DICOM: dict[str, Callable[[], bytes]] = {
    "explicit": lambda: dicom(GREY_16, RescaleIntercept=-1024, RescaleSlope=1),
    "implicit": lambda: dicom(GREY_16, uid.ImplicitVRLittleEndian),
    "big endian": lambda: dicom(GREY_16.astype(">u2"), uid.ExplicitVRBigEndian),
    "deflated": lambda: dicom(GREY_16, uid.DeflatedExplicitVRLittleEndian),
    "radiograph": lambda: dicom(GREY_16, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, **_WINDOW),
    "frames": lambda: dicom(FRAMES, Modality="US"),
    "colour": lambda: dicom(COLOUR, Modality="US"),
    "palette": palette,
    "enhanced": enhanced,
    "nuclear": nuclear,
    "RLE": lambda: compressed(GREY_16, uid.RLELossless),
    "RLE colour": lambda: compressed(COLOUR, uid.RLELossless),
    "JPEG": lambda: dicom(GREY, uid.JPEGBaseline8Bit, [jpeg(GREY)], Modality="US"),
    "JPEG colour": lambda: dicom(
        COLOUR, uid.JPEGBaseline8Bit, [jpeg(COLOUR)], Modality="US", PhotometricInterpretation="YBR_FULL_422"
    ),
    "JPEG 2000": lambda: compressed(GREY_16, uid.JPEG2000Lossless),
    "JPEG 2000 colour": lambda: compressed(COLOUR, uid.JPEG2000Lossless),
}
_GDCM = {
    "JPEG lossless": (GREY_16, uid.JPEGLosslessSV1),
    "JPEG lossless 14": (GREY_16, uid.JPEGLossless),
    "JPEG lossless colour": (COLOUR, uid.JPEGLosslessSV1),
    "JPEG-LS": (GREY_16, uid.JPEGLSLossless),
    "JPEG-LS near lossless": (GREY, uid.JPEGLSNearLossless),
}


# Pictures


def picture(pixels: np.ndarray, format: str, pages: int = 1, mode: str | None = None, **options) -> bytes:
    file, first = io.BytesIO(), Image.fromarray(pixels)
    first = first.convert(mode) if mode else first
    if pages > 1:
        options |= {"save_all": True, "append_images": [Image.fromarray(255 - pixels)] * (pages - 1)}
    first.save(file, format, **options)
    return file.getvalue()


_PICTURES: dict[str, Callable[[], bytes]] = {
    "png": lambda: picture(GREY, "PNG"),
    "png of 16 bits": lambda: picture(GREY_16, "PNG"),
    "png colour": lambda: picture(COLOUR, "PNG"),
    "png palette": lambda: picture(COLOUR, "PNG", mode="P"),
    "jpg": lambda: jpeg(GREY),
    "jpg colour": lambda: jpeg(COLOUR),
    "jpg progressive": lambda: jpeg(COLOUR, progressive=True),
    "tif": lambda: picture(GREY_16, "TIFF"),
    "tif LZW": lambda: picture(GREY, "TIFF", compression="tiff_lzw"),
    "tif deflate": lambda: picture(COLOUR, "TIFF", compression="tiff_adobe_deflate"),
    "tif JPEG": lambda: picture(COLOUR, "TIFF", compression="jpeg"),
    "tif pages": lambda: picture(GREY, "TIFF", pages=3),
    "gif": lambda: picture(GREY, "GIF", pages=3),
    "bmp": lambda: picture(COLOUR, "BMP"),
    "bmp grey": lambda: picture(GREY, "BMP"),
    "webp": lambda: picture(COLOUR, "WEBP"),
    "webp lossless": lambda: picture(COLOUR, "WEBP", lossless=True),
    "webp animated": lambda: picture(COLOUR, "WEBP", pages=3),
    "jp2": lambda: picture(COLOUR, "JPEG2000"),
    "j2k": lambda: picture(GREY_16, "JPEG2000", no_jp2=True),
}


# Volumes and arrays


def volumes() -> dict[str, Files]:
    values = smooth(8, 9, 5, dtype=np.int16)
    series = smooth(6, 7, 4, 3, dtype=np.int16)
    nifti = nibabel.Nifti1Image(values, np.diag([2, 2, 5, 1])).to_bytes()
    mgh = nibabel.MGHImage(values.astype(np.int32), np.eye(4)).to_bytes()
    pair = nibabel.Nifti1Pair(values, np.eye(4))
    pair.header["magic"] = b"ni1"
    image, files = sitk.GetImageFromArray(values), {}
    for name, packed in {"a.nrrd": False, "b.nrrd": True, "a.mha": False, "b.mha": True, "a.mhd": False}.items():
        files[name] = by_simpleitk(image, name, packed)
    text = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: text\n\n"
    bzipped = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 5 9 8\nendian: little\nencoding: bzip2\n\n"
    return {
        "NIfTI": {"a.nii": nifti},
        "NIfTI gzipped": {"a.nii.gz": gzip.compress(nifti, mtime=0)},
        "NIfTI of four axes": {"a.nii": nibabel.Nifti1Image(series, np.eye(4)).to_bytes()},
        "NIfTI-2": {"a.nii": nibabel.Nifti2Image(values, np.eye(4)).to_bytes()},
        "NIfTI in two files": {"a.hdr": pair.header.binaryblock + bytes(4), "a.img": values.tobytes(order="F")},
        "MGH": {"a.mgh": mgh},
        "MGH gzipped": {"a.mgz": gzip.compress(mgh, mtime=0)},
        "NRRD": files["a.nrrd"],
        "NRRD gzipped": files["b.nrrd"],
        "NRRD bzipped": {"a.nrrd": bzipped + bz2.compress(values.tobytes())},
        "NRRD text": {"a.nrrd": text + b" ".join(b"%d" % i for i in range(24)) + b"\n"},
        "MHA": files["a.mha"],
        "MHA compressed": files["b.mha"],
        "MHD": files["a.mhd"],
    }


def by_simpleitk(image, name: str, packed: bool) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(image, f"{folder}/{name}", packed)
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name != name)
        return {file.name: file.read_bytes() for file in written}


def arrays() -> dict[str, Files]:
    plain, stored, deflated = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, GREY_16)
    np.savez(stored, a=GREY_16, b=FRAMES)
    np.savez_compressed(deflated, a=GREY_16, b=FRAMES)
    files = {"NPY": ("a.npy", plain), "NPZ": ("a.npz", stored), "NPZ deflated": ("a.npz", deflated)}
    return {f"array {kind}": {name: file.getvalue()} for kind, (name, file) in files.items()}
