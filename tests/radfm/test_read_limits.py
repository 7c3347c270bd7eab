"""Damaged and hostile files: refused for the right reason, before anything large is reserved."""

import errno
import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from test_read_dicom import dicom, ramp

from radfm import read_case
from radfm.readers.errors import reason_for
from tests.waiting import TIMEOUT

READ_IN_LITTLE_MEMORY = """
import json, resource, sys
from radfm import read_case
warm = read_case(sys.argv[1])  # loads every library
assert not warm.skipped, warm.skipped
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
case = read_case(sys.argv[2])
print(json.dumps([[scan.source for scan in case.scans], case.skipped]))
"""


def good_files(folder):
    folder.mkdir()
    dicom(folder / "a.dcm", ramp()[0])
    nibabel.save(nibabel.Nifti1Image(ramp(), np.eye(4)), folder / "b.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(ramp()), folder / "c.mha")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "d.png")
    np.savez(folder / "e.npz", ramp())
    dataset = pydicom.dcmread(dicom(folder / "f.dcm", ramp(1, 64, 64, np.uint16)[0], Modality="US"))
    dataset.compress(JPEG2000Lossless)
    dataset.save_as(folder / "f.dcm")


def bombs(folder):
    folder.mkdir()
    for name, change in {
        "rows": {"Rows": 60000, "Columns": 60000},
        "frames": {"NumberOfFrames": 2_000_000_000},
    }.items():
        dicom(folder / f"{name}.dcm", ramp()[0], **change)
        dataset = pydicom.dcmread(folder / f"{name}.dcm")
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"\0" * 64])
        for syntax in (RLELossless, JPEG2000Lossless, JPEGBaseline8Bit):
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset["PixelData"].is_undefined_length = True
            dataset.SOPInstanceUID = pydicom.uid.generate_uid()
            dataset.save_as(folder / f"{name}-{syntax.keyword}.dcm")
    # A codestream of another size than the header says.
    dataset = pydicom.dcmread(dicom(folder / "j2k.dcm", ramp(1, 64, 64, np.uint16)[0], Modality="US"))
    dataset.compress(JPEG2000Lossless)
    small = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    at = small.index(b"\xff\x4f\xff\x51") + 8
    huge = small[:at] + struct.pack(">2I", 50000, 50000) + small[at + 8 :]
    dataset.PixelData = pydicom.encaps.encapsulate([huge])
    dataset.save_as(folder / "j2k.dcm")
    # 1.1 GiB of zeros, deflated.
    dataset = pydicom.dcmread(dicom(folder / "deflated.dcm", ramp()[0]))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(folder / "deflated.dcm")
    whole = (folder / "deflated.dcm").read_bytes()
    head = 144 + struct.unpack("<I", whole[140:144])[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflater.compress(bytes(2**26)) + deflater.flush(zlib.Z_FULL_FLUSH)
    (folder / "deflated.dcm").write_bytes(whole[:head] + block * 18)
    # A header element of 4 GB in a file of 1 kB.
    bare = dicom(folder / "element.dcm", ramp()[0]).read_bytes()
    at = bare.index(b"\x08\x00\x60\x00CS")
    (folder / "element.dcm").write_bytes(bare[:at] + b"\x08\x00\x60\x00UT\0\0\xf0\xff\xff\xff" + bare[at + 8 :])

    image = nibabel.Nifti1Image(ramp(), np.eye(4))
    header = image.header.copy()
    header["dim"] = [3, 30000, 30000, 2, 1, 1, 1, 1]
    header["magic"], header["vox_offset"] = b"n+1", 352
    (folder / "v.nii").write_bytes(header.binaryblock + bytes(4) + bytes(1000))
    (folder / "w.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(1000)))
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 2\nendian: little\nencoding: {}\n\n"
    (folder / "r.nrrd").write_bytes(nrrd.format("raw").encode() + bytes(1000))
    (folder / "g.nrrd").write_bytes(nrrd.format("gzip").encode() + gzip.compress(bytes(1000)))
    mha = "ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 2\nElementType = MET_SHORT\n{}ElementDataFile = LOCAL\n"
    (folder / "m.mha").write_bytes(mha.format("").encode() + bytes(1000))
    (folder / "z.mha").write_bytes(mha.format("CompressedData = True\n").encode() + zlib.compress(bytes(1000)))

    for name, size in {"p.png": (13000, 13000), "q.png": (100000, 100000)}.items():
        Image.new("L", (8, 8)).save(folder / name)
        png = (folder / name).read_bytes()
        chunk = b"IHDR" + struct.pack(">2I", *size) + png[24:29]
        (folder / name).write_bytes(png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:])
    Image.new("L", (8, 8)).save(folder / "t.tif", tiffinfo={})
    tiff = (folder / "t.tif").read_bytes()
    for tag in (b"\x00\x01", b"\x01\x01"):  # width and height: type 4 (long), one of them
        at = next(i for i in range(8, len(tiff)) if tiff[i : i + 2] == tag and tiff[i + 2] in (3, 4))
        tiff = tiff[: at + 2] + struct.pack("<HII", 4, 1, 12000) + tiff[at + 12 :]
    (folder / "t.tif").write_bytes(tiff)
    Image.new("L", (8, 8)).save(folder / "j.jpg")
    jpeg = (folder / "j.jpg").read_bytes()
    at = jpeg.index(b"\xff\xc0") + 5
    (folder / "j.jpg").write_bytes(jpeg[:at] + struct.pack(">2H", 13000, 13000) + jpeg[at + 4 :])

    claim = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 100000), }".ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(claim)) + claim + bytes(1000)
    (folder / "n.npy").write_bytes(npy)
    with zipfile.ZipFile(folder / "o.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy)


def test_no_memory_is_allocated_for_a_size_that_only_the_header_states(tmp_path):
    good_files(tmp_path / "good")
    bombs(tmp_path / "bombs")
    command = [sys.executable, "-c", READ_IN_LITTLE_MEMORY, str(tmp_path / "good"), str(tmp_path / "bombs")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert answer.returncode == 0, answer.stderr
    read, skipped = json.loads(answer.stdout)
    reasons = dict(skipped)
    assert read == []
    files = {path.name for path in (tmp_path / "bombs").iterdir()}
    assert {name.split("/")[0] for name in reasons} == files
    for name, reason in reasons.items():
        assert "memory" not in reason, (name, reason)
        assert ":" in reason, (name, reason)


@pytest.mark.parametrize("kind", ["a.dcm", "b.nii.gz", "c.mha", "d.png", "e.npz", "f.dcm"])
def test_a_file_cut_anywhere_is_skipped_or_read_never_raised(tmp_path, kind):
    good_files(tmp_path / "good")
    whole = (tmp_path / "good" / kind).read_bytes()
    for at in sorted({*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}):
        (tmp_path / kind).write_bytes(whole[:at])
        case = read_case(tmp_path / kind)
        assert len(case.scans) + len(case.skipped) == 1, at


@pytest.mark.parametrize("kind", ["a.dcm", "b.nii.gz", "c.mha", "d.png", "e.npz", "f.dcm"])
def test_a_file_with_random_bytes_changed_is_skipped_or_read_never_raised(tmp_path, kind):
    good_files(tmp_path / "good")
    whole = (tmp_path / "good" / kind).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 8):
            damaged[at] = random.integers(256)
        (tmp_path / kind).write_bytes(damaged)
        case = read_case(tmp_path / kind)
        assert case.scans or case.skipped
        assert all("\n" not in reason for _, reason in case.skipped)


@pytest.mark.parametrize(
    "name", ["a.dcm", "a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.png", "a.tif", "a.npy", "a.npz", "a"]
)
@pytest.mark.parametrize("contents", [b"", b"\0", b"hello, this is no image", bytes(5000), b"\x1f\x8b" + bytes(50)])
def test_files_that_are_not_images_are_skipped_with_a_reason(tmp_path, name, contents):
    (tmp_path / name).write_bytes(contents)
    case = read_case(tmp_path / name)
    assert case.scans == []
    assert len(case.skipped) == 1
    assert case.skipped[0][0] == name
    assert ":" in case.skipped[0][1]


def test_broken_links_pipes_and_loops_are_listed(tmp_path):
    np.save(tmp_path / "good.npy", ramp())
    (tmp_path / "gone.npy").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.npy").symlink_to(tmp_path / "self.npy")
    (tmp_path / "again.npy").symlink_to(tmp_path / "good.npy")
    os.mkfifo(tmp_path / "pipe.dcm")
    case = read_case(tmp_path)
    assert len(case.scans) == 1
    reasons = dict(case.skipped)
    assert set(reasons) == {"gone.npy", "loop", "self.npy", "good.npy", "pipe.dcm"}
    assert reasons["good.npy"] == "is the same file as again.npy: read once"


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))])
def test_a_file_that_needs_too_much_memory_is_not_called_damaged(error):
    """numpy raises the second where it maps a file."""
    assert reason_for(error, "a volume").startswith("needs more memory than this machine has free")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_listed(tmp_path):
    np.save(tmp_path / "a.npy", ramp())
    np.save(tmp_path / "b.npy", ramp())
    (tmp_path / "b.npy").chmod(0)
    assert read_case(tmp_path).skipped == [("b.npy", "may not be opened: ask for permission to read it")]


def test_a_damaged_segment_of_a_jpeg_is_refused_before_a_decoder_can_end_the_process(tmp_path):
    for name in ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm"):
        whole = Path(pydicom.data.get_testdata_file(name)).read_bytes()
        at = whole.index(b"\xff\xd8\xff") + 4
        (tmp_path / name).write_bytes(whole[:at] + b"\0\0" + whole[at + 2 :])
        case = read_case(tmp_path / name)
        assert case.scans == []
        reason = "holds a compressed picture that is cut short or damaged: copy it again from where it came from"
        assert case.skipped == [(name, reason)]
