"""The columns of the tables of a prepared data set: their types, and what they mean.

Decisions:
- This is the only list of columns. The schema of the files (`tables.py`) and the card of a data set follow from it.
- A data set that an older radfm prepared lacks the last columns of its cases: `tables.read_rows` gives None for them.
- Types are neutral names, so that another file format can translate them: "string", "bool", "int32", "int64",
  "float32", "bytes", and lists of these, such as "list of int32".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a table: its type, and its meaning for a reader of the data set's card."""

    type: str
    meaning: str


CASES = {
    "case_id": Column("string", "pseudonym of the case; of a synthetic case it begins with synthetic"),
    "patient_id": Column(
        "string", "pseudonym of the patient; all cases of one are in one split; a synthetic case has its own"
    ),
    "scan_rows": Column("list of int64", "rows of the table of scans"),
    "disorders": Column("list of string", "names of the disorders of the case; empty for a normal case"),
    "labels": Column("list of int32", "the same disorders as rows of the vocabulary, `disorders.json`"),
    "icd10cm": Column("list of string", "ICD-10-CM codes of all disorders, as far as they are certain"),
    "labelled": Column("bool", "false where the source states nothing about the disorders of the case"),
    "history": Column("string", "clinical history, known before the scans were read"),
    "age": Column("float32", "age of the patient in years; ages above 89 are stored as 90"),
    "sex": Column("string", "F, M or other"),
    "split": Column("string", "train, validation or test"),
    "split_from": Column("string", "origin of the split: source (official) or drawn"),
    "normal": Column("bool", "true where the case is known to show no disorder"),
    "collection": Column(
        "string",
        "collection that the case comes from, synthetic if a generator made it; null where the source states none",
    ),
    "licence": Column("string", "licence of the case's files; null where the source states none"),
    "attribution": Column("string", "whom to credit for the case's files; null where the source states none"),
    "url": Column("string", "where the case's files, or their licence, are found; null where the source states none"),
    "publish": Column("bool", "false where a model that is published must not learn from the case; null: not stated"),
    "site": Column("string", "pseudonym of the hospital or department; null where the source states none"),
    "scanner": Column(
        "string", "scanner or its manufacturer, a pseudonym of DICOM headers; null where the source states none"
    ),
    "year": Column("int32", "year of the newest scan; null where the source states none"),
}
SCANS = {
    "case_id": Column("string", "case that the scan belongs to"),
    "number": Column("int32", "index of the scan within its case, from 0"),
    "pixels": Column("bytes", "bytes of all slices, in order"),
    "shape": Column("list of int32", "(slices, height, width), or (slices, height, width, 3) in colour"),
    "dtype": Column("string", "uint8 or float16; CT in float16 is in Hounsfield units"),
    "modality": Column("string", "name of the modality, one of radfm/modalities.csv; null where unknown"),
    "modality_from": Column("string", "origin of the modality: header, source, guess or unknown"),
    "plane": Column("string", "axial, coronal, sagittal, oblique; the view of a radiograph; null where unknown"),
    "plane_from": Column("string", "origin of the plane: header, source, guess or unknown"),
    "spacing_mm": Column("list of float32", "distances between slices, rows and columns, as stored, in mm"),
    "days": Column("float32", "days before the newest scan of the case"),
    "body_part": Column("string", "body part, as named by the header or the source"),
    "key_slice": Column("int32", "index of the slice that shows the finding; null where unknown"),
    "source": Column(
        "string",
        "name of the file, as in `rejected.csv` and in tables of links; synthetic if a generator made the scan",
    ),
    "text_in_pixels": Column("string", "reason to expect text in the pixels; null where there is none"),
}
TRUTH = {
    "case_id": Column("string", "case that the scan belongs to"),
    "number": Column("int32", "index of the scan within its case"),
    "disorder": Column("string", "name of the disorder that the mask shows"),
    "mask": Column("bytes", "`numpy.packbits` of the mask, true where the disorder is visible"),
    "shape": Column("list of int32", "(slices, height, width)"),
}
SIZES = {
    "case_id": Column("string", "case that the disorder belongs to"),
    "disorder": Column("string", "name of the disorder"),
    "days": Column("float32", "days before the newest scan of the case, as in the table of scans"),
    "volume_ml": Column("float32", "volume of the disorder on that date, in millilitres; 0 where it was absent"),
}
TABLES = {"cases": CASES, "scans": SCANS, "truth": TRUTH, "sizes": SIZES}
