"""A Hugging Face data set with an image or NIfTI column, streamed: by name, or a folder that `datasets` can load.

Decisions:
- Each row is a case of one scan. With `case_column`, rows with the same value form one case.
- Columns are found by type: the image (Image or Nifti), and the label (ClassLabel). Where this is ambiguous, an error
  names the option that selects a column.
- Listing streams the labels only, and reading streams the images, so that one row at a time is in memory.
- The splits of the data set are the official ones, if it has more than one.
"""

import io
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from radfm.cases import Case
from radfm.data_prep.guess import guess_modality
from radfm.data_prep.plan import NORMAL, CasePlan, Listing, ReadCase, ScanOrigin, known_split
from radfm.modalities import modality_name
from radfm.readers.read_case import read_case


class HubDataset:
    """See the module, and `radfm.data_prep.plan.Source`.

    Args:
        path: a name on the Hub, a folder of files, or a folder written by `save_to_disk`.
        image_column, label_column, case_column, patient_column: names of columns; None: found by type, or none.
        modality: modality of images whose format states none.
        config: configuration of the data set, where it has several.
    """

    name = "datasets"

    def __init__(
        self,
        path: str,
        image_column: str | None = None,
        label_column: str | None = None,
        case_column: str | None = None,
        patient_column: str | None = None,
        modality: str | None = None,
        config: str | None = None,
    ):
        self.path, self.config = str(path), config
        self.modality = modality and modality_name(modality)
        self.image_column, self.label_column = image_column, label_column
        self.case_column, self.patient_column = case_column, patient_column
        self.settings: dict[str, Any] = {"modality": self.modality, "config": config}
        self.settings |= {
            k: getattr(self, k) for k in ("image_column", "label_column", "case_column", "patient_column")
        }
        self.notice: dict[str, str] = {}

    def listing(self) -> Listing:
        splits = self._splits()
        image, label = self._columns(next(iter(splits.values())).features)
        plans: dict[tuple[str, str], CasePlan] = {}
        listed = 0
        for split, rows in splits.items():
            columns = [c for c in (label, self.case_column, self.patient_column) if c]
            for number, row in enumerate(rows.select_columns(columns or [image])):
                listed += 1
                case = str(row[self.case_column]) if self.case_column else f"{split}-{number:06d}"
                patient = str(row[self.patient_column]) if self.patient_column else case
                plan = plans.setdefault(
                    (split, case),
                    CasePlan(case, patient, labelled=label is not None, source_data={"split": split, "rows": []}),
                )
                plan.source_data["rows"].append(number)
                plan.split = _official(split) if len(splits) > 1 else None
                if label:
                    plan.disorders = list(dict.fromkeys([*plan.disorders, *_names(rows.features[label], row[label])]))
        times = Counter(case for _, case in plans)
        for (split, case), plan in plans.items():
            if times[case] > 1:
                plan.case_id = f"{split}-{case}"
            plan.icd10cm = [[] for _ in plan.disorders]
        return Listing(list(plans.values()), [], "row", listed, listed)

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        splits = self._splits()
        image, _ = self._columns(next(iter(splits.values())).features)
        for split, plans_of_split in itertools.groupby(plans, key=lambda plan: plan.source_data["split"]):
            group = list(plans_of_split)
            numbers = sorted({number for plan in group for number in plan.source_data["rows"]})
            rows = _undecoded(splits[split], image).skip(numbers[0]).take(numbers[-1] - numbers[0] + 1)
            kept: dict[int, Any] = {}
            stream = enumerate(rows, numbers[0])
            for plan in group:
                while not all(number in kept for number in plan.source_data["rows"]):
                    number, row = next(stream)
                    if number in numbers:
                        kept[number] = row[image]
                yield self._case(plan, [(number, kept.pop(number)) for number in plan.source_data["rows"]])

    def _case(self, plan: CasePlan, rows: list[tuple[int, Any]]) -> ReadCase:
        case = Case(case_id=plan.case_id, patient_id=plan.patient_id)
        result = ReadCase(case, files=len(rows), unread=0, origins=[])
        for number, value in rows:
            name = f"{plan.source_data['split']} row {number}"
            try:
                read = _read(value, self.modality)
            except (OSError, ValueError, TypeError) as error:
                read = Case(skipped=[("", str(error) or "is damaged: nothing can be read of it")])
            case.skipped += [(name, reason) for _, reason in read.skipped]
            result.unread += not read.scans
            for scan in read.scans:
                scan.source = name
                modality_from = (
                    "header" if scan.modality and not self.modality else "source" if scan.modality else "unknown"
                )
                if scan.modality is None and (guessed := guess_modality("", scan.pixels)):
                    scan.modality, modality_from = guessed, "guess"
                case.scans.append(scan)
                result.origins.append(ScanOrigin(modality_from, "header" if scan.plane else "unknown"))
        return result

    def _splits(self) -> dict[str, Any]:
        """Split -> IterableDataset."""
        from datasets import IterableDatasetDict, load_dataset, load_from_disk

        try:
            if (Path(self.path) / "dataset_dict.json").is_file():
                return {split: rows.to_iterable_dataset() for split, rows in load_from_disk(self.path).items()}
            if (Path(self.path) / "state.json").is_file():
                return {"train": load_from_disk(self.path).to_iterable_dataset()}
            loaded = load_dataset(self.path, self.config, streaming=True)
        except Exception as error:  # datasets raises many kinds
            raise ValueError(f"{self.path} cannot be loaded as a data set: {str(error).splitlines()[0]}") from error
        return dict(loaded) if isinstance(loaded, IterableDatasetDict) else {"train": loaded}

    def _columns(self, features) -> tuple[str, str | None]:
        """The columns of the images and of the labels. Raises: ValueError where they are missing or ambiguous."""
        for column in (self.image_column, self.label_column, self.case_column, self.patient_column):
            if column is not None and column not in features:
                raise ValueError(f"{self.path} has no column {column!r}: use one of {', '.join(features)}")
        kinds = {name: type(_inner(feature)).__name__ for name, feature in features.items()}
        images = [name for name, kind in kinds.items() if kind in ("Image", "Nifti")]
        labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        if self.image_column is None and len(images) != 1:
            raise ValueError(f"{self.path} has {len(images)} columns of images: name one with --image-column")
        return self.image_column or images[0], self.label_column or (labels[0] if len(labels) == 1 else None)


