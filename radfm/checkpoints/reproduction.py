"""Whether a machine reproduces what a checkpoint answers: a small synthetic case, and the outputs expected for it.

    >>> from radfm.checkpoints.reproduction import check, write_expected
    >>> check("radfm-phantom-mini").reproduced
    True

Decisions:
- The case is made on the spot from a seed, of integers only, so that it is the same on every machine: a radiograph, a
  CT and a colour picture.
- Expected and computed are four outputs, in the order in which an error would appear: the prepared pixels, the
  embedding of a name, the embedding of the case, and its logits. The first one that differs says where to look.
- All is computed in float32, on a GPU without TensorFloat-32, whatever the checkpoint is stored in.
- Volumes are prepared with less depth than the checkpoint's own: a 3D network takes a minute for a whole one.
- A difference is relative to the largest value. Processors and GPUs add in different orders, which changes the sixth
  digit; other versions of a library or damaged weights change more.
- The file names the SHA-256 of the weights, so that a download that was cut short is noticed before anything is
  computed.
"""

import copy
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from radfm.cases import Case, Scan
from radfm.checkpoints import find
from radfm.configuration_radfm import RadFMConfig, RadFMVisionConfig
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.reference_radfm import weights_sha256

FILE = "radfm_check.json"
TOLERANCE = 1e-3  # of the largest expected value

_FORMAT = 1
_SEED = 0
_NAME = "Pneumothorax"
_MOST_LOGITS = 100
_MOST_DEPTH = 16  # voxels of a volume
_LIBRARIES = ("radfm", "torch", "transformers", "timm", "numpy")


@dataclass(frozen=True)
class Comparison:
    """One output beside what is expected.

    Attributes:
        output: "pixels" (slices,), "text" (d,), "case" (d,) or "logits" (disorders,).
        values: number of values.
        difference: the largest, relative to the largest expected value; None where the number of values differs, or one
            is not finite.
    """

    output: str
    values: int
    difference: float | None

    @property
    def reproduced(self) -> bool:
        return self.difference is not None and self.difference <= TOLERANCE


@dataclass(frozen=True)
class Check:
    """
    Attributes:
        comparisons: of each output.
        here, expected_from: what computed the outputs now, and what computed the expected ones.
    """

    comparisons: list[Comparison]
    here: dict[str, str]
    expected_from: dict[str, str]

    @property
    def reproduced(self) -> bool:
        return all(comparison.reproduced for comparison in self.comparisons)


def check(model: str | Path, device: str | None = None) -> Check:
    """Compares what a checkpoint answers here with what is expected.

    Args:
        model: folder of a checkpoint, name of one that comes with radfm, or name on the Hub.
        device: "cpu", "cuda", ...; None: a GPU if there is one.
    Raises:
        FileNotFoundError: there is no such checkpoint, or it has no expected outputs.
        ValueError: the weights are not those of the expected outputs, or the file of these is damaged.
    """
    folder = _folder(model)
    record = _read(folder, model)
    if record["weights"] != weights_sha256(folder):
        raise ValueError(
            f"{model}: the weights are not those that {FILE} was written for: download them again, or, if you have "
            "changed them, run radfm check --write"
        )
    network, processor = _load(folder, device)
    outputs = compute_outputs(network, processor)
    names = [*record["expected"], *(name for name in outputs if name not in record["expected"])]
    comparisons = [_compare(name, outputs.get(name, []), record["expected"].get(name, [])) for name in names]
    return Check(comparisons, _origin(network.device), record["made_by"])


