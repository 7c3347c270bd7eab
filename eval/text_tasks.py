"""The tasks that measure a text encoder, on terms of an ontology that it was not trained on.

Decisions:
- The tested terms are one fold of an ontology, by the SHA-256 of their ids (`radfm.knowledge.ontology.fold`), or those
  that another file of the ontology does not have.
- A, linking: given the name of a term, which of all ICD-10-CM codes of up to five characters do its curators refer to,
  by the description of the code alone? The level of detail that curators choose is often arbitrary (E11 or E11.9), so
  the category counts, too. "All names" uses the most similar of all names that ICD-10-CM has for a code.
- B, synonyms: given an exact synonym of a term, which of the names of all terms has the same meaning?
- C, hierarchy: Spearman's correlation of cosine with steps in ICD-10-CM, over pairs of codes of the held-out
  categories, with the same number of pairs at each level; and of (code, sibling, cousin, unrelated code), how often the
  cosines are in this order, each comparison counted. A sibling has the same parent, a cousin the same grandparent.
- D, variants: abbreviations, spelling, word order, plural and lay names (`variants.csv`), each to be found among all
  names of the list and the descriptions of all categories.
- Intervals (95%) of A and B are from bootstrap resamples of terms with all their synonyms, of D from resamples of its
  rows. C is over pairs that share codes, and has no interval.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from radfm.eval.text_encoders import LONGEST_CODE, Encode, tested_codes
from radfm.knowledge import icd10cm
from radfm.knowledge.lexicon import Lexicon
from radfm.knowledge.ontology import Ontology, Term, fold
from radfm.knowledge.wording import read_table

Hits = dict[str, tuple[np.ndarray, np.ndarray]]  # figure -> for each question its owner, and whether it was answered

LINKING = ("A@1", "A@5", "A category")

_PAIRS = 6_000
_RESAMPLES = 1_000
_MOST_SIMILAR = 60  # names of codes, among which the five most similar codes are


@dataclass(frozen=True)
class TextMetric:
    """
    Attributes:
        name: for model cards.
        hub_name: the metric's name on the Hugging Face Hub.
        in_card: whether the table of a model card shows it.
    """

    name: str
    hub_name: str = "accuracy"
    in_card: bool = True


METRICS = {
    "A@1": TextMetric("ICD-10-CM code of an unseen term, top-1 accuracy"),
    "A@5": TextMetric("ICD-10-CM code of an unseen term, top-5 accuracy"),
    "A category": TextMetric("ICD-10-CM category of an unseen term, top-1 accuracy"),
    "A@1 all names": TextMetric("ICD-10-CM code by all names of a term, top-1 accuracy"),
    "A@5 all names": TextMetric("ICD-10-CM code by all names of a term, top-5 accuracy", in_card=False),
    "A category all names": TextMetric("ICD-10-CM category by all names of a term, top-1 accuracy"),
    "B@1": TextMetric("Term of an unseen synonym, top-1 accuracy"),
    "B@10": TextMetric("Term of an unseen synonym, top-10 accuracy"),
    "C Spearman": TextMetric("Cosine and distance in the hierarchy of ICD-10-CM, Spearman correlation", "spearmanr"),
    "C triplets": TextMetric("Order of cosines in the hierarchy of ICD-10-CM, accuracy", in_card=False),
    "D@1": TextMetric("Abbreviations, spelling, word order and lay names, top-1 accuracy"),
}


@dataclass(frozen=True)
class Questions:
    """
    Attributes:
        terms: the tested terms.
        candidates: all terms, among which a term has to be found.
        fold: whose categories of codes are tested.
    """

    terms: list[Term]
    candidates: list[Term]
    fold: int


def questions(ontology: Ontology, held_out: int | None = 0, trained_on: Ontology | None = None) -> Questions:
    """The terms of a fold, or with `trained_on` those that are not in it.

    Raises:
        ValueError: no term is left, or none refers to ICD-10-CM.
    """
    if trained_on is not None:
        terms = [term for term in ontology if term.id not in trained_on]
    else:
        terms = [term for term in ontology if fold(term.id) == held_out]
    if not any(curated_codes(term) for term in terms):
        which = f"of fold {held_out}" if trained_on is None else "that were not trained on"
        linked = sorted({fold(term.id) for term in ontology if curated_codes(term)})
        have = f"folds {', '.join(map(str, linked))} have some" if linked else "nor does any other of its terms"
        raise ValueError(f"of the {len(terms):,} terms {which} none refers to ICD-10-CM; {have}")
    return Questions(terms, list(ontology), 0 if held_out is None else held_out)


def measure(encode: Encode, tested: Questions) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures A to D of an encoder, 0 to 1 (Spearman -1 to 1), and the ends of their intervals where they have one."""
    hits = _answers(encode, tested)
    figures = {figure: float(right.mean()) for figure, (_, right) in hits.items()} | _hierarchy(encode, tested.fold)
    return figures, {figure: bootstrap_interval(*hits[figure]) for figure in hits}