def _inner(feature):
    return getattr(feature, "feature", feature)


def _undecoded(rows, column: str):
    """Rows whose images are undecoded bytes, so that a damaged image affects no other row."""
    kind = rows.features[column]
    return rows.cast_column(column, type(kind)(decode=False)) if type(kind).__name__ in ("Image", "Nifti") else rows


def _read(value, modality: str | None) -> Case:
    """Reads an image given as {"bytes", "path"}, bytes, or a PIL image."""
    if hasattr(value, "save"):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        value = {"bytes": buffer.getvalue(), "path": "image.png"}
    if isinstance(value, bytes):
        value = {"bytes": value, "path": ""}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise ValueError("holds no image")
    if not value.get("bytes"):
        return read_case(value["path"], modality=modality)
    with tempfile.TemporaryDirectory() as folder:
        name = Path(value.get("path") or "").name
        suffix = "".join(Path(name).suffixes[-2:]) or (".nii.gz" if value["bytes"][:2] == b"\x1f\x8b" else "")
        file = Path(folder, f"image{suffix}")
        file.write_bytes(value["bytes"])
        return read_case(file, modality=modality)


def _names(feature, value) -> list[str]:
    """Disorders of a label: a class, several classes, or text."""
    inner = _inner(feature)
    values = value if isinstance(value, (list, tuple)) else [value]
    names = [inner.int2str(int(v)) if hasattr(inner, "int2str") and v is not None else v for v in values]
    plain = [" ".join(str(name).replace("_", " ").split()) for name in names if name is not None and name != -1]
    return [name for name in plain if name and name.casefold() not in NORMAL]


def _official(split: str) -> str | None:
    try:
        return known_split(split)
    except ValueError:
        return None
