"""A transformer over groups of any length: the slices of each scan, the scans of each case.

Decisions:
- Nothing is padded. The tokens of all groups lie in one row; what works token by token works on the row, and attention
  runs over all groups of one length at a time.
- Of the last layer only the class token is wanted, so only its query is computed: linear in the length of a group.
- Without layers a group is the mean of its tokens. With `residual_mean` it is that mean and what the layers add, by a
  gate for each dimension that starts at zero: a short training begins with what averaging can do, and not at chance
  (Touvron et al., Going deeper with image transformers, ICCV 2021, have such gates within layers).
"""

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
        groups = [rows.to(tokens.device) for rows in _rows_by_length(lengths)]
        if not self.layers:
            attention = tokens.new_zeros(len(tokens))
            for rows in groups:  # (groups of one length, 1 + length)
                attention[rows[:, 1:] - len(lengths)] = 1 / max(rows.shape[1] - 1, 1)
            return _means(tokens, groups, len(lengths)), attention
        means = None if self.gate is None else _means(tokens, groups, len(lengths))
        if self.positions is not None and len(tokens):
            rows = {n: _resize_positions(self.positions, n) for n in set(lengths)}
            tokens = tokens + torch.cat([rows[n] for n in lengths])
        row = torch.cat([self.class_token.to(tokens.dtype).expand(len(lengths), -1), tokens])
        for layer in self.layers[:-1]:
            row, _ = layer(row, groups)
        pooled, attention = self.layers[-1](row, groups, queries=len(lengths))
        pooled = self.norm(pooled)
        return pooled if means is None else means + self.gate * pooled, attention


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

    def forward(self, row: Tensor, groups: list[Tensor], queries: int | None = None) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            row: (groups + tokens, width). The class tokens of all groups, then their tokens.
            groups: for each length, (groups of that length, 1 + length) int64 indices into `row`.
            queries: how many rows, from the first, are wanted: the class tokens alone, or None for all.
        Returns:
            (queries, width), and for class tokens alone their attention (tokens,) over their groups' tokens.
        """
        normed = self.attention_norm(row)
        wanted = row[:queries]
        query = self._split(self.q_proj(normed[:queries]))  # (queries, heads, width / heads)
        key, value = self._split(self.k_proj(normed)), self._split(self.v_proj(normed))
        attend = self._attend_all if queries is None else self._attend_class
        mixed, attention = attend(query, key, value, groups)
        wanted = wanted + self._drop(self.out_proj(mixed.flatten(1)))
        wanted = wanted + self._drop(self.fc2(self._drop(self.activation(self.fc1(self.mlp_norm(wanted))))))
        return wanted, attention

    def _attend_all(self, query: Tensor, key: Tensor, value: Tensor, groups: list[Tensor]) -> tuple[Tensor, None]:
        mixed = []
        for rows in groups:
            q, k, v = (x[rows].transpose(1, 2) for x in (query, key, value))  # (groups, heads, 1 + length, -1)
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
            mixed.append(out.transpose(1, 2).flatten(0, 1))
        return _in_row_order(mixed, [rows.flatten() for rows in groups], like=value), None

    def _attend_class(self, query: Tensor, key: Tensor, value: Tensor, groups: list[Tensor]) -> tuple[Tensor, Tensor]:
        mixed, attention = [], []
        for rows in groups:
            scores = torch.einsum("ghd,gkhd->ghk", query[rows[:, 0]], key[rows]) / query.shape[-1] ** 0.5
            weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
            mixed.append(torch.einsum("ghk,gkhd->ghd", weights, value[rows]))
            attention.append(scores.mean(1)[:, 1:].softmax(-1).flatten())  # over the tokens, without the class token
        tokens = [rows[:, 1:].flatten() for rows in groups]
        return (
            _in_row_order(mixed, [rows[:, 0] for rows in groups], like=query),
            _in_row_order(attention, tokens, like=query.new_empty(0)),
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _means(tokens: Tensor, groups: list[Tensor], count: int) -> Tensor:
    """(tokens, width) -> (groups, width); a group without tokens is zero."""
    means = tokens.new_zeros(count, tokens.shape[-1])
    for rows in groups:
        if rows.shape[1] > 1:
            means = means.index_copy(0, rows[:, 0], tokens[rows[:, 1:] - count].mean(1))
    return means


def _rows_by_length(lengths: list[int]) -> list[Tensor]:
    """For each length, where its groups' class token and tokens lie in a row of all class tokens, then all tokens."""
    starts, first = {}, len(lengths)
    for group, n in enumerate(lengths):
        starts.setdefault(n, []).append([group, *range(first, first + n)])
        first += n
    return [torch.tensor(rows) for rows in starts.values()]


def _in_row_order(parts: list[Tensor], rows: list[Tensor], like: Tensor) -> Tensor:
    """Puts what was computed length by length back into one row."""
    return torch.cat(parts)[torch.cat(rows).argsort()] if parts else torch.empty_like(like)


def _resize_positions(positions: Tensor, length: int) -> Tensor:
    """(positions, width) -> (length, width): the first ones, or, for a longer scan, all of them stretched."""
    if length <= len(positions):
        return positions[:length]
    return F.interpolate(positions.T[None].float(), size=length, mode="linear", align_corners=True)[0].T.to(positions)
