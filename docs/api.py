"""Writes the API reference from the docstrings, by pdoc: python docs/api.py build/api

Decisions:
- pdoc follows `__all__`; the other modules that the documents name are listed here.
- The command line is left out: `radfm COMMAND --help` says what it does.
- What is imported on first use is bound before, or pdoc would not see it.
- What classes inherit from transformers and torch is in their documentation.
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
    """One page a module, a search, and index.html, in the folder."""
    for name in radfm.__all__:
        getattr(radfm, name)
    radfm.data_prep.load = radfm.data_prep.load
    footer = f"radfm {radfm.__version__}. Research use only, not a medical device."
    pdoc.render.configure(docformat="google", show_source=False, footer_text=footer)
    # an annotation of pydantic's that exists for type checkers only
    warnings.filterwarnings("ignore", r"(?s).*PydanticDataclass", UserWarning)
    pdoc.pdoc(*MODULES, LEFT_OUT, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
