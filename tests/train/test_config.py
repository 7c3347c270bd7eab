"""Configurations: YAML and changes as typed sections, and errors of one line."""

from importlib.resources import files
from pathlib import Path

import pytest

from radfm.train.autoencoder_config import read_autoencoder_config
from radfm.train.config import read_config
from radfm.train.diagnosis_config import DiagnosisTraining, read_diagnosis_config
from radfm.train.diffusion_config import read_diffusion_config
from radfm.train.finetune_config import finetune_config
from radfm.train.text import TextTraining, read_text_config

CONFIGS = files("radfm.train") / "configs"
DIAGNOSIS = CONFIGS / "diagnosis.yaml"


@pytest.fixture
def read(tmp_path):
    """A diagnosis configuration from the text of a file and changes."""

    def read(text: str, *changes: str) -> DiagnosisTraining:
        (tmp_path / "c.yaml").write_text(text)
        return read_config(DiagnosisTraining, tmp_path / "c.yaml", changes)

    return read


OF_OTHERS = {
    "text.yaml": read_text_config,
    "autoencoder.yaml": read_autoencoder_config,
    "diffusion.yaml": read_diffusion_config,
}


@pytest.mark.parametrize("name", sorted({file.name for file in CONFIGS.glob("*.yaml")} - OF_OTHERS.keys()))
def test_the_configs_of_the_package_are_read(name):
    config = read_diagnosis_config(CONFIGS / name, ["data=somewhere", "training.logging_steps=3"])
    assert (config.data.path, config.training["logging_steps"]) == ("somewhere", 3)


@pytest.mark.parametrize("name", sorted(OF_OTHERS))
def test_the_configs_of_other_trainings_are_read(name):
    assert OF_OTHERS[name](CONFIGS / name, ["seed=3"]).seed == 3


def test_a_config_of_the_package_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_text_config("text.yaml").training == read_text_config("train/configs/text.yaml").training
    (tmp_path / "text.yaml").write_text("seed: 5")
    assert read_text_config("text.yaml").seed == 5
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml: no such file; radfm comes with .*diagnosis\.yaml, "):
        read_text_config("nothing.yaml")


def test_changes_reach_every_section_and_leave_the_rest_of_it_as_it_is(read):
    text = "data: {path: here, withheld: [Gout]}\nobjectives: {weights: {per_scan: 1}}\ntraining: {max_steps: 5}"
    config = read(text, "data=there", "objectives.weights.patch=4", "training.eval_steps=7", "model.frozen=[conv1]")
    assert (config.data.path, config.data.withheld) == ("there", ["Gout"])
    assert config.objectives.weights == {"key_slice": 10.0, "per_scan": 1, "patch": 4}
    assert config.training == {"max_steps": 5, "eval_steps": 7}
    assert config.model.frozen == ["conv1"]
    assert read("").sampling.slices_per_step == 2048, "an empty file has the defaults"


def test_fine_tuning_has_defaults_of_its_own_for_the_sections_that_it_shares():
    config = finetune_config(
        {"data": "here"}, ["sampling.slices_per_scan=3", "augmentation.noise=0", "interpolate=1e-1"]
    )
    assert (config.data.path, config.sampling.slices_per_step, config.sampling.slices_per_scan) == ("here", 256, 3)
    assert (config.augmentation.affine, config.augmentation.noise, config.interpolate) == (0.3, 0, 0.1)


