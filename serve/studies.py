"""Studies from their arrival until they are deleted: the queue of those that wait, and the answers that are kept.

Decisions:
- Access to a study needs its token: 256 random bits, sent in a header and never in an address.
- The queue has one slot: one thread answers one study at a time, in the order in which their visitors began to listen.
  Names that are typed for an answered study have a lock of their own, and are scored meanwhile.
- A study keeps its position while its visitor listens to its progress. Studies without a listener are not answered and
  are deleted after a minute, so that abandoned studies do not keep other visitors out.
- Files are on disk until the study is answered or refused; then nothing of it is.
"""

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from radfm import examples
from radfm.cases import Case
from radfm.cli.console import one_line
from radfm.eval import case_report
from radfm.eval.saliency import explain
from radfm.presentation import shown
from radfm.serve.answers import Answer, content_of_page, maps_as_bytes
from radfm.serve.limits import TOO_MANY_STUDIES, Limits, Refused
from radfm.serve.reading import read_study
from radfm.serve.sheets import render

_LONGEST_NAME = 300  # characters
_TIDY_SECONDS = 30
ANSWERED, REFUSED = "answered", "refused"  # the last stage of a study


@dataclass
class Waiting:
    """A study whose files have arrived.

    Attributes:
        position: Its number in the queue, from the moment that its visitor listened first; None before.
        listeners: How many connections listen to its progress.
        left: When the last listener left, or the files arrived.
        stage: Its progress, {"stage", "done", "total", "reason"}; None until its turn has come.
        deleted: Whether its visitor deleted it while it was being answered.
    """

    folder: Path
    header: dict
    position: int | None = None
    listeners: int = 0
    left: float = field(default_factory=time.monotonic)
    stage: dict | None = None
    deleted: bool = False

    @property
    def ended(self) -> bool:
        return self.stage is not None and self.stage["stage"] in (ANSWERED, REFUSED)

    @property
    def turn(self) -> int:
        """The position of a study that may begin."""
        assert self.position is not None
        return self.position

    @property
    def may_begin(self) -> bool:
        return self.stage is None and self.listeners > 0

    def abandoned(self, seconds: float) -> bool:
        running = self.stage is not None and not self.ended
        return not running and not self.listeners and time.monotonic() - self.left > seconds