def write_expected(folder: str | Path) -> Path:
    """Writes the outputs expected of a checkpoint, computed on this machine's CPU, beside its weights.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or an output is not finite.
    """
    folder = Path(find(folder, local=True))
    network, processor = _load(folder, "cpu")
    expected = compute_outputs(network, processor)
    if bad := [name for name, values in expected.items() if not np.isfinite(values).all()]:
        raise ValueError(f"{folder}: {', '.join(bad)} of the synthetic case are not finite: the weights are damaged")
    record = {
        "format": _FORMAT,
        "weights": weights_sha256(folder),
        "made_by": _origin(network.device),
        "expected": expected,
    }
    (folder / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return folder / FILE


@torch.inference_mode()
def compute_outputs(model: RadFMForDiagnosis, processor: RadFMProcessor) -> dict[str, list[float]]:
    """The outputs for the synthetic case, see `Comparison`; without a text encoder or a vocabulary some are missing."""
    case, processor = synthetic_case(_SEED), _with_shallow_volumes(processor, model.config)
    batch = {name: value.to(model.device) for name, value in processor(cases=[case]).items()}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        output = model(**batch)
        outputs = {"pixels": batch["pixel_values"].float().mean((1, 2, 3))}
        if model.radfm.text_encoder is not None:
            tokens = {name: value.to(model.device) for name, value in processor(text=[_NAME]).items()}
            outputs["text"] = model.get_text_features(**tokens)[0]
        outputs["case"] = F.normalize(output.case_embeds, dim=-1)[0]
        if model.config.disorders:
            outputs["logits"] = output.logits[0, :_MOST_LOGITS]
    return {name: [float(f"{x:.9g}") for x in values.cpu().tolist()] for name, values in outputs.items()}


def synthetic_case(seed: int) -> Case:
    """A case of blocks of random grey: the legacy generator of NumPy gives the same numbers in all versions."""
    rng = np.random.RandomState(seed)

    def blocks(low: int, high: int, *shape: int) -> np.ndarray:
        return rng.randint(low, high, shape, np.int16).repeat(8, 1).repeat(8, 2)

    return Case(
        [
            Scan(blocks(0, 256, 1, 12, 10).astype(np.uint8), "X-ray", "PA", (0.0, 0.5, 0.5), 0.0, "chest"),
            Scan(blocks(-1000, 1000, 5, 8, 8), "CT", "axial", (5.0, 1.0, 1.0), 3.0, "chest"),
            Scan(blocks(0, 256, 1, 9, 9, 3).astype(np.uint8), "ultrasound", None, None, None, None),
        ],
        history="Cough for three days.",
    )


def _with_shallow_volumes(processor: RadFMProcessor, config: RadFMConfig) -> RadFMProcessor:
    """A processor that prepares volumes of a small depth; networks of MONAI may read one size only."""
    volume, tower = processor.image_processor.volume, config.volume_config or config.vision_config
    if volume is None or cast(RadFMVisionConfig, tower).family == "monai":
        return processor
    processor, depth = copy.copy(processor), volume["size"][0]
    processor.image_processor = copy.copy(processor.image_processor)
    size = [min(depth or _MOST_DEPTH, _MOST_DEPTH), *volume["size"][1:]]
    processor.image_processor.volume = volume | {"size": size}
    return processor


def _compare(name: str, computed: list[float], expected: list[float]) -> Comparison:
    if len(computed) != len(expected) or not np.isfinite(computed).all():
        return Comparison(name, len(computed), None)
    largest = max(map(abs, expected), default=0.0) or 1.0
    difference = float(np.abs(np.subtract(computed, expected)).max(initial=0)) / largest
    return Comparison(name, len(computed), difference)


def _folder(model: str | Path) -> Path:
    """The folder of a checkpoint, which is downloaded if it is a name on the Hub."""
    found = find(model)
    if Path(found).is_dir():
        return Path(found)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(found))


def _read(folder: Path, model: str | Path) -> dict[str, Any]:
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{model} has no {FILE}: write it with radfm check --write, on a machine whose answers you trust"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ValueError(f"it has format {record['format']!r}")
        return {name: record[name] for name in ("weights", "made_by", "expected")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged, or of another radfm: download it again ({error})") from error


def _load(folder: Path, device: str | None) -> tuple[RadFMForDiagnosis, RadFMProcessor]:
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = RadFMForDiagnosis.from_pretrained(folder, dtype=torch.float32).eval().to(target)
    return model, RadFMProcessor.from_pretrained(folder)


def _origin(device: torch.device) -> dict[str, str]:
    """What computes: the kind of processor, and the versions of libraries."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"device": device.type, "processor": processor, **{name: version(name) for name in _LIBRARIES}}