def test_values_are_those_of_yaml_1_2(read):
    config = read("training: {eval_strategy: no, learning_rate: 1e-3}", "training.weight_decay=5E+2", "output=1e-3b")
    assert config.training == {"eval_strategy": "no", "learning_rate": 0.001, "weight_decay": 500.0}
    assert config.output == "1e-3b"
    config = read("", "training.save_strategy=no", "training.bf16=false", "model.history=True")
    assert (config.training, config.model.history) == ({"save_strategy": "no", "bf16": False}, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=yes", "seed=true: Input should be a valid integer"),
        ("seed=1.5", "seed=1.5: Input should be a valid integer"),
        ("data.shots=0", "data.shots=0: Input should be greater than or equal to 1"),
        ("data.withheld=Gout", "data.withheld=Gout: Input should be a valid array"),
        ("data.withheld=[Gout, 3]", "data.withheld.1=3: Input should be a valid string"),
        ("data=3", "data=3: Input should be an object"),
        ("dat=here", "dat: no such key; there are augmentation, data, model, objectives, output"),
        ("head=mlp", "head: no such key; there are augmentation, data, model, objectives, output"),
        ("model.hed=mlp", "model.hed: no such key; there are architecture, checkpoint"),
        ("model.head=svm", "model.head=svm: Input should be 'text', 'linear', 'mlp'"),
        ("model.text_layers=some", "model.text_layers=some: Input should be a valid integer or 'all'"),
        ("model.text_layers=-1", "model.text_layers=-1: Input should be greater than or equal to 0 or 'all'"),
        ("model.text_whitening=0", "model.text_whitening=0: Input should be greater than 0"),
        ("model.tower_patches=1", "model.tower_patches=1: Input should be a valid boolean"),
        ("model.frozen=head", "model.frozen=head: Input should be a valid array or 'tower'"),
        ("objectives.label_smoothing=2", "objectives.label_smoothing=2: Input should be less than or equal to 1"),
        ("objectives.weights.patc=1", "patc: Input should be 'diagnosis', 'per_scan', 'patch', 'key_slice'"),
        ("objectives.weights.patch=high", "objectives.weights.patch=high: Input should be a valid number"),
        ("objectives.loss.name=hinge", "Input should have as name 'sigmoid', 'softmax'"),
        ("objectives.loss={name: bce, gamma: 2}", "Input should hold arguments of bce: .* keyword argument 'gamma'"),
        ("sampling.by_disorder=often", "sampling.by_disorder=often: Input should be a valid number"),
        ("augmentation.blur=1", "augmentation.blur: no such key; there are add_normal, affine"),
        ("augmentation.noise=2", "augmentation.noise is a probability from 0 to 1, not 2"),
        ("training.max_step=3", "training.max_step: no such key; similar keys are max_steps"),
        ("training.bf16=maybe", "training.bf16=maybe: Input should be a valid boolean"),
        ("training.learning_rate=fast", "training.learning_rate=fast: Input should be a valid number"),
        ("training.eval_strategy=sometimes", "eval_strategy=sometimes: Input should be 'no', 'steps' or 'epoch'"),
        ("training.lr_scheduler_type=cosin", "training.lr_scheduler_type=cosin: Input should be 'linear'"),
        ("training.seed=1", "training.seed: no such key"),
        ("training=10", "training=10: Input should be an object"),
        ("seed", "'seed' is not a change of a config: write key=value"),
        ("data.withheld=[Gout", "is not a value in YAML"),
        ("output=${nowhere}", "Interpolation key 'nowhere' not found"),
    ],
)
def test_a_wrong_change_is_one_line_with_key_value_and_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message) as error:
        read_diagnosis_config(DIAGNOSIS, [change])
    assert "\n" not in str(error.value)
    assert "value is not" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "is not a YAML mapping of keys to values"),
        ("a: [", "cannot be read as YAML"),
        ("output: x\ntraining:\n  max_steps: 5\n  max_steps: 7", "found duplicate key max_steps .* line 4"),
        ("outptu: x", "outptu: no such key; there are"),
    ],
)
def test_a_wrong_file_is_refused_with_one_line(text, message, read):
    with pytest.raises(ValueError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)
    assert "c.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.head=mlp", "model.history=true"], "has no text encoder"),
        (["model.head=mlp", "model.text_whitening=0.3"], "has no text encoder"),
        (["model.architecture.case_config.num_hidden_layers=0", "model.history=true"], "read by the case encoder"),
        (["model.architecture.fusion=class_token"], "needs the logits of scans"),
        (["augmentation.add_normal=0.1"], "no scan has the labels of its case"),
        (["model.tower_patches=true"], "needs model.tower_weights"),
        (["objectives.weights.patch=1", "model.frozen=tower"], "trains the tower"),
        (["model.frozen=tower"], "reads each slice once"),
        (["training.max_steps=0"], "trains nothing"),
    ],
)
def test_keys_that_contradict_each_other_are_refused_with_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_diagnosis_config(DIAGNOSIS, changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.average_from=soon", "model.average_from=soon: Input should be a valid number"),
        ("average_from=soon", "average_from: no such key; there are data, model, output, seed, training"),
        ("data.held_out=7", "data.held_out=7: Input should be less than or equal to 4"),
        ("data.knowledge=[synonyms, jokes]", "data.knowledge.1=jokes: Input should be 'synonyms', 'initials'"),
        ("training.save_strategy=no", "model.average_from needs all checkpoints"),
        ("training.batch_sampler=random", "training.batch_sampler=random: Input should be "),
    ],
)
def test_the_command_refuses_a_wrong_text_config_with_one_line(change, message, radfm):
    status, out, err = radfm("train", "text", "text.yaml", change)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_text_changes_reach_the_arguments_of_the_trainer(tmp_path):
    (tmp_path / "c.yaml").write_text("training: {max_steps: 5}")
    changes = ["training.max_steps=7", "data.held_out=null", "data.knowledge=[hierarchy]"]
    config = read_config(TextTraining, Path(tmp_path / "c.yaml"), changes)
    assert (config.training["max_steps"], config.data.held_out, config.data.knowledge) == (7, None, ["hierarchy"])
