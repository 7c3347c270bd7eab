"""A transformer over groups of any length: the slices of each scan, the scans of each case.

Decisions:
- Nothing is padded. The tokens of all groups lie in one row, groups of one length side by side; what works token by
  token works on the row, and attention runs over all groups of one length at a time, which are views of it.
- Of the last layer only the class token is wanted, so only its query is computed: linear in the length of a group.
- Without layers a group is the mean of its tokens. With `residual_mean` it is that mean and what the layers add, by a
  gate for each dimension that starts at zero: a short training begins with what averaging can do, and not at chance
  (Touvron et al., Going deeper with image transformers, ICCV 2021, have such gates within layers).
"""

from collections import Counter
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_radfm import RadFMEncoderConfig


class RadFMEncoder(nn.Module):
    """A transformer over groups of any length in one row; each group's class token is its vector."""

    def __init__(self, config: RadFMEncoderConfig, hidden_size: int):
        super().__init__()
        layers = config.num_hidden_layers
        self.layers = nn.ModuleList(RadFMEncoderLayer(config, hidden_size) for _ in range(layers))
        self.class_token = nn.Parameter(torch.zeros(1, hidden_size)) if layers else None
        learned = layers and config.num_positions
        self.positions = nn.Parameter(torch.zeros(config.num_positions, hidden_size)) if learned else None
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps) if layers else nn.Identity()
        self.gate = nn.Parameter(torch.zeros(hidden_size)) if layers and config.residual_mean else None

    def forward(self, tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """(tokens, width), tokens of each group -> (groups, width), (tokens,) the class token's attention."""
        order = _Order(lengths, tokens.device)
        alike = order.by_length(tokens)  # for each length (groups, length, width)
        if not self.layers:
            attention = [part.new_full(part.shape[:2], 1 / max(part.shape[1], 1)).flatten() for part in alike]
            return order.of_groups(_means(alike, tokens)), order.of_tokens(_joined(attention, tokens.new_empty(0)))
        parts = []
        for part in alike:
            start = self.class_token.to(tokens.dtype).expand(len(part), 1, -1)
            placed = part if self.positions is None else part + _resize_positions(self.positions, part.shape[1])
            parts.append(torch.cat([start, placed], dim=1))
        shapes = [tuple(part.shape[:2]) for part in parts]
        row = _joined([part.flatten(0, 1) for part in parts], tokens)
        for layer in self.layers[:-1]:
            row, _ = layer(row, shapes)
        pooled, attention = self.layers[-1](row, shapes, order.class_tokens)
        pooled = self.norm(pooled)
        if self.gate is not None:
            pooled = _means(alike, tokens) + self.gate * pooled
        return order.of_groups(pooled), order.of_tokens(attention)


class RadFMEncoderLayer(GradientCheckpointingLayer):
    """Attention and a feed-forward network, each added to what it read."""

    def __init__(self, config: RadFMEncoderConfig, hidden_size: int):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.dropout
        norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention_norm = norm if config.norm_before_attention else nn.Identity()
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, hidden_size)

    def forward(
        self, row: Tensor, shapes: list[tuple[int, int]], class_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            row: (groups + tokens, width). Group by group its class token, then its tokens.
            shapes: groups of a length and 1 + that length, in the order of the row.
            class_tokens: (groups,) int64, where they are in the row, if they alone are wanted.
        Returns:
            (wanted, width), and for class tokens alone their attention over the tokens, (tokens,). A tensor each,
            however many lengths there are: ZeRO-3 wants what a layer returns to be alike on all processes.
        """
        normed = self.attention_norm(row)
        wanted, asking = row, normed
        if class_tokens is not None:
            wanted, asking = row.index_select(0, class_tokens), normed.index_select(0, class_tokens)
        query = self._by_head(self.q_proj(asking))  # (wanted, heads, width / heads)
        key, value = self._by_head(self.k_proj(normed)), self._by_head(self.v_proj(normed))
        attend = self._attend_all if class_tokens is None else self._attend_class
        mixed, attention = attend(query, key, value, shapes)
        wanted = wanted + self._drop(self.out_proj(mixed.flatten(1)))
        wanted = wanted + self._drop(self.fc2(self._drop(self.activation(self.fc1(self.mlp_norm(wanted))))))
        return wanted, attention

    def _attend_all(self, query: Tensor, key: Tensor, value: Tensor, shapes: list) -> tuple[Tensor, None]:
        mixed = []
        for parts in zip(*(_split(x, shapes) for x in (query, key, value)), strict=True):
            q, k, v = (part.transpose(1, 2) for part in parts)  # (groups, heads, 1 + length, -1)
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
            mixed.append(out.transpose(1, 2).flatten(0, 1))
        return _joined(mixed, value), None

    def _attend_class(self, query: Tensor, key: Tensor, value: Tensor, shapes: list) -> tuple[Tensor, Tensor]:
        mixed, attention = [], []
        queries = query.split([groups for groups, _ in shapes])
        for q, k, v in zip(queries, _split(key, shapes), _split(value, shapes), strict=True):
            scores = torch.einsum("ghd,gkhd->ghk", q, k) / q.shape[-1] ** 0.5
            weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
            mixed.append(torch.einsum("ghk,gkhd->ghd", weights, v))
            attention.append(scores.mean(1)[:, 1:].softmax(-1).flatten())  # over the tokens, without the class token
        return _joined(mixed, query), _joined(attention, query.new_empty(0))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class _Order:
    """Groups of one length side by side, and back.

    Attributes:
        class_tokens: (groups,) int64, where they are in a row of all groups in that order, each after its class token.
    """

    def __init__(self, lengths: list[int], device: torch.device):
        self._lengths = lengths
        self._groups = sorted(range(len(lengths)), key=lengths.__getitem__)
        starts = [0, *accumulate(lengths)]
        tokens = [row for group in self._groups for row in range(starts[group], starts[group + 1])]
        ends = list(accumulate(1 + lengths[group] for group in self._groups))
        self._tokens = torch.tensor(tokens, dtype=torch.int64, device=device)
        self.class_tokens = torch.tensor([0, *ends][: len(lengths)], dtype=torch.int64, device=device)

    def by_length(self, tokens: Tensor) -> list[Tensor]:
        """(tokens, width) -> for each length (groups, length, width)."""
        counts = sorted(Counter(self._lengths).items())
        parts = tokens.index_select(0, self._tokens).split([groups * length for length, groups in counts])
        return [part.unflatten(0, (groups, length)) for part, (length, groups) in zip(parts, counts, strict=True)]

    def of_groups(self, groups: Tensor) -> Tensor:
        """(groups, width), as they came."""
        return groups[torch.tensor(self._groups, dtype=torch.int64, device=groups.device).argsort()]

    def of_tokens(self, values: Tensor) -> Tensor:
        """(tokens,), as they came."""
        return values[self._tokens.argsort()]


def _split(row: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """(groups + tokens, ...) -> for each length (groups, 1 + length, ...)."""
    parts = row.split([groups * tokens for groups, tokens in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _means(alike: list[Tensor], tokens: Tensor) -> Tensor:
    """For each length (groups, length, width) -> (groups, width); a group without tokens is zero."""
    return _joined([part.sum(1) / max(part.shape[1], 1) for part in alike], tokens)


def _joined(parts: list[Tensor], none: Tensor) -> Tensor:
    """The parts in one row, `none` where there are none."""
    return torch.cat(parts) if parts else none


def _resize_positions(positions: Tensor, length: int) -> Tensor:
    """(positions, width) -> (length, width): the first ones, or, for a longer scan, all of them stretched."""
    if length <= len(positions):
        return positions[:length]
    return F.interpolate(positions.T[None].float(), size=length, mode="linear", align_corners=True)[0].T.to(positions)
