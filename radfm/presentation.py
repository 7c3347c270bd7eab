"""How numbers, figures and names are written in tables, reports, cards and on the terminal, and how disorders are
grouped by frequency.

Decisions:
- One place decides each format, so that a figure reads the same wherever it appears.
- A figure is a dictionary `{"value", "low", "high"}`: an estimate and the ends of its interval. None is a figure that
  could not be computed.
- Pages and cards use typographic signs (− and –). Terminal output stays within ASCII.
- Text from outside, such as a file name, may be no UTF-8, or hold line breaks and marks that reorder what
  follows. It is shown and written with replacement characters in their place.
- Head, body and tail are defined by the number of training cases, as in RadDiag: at least 100, 30 to 99, fewer than 30.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

BANDS = ("head", "body", "tail")
BAND_MINIMA = (100, 30)  # training cases that a disorder of the head and of the body has at least

Figure = Mapping[str, float]

# Control characters, line separators, marks of writing direction, and surrogates: bytes of a name that are no UTF-8.
_NOT_SHOWN = re.compile(r"[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """Text from outside, such as a file name, in one line that can be printed and written as UTF-8."""
    return _NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def band_of(training_cases: float, minima: Sequence[float] = BAND_MINIMA) -> str:
    """The band of a disorder: "head", "body" or "tail".

    Args:
        training_cases: how many training cases have the disorder.
        minima: least number of training cases of the head, and of the body.
    """
    return next((band for band, least in zip(BANDS, minima, strict=False) if training_cases >= least), BANDS[-1])


def band_limits(minima: Sequence[int] = BAND_MINIMA) -> dict[str, str]:
    """Band -> its number of training cases in words, such as "30 to 99"."""
    head, body = minima
    return {"head": f"at least {head:,}", "body": f"{body:,} to {head - 1:,}", "tail": f"fewer than {body:,}"}


def plural(count: int, noun: str, plural_form: str | None = None) -> str:
    """A count with its noun: "1 case", "2,000 cases". Without a plural form, an "s" is appended to the noun."""
    return f"{count:,} {noun if count == 1 else plural_form or noun + 's'}"


def enumeration(names: Sequence[str]) -> str:
    """Names as a phrase: "CT, MRI and X-ray"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def scan_warnings(scans: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The warnings of the scans of a case, each sentence once: [("Scans 1 to 3 and 7", "CT values are ..."), ...].

    Args:
        scans: of each scan, its warnings.
    """
    numbers: dict[str, list[int]] = {}
    for number_, sentences in enumerate(scans, 1):
        for sentence in dict.fromkeys(sentences):
            numbers.setdefault(sentence, []).append(number_)
    return [(_scans(found, len(scans)), sentence) for sentence, found in numbers.items()]


def _scans(numbers: Sequence[int], count: int) -> str:
    """ "Scan 2", "Scans 1 to 3 and 7", "All 12 scans"; numbers in order."""
    if len(numbers) == count:
        return f"All {count} scans" if count > 1 else "The scan"
    runs: list[list[int]] = []
    for number_ in numbers:
        if runs and runs[-1][-1] == number_ - 1:
            runs[-1].append(number_)
        else:
            runs.append([number_])
    parts = [part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    return f"Scan{'s' if len(numbers) > 1 else ''} {enumeration(parts)}"


def number(value: float) -> str:
    """An integer, or a float with one decimal, with thousands separators."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] in percent, with a no-break space."""
    return f"{share:.{digits}%}".replace("%", "\N{NO-BREAK SPACE}%")


def part_of(part: int, whole: int) -> str:
    """A part of a whole in percent, with one decimal below 10%; 0% of an empty whole."""
    in_percent = 100 * part / whole if whole else 0.0
    return f"{in_percent:.{int(0 < in_percent < 10)}f}\N{NO-BREAK SPACE}%"


def file_size(count: float) -> str:
    """A number of bytes in the decimal unit that fits: "950 bytes", "1.2 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float) -> str:
    """Hours from one hour on, minutes below; at least 0.1 minutes."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{max(seconds / 60, 0.1):.1f} minutes"


def value(figure: Figure | None, digits: int = 3, signed: bool = False) -> str:
    """The estimate of a figure, "–" where there is none."""
    return "–" if figure is None else f"{figure['value']:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(figure: Figure | None, digits: int = 3, signed: bool = False) -> str:
    """The interval of a figure: "0.512–0.530", or "−0.010 to +0.020" where a sign would run into the dash."""
    if figure is None:
        return ""
    sign = "+" if signed else ""
    between = " to " if signed or figure["low"] < 0 else "–"
    return f"{figure['low']:{sign}.{digits}f}{between}{figure['high']:{sign}.{digits}f}".replace("-", "−")


def with_interval(figure: Figure | None, digits: int = 3, signed: bool = False) -> str:
    """ "0.521 (0.512–0.530)", "–" where there is no figure."""
    return "–" if figure is None else f"{value(figure, digits, signed)} ({interval(figure, digits, signed)})"


def percent_interval(figure: Figure, digits: int = 0) -> str:
    """A share with its interval: "52% (51% to 53%)"."""
    return f"{figure['value']:.{digits}%} ({figure['low']:.{digits}%} to {figure['high']:.{digits}%})"


def interval_cell(figure: Figure | None, digits: str = ".3f", ends: str | None = None, between: str = " to ") -> str:
    """A figure in a table of the terminal: the value, and below it the interval; "-" where there is none.

    Args:
        digits: format of the value.
        ends: format of the ends of the interval; None: that of the value.
        between: what separates the ends.
    """
    if figure is None:
        return "-"
    low, high = (f"{figure[end]:{ends or digits}}" for end in ("low", "high"))
    return f"{figure['value']:{digits}}\n{low}{between}{high}"


def markdown_cell(text: Any) -> str:
    """Text that can stand in a cell of a Markdown table: on one line, with Markdown's signs escaped."""
    return "".join(f"\\{sign}" if sign in r"\|<>&*[]$`" else sign for sign in " ".join(str(text).split()))


def tidy_markdown(text: str) -> str:
    """Markdown as a template leaves it, without trailing spaces and without more than one empty line in a row."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    while "\n\n\n" in lines:
        lines = lines.replace("\n\n\n", "\n\n")
    return lines.strip() + "\n"
