"""The model card of a diagnosis model: architecture, training data, performance for head, body and tail, and limits.

Decisions:
- The sections have files of their own: `training_section`, `evaluation_section`, `confidence_section`. This file puts
  them together with the metadata and the table of the model.
"""

from huggingface_hub import ModelCard, ModelCardData

from radfm.heads_radfm import HEADS
from radfm.presentation import plural
from radfm.publishing.card import Facts, counts_cell, make_card
from radfm.publishing.confidence_section import calibration_cases, calibration_tables, confidence_sentences
from radfm.publishing.evaluation_section import (
    auc_within_body_parts,
    evaluation_contexts,
    hub_metrics,
    model_index_results,
    transfer_rows,
)
from radfm.publishing.training_section import (
    missing_from_training,
    run_config,
    starting_points,
    training_details,
    validation_cases,
)
from radfm.recipes_radfm import synthetic_only
from radfm.towers_radfm import TOWERS

_COUNTS = {  # row of the card -> key of `radfm.data_prep.data_summary`
    "scans by modality": "modalities",
    "scans by body part": "body_parts",
    "patients by age, years": "ages",
    "patients by sex": "sexes",
}
_RADDIAG = (
    "The architecture follows RadDiag: Zheng et al., Large-scale long-tailed disease diagnosis on radiology images, "
    "Nature Communications 15:10147, 2024."
)


def diagnosis_card(facts: Facts) -> ModelCard:
    """The card of a `RadFMForDiagnosis`.

    Raises:
        ValueError: the metadata of the card does not survive writing and reading.
    """
    config, data = facts.config, facts.training_data or {}
    run = run_config(facts.recipe)
    synthetic = synthetic_only(facts.recipe | {"data": data})
    modalities = [name for name in config["modalities"] if name != "other" and not name[-1].isdigit()]
    return make_card(
        "diagnosis.md",
        facts,
        _metadata(facts, synthetic),
        _model_table(facts),
        modalities=", ".join(modalities),
        disorders=len(config["disorders"]),
        open_vocabulary=HEADS[config["head"]].reads_text,
        trained=config["trained"],
        synthetic=synthetic,
        data=data or None,
        has_counts="cases" in data,
        counts={row: counts_cell(data[key]) for row, key in _COUNTS.items() if key in data},
        validation_cases=validation_cases(facts.recipe),
        starting_points=list(starting_points(facts.recipe, run, config)),
        training=[f"{line}." for line in training_details(facts.recipe, run, config)],
        evaluations=list(evaluation_contexts(facts.evaluations)),
        transfer=facts.transfer or None,
        transfer_rows=list(transfer_rows(facts.transfer)),
        not_in_training=list(missing_from_training(facts, modalities, synthetic, run)),
        auc_within_body_parts=auc_within_body_parts(facts.evaluations),
        calibrated=config.get("calibration") is not None,
        calibration_cases=calibration_cases(facts),
        calibrations=list(calibration_tables(facts)),
        confidence=list(confidence_sentences(facts)),
        citations=[_RADDIAG, *filter(None, [data.get("citation")])],
    )


def _metadata(facts: Facts, synthetic: bool) -> ModelCardData:
    evaluations, data = facts.evaluations, facts.training_data or {}
    return ModelCardData(
        language="en",
        license=facts.licence,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["radfm", "radiology", "medical", "icd-10-cm", "zero-shot", "custom_code", *["synthetic"] * synthetic],
        metrics=sorted({hub_name for each in evaluations for hub_name, _ in hub_metrics(each).values()}) or None,
        model_name=facts.name if evaluations else None,
        eval_results=[result for each in evaluations for result in model_index_results(each, data)] or None,
    )


def _model_table(facts: Facts) -> dict[str, str]:
    config, vision = facts.config, facts.config["vision_config"]
    reads_text = HEADS[config["head"]].reads_text
    classifiers = "text embeddings of the disorders" if reads_text else "a fixed list of disorders"
    coded = sum(map(bool, config["icd10cm"]))
    return {
        "parameters": f"{facts.weights['parameters']:,}",
        "slice encoder": _tower(vision),
        **({"volume encoder": _tower(config["volume_config"])} if config.get("volume_config") else {}),
        "scan and case encoder": _encoder_layers(config),
        "head": f"{config['head']}: {classifiers}",
        "disorders": f"{len(config['disorders']):,}, of them {coded:,} with ICD-10-CM codes",
    }


def _tower(vision: dict) -> str:
    """In words: its network and what it reads."""
    of_volumes = "volumes of " if TOWERS[vision["family"]].reads_volumes else ""
    unit = "positions of latents" if vision["family"] == "latent" else "pixels"
    return f"{vision['tower']} (family {vision['family']}), {of_volumes}{vision['image_size']} {unit}"


def _encoder_layers(config: dict) -> str:
    parts = []
    for part, tokens in (("scan_config", "the slices of a scan"), ("case_config", "the scans of a case")):
        layers = config[part]["num_hidden_layers"]
        parts.append(f"{plural(layers, 'layer')} over {tokens}" if layers else f"mean over {tokens}")
    return f"{'; '.join(parts)}; hidden size {config['hidden_size']}"
