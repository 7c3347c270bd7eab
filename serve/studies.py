"""Studies from the moment they arrive until they are let go: what is on disk, what is kept, and the model's answers.

Decisions:
- Who holds a study's token may see it. Tokens are 256 random bits, travel in a header and are in no address.
- The model reads one study at a time, and the lock on it is its own: names typed for a study that was answered are
  scored while another one is read.
- A study keeps its place as long as its visitor listens to how it goes. One that nobody waits for goes in a minute, or
  a few dozen that were sent and left would keep everybody else out.
"""

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from radfm.cases import Case
from radfm.cli.console import one_line
from radfm.eval import case_report
from radfm.eval.saliency import Explanation, explain
from radfm.serve.limits import Limits, Refused
from radfm.serve.reading import read_study
from radfm.serve.sheets import PER_SHEET, Sheets, draw

_LONGEST_NAME = 300  # characters
_TIDY_SECONDS = 30


@dataclass
class Waiting:
    """A study whose files have come.

    Attributes:
        session: by which its visitor joined the queue; None: nobody has.
        since: when it was last left alone; infinite while its visitor listens.
        begun: whether its turn has come; from then on its time is limited by the deadline.
    """

    folder: Path
    header: dict
    session: str | None = None
    since: float = field(default_factory=time.monotonic)
    begun: bool = False


@dataclass
class Answer:
    """All that is kept of a study.

    Attributes:
        shown: what the page shows, JSON-able.
        sheets: of each scan.
        maps: of each explained disorder, all scans' coarse maps one after another, a byte for each place.
        report: the content of its report.
        case_embed: (d,), to score other names.
        typed: names that were scored for it, with their scores.
        seen: when a visitor last asked for it.
    """

    shown: dict
    sheets: list[Sheets]
    maps: list[bytes]
    report: dict
    case_embed: torch.Tensor
    typed: dict[str, dict] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        pictures = sum(len(uri) for scan in self.report["scans"] for uri in _uris(scan))
        return sum(sheets.bytes for sheets in self.sheets) + sum(map(len, self.maps)) + pictures


