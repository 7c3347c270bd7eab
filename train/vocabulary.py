"""A tokenizer and its embedding table, cut down to the word pieces that a field of knowledge uses.

Decisions:
- all-MiniLM-L6-v2 spends half of its 22.7 million numbers on word pieces, most of which no disorder's name needs.
- Kept are the pieces that the given texts are made of, all special tokens, and every piece of one or two characters, so
  that any word can still be spelled out. The embeddings of the given texts stay exactly as they were.
- Only WordPiece is trimmed (BERT and its kin); other tokenizers are left as they are, and so said.
"""

import json
import warnings
from collections.abc import Iterable

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer


def trim_vocabulary(model: SentenceTransformer, texts: Iterable[str]) -> int:
    """Trims the model in place; returns how many word pieces are left."""
    transformer = model[0]
    fast = transformer.tokenizer
    description = json.loads(fast.backend_tokenizer.to_str())
    if description["model"]["type"] != "WordPiece":
        warnings.warn(f"a {description['model']['type']} vocabulary is not trimmed, only WordPiece is", stacklevel=2)
        return len(fast)
    vocabulary: dict[str, int] = description["model"]["vocab"]
    used = {i for encoding in fast.backend_tokenizer.encode_batch(list(texts)) for i in encoding.ids}
    special = set(fast.all_special_ids)
    kept = [
        (piece, i)
        for piece, i in sorted(vocabulary.items(), key=lambda item: item[1])
        if i in used or i in special or len(piece.removeprefix("##")) <= 2
    ]
    renumbered = {i: new for new, (_, i) in enumerate(kept)}
    description["model"]["vocab"] = {piece: renumbered[i] for piece, i in kept}
    for token in description["added_tokens"]:
        token["id"] = renumbered[token["id"]]
    processor = description.get("post_processor") or {}
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [renumbered[i] for i in token["ids"]]
    for end in ("sep", "cls"):  # a BertProcessing names them so
        if end in processor:
            processor[end] = [processor[end][0], renumbered[processor[end][1]]]
    if description.get("padding"):
        description["padding"]["pad_id"] = renumbered[description["padding"]["pad_id"]]
    fast._tokenizer = Tokenizer.from_str(json.dumps(description))

    encoder = transformer.auto_model
    table = encoder.get_input_embeddings()
    rows = torch.tensor([i for _, i in kept])
    smaller = torch.nn.Embedding.from_pretrained(
        table.weight.data[rows].clone(),
        freeze=False,
        padding_idx=renumbered[fast.convert_tokens_to_ids(fast.pad_token)],
    )
    encoder.set_input_embeddings(smaller)
    encoder.config.vocab_size = len(kept)
    encoder.config.pad_token_id = fast.pad_token_id
    return len(kept)
