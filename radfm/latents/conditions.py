"""What a generator is asked for, as text: disorders, modality, plane and body part, each an embedding of its name.

Decisions:
- A disorder is conditioned on by the embedding of its name, as radfm's text head classifies by it. So a disorder that
  the generator never saw can be asked for by name.
- What is unknown, or dropped for classifier-free guidance, is the embedding of an empty text. A case without disorders
  is "no finding", which is something else than unknown disorders.
- The network gets two forms of the same embeddings. Cross-attention reads one token for each disorder, and one each
  for modality, plane and body part. The mean of the disorders and the three others are also concatenated, and added to
  the embedding of the noise level, which reaches every layer at nearly no cost.
- Each text is embedded alone, so that its embedding does not depend on what is asked for together with it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from radfm.starting_points import text_embedder

NO_FINDING = "no finding"
PARTS = 4  # disorders, modality, plane, body part


@dataclass(frozen=True)
class Prompt:
    """What a latent shows.

    Attributes:
        disorders: names; empty for a case without any, None where unknown.
        modality, plane, body_part: as of `radfm.Scan`; None where unknown.
    """

    disorders: Sequence[str] | None = ()
    modality: str | None = None
    plane: str | None = None
    body_part: str | None = None

    def without_disorders(self) -> "Prompt":
        """The same with unknown disorders, for classifier-free guidance."""
        return Prompt(None, self.modality, self.plane, self.body_part)

    @property
    def texts(self) -> list[list[str]]:
        """The texts of its four parts."""
        disorders = [""] if self.disorders is None else list(self.disorders) or [NO_FINDING]
        return [disorders, *([text or ""] for text in (self.modality, self.plane, self.body_part))]


@dataclass(frozen=True)
class Conditions:
    """Prompts as the network reads them.

    Attributes:
        tokens: (n, tokens, d), padded.
        mask: (n, tokens) bool, false where padded.
        pooled: (n, 4 d), one vector for each part of a prompt.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def to(self, device: torch.device | str) -> "Conditions":
        return Conditions(self.tokens.to(device), self.mask.to(device), self.pooled.to(device))


class TextConditions:
    """Prompts -> `Conditions`.

    Args:
        text_encoder: folder of a SentenceTransformer, or the name of one that comes with radfm.
    Raises:
        ValueError: as `radfm.starting_points.untrained`.
    """

    def __init__(self, text_encoder: str | Path):
        self._embed = text_embedder(text_encoder)
        self._embeds: dict[str, Tensor] = {}
        self.width = len(self.embed(""))

    def __call__(self, prompts: Sequence[Prompt]) -> Conditions:
        parts = [[[self.embed(text) for text in texts] for texts in prompt.texts] for prompt in prompts]
        tokens = [torch.stack([embed for part in of_prompt for embed in part]) for of_prompt in parts]
        pooled = [torch.cat([torch.stack(part).mean(0) for part in of_prompt]) for of_prompt in parts]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        lengths = torch.tensor([len(of_prompt) for of_prompt in tokens])
        return Conditions(padded, torch.arange(padded.shape[1]) < lengths[:, None], torch.stack(pooled))

    def embed(self, text: str) -> Tensor:
        """(d,), the components of which have the mean square 1."""
        if text not in self._embeds:
            embed = torch.from_numpy(self._embed([text])[0].astype(np.float32))
            self._embeds[text] = embed * len(embed) ** 0.5
        return self._embeds[text]

    def nearest(self, name: str, known: Iterable[str]) -> str | None:
        """The known name whose embedding is closest to that of a name; None where none is known."""
        embed = self.embed(name)
        return max(known, key=lambda other: (float(self.embed(other) @ embed), other), default=None)
