"""Small layers and reductions that several parts of the model share."""

import torch
from torch import Tensor, nn


class RadFMDaysEmbedding(nn.Module):
    """Days before the newest scan as a vector, on a logarithmic scale from a day to a lifetime; zero where unknown."""

    def __init__(self, hidden_size: int, frequencies: int = 8):
        super().__init__()
        self.frequencies = frequencies
        self.weight = nn.Parameter(torch.zeros(2 * frequencies, hidden_size))

    def forward(self, days: Tensor) -> Tensor:
        """(scans,), NaN where unknown -> (scans, hidden_size)."""
        known = ~days.isnan()
        octaves = torch.arange(1, self.frequencies + 1, device=days.device)
        phase = torch.log1p(days.float().nan_to_num().clamp(min=0)).unsqueeze(-1) * octaves * (torch.pi / 12)
        features = torch.cat([phase.sin(), phase.cos()], dim=-1) * known.unsqueeze(-1)
        return features.to(self.weight.dtype) @ self.weight


def projection_layer(inputs: int, outputs: int, kind: str = "linear") -> nn.Module:
    """From vectors of one width to vectors of another.

    Args:
        kind: "linear", without bias, left out where the widths agree; "affine", with a bias and never left out; or
            "mlp", the two layers of open_clip.
    """
    if kind == "affine":
        return nn.Linear(inputs, outputs)
    if kind == "mlp":
        hidden = (inputs + outputs) // 2
        return nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.GELU(), nn.Linear(hidden, outputs, bias=False))
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)


def mean_of_groups(rows: Tensor, sizes: list[int]) -> Tensor:
    """(rows, f) and the number of rows of each group -> (groups, f), the mean of each group."""
    return torch.stack([part.mean(0) for part in rows.split(sizes)]) if sizes else rows[:0]


def logsumexp_of_groups(rows: Tensor, sizes: list[int], sharpness: Tensor) -> Tensor:
    """(rows, f) and the number of rows of each group -> (groups, f): log(mean(exp(sharpness * rows))) / sharpness.

    It is near the mean of a group for a small sharpness, and near the maximum for a large one.

    Args:
        sharpness: (1,), above zero.
    """
    rows, sharpness = rows.float(), sharpness.float()
    counts = torch.tensor(sizes, dtype=torch.int64, device=rows.device)
    group = torch.arange(len(sizes), device=rows.device).repeat_interleave(counts)

    def mean(values: Tensor) -> Tensor:
        sums = values.new_zeros(len(sizes), values.shape[-1]).index_add(0, group, values)
        return sums / counts.clamp(min=1)[:, None]

    highest = max_of_groups(rows.detach(), sizes)
    return highest + mean(torch.exp(sharpness * (rows - highest[group]))).log() / sharpness


def max_of_groups(rows: Tensor, sizes: list[int]) -> Tensor:
    """(rows, f) and the number of rows of each group -> (groups, f), the maximum; -inf for a group without rows."""
    counts = torch.tensor(sizes, dtype=torch.int64, device=rows.device)
    group = torch.arange(len(sizes), device=rows.device).repeat_interleave(counts)
    index = group.unsqueeze(-1).expand_as(rows)
    return rows.new_full((len(sizes), rows.shape[-1]), -torch.inf).scatter_reduce(0, index, rows, "amax")


def first_of_groups(rows: Tensor, sizes: list[int], counts: list[int]) -> Tensor:
    """(rows, f) -> the first rows of each group, as many as its count."""
    return torch.cat([part[:n] for part, n in zip(rows.split(sizes), counts, strict=True)])
