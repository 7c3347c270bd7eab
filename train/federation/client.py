"""A site on its own machine: `radfm federate site KIT DATA`.

Decisions:
- The thread of the connection puts requests into a queue, and the main thread trains. Of requests that wait, the newest
  counts: a server that has gone on needs no late update.
- A server that is not there is waited for, and so is one that was killed.
- At the end the site has the result with its own disorders, in its own folder.
"""

import queue
import sys
import time
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from radfm.data_prep.stored_cases import StoredCases
from radfm.train.federation.certificates import SERVER, Kit
from radfm.train.federation.config import FederatedTraining, federated_config
from radfm.train.federation.messages import (
    CHANNEL,
    ERROR,
    FINISH,
    JOIN,
    TRAIN,
    cell_of,
    facts_of,
    packed,
    reply_of,
    weights_of,
)
from radfm.train.federation.models import recipe_of, result, save_result
from radfm.train.federation.rounds import Order
from radfm.train.federation.site import Site, refuse_one_class

_REPLY_S = 5.0  # until the last answer has left


class _Sent(ValueError):
    """An error whose text the server may learn. Others may name cases or folders."""


def _sent_reason(error: Exception) -> str:
    return str(error) if isinstance(error, _Sent) else f"it failed ({type(error).__name__}): its own output says why"


class RemoteSite:
    """
    Args:
        kit: of this site.
        cases: labelled training cases.
        out: folder of the result.
        patience_s: seconds without a request after which the site gives up.
    Raises:
        ValueError: the kit is that of the server, or all cases have the same labels.
    """

    def __init__(self, kit: Kit, cases: StoredCases, out: Path, patience_s: float):
        if kit.name == SERVER:
            raise ValueError(f"{kit.folder} is the kit of the server: a site has one of its own")
        refuse_one_class(cases)
        self._kit, self._cases, self._out, self._patience_s = kit, cases, out, patience_s
        self._requests: queue.Queue[tuple[str, dict[str, Any], Future]] = queue.Queue()
        self._config: FederatedTraining | None = None
        self._site: Site | None = None

    def run(self) -> Path:
        """Takes part until the server has finished; returns the folder of the result.

        Raises:
            ValueError: the server refuses the site or has another version, or it does not come.
        """
        cell = cell_of(self._kit)
        for topic in (JOIN, TRAIN, FINISH):
            cell.register_request_cb(channel=CHANNEL, topic=topic, cb=self._queued(topic))
        cell.start()
        try:
            while True:
                topic, message, answer = self._next()
                try:
                    with redirect_stdout(sys.stderr):
                        answer.set_result(self._answer(topic, message))
                except Exception as error:
                    answer.set_result(packed({ERROR: _sent_reason(error)}))
                    if topic != TRAIN or not isinstance(error, ValueError):
                        raise
                    print(f"{topic}: {error}", file=sys.stderr)
                if topic == FINISH:
                    return self._out
        finally:
            time.sleep(_REPLY_S)
            cell.stop()

    def _queued(self, topic: str):
        def callback(request):
            answer: Future = Future()
            self._requests.put((topic, request.payload, answer))
            return reply_of(answer.result())

        return callback

    def _next(self) -> tuple[str, dict[str, Any], Future]:
        try:
            newest = self._requests.get(timeout=self._patience_s)
            while not self._requests.empty():
                newest[2].set_result(packed({ERROR: "it was still busy with a request before this one"}))
                newest = self._requests.get()
        except queue.Empty:
            raise ValueError(
                f"the server {self._kit.address} asked nothing for {self._patience_s:,.0f} s: check that it runs, the "
                "address, and that both kits were made together"
            ) from None
        return newest

    def _answer(self, topic: str, message: dict[str, Any]) -> dict[str, Any]:
        facts = facts_of(message)
        if topic == JOIN:
            return self._join(facts, message["files"])
        if self._site is None or self._config is None:
            raise _Sent("it has not joined")
        if topic == FINISH:
            self._save(message, facts)
            return packed({})
        print(f"Round {facts['round']}", file=sys.stderr)
        update = self._site.train(Order(facts["round"], facts["learning_rate"], weights_of(message)))
        return packed({"cases": update.cases} | update.facts, update.change)

    def _join(self, facts: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        if facts["version"] != version("radfm"):
            raise _Sent(
                f"the server has radfm {facts['version']}, and {self._kit.name} has {version('radfm')}: install the "
                "same version"
            )
        config = federated_config(facts["config"])
        start = self._out / "start"
        start.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (start / Path(name).name).write_bytes(content)
        if config != self._config:
            self._config = config
            self._site = Site(self._cases, config, start, self._out)
        assert self._site is not None
        return packed(self._site.facts)

    def _save(self, message: dict[str, Any], facts: dict[str, Any]) -> None:
        assert self._site is not None
        assert self._config is not None
        own = self._site.facts
        model, processor = result(self._config, self._out / "start", weights_of(message), own["disorders"])
        recipe = recipe_of(replace(self._config, output=str(self._out)), {self._kit.name: own}, [])
        save_result(model, processor, self._out, recipe | {"rounds": facts["round"]})
