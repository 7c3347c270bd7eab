"""A transformer over groups of any length: the slices of each scan, the scans of each case.

Decisions:
- Nothing is padded. The tokens of all groups lie in one row, groups of equal length next to each other. Layers that
  work token by token work on the row, and attention runs over all groups of one length at once, which are views of it.
- Where only the class token of the last layer is used, only its query is computed: linear in the length of a group.
- Without layers the vector of a group is the mean of its tokens, and the tokens stay as they are.
"""

from collections import Counter
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_radfm import RadFMEncoderConfig


class EncodedGroups(NamedTuple):
    """The result of a [`RadFMEncoder`].

    Args:
        embeds: (groups, width), the class token of each group; without layers the mean of its tokens.
        attention: (tokens,), the class token's over the tokens of its group; sums to 1 per group.
        tokens: (tokens, width), each token in the context of its group, where requested.
    """

    embeds: Tensor
    attention: Tensor
    tokens: Tensor | None = None


class RadFMEncoder(nn.Module):
    """A transformer over groups of any length in one row; the class token of a group is its vector."""

    def __init__(self, config: RadFMEncoderConfig, hidden_size: int):
        super().__init__()
        layers = config.num_hidden_layers
        self.layers = nn.ModuleList(RadFMEncoderLayer(config, hidden_size) for _ in range(layers))
        self.class_token = nn.Parameter(torch.zeros(1, hidden_size)) if layers else None
        learned = layers and config.num_positions
        self.positions = nn.Parameter(torch.zeros(config.num_positions, hidden_size)) if learned else None
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps) if layers else nn.Identity()

    def forward(self, tokens: Tensor, lengths: list[int], with_tokens: bool = False) -> EncodedGroups:
        """
        ```python
        scans = model.radfm.scan_encoder(slice_embeds, [32, 1, 20])
        scans.embeds, scans.attention  # (3, width), (53,)
        ```

        Args:
            tokens: (tokens, width), group by group.
            lengths: tokens of each group.
            with_tokens: whether to compute also each token in the context of its group.
        """
        order = _LengthOrder(lengths, tokens.device)
        groups = order.sort(tokens)  # for each length (groups, length, width)
        if self.class_token is None:  # no layers
            attention = [part.new_full(part.shape[:2], 1 / max(part.shape[1], 1)).flatten() for part in groups]
            attention = order.unsort_tokens(_concatenate(attention, tokens.new_empty(0)))
            return EncodedGroups(order.unsort_groups(_means(groups, tokens)), attention, tokens)

        # class token and positions
        sequences = []
        for part in groups:
            class_tokens = self.class_token.to(tokens.dtype).expand(len(part), 1, -1)
            if self.positions is not None:
                part = part + _resize_positions(self.positions, part.shape[1])
            sequences.append(torch.cat([class_tokens, part], dim=1))
        shapes = [tuple(part.shape[:2]) for part in sequences]

        # layers
        hidden_states = _concatenate([part.flatten(0, 1) for part in sequences], tokens)
        for layer in self.layers[:-1]:
            hidden_states, _ = layer(hidden_states, shapes)
        hidden_states, attention = self.layers[-1](hidden_states, shapes, order.class_tokens, with_tokens)
        hidden_states, attention = self.norm(hidden_states), order.unsort_tokens(attention)
        if not with_tokens:
            return EncodedGroups(order.unsort_groups(hidden_states), attention)
        embeds = order.unsort_groups(hidden_states.index_select(0, order.class_tokens))
        in_context = _concatenate([part[:, 1:].flatten(0, 1) for part in _split(hidden_states, shapes)], tokens)
        return EncodedGroups(embeds, attention, order.unsort_tokens(in_context))


