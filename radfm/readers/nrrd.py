"""NRRD and MetaImage (SimpleITK): volumes in patient coordinates.

Decisions:
- Three or four bytes of a voxel are a colour where NRRD's `kinds` say so. Where they say list, vector or time, each of
  the values belongs to a volume of its own, and is a scan. MetaImage, and NRRD without kinds, do not say it: three or
  four bytes are then read as a colour, with a warning.
- Where neither kinds nor directions say which of four axes is the series, it is the first if that is much shorter than
  the others, else the last; with a warning.
- An axis of time, or one without a direction in space, may be at any position. SimpleITK reads it where its kind is
  "list", so the header is handed over with that kind.
- The file with the pixels may be in another folder, as long as that is inside the folder that is read.
- Of more than 16 volumes, 16 evenly spaced ones are read.
"""

import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from radfm.cases import Scan
from radfm.readers.errors import CUT_SHORT, Unreadable
from radfm.readers.limits import check_size, chosen_volumes, left_out, n_bytes
from radfm.readers.pixels import tidy
from radfm.readers.volumes import scan_of

_LONGEST_HEADER = 2**20  # bytes
_BLOCK = 2**18
_COLOURS = ("rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color")
_UNCERTAIN = "its header does not say whether the values of a voxel are a colour or a series: read as a colour"
_UNNAMED_AXIS = "its header does not say which axis is the series of volumes, so that it may be another one"
_SHORT = 4  # an unnamed axis of at most so many values is no axis in space


@dataclass
class _Header:
    """
    Attributes:
        path: of the header.
        fields: of the header; names in lower case without spaces.
        lines: the lines of the header, to the empty one of NRRD, to ElementDataFile of MetaImage.
        names: of the files with the pixels, as the header has them; none where the pixels are in the same file.
    """

    path: Path
    fields: dict[str, str]
    lines: list[bytes]
    names: list[str]

    @property
    def is_nrrd(self) -> bool:
        return self.lines[0].startswith(b"NRRD")

    @property
    def files(self) -> list[Path]:
        return [self.path.parent / name for name in self.names]

    @property
    def is_compressed(self) -> bool:
        """Whether pixels may take more bytes than the file: packed. Text takes more bytes than pixels."""
        if self.is_nrrd:
            return self.fields.get("encoding", "raw").lower() not in ("raw", "txt", "text", "ascii", "hex")
        return self.fields.get("compresseddata", "").lower() == "true"


def read_nrrd(path: Path, within: Iterable[Path] = ()) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Read NRRD or MetaImage.

    Args:
        within: folders that are read; the pixels may be in a file below them.
    Returns: one scan per volume, and ("", reason) where volumes were left out. Raises: Unreadable where the file with
    the pixels is missing or is not supported, RuntimeError (SimpleITK) for a damaged file.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    header = _read_header(path)
    _check_files(header, within)
    with TemporaryDirectory(prefix="radfm-") as folder:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NrrdImageIO" if header.is_nrrd else "MetaImageIO")  # whatever the suffix
        reader.SetFileName(str(_readable(header, Path(folder))))
        reader.ReadImageInformation()
        size, channels = reader.GetSize(), reader.GetNumberOfComponents()
        itemsize = _itemsize(sitk.GetPixelIDValueAsString(reader.GetPixelID()))
        stored = sum(file.stat().st_size for file in header.files or [path])
        check_size(n_bytes(size, itemsize * channels), stored, compressed=header.is_compressed)
        _check_compressed(header)
        image = reader.Execute()
    return _scans(image, sitk.GetArrayFromImage(image), channels, header)


def pixel_files(path: Path) -> list[Path]:
    """The files with the pixels of a header; none where they are in the same file, or the header is damaged."""
    try:
        return _read_header(path).files
    except (OSError, Unreadable):
        return []


def rename_pixel_files(path: Path, names: Mapping[str, str]) -> None:
    """Rewrites a header so that it names its files with pixels anew. names: name in the header -> new name."""
    content = path.read_bytes() if path.stat().st_size <= _LONGEST_HEADER else b""
    for name in pixel_file_names(path):
        if name in names and content:
            key = rb"(?im)^((?:ElementDataFile[ \t]*=|data ?file:)?[ \t]*)"
            new = os.fsencode(names[name])
            content = re.sub(key + re.escape(os.fsencode(name)) + rb"[ \t]*(?=\r?$)", rb"\g<1>" + new, content)
            path.write_bytes(content)


