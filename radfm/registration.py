"""Makes radfm known to transformers' Auto classes and pipelines.

Registering needs the classes, and they need torch: seconds that `radfm --help` or reading a study should not pay. So
each registration waits for the transformers module that holds its registry; `wrapt` calls it when that is imported.
"""

from wrapt import when_imported


def when_transformers_is_imported() -> None:
    when_imported("transformers.models.auto.configuration_auto")(_register_config)
    when_imported("transformers.models.auto.modeling_auto")(_register_models)
    when_imported("transformers.models.auto.image_processing_auto")(_register_image_processor)
    when_imported("transformers.models.auto.processing_auto")(_register_processor)
    when_imported("transformers.pipelines")(_register_pipeline)


def _register_config(module) -> None:
    from radfm.configuration_radfm import RadFMConfig

    module.AutoConfig.register(RadFMConfig.model_type, RadFMConfig)


def _register_models(module) -> None:
    from radfm.configuration_radfm import RadFMConfig
    from radfm.modeling_radfm import RadFMForDiagnosis

    module.AutoModel.register(RadFMConfig, RadFMForDiagnosis)
    module.AutoModelForZeroShotImageClassification.register(RadFMConfig, RadFMForDiagnosis)


def _register_image_processor(module) -> None:
    from radfm.configuration_radfm import RadFMConfig
    from radfm.image_processing_radfm import RadFMImageProcessor

    module.AutoImageProcessor.register(RadFMConfig, RadFMImageProcessor)


def _register_processor(module) -> None:
    from radfm.configuration_radfm import RadFMConfig
    from radfm.processing_radfm import RadFMProcessor

    module.AutoProcessor.register(RadFMConfig, RadFMProcessor)


def _register_pipeline(module) -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    from radfm.modeling_radfm import RadFMForDiagnosis
    from radfm.pipeline_radfm import ZeroShotDiagnosisPipeline

    PIPELINE_REGISTRY.register_pipeline(
        "zero-shot-diagnosis", pipeline_class=ZeroShotDiagnosisPipeline, pt_model=RadFMForDiagnosis, type="multimodal"
    )
