"""Writes the API reference from the docstrings with pdoc: python docs/api.py build/api

Decisions:
- pdoc follows `__all__`. Other modules that the documents mention are listed in `MODULES`.
- The commands are left out, because `radfm COMMAND --help` documents them.
- Names that radfm imports lazily are imported first, because pdoc would miss them otherwise.
- Members that are inherited from transformers and torch are left out, because their own documentation has them.
"""

import sys
import warnings
from pathlib import Path

import pdoc

import radfm

MODULES = (
    *("radfm", "radfm.checkpoints", "radfm.starting_points.raddiag"),
    *(
        "radfm.data_prep.stored_cases",
        "radfm.data_prep.deidentify",
        "radfm.data_prep.batches.case_dataset",
        "radfm.data_prep.batches.sampling",
        "radfm.data_prep.phantoms",
    ),
)
LEFT_OUT = r"!radfm\..*command"


def build(folder: Path) -> None:
    """Writes one page per module, a search index and index.html into the folder."""
    for name in radfm.__all__:
        getattr(radfm, name)
    radfm.data_prep.load = radfm.data_prep.load
    footer = f"radfm {radfm.__version__}. Research use only, not a medical device."
    pdoc.render.configure(docformat="google", show_source=False, footer_text=footer)
    # pydantic has an annotation that exists for type checkers only
    warnings.filterwarnings("ignore", r"(?s).*PydanticDataclass", UserWarning)
    pdoc.pdoc(*MODULES, LEFT_OUT, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
