"""Registers radfm with transformers' Auto classes and pipelines, and its checkpoints' names with `from_pretrained`.

Registration needs radfm's classes, and they need torch, whose import takes seconds that `radfm --help` or reading a
study should not take. So nothing is imported here. `wrapt` calls back when the module of transformers with a registry
has been imported, which imports radfm's module, and when that has been imported, which registers its class. Whichever
comes first, both are complete by then.

While a module of radfm is being imported, the others wait: they would import names from it that it does not have yet.
They are imported when it is complete, when a name of radfm is used, or when a checkpoint is loaded.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from wrapt import when_imported, wrap_function_wrapper


def when_transformers_is_imported() -> None:
    for ours, (theirs, register) in _registries().items():
        _when_both_are_imported(ours, theirs, register)
    for module, function in (
        ("transformers.models.auto.configuration_auto", "AutoConfig.from_pretrained"),
        ("transformers.models.auto.modeling_auto", "AutoModel.from_pretrained"),
        ("transformers.models.auto.image_processing_auto", "AutoImageProcessor.from_pretrained"),
        ("transformers.models.auto.processing_auto", "AutoProcessor.from_pretrained"),
        ("transformers.models.auto.tokenization_auto", "AutoTokenizer.from_pretrained"),
        ("transformers.pipelines", "pipeline"),
        ("radfm.configuration_radfm", "RadFMConfig.from_pretrained"),
        ("radfm.modeling_radfm", "RadFMPreTrainedModel.from_pretrained"),
        ("radfm.image_processing_radfm", "RadFMImageProcessor.from_pretrained"),
        ("radfm.processing_radfm", "RadFMProcessor.from_pretrained"),
    ):
        _accept_names(module, function)


def import_what_is_registered(complete: str | None = None) -> None:
    """Imports radfm's modules whose registries have been imported, unless one of radfm's is being imported now.

    Args:
        complete: a module that has just been executed; Python still marks it as being imported.
    """
    importing = {name for name in list(sys.modules) if name != complete and _is_being_imported(name)}
    if not any(name.startswith("radfm.") for name in importing):
        for ours, (theirs, _) in _registries().items():
            if theirs in sys.modules and theirs not in importing and ours not in sys.modules:
                import_module(ours)


def _registries() -> dict[str, tuple[str, Callable[[ModuleType, ModuleType], None]]]:
    """Module of radfm -> module of transformers that has the registry, and the function that registers."""
    auto = "transformers.models.auto"
    return {
        "radfm.configuration_radfm": (f"{auto}.configuration_auto", _register_config),
        "radfm.modeling_radfm": (f"{auto}.modeling_auto", _register_model),
        "radfm.image_processing_radfm": (f"{auto}.image_processing_auto", _register_image_processor),
        "radfm.processing_radfm": (f"{auto}.processing_auto", _register_processor),
        "radfm.pipeline_radfm": ("transformers.pipelines", _register_pipeline),
    }


def _when_both_are_imported(ours: str, theirs: str, register: Callable[[ModuleType, ModuleType], None]) -> None:
    def register_and_import_others(module: ModuleType) -> None:
        register(module, import_module(theirs))
        import_what_is_registered(complete=ours)

    when_imported(theirs)(lambda _: import_what_is_registered(complete=theirs))
    when_imported(ours)(register_and_import_others)


def _is_being_imported(name: str) -> bool:
    return getattr(getattr(sys.modules[name], "__spec__", None), "_initializing", False)


def _accept_names(module: str, function: str) -> None:
    """Lets a function that takes a checkpoint accept the names of those that come with radfm."""

    def resolve_names(wrapped, instance, args, kwargs):
        from radfm.checkpoints import resolve

        import_what_is_registered()
        return wrapped(*map(resolve, args), **{name: resolve(value) for name, value in kwargs.items()})

    when_imported(module)(lambda imported: wrap_function_wrapper(imported, function, resolve_names))


def _register_config(ours: ModuleType, theirs: ModuleType) -> None:
    theirs.AutoConfig.register(ours.RadFMConfig.model_type, ours.RadFMConfig)


def _register_model(ours: ModuleType, theirs: ModuleType) -> None:
    theirs.AutoModel.register(_config(), ours.RadFMForDiagnosis)


def _register_image_processor(ours: ModuleType, theirs: ModuleType) -> None:
    backends = {"pil": ours.RadFMImageProcessor, "torchvision": ours.RadFMImageProcessor}  # it needs neither
    theirs.AutoImageProcessor.register(_config(), image_processor_classes=backends)


def _register_processor(ours: ModuleType, theirs: ModuleType) -> None:
    theirs.AutoProcessor.register(_config(), ours.RadFMProcessor)


def _register_pipeline(ours: ModuleType, theirs: ModuleType) -> None:
    from radfm.modeling_radfm import RadFMForDiagnosis

    theirs.PIPELINE_REGISTRY.register_pipeline(
        "zero-shot-diagnosis",
        pipeline_class=ours.ZeroShotDiagnosisPipeline,
        pt_model=RadFMForDiagnosis,
        type="multimodal",
    )


def _config() -> type:
    from radfm.configuration_radfm import RadFMConfig

    return RadFMConfig
