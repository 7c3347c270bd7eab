"""Heads: from the embedding of a case to one logit for each disorder.

A new head is a subclass of [`Head`] and a line in [`HEADS`]; `config.head` is its name there.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_radfm import RadFMConfig


class Head(nn.Module, ABC):
    """Case embeddings -> logits.

    Attributes:
        reads_text: whether disorders are given by text embeddings. The model then has a text encoder, its case
            embeddings have unit length, and `forward` also scores texts that are not in the vocabulary.
        default_loss: name in `radfm.losses_radfm.LOSSES`, used where `config.loss` is unset.
    """

    reads_text: ClassVar[bool]
    default_loss: ClassVar[str]

    @staticmethod
    @abstractmethod
    def embed_dim(config: RadFMConfig) -> int:
        """The length d of the case embeddings that the head takes."""

    @abstractmethod
    def forward(self, case_embeds: Tensor, text_embeds: Tensor | None = None) -> Tensor:
        """(cases, d) and, in place of the vocabulary, (texts, d) -> (cases, disorders) logits."""

    @abstractmethod
    def set_disorders(self, kept_rows: Sequence[int | None], embeds: Tensor | None = None) -> None:
        """Replaces the vocabulary.

        Args:
            kept_rows: for each new disorder its row in the vocabulary so far, None if it is new.
            embeds: (disorders, d), for a head that reads text.
        Raises:
            ValueError: a head that reads text gets no embeddings, or embeddings of another shape.
        """

    @abstractmethod
    def disorder_tensors(self) -> dict[str, Tensor]:
        """Name -> parameter or buffer with one row for each disorder; shared with the head, not copied."""

    @abstractmethod
    def features(self, case_embeds: Tensor) -> Tensor:
        """(cases, d) -> (cases, width), the input of the linear map that ends the head."""

    @abstractmethod
    def linear(self) -> tuple[Tensor, Tensor]:
        """That linear map: (disorders, width) weight and (disorders,) bias."""

    @abstractmethod
    def set_linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Replaces that linear map.

        Returns:
            logit_offsets: (disorders,), what has to be added to the head's logits to get those of the given map: a
                head with one bias for all disorders cannot hold a bias for each.
        """

    @abstractmethod
    def set_bias(self, value: float) -> None:
        """Sets the bias of all logits."""

    def init_weights(self, config: RadFMConfig) -> None:
        """Initialises what the initialisation of `nn.Linear` does not."""


class TextHead(Head):
    """Scaled cosine with the text embedding of each disorder, plus a bias; the embeddings are saved with the weights.

    ```python
    logits = model.head(case_embeds)  # over the vocabulary
    logits = model.head(case_embeds, text_embeds)  # over any texts
    ```
    """

    reads_text = True
    default_loss = "sigmoid"
    disorder_embeds: Tensor  # (disorders, projection_dim)

    def __init__(self, config: RadFMConfig):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([config.logit_scale_init_value]))
        self.logit_bias = nn.Parameter(torch.tensor([config.logit_bias_init_value]))
        self.register_buffer("disorder_embeds", torch.zeros(len(config.disorders), config.projection_dim))

    @staticmethod
    def embed_dim(config: RadFMConfig) -> int:
        return config.projection_dim

    def forward(self, case_embeds: Tensor, text_embeds: Tensor | None = None) -> Tensor:
        disorder_embeds = self.disorder_embeds if text_embeds is None else text_embeds.to(case_embeds.dtype)
        return self.logit_scale.exp() * (case_embeds @ disorder_embeds.T) + self.logit_bias

    def set_disorders(self, kept_rows: Sequence[int | None], embeds: Tensor | None = None) -> None:
        expected = (len(kept_rows), self.disorder_embeds.shape[1])
        if embeds is None or tuple(embeds.shape) != expected:
            got = "none" if embeds is None else tuple(embeds.shape)
            raise ValueError(f"the text head needs embeddings of shape {expected}, got {got}")
        self.disorder_embeds = F.normalize(embeds.detach().float(), dim=-1).to(self.disorder_embeds)

    def disorder_tensors(self) -> dict[str, Tensor]:
        return {"disorder_embeds": self.disorder_embeds}

    def features(self, case_embeds: Tensor) -> Tensor:
        return case_embeds

    def linear(self) -> tuple[Tensor, Tensor]:
        weight = self.logit_scale.detach().exp() * self.disorder_embeds
        return weight, self.logit_bias.detach().expand(len(weight))

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        self.disorder_embeds.copy_(weight / self.logit_scale.exp())
        return bias - self.logit_bias

    def set_bias(self, value: float) -> None:
        nn.init.constant_(self.logit_bias, value)

    def init_weights(self, config: RadFMConfig) -> None:
        init.constant_(self.logit_scale, config.logit_scale_init_value)
        init.constant_(self.logit_bias, config.logit_bias_init_value)
        init.zeros_(self.disorder_embeds)