class RadFMEncoderLayer(GradientCheckpointingLayer):
    """Attention and a feed-forward network, each with a residual connection."""

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
        self,
        hidden_states: Tensor,
        shapes: list[tuple[int, int]],
        class_tokens: Tensor | None = None,
        with_tokens: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """
        ```python
        hidden_states, _ = layer(hidden_states, [(2, 33)])  # two groups of 32 tokens, each after its class token
        ```

        Args:
            hidden_states: (groups + tokens, width). For each group its class token, then its tokens.
            shapes: for each length the number of groups, and 1 + that length, in the order of the row.
            class_tokens: (groups,) int64, the positions of the class tokens in the row, in the last layer.
            with_tokens: whether the last layer computes all rows, and not the class tokens alone.
        Returns:
            (groups + tokens, width) and None; or, of the last layer, (groups, width), with `with_tokens` (groups +
            tokens, width), and the class tokens' attention over the tokens, (tokens,). One tensor each for any number
            of lengths: ZeRO-3 needs the same output structure on all processes.
        """
        normed = self.attention_norm(hidden_states)
        residual, queried = hidden_states, normed
        if class_tokens is not None and not with_tokens:
            residual, queried = hidden_states.index_select(0, class_tokens), normed.index_select(0, class_tokens)
        query = self._split_heads(self.q_proj(queried))  # (rows, heads, width / heads)
        key, value = self._split_heads(self.k_proj(normed)), self._split_heads(self.v_proj(normed))
        attention = None
        if class_tokens is None or with_tokens:
            output = self._attend_all(query, key, value, shapes)
        if class_tokens is not None:
            query = query.index_select(0, class_tokens) if with_tokens else query
            of_class_tokens, attention = self._attend_class_tokens(query, key, value, shapes)
            output = output if with_tokens else of_class_tokens
        residual = residual + self._drop(self.out_proj(output.flatten(1)))
        mlp_output = self.fc2(self._drop(self.activation(self.fc1(self.mlp_norm(residual)))))
        return residual + self._drop(mlp_output), attention

    def _attend_all(self, query: Tensor, key: Tensor, value: Tensor, shapes: list) -> Tensor:
        outputs = []
        for parts in zip(*(_split(x, shapes) for x in (query, key, value)), strict=True):
            q, k, v = (part.transpose(1, 2) for part in parts)  # (groups, heads, 1 + length, -1)
            output = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return _concatenate(outputs, value)

    def _attend_class_tokens(self, query: Tensor, key: Tensor, value: Tensor, shapes: list) -> tuple[Tensor, Tensor]:
        outputs, attention = [], []
        queries = query.split([groups for groups, _ in shapes])
        for q, k, v in zip(queries, _split(key, shapes), _split(value, shapes), strict=True):
            scores = torch.einsum("ghd,gkhd->ghk", q, k) / q.shape[-1] ** 0.5
            weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
            outputs.append(torch.einsum("ghk,gkhd->ghd", weights, v))
            attention.append(scores.mean(1)[:, 1:].softmax(-1).flatten())  # over the tokens, without the class token
        return _concatenate(outputs, query), _concatenate(attention, query.new_empty(0))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class _LengthOrder:
    """Sorts groups by their length, and undoes it.

    Attributes:
        class_tokens: (groups,) int64, their positions in a row of all groups in that order, each after its class token.
    """

    def __init__(self, lengths: list[int], device: torch.device):
        self._lengths = lengths
        self._groups = sorted(range(len(lengths)), key=lengths.__getitem__)
        starts = [0, *accumulate(lengths)]
        tokens = [row for group in self._groups for row in range(starts[group], starts[group + 1])]
        ends = list(accumulate(1 + lengths[group] for group in self._groups))
        self._tokens = torch.tensor(tokens, dtype=torch.int64, device=device)
        self.class_tokens = torch.tensor([0, *ends][: len(lengths)], dtype=torch.int64, device=device)

    def sort(self, tokens: Tensor) -> list[Tensor]:
        """(tokens, width) -> for each length (groups, length, width)."""
        counts = sorted(Counter(self._lengths).items())
        parts = tokens.index_select(0, self._tokens).split([groups * length for length, groups in counts])
        return [part.unflatten(0, (groups, length)) for part, (length, groups) in zip(parts, counts, strict=True)]

    def unsort_groups(self, groups: Tensor) -> Tensor:
        """(groups, width) in the order of the lengths -> in the original order."""
        return groups[torch.tensor(self._groups, dtype=torch.int64, device=groups.device).argsort()]

    def unsort_tokens(self, values: Tensor) -> Tensor:
        """(tokens,) in the order of the lengths -> in the original order."""
        return values[self._tokens.argsort()]


def _split(row: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """(groups + tokens, ...) -> for each length (groups, 1 + length, ...)."""
    parts = row.split([groups * tokens for groups, tokens in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _means(groups: list[Tensor], tokens: Tensor) -> Tensor:
    """For each length (groups, length, width) -> (groups, width); zero for a group without tokens."""
    return _concatenate([part.sum(1) / max(part.shape[1], 1) for part in groups], tokens)


def _concatenate(parts: list[Tensor], empty: Tensor) -> Tensor:
    """The parts in one row; `empty` where there are none."""
    return torch.cat(parts) if parts else empty


def _resize_positions(positions: Tensor, length: int) -> Tensor:
    """(positions, width) -> (length, width): the first ones, or, for a longer scan, all of them interpolated."""
    if length <= len(positions):
        return positions[:length]
    return F.interpolate(positions.T[None].float(), size=length, mode="linear", align_corners=True)[0].T.to(positions)
