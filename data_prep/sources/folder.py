"""One folder for each class, the layout of many public sets.

    pneumonia/im1.png                a case; "pneumonia" is a disorder
    no_finding/patient7/a.dcm ...    a folder in a class folder: all in it is one case
    test/pneumonia/im2.png           train/, val/ and test/ at the top are the official splits

Decisions:
- The name of a class is the disorder, with spaces for underscores. Names such as normal, healthy and no_finding mean a
  normal case.
- A folder that is the only content of a class folder ("COVID/images/") is not a case; its content counts as that of the
  class folder.
- Each file is a case and a patient of its own, unless `patient` finds a patient's number in its path.
- A file in no class folder, and a class folder without files, are listed as rejected.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from radfm.data_prep.plan import NORMAL, CasePlan, Item, Listing, ReadCase, Rejected, known_split
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.read_files import list_files, read_files
from radfm.modalities import modality_name
from radfm.presentation import shown
from radfm.readers.formats import pixel_files
from radfm.readers.natural_order import natural


class FolderPerClass:
    """See the module, and `radfm.data_prep.plan.Source`.

    Args:
        folder: folder of the class folders, or of train/, val/ and test/.
        modality: modality of files whose header states none.
        pseudonyms: names of patients, cases and files in the data set; None: their own names.
        patient: regular expression whose first group is the patient, searched in the path of a case below the folder.
    """

    name = "folder"

    def __init__(
        self,
        folder: str | Path,
        modality: str | None = None,
        pseudonyms: Pseudonyms | None = None,
        patient: str | None = None,
    ):
        self.folder, self.pseudonyms = Path(folder), pseudonyms or Pseudonyms(None)
        self.modality = modality and modality_name(modality)
        try:
            self.patient = re.compile(patient) if patient else None
        except re.error as error:
            raise ValueError(f"{patient!r} is not a regular expression: {error}") from None
        if self.patient and not self.patient.groups:
            raise ValueError(f"{patient!r} has no group: put brackets around the number, as in '^([0-9]+)_'")
        self.settings: dict[str, Any] = {"modality": self.modality, "patient": patient}
        self.notice: dict[str, str] = {}

    def listing(self) -> Listing:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no such folder: {self.folder}")
        plans: list[CasePlan] = []
        rejected: list[Rejected] = []
        for split, entry in self._tops():
            if entry.is_dir():
                cases = [self._plan(path, files, entry.name, split) for path, files in _cases_in(entry)]
                plans += cases
            if not entry.is_dir():
                reason = "is in no class folder: move it into one, or remove it"
                rejected.append(Rejected("file", self._shown(entry), reason))
            elif not cases:
                reason = "is a class folder without files: unpack what belongs there, or remove it"
                rejected.append(Rejected("folder", self._shown(entry), reason))
        planned = sum(len(item.paths) for plan in plans for item in plan.items)
        return Listing(plans, rejected, "file", planned + len(rejected), planned)

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        return map(read_files, plans)

    def _tops(self) -> Iterator[tuple[str | None, Path]]:
        """(split, class folder) of all, and files that lie where class folders should."""
        for entry in _entries(self.folder):
            try:
                split = known_split(entry.name) if entry.is_dir() else None
            except ValueError:
                split = None
            if split is None:
                yield None, entry
            else:
                yield from ((split, below) for below in _entries(entry))

    def _plan(self, path: Path, files: Sequence[Path], label: str, split: str | None) -> CasePlan:
        name = path.relative_to(self.folder).as_posix()
        match = self.patient and self.patient.search(name)
        disorder = " ".join(shown(label).replace("_", " ").split())
        normal = disorder.casefold().replace("-", " ") in NORMAL
        return CasePlan(
            case_id=self.pseudonyms.of("case", name),
            patient_id=self.pseudonyms.of("patient", match[1] if match and match[1] else f"case {name}"),
            items=[
                Item([str(file.absolute()) for file in files], [self._shown(file) for file in files], self.modality)
            ],
            disorders=[] if normal else [disorder[:1].upper() + disorder[1:]],
            icd10cm=[] if normal else [[]],
            split=split,
        )

    def _shown(self, path: Path) -> str:
        return self.pseudonyms.of("file", path.relative_to(self.folder).as_posix())


def _cases_in(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(the file or folder that is a case, its files) of every case in a class folder."""
    entries = _entries(folder)
    while len(entries) == 1 and entries[0].is_dir():
        entries = _entries(entries[0])
    pixels = {partner for entry in entries if entry.is_file() for partner in pixel_files(entry)}
    for entry in entries:
        if entry.is_dir():
            if files := list_files(entry):
                yield entry, files
        elif entry not in pixels:  # the pixels of a header (.mhd and .raw) go with it
            yield entry, [entry, *sorted(partner for partner in pixel_files(entry) if partner.is_file())]


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder in natural order, without files of the operating system."""
    seen = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name not in _SYSTEM_FILES]
    return sorted(seen, key=lambda entry: natural(entry.name))


_SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}
