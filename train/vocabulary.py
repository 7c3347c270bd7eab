"""A tokenizer for medicine: abbreviations are spelled, and the vocabulary is limited to the word pieces that are used.

Decisions:
- Word pieces hide the letters of an abbreviation: all-MiniLM-L6-v2 reads AHDS as "ah" and "ds". Letter by letter it can
  be compared with the words that it abbreviates (Allan-Herndon-Dudley syndrome). This is a rule in the file of the
  tokenizer, so it is part of the encoder.
- An abbreviation consists of at most six capitals and digits. Numbers are not split, nor are Roman numerals and words
  next to others in capitals, as in A NAME THAT IS WRITTEN SO.
- Half of the 22.7 million parameters of all-MiniLM-L6-v2 are embeddings of word pieces, most of which no name of a
  disorder needs.
- The pieces of the given texts, all special tokens and every piece of one or two characters are kept, so that any word
  can still be spelled. The embeddings of the given texts do not change.
- Only WordPiece (BERT and similar models) is trimmed; other tokenizers are left as they are, with a warning.
"""

import json
import warnings
from collections.abc import Iterable

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer
from tokenizers.normalizers import Replace, Sequence
from transformers import PreTrainedTokenizerFast

_LONGEST = 6  # letters and digits of an abbreviation
_LETTERS = "|".join(  # between two letters of it, but not in words next to others in capitals
    rf"(?<=\b[A-Z0-9]{{{n}}})(?<![A-Z]{{4}} [A-Z0-9]{{{n}}})(?=[A-Z0-9]{{1,{_LONGEST - n}}}\b(?! [A-Z]{{4}}))"
    for n in range(1, _LONGEST)
)
_ROMAN = "".join(rf"(?!(?<=\b[IVX]{{{n}}})[IVX]+[A-E]?\b)" for n in range(1, _LONGEST))
_SPELLED = rf"({_LETTERS})(?!(?<=\d)\d){_ROMAN}"


def spell_abbreviations(model: SentenceTransformer) -> None:
    """Makes the model's tokenizer read abbreviations letter by letter, in place.

    "CMT2A" becomes "C M T 2 A", "LAD III" becomes "L A D III".
    """
    transformer = model[0]
    given = transformer.tokenizer
    if (kind := type(given.backend_tokenizer.model).__name__) != "WordPiece":
        warnings.warn(f"abbreviations are not spelled with a {kind} vocabulary, only with WordPiece", stacklevel=2)
        return
    backend = given.backend_tokenizer
    spelled = Replace(Regex(_SPELLED), " ")
    backend.normalizer = Sequence([spelled, backend.normalizer])
    transformer.processor = PreTrainedTokenizerFast(  # a tokenizer class of a model would create its own rules again
        tokenizer_object=backend,
        model_max_length=given.model_max_length,
        model_input_names=given.model_input_names,
        **given.special_tokens_map,
    )


def trim_vocabulary(model: SentenceTransformer, texts: Iterable[str]) -> int:
    """Trims the model in place; returns the number of word pieces that are left."""
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
    for end in ("sep", "cls"):  # in a BertProcessing
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
