"""Pages of one file, which load nothing: the templates, the style and the words that they share.

    >>> environment("radfm.eval").get_template("case.html").render(...)

Decisions:
- `page.css` is the look of all pages; a page adds what is its own. It follows the reader's choice of light or dark, and
  prints.
- A page's own templates come first, then those of `radfm.data_prep`, which hold what is shared.
"""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from radfm.presentation import file_size, number, part_of, plural

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
    jinja.filters |= {"number": number, "many": plural, "bytes": file_size, "share": part_of}
    return jinja