def curated_codes(term: Term) -> set[str]:
    """The codes of up to five characters that the curators of the ontology refer to."""
    return {code for code in term.icd10cm if "-" not in code and len(code) <= LONGEST_CODE}


def linking_hits(codes: list[str], curated: set[str]) -> np.ndarray:
    """For the figures of `LINKING`: whether the first code is right, one of the first five, the category of the first.

    Args:
        codes: the answer, the most similar first.
    """
    first = codes[0] if codes else ""
    return np.array([first in curated, bool(curated & set(codes[:5])), first[:3] in {code[:3] for code in curated}])


def bootstrap_interval(owners: np.ndarray, right: np.ndarray, seed: int = 0) -> list[float]:
    """The 2.5th and 97.5th percentile of the share of right answers, over resamples of owners with all they have."""
    _, rows = np.unique(owners, return_inverse=True)
    counts, hits = np.bincount(rows), np.bincount(rows, right)
    resamples = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _RESAMPLES)
    return np.percentile(resamples @ hits / (resamples @ counts), [2.5, 97.5]).tolist()


def compare_prompts(encode: Encode, tested: Questions) -> dict[str, dict[str, float]]:
    """Task B with terms in each style of `Disorder.prompts`; the tested synonym is never among the texts."""
    from radfm.knowledge.disorders import Coding, Disorder

    queries, truth = _synonym_queries(tested)
    query_vectors = dense(encode(queries))
    disorders = []
    for term in tested.candidates:
        synonyms = tuple(s.text for s in term.synonyms if s.scope == "EXACT")
        codings = tuple(Coding(code, 1.0, "") for code in term.icd10cm)
        disorders.append(Disorder(term.name, synonyms, term.definition, codings))
    figures = {}
    for style in ("name", "description", "synonyms", "path"):
        prompts = [disorder.prompts(style) for disorder in disorders]
        vectors = dense(encode([text for texts in prompts for text in texts]))
        starts = np.cumsum([0, *map(len, prompts)])
        total = np.add.reduceat(vectors, starts[:-1])
        similarity = query_vectors @ _unit(total).T
        if style == "synonyms":  # the average of the true term leaves out the tested synonym
            for i, text in enumerate(queries):
                row = truth[i]
                kept = [starts[row] + k for k, t in enumerate(prompts[row]) if t != text]
                similarity[i, row] = query_vectors[i] @ _unit(vectors[kept].sum(0, keepdims=True))[0]
        ranks = _ranks(similarity, truth)
        figures[style] = {"R@1": float((ranks < 1).mean()), "R@10": float((ranks < 10).mean())}
    return figures


def variants(encode: Encode) -> list[tuple[str, bool]]:
    """Task D, row by row: the kind of variant, and whether its name was found."""
    rows = read_table("variants.csv", "radfm.eval")
    names = list(dict.fromkeys(row["name"] for row in rows))
    candidates = names + [entry.description for entry in icd10cm.entries("category")]
    similarity = dense(encode([row["variant"] for row in rows]) @ encode(candidates).T)
    return [(row["kind"], candidates[int(similarity[i].argmax())] == row["name"]) for i, row in enumerate(rows)]


def dense(product) -> np.ndarray:
    """A product of vectors, which is sparse for TF-IDF, as an array."""
    return product.toarray() if hasattr(product, "toarray") else np.asarray(product)


def _answers(encode: Encode, tested: Questions) -> Hits:
    """Tasks A, B and D."""
    names = encode([term.name for term in tested.terms])
    codes = tested_codes()
    descriptions = encode([icd10cm.get(code).description for code in codes])
    hits = _linking(names, descriptions, codes, np.arange(len(codes)), tested.terms, "")
    lexicon = Lexicon()
    position = {code: i for i, code in enumerate(codes)}
    rows = [i for i, code in enumerate(lexicon.codes) if code in position]
    owners = np.array([position[lexicon.codes[i]] for i in rows])
    hits |= _linking(names, encode([lexicon.names[i] for i in rows]), codes, owners, tested.terms, " all names")
    hits |= _synonyms(encode, tested)
    right = np.array([hit for _, hit in variants(encode)])
    return hits | {"D@1": (np.arange(len(right)), right)}


