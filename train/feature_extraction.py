"""The features of cases that the linear map at the end of a head reads: those of the tokens that the head scores."""

import os

import torch
from torch import Tensor
from tqdm import tqdm

from radfm.data_prep.batches.case_dataset import CaseDataset, step_loader
from radfm.data_prep.batches.sampling import steps_in_order
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.train.probe import TokenFeatures

_NOT_INPUTS = ("case_rows", "labels", "key_slices", "masks", "mask_rows", "unlocated")


@torch.no_grad()
def extract_features(
    model: RadFMForDiagnosis, data: CaseDataset, slices_per_step: int, workers: int = 0, quiet: bool = False
) -> TokenFeatures:
    """`model.head.features` of every case, as it is stored.

    Args:
        slices_per_step: slices that are computed at once.
        workers: processes that read in advance.
        quiet: whether to show no progress.
    """
    model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu").eval()
    data = data.as_stored()
    loader = step_loader(data, steps_in_order(data.slice_counts, slices_per_step), workers)
    cases: list[tuple[int, Tensor]] = []
    for batch in tqdm(loader, desc=f"Features of {len(data):,} cases", unit="step", leave=False, disable=quiet):
        inputs = {key: value.to(model.device) for key, value in batch.items() if key not in _NOT_INPUTS}
        output = model.radfm(**inputs)
        features = model.head.features(output.token_embeds).float().cpu()
        cases += zip(batch["case_rows"].tolist(), features.split(output.tokens_per_case.tolist()), strict=True)
    model.to("cpu")
    features_of = [features for _, features in sorted(cases, key=lambda case: case[0])]
    return TokenFeatures(torch.cat(features_of), torch.tensor([len(features) for features in features_of]))
