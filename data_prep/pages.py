"""HTML pages that consist of one file and load nothing from elsewhere: shared templates, style and filters.

    >>> environment("radfm.eval").get_template("case.html").render(...)

Decisions:
- `page.css` is the style of all pages, to which a page adds its own rules. It has a light and a dark mode, and prints.
- Templates of the page's own package come first, then the shared ones of `radfm.data_prep`.
"""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from radfm.presentation import file_size, number, part_of, plural

_SHARED = "radfm.data_prep"


def environment(package: str = _SHARED) -> Environment:
    """A Jinja environment for the templates of a package, with shared filters; HTML is escaped."""
    jinja = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, _SHARED))]),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"number": number, "many": plural, "bytes": file_size, "share": part_of}
    return jinja