def _linking(names, candidates, codes: list[str], owners: np.ndarray, terms: list[Term], suffix: str) -> Hits:
    """Task A. Args: candidates: vectors of names of codes; owners: (candidates,) the code of each, of `codes`."""
    tested, hits = [], []
    for i, term in enumerate(terms):
        if not (curated := curated_codes(term)):
            continue
        similarity = dense(names[i : i + 1] @ candidates.T)[0]
        best = np.argsort(-similarity)[:_MOST_SIMILAR]
        hits.append(linking_hits(list(dict.fromkeys(codes[owners[j]] for j in best))[:5], curated))
        tested.append(i)
    columns = np.array(hits).T
    return {f"{figure}{suffix}": (np.array(tested), column) for figure, column in zip(LINKING, columns, strict=True)}


def _synonyms(encode: Encode, tested: Questions) -> Hits:
    """Task B."""
    queries, truth = _synonym_queries(tested)
    similarity = dense(encode(queries) @ encode([term.name for term in tested.candidates]).T)
    ranks = _ranks(similarity, truth)
    return {"B@1": (truth, ranks < 1), "B@10": (truth, ranks < 10)}


def _synonym_queries(tested: Questions) -> tuple[list[str], np.ndarray]:
    """The exact synonyms of the tested terms, and the row of the term of each among the candidates."""
    row_of = {term.id: row for row, term in enumerate(tested.candidates)}
    queries = [(s.text, row_of[term.id]) for term in tested.terms for s in term.synonyms if s.scope == "EXACT"]
    return [text for text, _ in queries], np.array([row for _, row in queries])


def _ranks(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(queries, candidates) -> (queries,) how many candidates are more similar than the true one."""
    return (similarity > similarity[np.arange(len(truth)), truth][:, None]).sum(1)


def _hierarchy(encode: Encode, held_out: int, seed: int = 0) -> dict[str, float]:
    """Task C. The sign of Spearman's correlation is turned, so that closer codes with higher cosines are positive."""
    rng = random.Random(seed)
    codes = [code for code in tested_codes() if fold(code[:3]) == held_out]
    lineage = {code: [code, *(above.code for above in icd10cm.get(code).ancestors)] for code in codes}
    descendants: dict[str, list[str]] = {}
    for code in codes:
        for above in lineage[code][1:]:
            descendants.setdefault(above, []).append(code)
    pairs = _sample_pairs(rng, codes, lineage, descendants)
    triplets = _sample_triplets(rng, codes, lineage, descendants)
    texts = {code: icd10cm.get(code).description for code in codes}
    vectors = encode([texts[code] for code in codes])
    row = {code: i for i, code in enumerate(codes)}

    def cosines(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        a, b = vectors[[row[c] for c in left]], vectors[[row[c] for c in right]]
        return np.asarray((a.multiply(b) if hasattr(a, "multiply") else a * b).sum(1)).ravel()

    different = [(a, b) for a, b in pairs if a != b]
    steps = [icd10cm.distance(a, b) for a, b in different]
    similarity = cosines([a for a, _ in different], [b for _, b in different])
    anchors = [code for code, *_ in triplets]
    sibling = cosines(anchors, [t[1] for t in triplets])
    unrelated = cosines(anchors, [t[3] for t in triplets])
    has_cousin = np.array([t[2] is not None for t in triplets])
    cousin = cosines([t[0] for t in triplets if t[2]], [t[2] for t in triplets if t[2]])
    ordered = [sibling > unrelated, sibling[has_cousin] > cousin, cousin > unrelated[has_cousin]]
    return {
        "C Spearman": -float(spearmanr(similarity, steps).statistic),
        "C triplets": float(np.concatenate(ordered).mean()),
    }


def _sample_pairs(rng: random.Random, codes, lineage: dict, descendants: dict) -> list[tuple[str, str]]:
    """Pairs of codes whose common ancestor is at a random level, or any."""
    pairs = []
    while len(pairs) < _PAIRS:
        first = rng.choice(codes)
        above = rng.choice([*lineage[first][1:], None])
        pairs.append((first, rng.choice(descendants[above] if above else codes)))
    return pairs


def _sample_triplets(
    rng: random.Random, codes, lineage: dict, descendants: dict
) -> list[tuple[str, str, str | None, str]]:
    """(code, sibling, cousin or None, code of another chapter)."""
    triplets = []
    while len(triplets) < _PAIRS // 2:
        code = rng.choice(codes)
        parent, grandparent = lineage[code][1:3]
        siblings = [other for other in descendants[parent] if other != code and lineage[other][1] == parent]
        cousins = [o for o in descendants[grandparent] if parent not in lineage[o] and lineage[o][2:3] == [grandparent]]
        unrelated = [other for other in rng.choices(codes, k=20) if lineage[other][-1] != lineage[code][-1]]
        if siblings and unrelated:
            triplets.append((code, rng.choice(siblings), rng.choice(cousins) if cousins else None, unrelated[0]))
    return triplets


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
