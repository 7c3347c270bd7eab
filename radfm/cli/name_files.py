"""Files of disorder names."""

from pathlib import Path


def read_names(file: Path) -> list[str]:
    """The disorder names in a file, one per line; lines that begin with # are comments.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, or holds no name.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8: save it as text in UTF-8") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise ValueError(f"{file} holds no disorder name: write one per line")
    return names
