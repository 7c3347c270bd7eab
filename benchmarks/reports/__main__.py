"""Precision and recall of labels from reports, beside a keyword baseline and NegEx.

    python -m benchmarks.reports                                # 300 sentences and 60 reports, in two halves
    python -m benchmarks.reports --medpix ../shared/cases/medpix --open ../shared/open
    python -m benchmarks.reports --speed 20000                  # reports read in a second, on one core

What is measured:

- `sentences.csv` and `reports.csv` were written for this project, with the disorders and their statuses, before the
  rules. Rules were tuned on the errors of the half "seen"; of the half "unseen" only the scores below were looked at.
  But one author wrote texts and rules, and neighbouring sentences of the halves resemble each other, so both halves
  flatter. MedPix is text of others.
- A hit is a disorder with its status. Keywords: the same mentions, all present. NegEx: the same mentions, with the
  terms that come with negspacy, which know absent and present only. medSpaCy: its ConText with radfm's terms, tuned
  with negspacy, where it is installed. These three know no sections, and no mention that denies itself.
- MedPix's findings have the diagnosis of the case as gold and no statuses: the share of cases whose text names it, and
  how many of those are labelled present. The precision is that of 60 findings drawn at random, 30 present, 20 absent
  and 10 uncertain, judged once by reading them: `medpix_judged.csv` has the verdicts. Rules were not changed after
  that.
  The notes of ../shared/open are six; they are printed as they are labelled.
"""

import argparse
import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import spacy
from negspacy.negation import Negex

from radfm.cli.name_files import read_names
from radfm.data_prep.reports.context import Context
from radfm.data_prep.reports.mentions import MentionFinder
from radfm.data_prep.reports.reading import ReportReader
from radfm.data_prep.reports.rules import ORDER, SIDES, STATUSES, read_rules
from radfm.data_prep.reports.sections import lines_of
from radfm.knowledge.disorders import Vocabulary

HERE = Path(__file__).parent
Labels = set[tuple[str, str]]  # (disorder, status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--medpix", type=Path, help="Folder of MedPix with train/Case_topic.json.")
    parser.add_argument("--open", type=Path, help="Folder with cases.csv, whose column history has notes.")
    parser.add_argument("--speed", type=int, help="Number of reports to time instead.")
    arguments = parser.parse_args()
    vocabulary = Vocabulary.from_names(read_names(HERE / "disorders.txt"))
    reader = ReportReader(vocabulary)
    if arguments.speed:
        _time(reader, arguments.speed)
        return
    finder = MentionFinder(vocabulary, read_rules())
    methods: dict[str, Callable[[str], Labels]] = {
        "radfm": lambda text: {(finding.disorder, finding.status) for finding in reader.read(text)},
        "keywords": partial(_by_sentence, finder, vocabulary, lambda sentence, places: ["present"] * len(places)),
        "NegEx": partial(_by_sentence, finder, vocabulary, _negex()),
    }
    if medspacy := _medspacy():
        methods["medSpaCy"] = partial(_by_sentence, finder, vocabulary, medspacy)
    for table in ("sentences", "reports"):
        for half in ("seen", "unseen"):
            rows = [row for row in _rows(HERE / f"{table}.csv") if row["half"] == half]
            print(f"\n{len(rows)} {table}, {half} half: precision, recall, F1 (number in the gold)")
            for name, method in methods.items():
                print(f"{name:9} " + "  ".join(_scores(rows, method)))
    if arguments.medpix and arguments.medpix.is_dir():
        _medpix(arguments.medpix, reader)
    if arguments.open and arguments.open.is_dir():
        notes = {row["history"] for row in _rows(arguments.open / "cases.csv") if row["history"]}
        print(f"\nNotes of {arguments.open}: {len(notes)}")
        for note in sorted(notes):
            print(f"{note[:90]!r} -> {sorted(methods['radfm'](f'FINDINGS: {note}')) or 'nothing'}")


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        yield from csv.DictReader(opened)


def _gold(row: dict[str, str]) -> Labels:
    return {(name, status) for name, _, status in (one.partition("=") for one in row["labels"].split("; ") if one)}


def _scores(rows: list[dict[str, str]], method: Callable[[str], Labels]) -> Iterator[str]:
    hits, answers, truths = Counter(), Counter(), Counter()
    for row in rows:
        gold, labels = _gold(row), method(row["text"])
        truths.update(status for _, status in gold)
        answers.update(status for _, status in labels)
        hits.update(status for _, status in gold & labels)
    for status in STATUSES:
        precision, recall = (hits[status] / max(total[status], 1) for total in (answers, truths))
        f1 = 2 * hits[status] / max(answers[status] + truths[status], 1)
        yield f"{status} {precision:.2f} {recall:.2f} {f1:.3f} ({truths[status]})"