class FixedListHead(Head):
    """A head that ends in a linear map over a fixed list of disorders, and scores nothing else.

    Attributes:
        last_layer: name of that linear map.
    """

    reads_text = False
    default_loss = "bce"
    last_layer: ClassVar[str]

    @staticmethod
    def embed_dim(config: RadFMConfig) -> int:
        return config.hidden_size

    def forward(self, case_embeds: Tensor, text_embeds: Tensor | None = None) -> Tensor:
        if text_embeds is not None:
            raise ValueError("this head scores its own list of disorders only: leave out the texts")
        return self._last(self.features(case_embeds))

    @torch.no_grad()
    def set_disorders(self, kept_rows: Sequence[int | None], embeds: Tensor | None = None) -> None:
        """As [`Head.set_disorders`]; new disorders start with random weights."""
        old, new = self._last, _linear(self._last.in_features, len(kept_rows))
        new = new.to(device=old.weight.device, dtype=old.weight.dtype)
        for i, row in enumerate(kept_rows):
            if row is not None:
                new.weight[i], new.bias[i] = old.weight[row], old.bias[row]
        setattr(self, self.last_layer, new)

    def disorder_tensors(self) -> dict[str, Tensor]:
        return {"weight": self._last.weight.detach(), "bias": self._last.bias.detach()}

    def linear(self) -> tuple[Tensor, Tensor]:
        return self._last.weight.detach(), self._last.bias.detach()

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        self._last.weight.copy_(weight)
        self._last.bias.copy_(bias)
        return torch.zeros_like(bias)

    def set_bias(self, value: float) -> None:
        nn.init.constant_(self._last.bias, value)

    @property
    def _last(self) -> nn.Linear:
        return getattr(self, self.last_layer)


class LinearHead(FixedListHead):
    """One linear map, as in Merlin.

    ```python
    logits = model.head(case_embeds)  # over the vocabulary
    ```
    """

    last_layer = "fc"

    def __init__(self, config: RadFMConfig):
        super().__init__()
        self.fc = _linear(config.hidden_size, len(config.disorders))

    def features(self, case_embeds: Tensor) -> Tensor:
        return case_embeds


class MLPHead(FixedListHead):
    """Two layers, as in RadDiag.

    ```python
    logits = model.head(case_embeds)  # over the vocabulary
    ```
    """

    last_layer = "fc2"

    def __init__(self, config: RadFMConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc2 = _linear(config.hidden_size, len(config.disorders))

    def features(self, case_embeds: Tensor) -> Tensor:
        return F.gelu(self.fc1(case_embeds))


HEADS: dict[str, type[Head]] = {"text": TextHead, "linear": LinearHead, "mlp": MLPHead}


def head_class(config: RadFMConfig) -> type[Head]:
    """The class of `config.head`. Raises: ValueError where there is no head of that name."""
    try:
        return HEADS[config.head]
    except KeyError:
        raise ValueError(f"there is no head {config.head!r}: there are {', '.join(HEADS)}") from None


def _linear(inputs: int, outputs: int) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the vocabulary may be empty
        return nn.Linear(inputs, outputs)
