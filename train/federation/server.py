"""The server of a federation with sites on other machines: `radfm federate server KIT`.

Decisions:
- A site is sent the configuration and the start, so that it needs its kit and its cases only.
- A site joins whenever it connects, also in the middle of a training, and again after it or the server was killed.
- A site with another version of radfm, or with other weights, is refused by name.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from radfm.data_prep.tables import write_text
from radfm.knowledge.disorders import Vocabulary
from radfm.progress import Progress, no_progress
from radfm.train.config import without_folders
from radfm.train.federation.certificates import SERVER, Kit
from radfm.train.federation.config import FederatedTraining
from radfm.train.federation.messages import (
    ERROR,
    FINISH,
    JOIN,
    TRAIN,
    ask,
    cell_of,
    facts_of,
    packed,
    weights_of,
)
from radfm.train.federation.models import (
    model_of_site,
    recipe_of,
    result,
    save_result,
    to_arrays,
    trained_weights,
    write_start,
)
from radfm.train.federation.rounds import Order, federate
from radfm.train.federation.updates import Update

SITES, SETTINGS = "sites.json", "federation.json"
_FILES = (".json", ".safetensors", ".txt", ".model")  # of the start
_JOIN_S, _COME_BACK_S, _WAIT_S = 600.0, 120.0, 0.5


def serve(kit: Kit, config: FederatedTraining, progress: Progress = no_progress) -> Path:
    """Trains with the sites that connect, from the last finished round; returns the folder of the result.

    Raises:
        ValueError: the kit is that of a site, the folder holds another training, too few sites come, or too few send a
            valid update.
    """
    if kit.name != SERVER:
        raise ValueError(f"{kit.folder} is the kit of {kit.name}: the server has one of its own")
    out = Path(config.output)
    start = out / "start"
    checksum = write_start(config, start)
    _begin(out, config, checksum)
    model, *_ = model_of_site(config, start, Vocabulary([]))
    sites = RemoteSites(kit, config, start)
    try:
        state = federate(to_arrays(trained_weights(model)), sites, config, out, progress)
        names = {name: codes for facts in sites.known.values() for name, codes in facts["disorders"].items()}
        trained, processor = result(config, start, state.weights, names)
        took_part = {name for one in state.rounds for name in one["sites"]}
        known = {name: facts for name, facts in sites.known.items() if name in took_part}
        save_result(trained, processor, out, recipe_of(config, known, state.rounds))
        sites.finish(Order(len(state.rounds), 0.0, state.weights))
    finally:
        sites.stop()
    return out


class RemoteSites:
    """Sites on other machines, see `radfm.train.federation.rounds.Sites`.

    Attributes:
        known: name -> facts of every site that has ever joined.
    """

    def __init__(self, kit: Kit, config: FederatedTraining, start: Path):
        self._config, self._file = config, Path(config.output) / SITES
        self.known: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        facts = {"version": version("radfm"), "config": without_folders(asdict(config))}
        files = {file.name: file.read_bytes() for file in sorted(start.iterdir()) if file.suffix in _FILES}
        self._welcome = packed(facts, files=files)
        self._connected: set[str] = set()
        self._new: set[str] = set()
        self._cell = cell_of(kit)
        self._cell.core_cell.set_cell_connected_cb(self._on_connected)
        self._cell.core_cell.set_cell_disconnected_cb(self._on_disconnected)
        self._cell.start()

    def wait(self, least: int, timeout_s: float | None = None) -> None:
        timeout_s = timeout_s or self._config.federation.timeout_s
        end, told = time.monotonic() + timeout_s, -1
        while True:
            self._let_join()
            here = len(self._connected)
            if here >= least:
                return
            if here != told:
                print(f"Waiting for sites: {here} of {least} are here", file=sys.stderr)
                told = here
            if time.monotonic() > end:
                raise ValueError(
                    f"{here} of {least} sites came within {timeout_s:,.0f} s: start radfm "
                    "federate site at the others, and this command again"
                )
            time.sleep(_WAIT_S)

    def train(self, order: Order) -> Mapping[str, Update | str]:
        message = packed({"round": order.round, "learning_rate": order.learning_rate}, order.weights)
        replies = ask(self._cell, TRAIN, sorted(self._connected), message, self._config.federation.timeout_s)
        return {name: _update(reply, self.known[name]["data"]["cases"]) for name, reply in replies.items()}

    def finish(self, order: Order) -> None:
        """Sends the result to all sites that are there; those of a server that was killed come back first."""
        try:
            self.wait(self._config.federation.least_sites, min(_COME_BACK_S, self._config.federation.timeout_s))
        except ValueError as error:
            print(f"The result is saved, and not all sites have it: {error}", file=sys.stderr)
        if self._connected:
            message = packed({"round": order.round}, order.weights)
            for name, reply in ask(self._cell, FINISH, sorted(self._connected), message, _JOIN_S).items():
                reason = reply if isinstance(reply, str) else facts_of(reply).get(ERROR)
                if reason:
                    print(f"{name} did not get the result: {reason}", file=sys.stderr)

    def stop(self) -> None:
        self._cell.stop()

    def _let_join(self) -> None:
        new = sorted(self._new)
        self._new -= set(new)
        replies = ask(self._cell, JOIN, new, self._welcome, _JOIN_S) if new else {}
        for name, reply in replies.items():
            facts = _joined(reply)
            if ERROR in facts:
                print(f"{name} is refused: {facts[ERROR]}", file=sys.stderr)
                continue
            print(f"{name} has joined with {facts['data']['cases']:,} cases", file=sys.stderr)
            self.known[name] = facts
            self._connected.add(name)
            write_text(self._file, json.dumps(self.known, indent=1) + "\n")

    def _on_connected(self, agent) -> None:
        self._new.add(agent.get_fqcn())

    def _on_disconnected(self, agent) -> None:
        self._new.discard(agent.get_fqcn())
        self._connected.discard(agent.get_fqcn())


def _joined(reply: dict[str, Any] | str) -> dict[str, Any]:
    """The facts of a site, with a key `ERROR` where it cannot take part."""
    if isinstance(reply, str):
        return {ERROR: reply}
    try:
        facts = facts_of(reply)
        if ERROR in facts:
            return {ERROR: str(facts[ERROR])}
        if facts["version"] != version("radfm"):
            return {ERROR: f"it has radfm {facts['version']}, and the server {version('radfm')}"}
        return facts | {
            "disorders": dict(facts["disorders"]),
            "data": facts["data"] | {"cases": int(facts["data"]["cases"])},
        }
    except Exception as error:  # whatever a site may send
        return {ERROR: f"its answer cannot be read ({type(error).__name__})"}


def _update(reply: dict[str, Any] | str, most_cases: int) -> Update | str:
    """The update of a site that has stated its number of cases, or why there is none."""
    if isinstance(reply, str):
        return reply
    try:
        facts = facts_of(reply)
        if ERROR in facts:
            return str(facts[ERROR])
        cases = int(facts.pop("cases"))
        if cases > most_cases:
            return f"it states {cases:,} cases, and had {most_cases:,} when it joined"
        return Update(weights_of(reply), cases, facts)
    except Exception as error:  # whatever a site may send
        return f"its answer cannot be read ({type(error).__name__})"


def _begin(out: Path, config: FederatedTraining, checksum: str) -> None:
    settings = without_folders(asdict(config))
    del settings["output"]
    record = json.loads(json.dumps({"config": settings, "start": checksum, "radfm": version("radfm")}))
    file = out / SETTINGS
    if not file.exists():
        write_text(file, json.dumps(record, indent=1) + "\n")
    elif json.loads(file.read_text(encoding="utf-8")) != record:
        raise ValueError(f"{out} holds another training: choose another output=, or delete it")