class Studies:
    def __init__(self, pipe, model: str, limits: Limits):
        """`pipe` is the zero-shot-diagnosis pipeline, `model` the folder or name from which it was loaded."""
        self.pipe, self.model, self.limits = pipe, model, limits
        self.root = Path(tempfile.mkdtemp(prefix="radfm-serve-"))
        self._waiting: dict[str, Waiting] = {}
        self._arriving = 0
        self._positions = count()
        self._answers: dict[str, Answer] = {}
        self._changed = threading.Condition()  # guards the four above
        self._text = threading.Lock()  # the pipeline caches the texts that it embedded last
        self._closed = threading.Event()
        for loop in (self._answer_in_turn, self._tidy_regularly):
            threading.Thread(target=loop, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        shutil.rmtree(self.root, ignore_errors=True)

    @contextmanager
    def arriving(self) -> Iterator[Path]:
        """A new folder for the files of a study, deleted at the end unless `enqueue` took it over.

        Raises:
            Refused: Too many studies are waiting.
        """
        self.tidy()
        with self._changed:
            waiting = sum(not study.ended for study in self._waiting.values())
            if self._arriving + waiting >= self.limits.waiting:
                raise Refused("too many studies are waiting: try again in a minute", TOO_MANY_STUDIES)
            self._arriving += 1
        folder = Path(tempfile.mkdtemp(dir=self.root))
        try:
            (folder / "in").mkdir()
            yield folder
        finally:
            with self._changed:
                self._arriving -= 1
                kept = any(folder == study.folder for study in self._waiting.values())
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)

    def enqueue(self, folder: Path, header: dict) -> str:
        """The token of a study whose files have arrived in a folder of `arriving`."""
        token = secrets.token_urlsafe(32)
        with self._changed:
            self._waiting[token] = Waiting(folder, header)
        return token

    @contextmanager
    def listening(self, token: str) -> Iterator[None]:
        """While a visitor listens to the progress of a study. Raises: KeyError: there is no such study."""
        with self._changed:
            study = self._waiting[token]
            study.listeners += 1
            if study.position is None:
                study.position = next(self._positions)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                study.listeners -= 1
                study.left = time.monotonic()

    def progress(self, token: str) -> dict:
        """{"stage", "done", "total", "reason"}; while it waits, `total` is the number of studies before it.

        Raises:
            KeyError: There is no such study.
        """
        with self._changed:
            study = self._waiting[token]
            if study.stage is not None:
                return study.stage
            position = next(self._positions) if study.position is None else study.position
            before = sum(
                (other.may_begin and other.turn < position) or (other.stage is not None and not other.ended)
                for other in self._waiting.values()
            )
            return _stage("waiting", 0, before)

    def get(self, token: str) -> Answer:
        """Raises: KeyError: there is no such answer, or it was deleted."""
        with self._changed:
            answer = self._answers[token]
            answer.used = time.monotonic()
            return answer

    def score(self, token: str, names: list[str]) -> list[dict]:
        """Scores names that the visitor typed; returns all names typed for this study, best first.

        Raises:
            KeyError: There is no such study.
            Refused: There are too many names, or one is too long or empty.
            ValueError: The model has a fixed list of disorders, and a name is not on it.
        """
        answer = self.get(token)
        names = [" ".join(shown(name).split()) for name in names]
        if not all(0 < len(name) <= _LONGEST_NAME for name in names):
            raise Refused(f"a name has 1 to {_LONGEST_NAME} characters")
        if len({*answer.typed, *names}) > self.limits.names:
            raise Refused(f"this page scores up to {self.limits.names} names: remove some")
        if names:
            with self._text:
                diagnoses = self.pipe.score(answer.token_embeds, names)
            for diagnosis in diagnoses:
                described = case_report.diagnosis_details(diagnosis, self.pipe.model.config, answer.is_ood)
                answer.typed[diagnosis["label"]] = described
        return answer.diagnoses_of_typed()

    def remove(self, token: str, name: str) -> None:
        """Removes a name that was typed for a study. Raises: KeyError: there is no such study."""
        self.get(token).typed.pop(name, None)

    def delete(self, token: str) -> None:
        """Deletes an answer or a waiting study. A study that is being answered is deleted at its next stage."""
        with self._changed:
            self._answers.pop(token, None)
            study = self._waiting.get(token)
            if study is None:
                return
            if study.stage is None or study.ended:
                self._discard(token)
            else:
                study.deleted = True

    def tidy(self) -> None:
        """Deletes answers that are idle or exceed the limit, and studies that were abandoned."""
        now, limits = time.monotonic(), self.limits
        with self._changed:
            idle = [token for token, answer in self._answers.items() if now - answer.used > limits.idle_seconds]
            for token in idle:
                del self._answers[token]
            oldest = sorted(self._answers, key=lambda token: self._answers[token].used)
            total = sum(answer.bytes for answer in self._answers.values())
            while total > limits.kept_megabytes * 10**6 and len(oldest) > 1:
                total -= self._answers.pop(oldest.pop(0)).bytes
            for token, study in list(self._waiting.items()):
                if study.abandoned(limits.unattended_seconds):
                    self._discard(token)

    def _discard(self, token: str) -> None:
        shutil.rmtree(self._waiting.pop(token).folder, ignore_errors=True)

    def _tidy_regularly(self) -> None:
        while not self._closed.wait(_TIDY_SECONDS):
            self.tidy()

    def _answer_in_turn(self) -> None:
        while (token := self._next()) is not None:
            study = self._waiting[token]
            try:
                for stage in self._stages(token, study):
                    study.stage = stage
                    if study.deleted:
                        raise Refused("the study was deleted")
                last = _stage(ANSWERED)
            except (ValueError, OSError) as error:
                last = _stage(REFUSED, reason=one_line(error))
            except torch.OutOfMemoryError:
                last = _stage(REFUSED, reason="the study is too large for this machine's memory: drop fewer series")
            except Exception as error:  # one study must not end the thread; only the kind of error is logged
                logging.getLogger("radfm").error("a study ended in %s", type(error).__name__)
                last = _stage(REFUSED, reason="an internal error ended this study, and its files were deleted")
            shutil.rmtree(study.folder, ignore_errors=True)
            study.stage = last
            if study.deleted:
                self.delete(token)

    def _next(self) -> str | None:
        """The token of the study whose turn it is, once there is one; None when the server closes."""
        with self._changed:
            while not self._closed.is_set():
                ready = {token: study for token, study in self._waiting.items() if study.may_begin}
                if ready:
                    token = min(ready, key=lambda token: ready[token].turn)
                    ready[token].stage = _stage("opening")
                    return token
                self._changed.wait()
        return None

    def _stages(self, token: str, study: Waiting) -> Iterator[dict]:
        """Answers a study: yields its progress, and keeps the answer at the end."""
        started = time.monotonic()
        deadline = started + self.limits.seconds
        case: Case | None = None
        for item in read_study(study.folder, study.header, self.limits, deadline):
            if isinstance(item, Case):
                case = item
            else:
                yield _stage("reading", *item)
        read = time.monotonic()
        assert case is not None  # `read_study` yields the case, or refuses the study
        slices = sum(len(scan.pixels) for scan in case.scans)
        yield _stage("diagnosing", 0, slices)
        with _stop_at(deadline, self.pipe.model, self.limits):
            diagnosed = self.pipe(case, return_attentions=True)
            yield _stage("mapping", 0, slices)
            explanations = explain(self.pipe.model, self.pipe.processor, case, case_report.explained(diagnosed))
        seconds = {"reading": read - started, "model": time.monotonic() - read}
        sheets, rendered = [], 0
        for scan in case.scans:
            yield _stage("rendering", rendered, slices)
            if time.monotonic() > deadline:
                raise _too_long(self.limits)
            sheets.append(render(scan))
            rendered += len(scan.pixels)
        example = study.header.get("example")
        credit = example and examples.about(example).credit
        report = case_report.content(self.pipe.model.config, case, diagnosed, explanations, self.model, credit)
        shown = content_of_page(report, case, explanations, sheets, seconds)
        maps = [maps_as_bytes(explanation) for explanation in explanations]
        with self._changed:
            self._answers[token] = Answer(shown, sheets, maps, report, diagnosed["token_embeds"])
        self.tidy()


def _stage(stage: str, done: int = 0, total: int = 0, reason: str = "") -> dict:
    return {"stage": stage, "done": done, "total": total, "reason": reason}


def _too_long(limits: Limits) -> Refused:
    return Refused(f"the study took longer than {limits.seconds} s: drop one series, or fewer")


@contextmanager
def _stop_at(deadline: float, model, limits: Limits) -> Iterator[None]:
    """Raises Refused from within, at the first batch of slices that a tower receives after the deadline."""

    def check(*_) -> None:
        if time.monotonic() > deadline:
            raise _too_long(limits)

    handles = [tower.register_forward_pre_hook(check) for tower in model.radfm.towers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