def pixel_file_names(path: Path) -> list[str]:
    """The names of the files with pixels as a header has them; none where they are in the same file."""
    try:
        return _read_header(path).names
    except (OSError, Unreadable):
        return []


def _scans(image, values: np.ndarray, channels: int, header: _Header) -> tuple[list[Scan], list[tuple[str, str]]]:
    """The scans of an image of SimpleITK, whose values are ([t,] [z,] y, x[, channels])."""
    dimensions, warnings = image.GetDimension(), []
    if not 2 <= dimensions <= 4:
        raise Unreadable(f"has {dimensions} axes: save it as volumes (three axes) or a series of them (four)")
    kind = image.GetMetaData("NRRD_kinds[pixel]").lower() if image.HasMetaDataKey("NRRD_kinds[pixel]") else None
    is_colour = kind in _COLOURS
    if channels in (3, 4) and values.dtype == np.uint8 and kind is None:
        is_colour, warnings = True, [_UNCERTAIN]
    if header.is_nrrd and len(_is_series(header)) == 4 and not any(_is_named_series(header)):
        warnings = [_UNNAMED_AXIS]
    volumes = [values] if channels == 1 else list(np.moveaxis(values, -1, 0))
    if is_colour:
        volumes = [values[..., :3]]
    if dimensions == 4:
        volumes = [volume for series in volumes for volume in series]
    chosen = [volumes[i] for i in chosen_volumes(len(volumes))]
    if dimensions == 2:
        rows_mm, columns_mm = image.GetSpacing()[::-1]
        scans = [Scan(tidy(pixels[None]), spacing_mm=(0.0, rows_mm, columns_mm)) for pixels in chosen]
    else:
        direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
        axes = (direction * image.GetSpacing()[:3])[:, ::-1]  # columns: the steps along z, y, x
        scans = [scan_of(pixels, axes, np.array(image.GetOrigin()[:3])) for pixels in chosen]
    for scan in scans:
        scan.warnings += warnings
    return scans, left_out(len(volumes))


def _read_header(path: Path) -> _Header:
    with open(path, "rb") as file:
        start = file.read(_LONGEST_HEADER)
    fields: dict[str, str] = {}
    lines: list[bytes] = []
    names: list[str] = []
    is_nrrd, in_list = start.startswith(b"NRRD"), False
    for line in start.splitlines(keepends=True):
        text = os.fsdecode(line).strip()
        if is_nrrd and not text and not in_list:
            break
        lines.append(line)
        if in_list:
            names += [text] if text else []
            continue
        if is_nrrd and text.startswith("#"):
            continue
        key, sign, value = text.partition(": " if is_nrrd and ": " in text else ":" if is_nrrd else "=")
        if not sign or value.startswith("="):  # NRRD's key:=value
            continue
        key, value = key.replace(" ", "").lower(), value.strip()
        fields[key] = value
        if key in ("datafile", "elementdatafile"):
            in_list = value.upper().startswith("LIST")
            if not in_list and value and value.upper() != "LOCAL":
                names.append(value)
            if not is_nrrd and not in_list:
                break
    if "%" in fields.get("datafile", fields.get("elementdatafile", "")):
        raise Unreadable("spreads its pixels over files with a pattern of names: save it as one .nrrd or .mha file")
    return _Header(path, fields, lines or [b""], names)


def _check_files(header: _Header, within: Iterable[Path]) -> None:
    """Raises: Unreadable where a file with pixels is outside of what is read, or is not there."""
    folders = [os.path.abspath(folder) for folder in (header.path.parent, *within)]
    for name, file in zip(header.names, header.files, strict=True):
        shown = f"{Path(name).name!r}" if re.fullmatch(r"[\w .()+-]{1,80}", Path(name).name) else "its pixels"
        absolute = os.path.abspath(file)
        if not any(os.path.commonpath([folder, absolute]) == folder for folder in folders):
            raise Unreadable(
                f"points to pixels in another folder, outside of what is read ({shown}): put both side by side, or "
                "save it as one file"
            )
        if not file.is_file():
            raise Unreadable(f"comes without the file that holds its pixels ({shown}): put both side by side")