class Studies:
    def __init__(self, pipe, model: str, limits: Limits):
        """`pipe` is the zero-shot-diagnosis pipeline, `model` the folder or name it was loaded from."""
        self.pipe, self.model, self.limits = pipe, model, limits
        self.root = Path(tempfile.mkdtemp(prefix="radfm-serve-"))
        self._waiting: dict[str, Waiting] = {}
        self._arriving = 0
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()  # of the four above
        self._text = threading.Lock()  # the pipeline remembers the texts it embedded last
        self._closed = threading.Event()
        threading.Thread(target=self._tidies, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        shutil.rmtree(self.root, ignore_errors=True)

    @contextmanager
    def arriving(self) -> Iterator[Path]:
        """A new folder for a study's files; `waits` keeps it, else it is deleted in the end."""
        self.tidy()
        with self._lock:
            if self._arriving + len(self._waiting) >= self.limits.waiting:
                raise Refused("too many studies are waiting: try again in a minute")
            self._arriving += 1
        folder = Path(tempfile.mkdtemp(dir=self.root))
        try:
            (folder / "in").mkdir()
            yield folder
        finally:
            with self._lock:
                self._arriving -= 1
                kept = any(folder == study.folder for study in self._waiting.values())
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)

    def waits(self, folder: Path, header: dict) -> str:
        """The token of a study whose files have come."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._waiting[token] = Waiting(folder, header)
        return token

    def joins(self, token: str, session: str) -> None:
        """A waiting study's visitor has joined the queue."""
        with self._lock:
            if token in self._waiting:
                self._waiting[token].session = session

    @contextmanager
    def attended(self, session: str) -> Iterator[None]:
        """While the visitor of this session listens."""
        self._attends(session, float("inf"))
        try:
            yield
        finally:
            self._attends(session, time.monotonic())

    def _attends(self, session: str, since: float) -> None:
        with self._lock:
            for study in self._waiting.values():
                if study.session == session:
                    study.since = since

    def answer(self, token: str) -> Iterator[dict]:
        """Reads a waiting study and keeps the answer: yields {"stage", "done", "of", "why"} as it goes on.

        The last stage is "answered", or "refused" with the reason. Nothing of it is on disk by then.
        """
        with self._lock:
            study = self._waiting.get(token)
            if study is not None:
                study.begun = True
        if study is None:
            yield _stage("refused", why="this study waited too long: drop it again")
            return
        try:
            try:
                yield from self._answered(token, study.folder, study.header)
                last = _stage("answered")
            finally:
                shutil.rmtree(study.folder, ignore_errors=True)
                with self._lock:
                    self._waiting.pop(token, None)
        except (ValueError, OSError) as error:
            last = _stage("refused", why=one_line(error))
        except torch.OutOfMemoryError:
            last = _stage("refused", why="the study is too large for this machine's memory: drop one series, or fewer")
        yield last

    def _answered(self, token: str, folder: Path, header: dict) -> Iterator[dict]:
        started = time.monotonic()
        deadline = started + self.limits.seconds
        case = None
        for so_far in read_study(folder, header, self.limits, deadline):
            if isinstance(so_far, Case):
                case = so_far
            else:
                yield _stage("reading", *so_far)
        read = time.monotonic()
        slices = sum(len(scan.pixels) for scan in case.scans)
        yield _stage("looking", 0, slices)
        with _until(self.pipe.model, deadline, self.limits):
            found = self.pipe(case, return_attentions=True)
            yield _stage("explaining", 0, slices)
            explanations = explain(self.pipe.model, self.pipe.processor, case, case_report.explained(found))
        answered = time.monotonic()
        sheets = []
        for scan in case.scans:
            yield _stage("drawing", sum(len(other.pixels) for other in case.scans[: len(sheets)]), slices)
            if time.monotonic() > deadline:
                raise _too_long(self.limits)
            sheets.append(draw(scan))
        report = case_report.content(self.pipe.model.config, case, found, explanations, self.model)
        shown = _shown(report, case, found, explanations, sheets)
        shown["seconds"] = {"reading": read - started, "model": answered - read}
        maps = [b"".join(_bytes(coarse) for coarse in one.coarse) for one in explanations]
        with self._lock:
            self._answers[token] = Answer(shown, sheets, maps, report, found["case_embed"])
        self.tidy()

    def get(self, token: str) -> Answer:
        """Raises: KeyError where there is none, any more."""
        with self._lock:
            answer = self._answers[token]
            answer.seen = time.monotonic()
            return answer

    def score(self, token: str, names: list[str]) -> list[dict]:
        """What the model says of names that a visitor typed: all of this study's, as `case_report.described`.

        Raises:
            KeyError: there is no such study.
            Refused: there are too many, or one is too long or empty.
            ValueError: a model with a fixed list does not know one.
        """
        answer = self.get(token)
        names = [" ".join(name.split()) for name in names]
        if not all(0 < len(name) <= _LONGEST_NAME for name in names):
            raise Refused(f"a name has 1 to {_LONGEST_NAME} characters")
        if len({*answer.typed, *names}) > self.limits.names:
            raise Refused(f"this page scores up to {self.limits.names} names: remove some")
        if names:
            with self._text:
                found = self.pipe.score(answer.case_embed, names)
            config, unlike = self.pipe.model.config, answer.shown["unlike"] is not None
            answer.typed |= {one["label"]: case_report.described(one, config, unlike) for one in found}
        return sorted(answer.typed.values(), key=lambda one: -one["score"])

    def remove(self, token: str, name: str) -> None:
        self.get(token).typed.pop(name, None)

    def report(self, token: str) -> str:
        """The study's report with the names that were typed, HTML."""
        answer = self.get(token)
        known = {one["label"].casefold() for one in answer.report["diagnoses"]}
        others = [one for one in answer.typed.values() if one["label"].casefold() not in known]
        diagnoses = sorted([*answer.report["diagnoses"], *others], key=lambda one: -one["score"])
        return case_report.page(answer.report | {"diagnoses": diagnoses})

    def forget(self, token: str) -> None:
        with self._lock:
            self._answers.pop(token, None)
            study = self._waiting.get(token)
            if study is not None and not study.begun:
                del self._waiting[token]
                shutil.rmtree(study.folder, ignore_errors=True)

    def tidy(self) -> None:
        """Lets go of what nobody asks for any more: answers that are idle or too much, studies nobody waits for."""
        now, limits = time.monotonic(), self.limits
        with self._lock:
            idle = [token for token, answer in self._answers.items() if now - answer.seen > limits.idle_seconds]
            for token in idle:
                del self._answers[token]
            oldest = sorted(self._answers, key=lambda token: self._answers[token].seen)
            total = sum(answer.bytes for answer in self._answers.values())
            while total > limits.kept_megabytes * 10**6 and len(oldest) > 1:
                total -= self._answers.pop(oldest.pop(0)).bytes
            left = [
                token
                for token, study in self._waiting.items()
                if not study.begun and now - study.since > limits.unattended_seconds
            ]
            for token in left:
                shutil.rmtree(self._waiting.pop(token).folder, ignore_errors=True)

    def _tidies(self) -> None:
        while not self._closed.wait(_TIDY_SECONDS):
            self.tidy()


