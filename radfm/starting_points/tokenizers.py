"""Tokenizers of published models, by name or folder."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase


def load_tokenizer(name_or_folder: str | Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a text model.

    Args:
        name_or_folder: on the Hugging Face Hub or on disk.
        config: of the text model, whose vocabulary it has to have.
    Raises:
        ValueError: there is none that can be read, or it is another model's.
    """
    name = str(name_or_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: it has no tokenizer that can be read: {first_line(error)}") from error
    if not config.vocab_size / 2 <= len(tokenizer) <= config.vocab_size:  # transformers makes an empty one of no files
        tokens = f"{len(tokenizer):,} tokens, and its text model {config.vocab_size:,}"
        raise ValueError(
            f"{name}: its tokenizer has {tokens}: the files of the tokenizer are missing or another model's"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    tokenizer.name_or_path = ""  # a checkpoint tells no path of this machine
    return tokenizer


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