def _check_compressed(header: _Header) -> None:
    """Raises: Unreadable for damaged compressed pixels of MetaImage, of which SimpleITK returns wrong ones."""
    if header.is_nrrd or not header.is_compressed or len(header.names) > 1 or "headersize" in header.fields:
        return
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)  # zlib or gzip
    with open((header.files or [header.path])[0], "rb") as file:
        file.seek(0 if header.names else sum(map(len, header.lines)))
        try:
            while not inflater.eof:
                block = inflater.unconsumed_tail or file.read(_BLOCK)
                if not block and not inflater.decompress(b"", _BLOCK):
                    break
                inflater.decompress(block, _BLOCK)
        except zlib.error:
            raise Unreadable(f"has damaged pixels: it {CUT_SHORT}") from None
    if not inflater.eof:
        raise Unreadable(f"has fewer pixels than its header says: it {CUT_SHORT}")


def _readable(header: _Header, folder: Path) -> Path:
    """The header as SimpleITK can read it: where needed a copy in a temporary folder, with other kinds of axes.

    SimpleITK takes no names that are not UTF-8. Those files get links in the folder.
    """
    path = header.path
    if not _is_utf8(str(path.absolute())):
        path = folder / f"header{'.nhdr' if header.names else '.nrrd' if header.is_nrrd else '.mhd'}"
        path.symlink_to(header.path.absolute())
        for name, file in zip(header.names, header.files, strict=True):
            link = folder / name
            if os.path.commonpath([folder, os.path.abspath(link)]) == str(folder) and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.absolute())
    series = _is_series(header) if header.is_nrrd else []
    kinds = header.fields.get("kinds", "").split() or ["domain"] * len(series)
    asked = [
        "list" if is_series and kind.lower() in ("domain", "space", "time", "???", "none") else kind
        for kind, is_series in zip(kinds, series, strict=False)
    ]
    if asked == kinds or len(kinds) != len(series):
        return path
    return _with_kinds(header, path, asked, folder)


def _with_kinds(header: _Header, path: Path, kinds: Sequence[str], folder: Path) -> Path:
    """A copy of an NRRD header with other kinds, which points to the pixels where they are."""
    kept = [line for line in header.lines if not re.match(rb"(kinds|data ?file) ?:", line, re.IGNORECASE)]
    if "datafile" in header.fields and header.fields["datafile"].upper().startswith("LIST"):
        kept = kept[: -len(header.names)]
    added = [b"kinds: " + " ".join(kinds).encode()]
    if not header.names:  # behind the header and its empty line
        added += [b"line skip: %d" % (len(header.lines) + 1), b"data file: " + os.fsencode(path.absolute())]
    elif len(header.names) == 1:
        added.append(b"data file: " + os.fsencode((path.parent / header.names[0]).absolute()))
    else:
        added.append(b"data file: " + os.fsencode(header.fields["datafile"]))
        added += [os.fsencode((path.parent / name).absolute()) for name in header.names]
    copy = folder / "kinds.nhdr"
    copy.write_bytes(b"".join(line.rstrip(b"\r\n") + b"\n" for line in (*kept, *added)) + b"\n")
    return copy


def _is_series(header: _Header) -> list[bool]:
    """Of each axis of an NRRD file, whether it is a series and no axis in space; [] where the header is damaged."""
    series, sizes = _is_named_series(header), header.fields.get("sizes", "").split()
    if len(series) != 4 or any(series) or len(sizes) != 4 or not all(size.isdecimal() for size in sizes):
        return series
    first = int(sizes[0]) <= _SHORT < min(map(int, sizes[1:]))
    return [first, False, False, not first]


def _is_named_series(header: _Header) -> list[bool]:
    """As `_is_series`, where kinds or directions say it."""
    dimension = header.fields.get("dimension", "")
    if not dimension.isdecimal() or int(dimension) > 16:
        return []
    kinds = header.fields.get("kinds", "").lower().split()
    directions = re.findall(r"none|\([^)]*\)", header.fields.get("spacedirections", "").lower())
    return [
        (i < len(kinds) and kinds[i] not in ("domain", "space", "???", "none"))
        or (len(directions) == int(dimension) and directions[i] == "none")
        for i in range(int(dimension))
    ]


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _itemsize(pixel_type: str) -> int:
    """Bytes per value of a SimpleITK pixel type: "vector of 32-bit float" -> 4."""
    bits = re.search(r"(\d+)-bit", pixel_type)
    return int(bits[1]) // 8 * (2 if "complex" in pixel_type else 1) if bits else 8