def _stage(stage: str, done: int = 0, of: int = 0, why: str = "") -> dict:
    return {"stage": stage, "done": done, "of": of, "why": why}


def _too_long(limits: Limits) -> Refused:
    return Refused(f"the study took longer than {limits.seconds} s: drop one series, or fewer")


@contextmanager
def _until(model, deadline: float, limits: Limits) -> Iterator[None]:
    """Raises Refused from within, at the first slices that the tower is given after the deadline."""

    def check(*_) -> None:
        if time.monotonic() > deadline:
            raise _too_long(limits)

    handle = model.radfm.slice_encoder.tower.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _shown(report: dict, case: Case, found: dict, explanations: list[Explanation], sheets: list[Sheets]) -> dict:
    config = report["config"]
    facts = {scan["number"]: scan for scan in [*report["scans"], *report["other_scans"]]}
    words = ("number", "modality", "plane", "body_part", "days", "weight", "slices", "spacing", "source")
    return {
        "model": report["model"],
        "trained": config.trained,
        "synthetic_only": report["synthetic_only"],
        "calibrated": report["calibrated"],
        "vocabulary": len(config.disorders),
        "sets": report["sets"] and {name: report["sets"][name] for name in ("coverage", "guarantee")},
        "unlike": report["unlike"],
        "p": report["judged"] and report["judged"]["p_value"],
        "slices": report["slices"],
        "heaviest": report["heaviest"],
        "diagnoses": report["diagnoses"],
        "explained": report["explained"],
        "brightest": [int(np.argmax([coarse.max() for coarse in one.coarse])) for one in explanations],
        "skipped": report["skipped"],
        "scans": [
            {name: facts[i + 1][name] for name in words} | _of_viewer(i, scan, explanations, sheets[i])
            for i, scan in enumerate(case.scans)
        ],
    }


def _of_viewer(number: int, scan, explanations: list[Explanation], sheets: Sheets) -> dict:
    first = explanations[0]
    return {
        "width": sheets.width,
        "height": sheets.height,
        "columns": sheets.columns,
        "per_sheet": PER_SHEET,
        "windows": [{"name": name, "range": limits} for name, limits in sheets.windows.items()],
        "key": first.key_slice(number),
        "taken": first.taken[number],
        "attention": [round(float(weight), 5) for weight in first.attentions[number]],
        "map": first.coarse[number].shape,  # slices taken, rows, columns
        "part": first.part_of_square(number),
        "peaks": [one.peak(number)[0] if one.coarse[number].max() >= 0.05 else None for one in explanations],
    }


def _bytes(coarse: np.ndarray) -> bytes:
    return np.uint8(np.rint(255 * coarse)).tobytes()


def _uris(scan: dict) -> list[str]:
    return [scan["plain"], *(one["uri"] for one in scan["overlays"])]
