"""Rejection sampling: which samples of a generator a latent classifier sees as what was asked for.

Decisions:
- The classifier is any `RadFMForDiagnosis` that reads latents of the generator's autoencoder. It judges latents, so
  that rejected samples are never decoded.
- A sample is kept if the disorder that was asked for has at least a set probability, and at most so many of its rivals
  have a higher one, usually none. Rivals are the disorders that the generator was trained on in the same body part.
- A sample of no finding is kept if no rival has the set probability.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from radfm.cases import Case, Scan
from radfm.checkpoints import find
from radfm.latents.conditions import Prompt
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.reference_radfm import weights_sha256
from radfm.starting_points import embed_texts

_AT_ONCE = 64


class LatentClassifier:
    """
    Args:
        folder: of the checkpoint.
        names: disorders that are scored. A model with a fixed list scores those that are on it.
        autoencoder: fingerprint of the autoencoder of the latents.
        device: of the model.
    Attributes:
        names: the disorders that it scores.
        fingerprint: 20 hexadecimal digits of its weights.
    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or it does not read these latents.
    """

    def __init__(self, folder: str | Path, names: Sequence[str], autoencoder: str, device: str | torch.device = "cpu"):
        found = find(folder, local=True)
        self.model = RadFMForDiagnosis.from_pretrained(found).eval().to(device)
        self.processor = RadFMProcessor.from_pretrained(found)
        self.fingerprint = weights_sha256(found)[:20]
        latents = getattr(self.processor.image_processor, "latents", None)
        if latents is None:
            raise ValueError(f"{folder} reads pictures, not latents: give a model of radfm train latent-classifier")
        if latents["autoencoder"] != autoencoder:
            raise ValueError(
                f"{folder} reads latents of the autoencoder {latents['autoencoder']}, and the generator makes those of "
                f"{autoencoder}: give a classifier of the same autoencoder"
            )
        vocabulary = self.model.config.vocabulary
        reads_text = self.model.head.reads_text and self.model.radfm.text_encoder is not None
        listed = [name for name in names if name in vocabulary]
        others = [name for name in names if name not in vocabulary] if reads_text else []
        self.names = [*listed, *others]
        self._rows = vocabulary.rows(listed)
        self._embeds = embed_texts(self.model, self.processor, others) if others else None

    @torch.inference_mode()
    def probabilities(self, latents: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(n, names) probabilities, of latents (n, channels, h, w) with what is known of them."""
        parts = []
        for start in range(0, len(prompts), _AT_ONCE):
            some = zip(latents[start : start + _AT_ONCE], prompts[start : start + _AT_ONCE], strict=True)
            cases = [
                Case([Scan(one[None].cpu().numpy(), prompt.modality, prompt.plane, body_part=prompt.body_part)])
                for one, prompt in some
            ]
            batch = self.processor(cases=cases, return_tensors="pt")
            output = self.model(**{key: value.to(self.model.device) for key, value in batch.items()})
            logits = [self.model.log_odds(output.logits)[:, self._rows]]
            if self._embeds is not None:
                tokens = output.tokens_per_case.tolist()
                logits.append(self.model.pool(self.model.head(output.token_embeds, self._embeds), tokens))
            parts.append(torch.cat(logits, 1).float().sigmoid().cpu())
        return torch.cat(parts)

    def refusals(
        self, latents: Tensor, prompts: Sequence[Prompt], rivals: Sequence[set[str]], threshold: float, rank: int = 1
    ) -> list[str | None]:
        """Why samples do not show what was asked for; None where they do.

        Args:
            rivals: for each sample, names whose probabilities may not be higher.
            threshold: least probability of what was asked for.
            rank: the lowest rank among its rivals that it may have; 1: it has the highest probability.
        """
        reasons: list[str | None] = []
        for prompt, of_sample, row in zip(prompts, rivals, self.probabilities(latents, prompts), strict=True):
            scores, asked = dict(zip(self.names, row.tolist(), strict=True)), prompt.disorders or ()
            others = {name: scores[name] for name in of_sample if name in scores and name not in asked}
            reasons.append(_refusal([scores[name] for name in asked], others, threshold, rank))
        return reasons


def _refusal(asked: Sequence[float], others: Mapping[str, float], threshold: float, rank: int) -> str | None:
    if asked and min(asked) < threshold:
        return f"the classifier gives it a probability of {min(asked):.3f}, below {threshold:g}"
    higher = [name for name, score in others.items() if score > min(asked, default=threshold)]
    if len(higher) > (rank - 1 if asked else 0):
        return f"the classifier sees {max(higher, key=others.__getitem__)!r} rather than it"
    return None