def _by_sentence(finder: MentionFinder, vocabulary: Vocabulary, statuses_of: Callable, text: str) -> Labels:
    """The labels of a text without sections; present wins over uncertain, and uncertain over absent."""
    words = frozenset(text.casefold().split())
    found: dict[str, set[str]] = {}
    for sentence in _splitter().sentences(lines_of(text)):
        mentions = finder.find(sentence.text, words)
        statuses = statuses_of(sentence.text, [(mention.start, mention.end) for mention in mentions])
        for mention, status in zip(mentions, statuses, strict=True):
            found.setdefault(vocabulary[mention.disorder].name, set()).add(status)
    return {
        (name, next(s for s in ("present", "uncertain", "absent", "historical", "family") if s in statuses))
        for name, statuses in found.items()
    }


@cache
def _splitter() -> Context:
    return Context(())


def _spans(doc, places: list[tuple[int, int]]) -> list:
    return [doc.char_span(start, end, alignment_mode="expand") for start, end in places]


def _negex() -> Callable:
    """NegEx with the clinical terms that come with negspacy."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "!"]})
    negex = Negex(nlp, "plain", nlp.get_factory_meta("negex").default_config["neg_termset"], span_keys=["plain"])

    def statuses(sentence: str, places: list[tuple[int, int]]) -> list[str]:
        doc = nlp(sentence)
        doc.spans["plain"] = _spans(doc, places)
        negex(doc)
        return ["absent" if span._.negex else "present" for span in doc.spans["plain"]]

    return statuses


def _medspacy() -> Callable | None:
    """ConText of medSpaCy with the terms of radfm; None where it is not installed."""
    try:
        from medspacy.context import ConText, ConTextRule
    except ImportError:
        return None
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "!"]})
    context = ConText(nlp, rules=None, input_span_type="group", span_group_name="medspacy")
    directions = dict(zip(SIDES, ("FORWARD", "BACKWARD", "PSEUDO"), strict=True))
    for rule in read_rules():
        if rule.rule in ORDER:
            context.add(ConTextRule(rule.phrase, rule.rule, direction=directions[rule.value]))
        elif rule.rule == "end":
            context.add([ConTextRule(rule.phrase, status, direction="TERMINATE") for status in ORDER])

    def statuses(sentence: str, places: list[tuple[int, int]]) -> list[str]:
        doc = nlp(sentence)
        doc.spans["medspacy"] = _spans(doc, places)
        context(doc)
        found = [{modifier.category.lower() for modifier in span._.modifiers} for span in doc.spans["medspacy"]]
        return [next((status for status in ORDER if status in one), "present") for one in found]

    return statuses


def _medpix(folder: Path, benchmark: ReportReader) -> None:
    """How often the findings of MedPix name the diagnosis of the case, and which of the judged labels are right."""
    cases = [
        case["Case"] | {"id": case["U_id"]}
        for part in ("train", "dev")
        for case in json.loads((folder / part / "Case_topic.json").read_text(encoding="utf-8"))
        if case["Case"].get("Findings") and case["Case"].get("Case Diagnosis")
    ]
    names = sorted({" ".join(case["Case Diagnosis"].split()) for case in cases})
    vocabulary = Vocabulary.from_names(name for name in names if len(name) < 80)
    reader, named = ReportReader(vocabulary), Counter()
    for case in cases:
        diagnosis = " ".join(case["Case Diagnosis"].split())
        named["all"] += vocabulary.find(diagnosis) is not None
        named.update(f.status for f in reader.read(f"FINDINGS: {case['Findings']}") if f.disorder == diagnosis)
    statuses = ", ".join(f"{status} {named[status]}" for status in STATUSES)
    print(f"\nMedPix, {named['all']} cases with findings, {len(vocabulary)} diagnoses; named in the text: {statuses}")
    found = {
        (case["id"], f.disorder, f.status) for case in cases for f in benchmark.read(f"FINDINGS: {case['Findings']}")
    }
    judged = [row for row in _rows(HERE / "medpix_judged.csv") if tuple(list(row.values())[:3]) in found]
    for status in ("present", "absent", "uncertain"):
        verdicts = [row["right"] == "1" for row in judged if row["status"] == status]
        print(f"Judged, {status}: {sum(verdicts)} of {len(verdicts)} right")


def _time(reader: ReportReader, count: int) -> None:
    texts = [row["text"] for row in _rows(HERE / "reports.csv")]
    start = time.perf_counter()
    for i in range(count):
        reader.read(f"{texts[i % len(texts)]}\nSlice {i}.")
    seconds = time.perf_counter() - start
    print(f"{count:,} reports in {seconds:.0f} s on one core, {count / seconds:.0f} a second")


if __name__ == "__main__":
    main()
