"""radfm: a knowledge-enhanced, multimodal foundation model for radiology. Research use only, not a medical device.

Decisions:
- Every public name is imported on first use, so that `import radfm` and reading a study do not import torch.
- The Auto classes and `pipeline("zero-shot-diagnosis")` support radfm as soon as both radfm and transformers are
  imported, in either order; neither imports the other: see `radfm.registration`.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from radfm import registration

_MODULE_OF = {  # public name -> the module that defines it
    "Case": "cases",
    "Scan": "cases",
    "read_case": "readers.read_case",
    "RadFMConfig": "configuration_radfm",
    "RadFMForDiagnosis": "modeling_radfm",
    "RadFMModel": "modeling_radfm",
    "RadFMImageProcessor": "image_processing_radfm",
    "RadFMProcessor": "processing_radfm",
    "ZeroShotDiagnosisPipeline": "pipeline_radfm",
}
_MODULES = {  # public name -> module
    "data_prep": "data_prep",
    "eval": "eval",
    "examples": "examples",
    "knowledge": "knowledge",
    "raddiag": "starting_points.raddiag",
    "starting_points": "starting_points",
    "train": "train",
}

__all__ = [*_MODULE_OF, *_MODULES]

try:
    __version__ = version("radfm")
except PackageNotFoundError:  # run from the repository root without installation
    __version__ = "0+unknown"

registration.when_transformers_is_imported()


def __getattr__(name: str):
    if name in _MODULE_OF:
        value = getattr(import_module(f"radfm.{_MODULE_OF[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"radfm.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'radfm' has no attribute {name!r}")
    globals()[name] = value
    registration.import_what_is_registered()
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
