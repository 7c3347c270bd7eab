"""A federation on one machine: sites are parts of a data set, and are compared with each alone and with all together.

    radfm federate simulate datasets/mine --by collection --out study

| arm | trained on |
|---|---|
| alone: SITE | the cases of one site |
| FedAvg, FedProx | the cases of all sites, which stay where they are |
| pooled | the cases of all sites in one place |

Decisions:
- All arms take the way of the server, with its rounds, its learning rate and its start. An arm alone has as many steps
  as a site has in the federation; pooled has as many as all sites together.
- Cases are compared with cases of the same site only, since an AUC over several sites can be reached by telling the
  sites apart.
- A finished arm has a table of scores and is not trained again, and a killed one continues with its next round.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from radfm.data_prep.batches.case_dataset import CaseDataset
from radfm.data_prep.batches.slice_features import SliceFeatures, slice_features
from radfm.data_prep.stored_cases import is_synthetic, load
from radfm.data_prep.tables import write_text
from radfm.eval.paired_macros import PairedMacros
from radfm.eval.predict import Evaluation, score_with
from radfm.eval.scores import Scores
from radfm.progress import Progress, no_progress
from radfm.train.config import without_folders
from radfm.train.federation.config import FederatedTraining, Method
from radfm.train.federation.models import recipe_of, result, save_result, to_arrays, trained_weights, write_start
from radfm.train.federation.page import ALONE, POOLED, write_page
from radfm.train.federation.rounds import Order, State, federate
from radfm.train.federation.site import Site
from radfm.train.federation.site_cases import SiteCases, sites_of
from radfm.train.federation.updates import Update

FEDAVG, FEDPROX = "FedAvg", "FedProx"
METHODS: dict[str, Method] = {FEDAVG: "fedavg", FEDPROX: "fedprox"}
RESULTS, SETTINGS = "federation.json", "study.json"


class LocalSites:
    """Sites in this process, see `radfm.train.federation.rounds.Sites`."""

    def __init__(self, sites: Mapping[str, Site]):
        self._sites = sites

    def wait(self, least: int) -> None:
        if len(self._sites) < least:
            raise ValueError(f"there are {len(self._sites)} sites, and federation.least_sites={least}")

    def train(self, order: Order) -> dict[str, Update | str]:
        replies: dict[str, Update | str] = {}
        for name, site in self._sites.items():
            try:
                replies[name] = site.train(order)
            except ValueError as error:
                replies[name] = str(error)
        return replies


def simulate(
    data: Path,
    by: str,
    out: Path,
    config: FederatedTraining,
    methods: Sequence[str] = (FEDAVG,),
    split: str = "test",
    least_cases: int = 50,
    bootstraps: int = 1000,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Trains and measures all arms, or continues a study that was killed; writes federation.html and .json.

    Args:
        data: folder that `radfm prepare` made.
        by: the property that makes the sites, see `radfm.train.federation.site_cases`.
        out: folder of the study.
        config: of all arms.
        methods: keys of `METHODS`.
        split: of the cases that all arms are measured on.
        least_cases: training cases that a site has to have.
        bootstraps: number of resamples of the patients.
        progress: called with the number of finished arms, and of all.
    Returns:
        JSON-able, see `_measured`.
    Raises:
        ValueError: fewer than two sites can take part, or the folder holds another study.
    """
    sites, left_out = sites_of(data, by, least_cases, config.data.publishable)
    record = load(data).record
    _begin(out, config, data=record["fingerprint"], by=by, split=split, sites=sites)
    arms = dict.fromkeys(methods, sites) | {POOLED: sites} | {ALONE + site: [site] for site in sites}
    study = _Study(data, by, out, config, split)
    for number, (arm, of_arm) in enumerate(arms.items()):
        progress(number, len(arms))
        study.finish(arm, of_arm)
    progress(len(arms), len(arms))
    tables = {arm: Scores.load(study.table(arm)) for arm in arms}
    measured = _measured(tables, sites, by, methods, bootstraps)
    facts = {"dataset": Path(data).name, "data": record["fingerprint"], "synthetic": is_synthetic(record)}
    privacy = {arm: study.epsilons(arm) for arm in methods} if config.federation.privacy.noise_multiplier else None
    found = {
        **facts,
        "by": by,
        "split": split,
        "left_out": left_out,
        "bootstraps": bootstraps,
        "start": config.model.checkpoint or "new",
        "rounds": config.federation.rounds,
        "steps": config.federation.steps,
        "sites": {site: study.facts(site) for site in sites},
        "privacy": privacy,
        **measured,
    }
    write_text(out / RESULTS, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_page(out, found)
    return found


class _Study:
    """The arms of a study, and what they share: the start and the features of all slices."""

    def __init__(self, data: Path, by: str, out: Path, config: FederatedTraining, split: str):
        self.data, self.by, self.out, self.config, self.split = data, by, out, config, split
        self.start = out / "start"
        write_start(config, self.start)
        self._features: SliceFeatures | None = None

    def table(self, arm: str) -> Path:
        return self.out / "scores" / f"{_slug(arm)}.parquet"

    def finish(self, arm: str, names: Sequence[str]) -> None:
        if self.table(arm).exists():
            return
        folder, config = self.out / "runs" / _slug(arm), self._config(arm, len(names))
        sites = {name: self._site(name) for name in names} if arm in METHODS else {arm: self._site(*names)}
        for site in sites.values():
            site.config = config
        first = next(iter(sites.values()))
        with redirect_stdout(sys.stderr):
            state = federate(to_arrays(trained_weights(first.model)), LocalSites(sites), config, folder)
        facts = {name: site.facts for name, site in sites.items()}
        names_of_sites = {name: codes for one in facts.values() for name, codes in one["disorders"].items()}
        model, processor = result(config, self.start, state.weights, names_of_sites)
        recipe = recipe_of(config, facts, state.rounds)
        save_result(model, processor, folder, recipe)
        about = {"model": arm, "frozen_tower": self.config.model.frozen_tower, "publishable": config.data.publishable}
        score_with(model, processor, Evaluation(self.data, self.split), about=about).save(self.table(arm))

    def _config(self, arm: str, sites: int) -> FederatedTraining:
        """The configuration of an arm, of so many sites."""
        given = self.config.federation
        if arm in METHODS:
            return replace(self.config, federation=replace(given, method=METHODS[arm]))
        not_private = replace(given.privacy, noise_multiplier=0.0)
        alone = replace(given, steps=given.steps * sites, least_sites=1, method="fedavg", privacy=not_private)
        return replace(self.config, federation=alone)

    def facts(self, site: str) -> dict[str, int]:
        cases = self._cases([site])
        return {"cases": len(cases), "disorders": len(cases.vocabulary)}

    def epsilons(self, arm: str) -> dict[str, float]:
        state = State.load(self.out / "runs" / _slug(arm))
        assert state is not None
        return {name: facts["epsilon"] for name, facts in state.rounds[-1]["sites"].items()}

    def _cases(self, names: Sequence[str]) -> SiteCases:
        return SiteCases(self.data, "train", self.by, names, self.config.data.publishable)

    @cache  # noqa: B019  a study lives as long as the process
    def _site(self, *names: str) -> Site:
        """The site with the cases of these; several arms train it."""
        site = Site(self._cases(names), self.config, self.start)
        if self.config.model.frozen_tower:
            if self._features is None:
                everything = load(self.data, "train", labelled=True, publishable=self.config.data.publishable)
                rows = CaseDataset(everything, site.processor).rows
                self._features = slice_features(everything, rows, site.model, site.processor)
            site.data.features = self._features
        return site


def _measured(
    tables: Mapping[str, Scores], sites: Sequence[str], by: str, methods: Sequence[str], bootstraps: int
) -> dict[str, Any]:
    """Macro AUCs within sites, JSON-able.

    Returns:
        `arms`: arm -> "all" or site -> figure of the test cases; `less_pooled`: method -> figure over all sites;
        `others`: site -> figures on the cases of all other sites: `alone`, and for each method its `AUC` and by how
        much it is higher, `gain`; `cases`: "all" or site -> test cases.
    """
    conditions = {"all": []} | {site: [f"{by}={site}"] for site in sites}
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in tables}
    cases, less_pooled = {}, dict.fromkeys(methods)
    for group, where in conditions.items():
        macros = _macros(tables, where, by, bootstraps)
        cases[group] = 0 if macros is None else macros.cases
        for arm in tables:
            arms[arm][group] = None if macros is None else macros.auc(arm)["all"]
        if group == "all" and macros is not None:
            less_pooled = {method: macros.difference(method, POOLED)["all"] for method in methods}
    others = {}
    for site in sites:
        arm = ALONE + site
        macros = _macros({name: tables[name] for name in (*methods, arm)}, [f"{by}!={site}"], by, bootstraps)
        if macros is not None:
            gains = {m: {"auc": macros.auc(m)["all"], "gain": macros.difference(m, arm)["all"]} for m in methods}
            others[site] = {"alone": macros.auc(arm)["all"], **gains}
    return {"arms": arms, "less_pooled": less_pooled, "others": others, "cases": cases}


def _macros(tables: Mapping[str, Scores], where: list[str], by: str, bootstraps: int) -> PairedMacros | None:
    """None where no case or no disorder can be measured."""
    try:
        return PairedMacros({arm: [table.where(where)] for arm, table in tables.items()}, bootstraps, within=by)
    except ValueError:
        return None


def _begin(out: Path, config: FederatedTraining, **facts: Any) -> None:
    """Writes what determines the results, or compares it with a study that is continued."""
    settings = without_folders(asdict(config))
    del settings["output"], settings["data"]["path"]
    record = json.loads(json.dumps({"config": settings, "radfm": version("radfm")} | facts))
    file = out / SETTINGS
    if not file.exists():
        write_text(file, json.dumps(record, indent=1) + "\n")
    elif json.loads(file.read_text(encoding="utf-8")) != record:
        raise ValueError(f"{out} holds a study with other settings: choose another --out, or delete it")


def _slug(arm: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in arm)
