"""Pages of one file, which load nothing: the templates, the style and the words that they share.

    >>> environment("radfm.eval").get_template("case.html").render(...)

Decisions:
- `page.css` is the look of all pages; a page adds what is its own. It follows the reader's choice of light or dark, and
  prints.
- A page's own templates come first, then those of `radfm.data_prep`, which hold what is shared.
"""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

_SHARED = "radfm.data_prep"


def environment(package: str = _SHARED) -> Environment:
    """Of the templates of a package, with the filters that they use; HTML is escaped."""
    jinja = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, _SHARED))]),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"number": number, "many": many, "bytes": size, "share": share}
    return jinja


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def many(count: int, what: str, plural: str | None = None) -> str:
    """ "1 case", "2 cases" """
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def share(part: int, whole: int) -> str:
    """In percent."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.{int(0 < percent < 10)}f}\N{NO-BREAK SPACE}%"


def size(count: float) -> str:
    """Of so many bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
