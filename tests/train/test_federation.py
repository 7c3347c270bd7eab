"""`radfm federate`: what is averaged and what is left out, what travels, what resumes, and the simulation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant

from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.train.federation.config import FederatedTraining, read_federated_config
from radfm.train.federation.models import model_of_site, result, to_arrays, trained_weights, write_start
from radfm.train.federation.rounds import Order, State, federate
from radfm.train.federation.simulation import LocalSites, simulate
from radfm.train.federation.site import Site
from radfm.train.federation.site_cases import SiteCases, sites_of
from radfm.train.federation.updates import Update, average, sort_out
from tests.tiny_federation import SIZE, write_config

BY = "body part"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    prepare(Phantoms(240, 0, SIZE), folder, Settings(size=SIZE, fractions=(0.6, 0.0, 0.4), max_slices=1))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, text_encoder) -> FederatedTraining:
    return read_federated_config(write_config(tmp_path_factory.mktemp("config"), text_encoder, rounds=2, steps=2))


@pytest.fixture(scope="module")
def start(tmp_path_factory, config) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_start(config, folder)
    return folder


def changed(config: FederatedTraining, **federation) -> FederatedTraining:
    return replace(config, federation=replace(config.federation, **federation))


def sites(data: Path, config: FederatedTraining, start: Path, *names: str) -> dict[str, Site]:
    return {name: Site(SiteCases(data, "train", BY, [name]), config, start) for name in names}


def first_weights(site: Site) -> dict[str, np.ndarray]:
    return to_arrays(trained_weights(site.model))


def test_the_average_of_updates_is_weighted_by_cases():
    weights = {"a": np.array([1.0, 2.0], np.float32)}
    updates = {"x": Update({"a": np.array([1.0, 0.0], np.float32)}, 1), "y": Update({"a": np.array([0, 4.0])}, 3)}
    assert average(weights, updates)["a"].tolist() == [1.25, 5.0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Update({"a": np.array([np.nan, 1])}, 5), "not finite"),
        (Update({"a": np.array([np.inf, 1])}, 5), "not finite"),
        (Update({"a": np.ones(3)}, 5), "shape"),
        (Update({"b": np.ones(2)}, 5), "other weights"),
        (Update({"a": np.full(2, 110.0)}, 5), "100 times as large"),
        (Update({"a": np.zeros(2)}, 5), "changes nothing"),
        (Update({"a": np.ones(2)}, 0), "0 cases"),
        ("it did not answer within 5 s", "did not answer"),
    ],
)
def test_a_site_that_sends_nonsense_or_nothing_is_left_out_with_the_reason(bad, reason):
    good = {"x": Update({"a": np.array([1.0, 0.5])}, 5), "y": Update({"a": np.full(2, 1.1)}, 5)}
    accepted, left_out = sort_out(good | {"bad": bad}, {"a": np.zeros(2, np.float32)}, 10.0)
    assert accepted.keys() == good.keys()
    assert left_out.keys() == {"bad"}
    assert reason in left_out["bad"]


def test_sites_with_different_vocabularies_train_the_same_weights(data, config, start, tmp_path):
    both = sites(data, config, start, "chest", "abdomen")
    names = [set(site.cases.vocabulary.names) for site in both.values()]
    assert names[0] - names[1]
    assert names[1] - names[0]
    state = federate(first_weights(both["chest"]), LocalSites(both), config, tmp_path)
    codes = {name: codes for site in both.values() for name, codes in site.facts["disorders"].items()}
    model, processor = result(config, start, state.weights, codes)
    assert set(model.config.disorders) == names[0] | names[1]
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = RadFMForDiagnosis.from_pretrained(tmp_path / "model").eval()
    case = load(data, "test")[0]
    logits = loaded(**RadFMProcessor.from_pretrained(tmp_path / "model")(cases=[case])).logits
    assert logits.shape == (1, len(names[0] | names[1]))
    assert logits.isfinite().all()


def test_a_killed_server_continues_with_the_round_that_it_was_in(data, config, start, tmp_path):
    both = sites(data, config, start, "chest", "abdomen")
    weights = first_weights(both["chest"])

    class Killed(LocalSites):
        def train(self, order: Order):
            if order.round == 2:
                raise KeyboardInterrupt
            return super().train(order)

    whole = federate(weights, LocalSites(both), config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        federate(weights, Killed(both), config, tmp_path / "killed")
    assert len(State.load(tmp_path / "killed").rounds) == 1
    again = federate(weights, LocalSites(both), config, tmp_path / "killed")
    assert len(again.rounds) == 2
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(weight, again.weights[name], err_msg=name)


def test_a_round_without_enough_valid_updates_ends_with_the_reasons_and_keeps_the_state(config, tmp_path, capsys):
    class Broken:
        def wait(self, least: int) -> None:
            pass

        def train(self, order: Order):
            if order.round == 1:
                return {name: Update({"a": np.ones(2, np.float32)}, 1) for name in ("x", "y")}
            return {"x": Update({"a": np.ones(2, np.float32)}, 1), "y": "it is not connected"}

    with pytest.raises(ValueError, match=r"round 2 has 1 valid updates and needs 2.*y: it is not connected"):
        federate({"a": np.zeros(2, np.float32)}, Broken(), config, tmp_path)
    assert State.load(tmp_path).weights["a"].tolist() == [1.0, 1.0]
    assert "y is left out: it is not connected" in capsys.readouterr().err


def test_low_rank_changes_and_the_head_are_all_that_travels_and_are_merged_into_the_result(data, config, start):
    low_rank = changed(config, rank=2)
    site = sites(data, low_rank, start, "chest")["chest"]
    weights = first_weights(site)
    assert {name for name in weights if "lora_" not in name} == {"head.logit_scale", "head.logit_bias"}
    assert not any("tower" in name for name in weights)
    update = site.train(Order(1, 1e-2, weights))
    assert update.change.keys() == weights.keys()
    trained = {name: weights[name] + change for name, change in update.change.items()}
    merged, _ = result(low_rank, start, trained, dict(site.facts["disorders"]))
    batch = site.data.as_stored().__getitems__([*map(_sample, range(3))])
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "case_rows", "key_slices")}
    with torch.inference_mode():
        expected, actual = site.model.eval()(**inputs).logits, merged(**inputs).logits
    rows = [merged.config.disorders.index(name) for name in site.cases.vocabulary.names]
    torch.testing.assert_close(actual[:, rows], expected, rtol=1e-3, atol=1e-4)


def _sample(case: int):
    from radfm.data_prep.batches.sampling import Sample

    return Sample(case)


def test_fedprox_stays_closer_to_the_weights_of_the_server_than_fedavg(data, config, start):
    longer = changed(config, steps=8)
    norms = []
    for method in ("fedavg", "fedprox"):
        site = sites(data, changed(longer, method=method, mu=100.0), start, "chest")["chest"]
        norms.append(site.train(Order(1, 1e-2, first_weights(site))).norm)
    assert norms[1] < 0.9 * norms[0]


def test_a_private_site_states_the_epsilon_of_all_its_steps_also_after_a_restart(data, config, start, tmp_path):
    privacy = replace(config.federation.privacy, noise_multiplier=1.0, patients_per_step=4, delta=1e-3)
    private = changed(config, privacy=privacy)
    cases = SiteCases(data, "train", BY, ["chest"])
    first = Site(cases, private, start, tmp_path)
    once = first.train(Order(1, 1e-3, first_weights(first)))
    second = Site(cases, private, start, tmp_path)  # as after a restart
    twice = second.train(Order(2, 1e-3, first_weights(second)))
    patients = len({row["patient_id"] for row in cases.rows})
    for update, steps in ((once, 2), (twice, 4)):
        accountant = RDPAccountant()
        accountant.history = [(1.0, 4 / patients, steps)]
        assert update.facts == {"epsilon": round(accountant.get_epsilon(1e-3), 3), "delta": 1e-3}
        assert update.norm > 0


def test_a_site_with_one_class_is_refused_and_in_a_simulation_left_out_by_name(data, config, start):
    cases = SiteCases(data, "train", BY, ["chest"])
    cases.rows = [row | {"labels": [0]} for row in cases.rows]
    with pytest.raises(ValueError, match=r"all .* training cases of .* have the same labels: there is one class"):
        Site(cases, config, start)
    names, left_out = sites_of(data, BY, 25)
    assert "chest" in names
    assert left_out
    assert all("training cases are fewer than 25" in reason for reason in left_out.values())
    with pytest.raises(ValueError, match="at least two sites by body part"):
        sites_of(data, BY, 10_000)


def test_weights_of_another_model_are_refused(data, config, start):
    site = sites(data, config, start, "chest")["chest"]
    with pytest.raises(ValueError, match="both need the same version"):
        site.train(Order(1, 1e-3, {"other": np.zeros(2, np.float32)}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("model.head=mlp", "set model.head=text"),
        ("model.frozen=[]", "batch normalisation"),
        ("training.max_steps=5", "federation.steps"),
        ("federation.rouds=3", "no such key"),
    ],
)
def test_a_configuration_that_no_federation_can_have_is_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        read_federated_config("federated.yaml", [change])


def test_a_start_may_continue_a_checkpoint_and_keeps_its_names(config, start, tmp_path):
    model, _, _ = model_of_site(config, start, load_vocabulary())
    model.save_pretrained(tmp_path / "before")
    RadFMProcessor.from_pretrained(start).save_pretrained(tmp_path / "before")
    continued = replace(config, model=replace(config.model, checkpoint=str(tmp_path / "before")))
    write_start(continued, tmp_path / "start")
    weights = to_arrays(trained_weights(model))
    after, _ = result(continued, tmp_path / "start", weights, {"pneumothorax": [], "Rib fracture": ["S22.39XA"]})
    assert after.config.disorders == ["Pneumothorax", "Rib fracture"]


def load_vocabulary():
    from radfm.knowledge.disorders import Vocabulary

    return Vocabulary.from_names(["Pneumothorax"])


@pytest.fixture(scope="module")
def study(tmp_path_factory, data, config) -> Path:
    out = tmp_path_factory.mktemp("study") / "federation"
    simulate(data, BY, out, config, ("FedAvg",), least_cases=25, bootstraps=20)
    return out


def test_a_simulation_measures_each_site_alone_all_together_and_pooled_on_the_cases_of_all_sites(study):
    found = json.loads((study / "federation.json").read_text())
    assert found["synthetic"]
    assert set(found["arms"]) == {"FedAvg", "pooled", *(f"alone: {site}" for site in found["sites"])}
    assert set(found["arms"]["FedAvg"]) == {"all", *found["sites"]}
    assert all(0 <= arm["all"]["value"] <= 1 for arm in found["arms"].values())
    for site, one in found["others"].items():
        gain = one["FedAvg"]["auc"]["value"] - one["alone"]["value"]
        assert one["FedAvg"]["gain"]["value"] == pytest.approx(gain), site
    page = (study / "federation.html").read_text()
    assert "SYNTHETIC" in page
    assert "Research use only, not a medical device" in page
    assert "S0P0" not in page + json.dumps(found)  # no patient


def test_a_finished_simulation_is_not_trained_again_and_another_one_is_refused(study, data, config):
    before = {file: file.stat().st_mtime_ns for file in study.glob("scores/*.parquet")}
    simulate(data, BY, study, config, ("FedAvg",), least_cases=25, bootstraps=20)
    assert {file: file.stat().st_mtime_ns for file in study.glob("scores/*.parquet")} == before
    with pytest.raises(ValueError, match="a study with other settings"):
        simulate(data, BY, study, changed(config, rounds=3), ("FedAvg",), least_cases=25, bootstraps=20)
