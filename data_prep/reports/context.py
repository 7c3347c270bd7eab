"""The status of a mention in its sentence by ConText: absent, uncertain, historical, of the family, or present.

Decisions:
- The library is negspacy, NegEx as a component of spaCy: it runs once for each status with the phrases of that status.
  medspaCy's ConText cannot be installed beside radfm on Python 3.11, as it asks for a spaCy that asks for NumPy 1.
  `python -m benchmarks.reports` measures both.
- Where several hold, the first of `ORDER` is the status: "no family history of breast cancer" is not the patient's.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import spacy
from negspacy.negation import Negex

from radfm.data_prep.reports.rules import ORDER, SIDES, STATUSES, Rule

if TYPE_CHECKING:
    from spacy.tokens import Doc

_SPANS = "disorders"
_TERMSETS = {"before": "preceding_negations", "after": "following_negations", "pseudo": "pseudo_negations"}


class Context:
    """Statuses by the phrases of rules."""

    def __init__(self, rules: Iterable[Rule]):
        rules = list(rules)
        self._nlp = spacy.blank("en")
        self._nlp.add_pipe("sentencizer", config={"punct_chars": [".", "!", "。"]})  # "?" is also a query
        ends = [rule.phrase for rule in rules if rule.rule == "end"]
        self._components = {}
        for status in ORDER:
            phrases = {side: [r.phrase for r in rules if (r.rule, r.value) == (status, side)] for side in SIDES}
            termset = {_TERMSETS[side]: phrases[side] for side in SIDES} | {"termination": ends}
            self._components[status] = Negex(
                self._nlp, status, termset, extension_name=f"radfm_{status}", span_keys=[_SPANS]
            )

    def sentences(self, lines: Iterable[str]) -> Iterator["Doc"]:
        """Each sentence of the lines as a document of its own."""
        for doc in self._nlp.pipe(lines):
            for sentence in doc.sents:
                yield sentence.as_doc()

    def statuses(self, sentence: "Doc", places: Sequence[tuple[int, int]]) -> list[str]:
        """The status of each place, given by its first and last character in the sentence."""
        found = (sentence.char_span(start, end, alignment_mode="expand") for start, end in places)
        spans = [span for span in found if span is not None]  # all, as a mention has a token
        sentence.spans[_SPANS] = spans
        for component in self._components.values():
            component(sentence)
        return [next((status for status in ORDER if span._.get(f"radfm_{status}")), STATUSES[0]) for span in spans]
