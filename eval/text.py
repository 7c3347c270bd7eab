"""What a text encoder's space is worth, on terms of an ontology that it never saw.

    radfm evaluate text runs/text --ontology disease_ontology.obo

Decisions:
- The terms asked about are one fold of an ontology, by the SHA-256 of their ids (`radfm.knowledge.ontology.fold`), or
  those that another file of the ontology does not have. An encoder that has seen them is refused.
- A, linking: the name of a term, and which of all ICD-10-CM codes of up to five characters its curators refer to, by
  the description of the code alone. The curators' level of detail is often a matter of taste (E11 or E11.9), so the
  category counts too. "All names" takes the likest of all names that ICD-10-CM has for a code.
- B, synonyms: an exact synonym of a term, and which of all terms' names is meant.
- C, hierarchy: Spearman's correlation of cosine with steps in ICD-10-CM, over pairs of codes of the held-out
  categories, as many at each level of kinship; and of (code, sibling, cousin, stranger), how often the cosine falls in
  this order, each comparison counted. A sibling has the same parent, a cousin the same grandparent.
- What `link()` misses is listed: curators refer to codes of other levels, or to what is near where nothing fits. Of
  some misses we have judged whether a coder would accept the answer (`judged.csv`: a developer's reading of the tabular
  list, no certified coder's).
- D, variants: abbreviations, spelling, word order, plural and lay names (`variants.csv`), each to be found among all
  names of the list and the descriptions of all categories.
- Intervals (95%) of A and B are from draws of terms with all their synonyms, of D from draws of its rows. C is of pairs
  that share codes, and has none.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from radfm.checkpoints import TEXT_RECIPE, resolve
from radfm.knowledge import icd10cm
from radfm.knowledge.embedding import batches_of_one_length
from radfm.knowledge.lexicon import Lexicon
from radfm.knowledge.linking import Linker
from radfm.knowledge.ontology import Ontology, Term, fold, read
from radfm.knowledge.wording import read_table
from radfm.progress import Progress, no_progress

Hits = dict[str, tuple[np.ndarray, np.ndarray]]  # figure -> of each question, whose it is, and whether it was right
Encode = Callable[[Sequence[str]], "np.ndarray"]  # texts -> (texts, d), rows of unit length; sparse where TF-IDF

FIGURES = ("A@1", "A@5", "A category", "A@1 all names", "A@5 all names", "A category all names")
FIGURES += ("B@1", "B@10", "C Spearman", "C triplets", "D@1")

_LONGEST_CODE = 6  # characters with the dot
_PAIRS = 6_000
_DRAWS = 1_000


@dataclass(frozen=True)
class Questions:
    """What is asked: terms, all terms they are told from, and the fold whose categories of codes are asked about."""

    terms: list[Term]
    candidates: list[Term]
    fold: int


def evaluate(
    models: Sequence[str],
    ontology: str | Path,
    held_out: int | None = None,
    unseen_by: str | Path | None = None,
    link: bool = True,
    prompts: bool = False,
    progress: Progress = no_progress,
) -> dict:
    """Figures of TF-IDF, of all-MiniLM-L6-v2 untrained, and of each model: {"figures": {space: {figure: value}}, ...},
    with the SHA-256 of each model's weights as "checkpoints".

    Args:
        held_out: the fold asked about; None: the one that the first model's recipe left out, or without models 4.
        unseen_by: an ontology that was trained on, whose terms are not asked about.
        link: also task A of `link()`, by words alone and with the first model.
        prompts: also task B by each style of prompt, with the first model, or all-MiniLM-L6-v2.

    Raises:
        ValueError: a model has seen what it would be asked, by its recipe, or nothing can be asked.
        FileNotFoundError: there is no such ontology.
    """
    seen = None if unseen_by is None else read(unseen_by)
    if seen is None:
        left_out = {str(model): (trained_on(model) or {}).get("held_out", held_out) for model in models}
        held_out = next(iter(left_out.values()), 4) if held_out is None else held_out
        guilty = [model for model, out in left_out.items() if out is None or out != held_out]
        if guilty:
            raise ValueError(
                f"{guilty[0]} has learned terms of fold {held_out}, or all: "
                "train with held_out, or give --unseen-by the ontology it was trained on"
            )
    asked = questions(read(ontology), held_out, seen)
    spaces = {"TF-IDF": tfidf(), "all-MiniLM-L6-v2": encoder(None)} | {str(m): encoder(m) for m in models}
    first = next((str(model) for model in models), None)
    figures, intervals, step, steps = {}, {}, 0, len(spaces) + (1 + bool(first)) * link + prompts
    for name, encode in spaces.items():
        progress(step, steps)
        figures[name], intervals[name] = measure(encode, asked)
        step += 1
    linked = sum(bool(_answers(term)) for term in asked.terms)
    result = {
        "ontology": Path(ontology).stem,
        "checkpoints": {str(model): fingerprint(model) for model in models},
        "terms": len(asked.terms),
        "linked": linked,
        "candidates": len(asked.candidates),
        "figures": figures,
        "intervals": intervals,
    }
    if link:
        progress(step, steps)
        figures["link()"] = measure_linker(Linker(), asked)
        step += 1
        if first:
            progress(step, steps)
            figures[f"link() with {first}"] = measure_linker(Linker(encoder=spaces[first]), asked)
            step += 1
    if prompts:
        progress(step, steps)
        result["prompts"] = compare_prompts(spaces[first or "all-MiniLM-L6-v2"], asked)
    return result


def as_markdown(result: dict) -> str:
    """The result of `evaluate` as tables."""
    lines = [
        f"{result['linked']:,} of {result['terms']:,} terms have a code; {result['candidates']:,} candidates for B.\n",
        "| | " + " | ".join(FIGURES) + " |",
        "|---" * (len(FIGURES) + 1) + "|",
    ]
    for space, figures in result["figures"].items():
        cells = [f"{figures[name]:.3f}" if name in figures else "" for name in FIGURES]
        lines.append(f"| {space} | " + " | ".join(cells) + " |")
        if "confident" in figures:
            share, right = figures["confident"], figures["category of the confident"]
            lines[0] += f"{space} calls {share:.1%} confident, of which {right:.1%} have the right category."
            accepted = [miss["accepted"] for miss in figures["misses"] if miss["accepted"] is not None]
            judged = f"; of {len(accepted):,} judged, a coder would accept {sum(accepted):,}" if accepted else ""
            lines[0] += f" Its first code is another than the curators' for {len(figures['misses']):,}{judged}.\n"
    if "prompts" in result:
        lines += ["", "| prompt | B@1 | B@10 |", "|---|---|---|"]
        lines += [f"| {style} | {at['R@1']:.3f} | {at['R@10']:.3f} |" for style, at in result["prompts"].items()]
    return "\n".join(lines)


def questions(ontology: Ontology, held_out: int | None = 0, seen: Ontology | None = None) -> Questions:
    """The terms of a fold, or with `seen` those that are not in it.

    Raises:
        ValueError: no term is left, or none refers to ICD-10-CM.
    """
    if seen is not None:
        terms = [term for term in ontology if term.id not in seen]
    else:
        terms = [term for term in ontology if fold(term.id) == held_out]
    if not any(_answers(term) for term in terms):
        which = f"of fold {held_out}" if seen is None else "that were not trained on"
        linked = sorted({fold(term.id) for term in ontology if _answers(term)})
        have = f"folds {', '.join(map(str, linked))} have some" if linked else "nor does any other of its terms"
        raise ValueError(f"of the {len(terms):,} terms {which} none refers to ICD-10-CM; {have}")
    return Questions(terms, list(ontology), 0 if held_out is None else held_out)


def measure(encode: Encode, asked: Questions) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures A to D of a space, 0 to 1 (Spearman -1 to 1), and the ends of their intervals where they have one."""
    hits = _answered(encode, asked)
    figures = {figure: float(right.mean()) for figure, (_, right) in hits.items()} | _hierarchy(encode, asked.fold)
    return figures, {figure: _interval(*hits[figure]) for figure in hits}


def _answered(encode: Encode, asked: Questions) -> Hits:
    names = encode([term.name for term in asked.terms])
    codes = _codes()
    described = encode([icd10cm.get(code).description for code in codes])
    found = _linking(names, described, codes, np.arange(len(codes)), asked.terms, "")
    lexicon = Lexicon()
    position = {code: i for i, code in enumerate(codes)}
    rows = [i for i, code in enumerate(lexicon.codes) if code in position]
    owners = np.array([position[lexicon.codes[i]] for i in rows])
    found |= _linking(names, encode([lexicon.names[i] for i in rows]), codes, owners, asked.terms, " all names")
    found |= _synonyms(encode, asked)
    right = np.array([hit for _, hit in variants(encode)])
    return found | {"D@1": (np.arange(len(right)), right)}


def _interval(owners: np.ndarray, right: np.ndarray, seed: int = 0) -> list[float]:
    """The 2.5th and 97.5th percentile of the share that is right, over draws of owners with all they have."""
    _, rows = np.unique(owners, return_inverse=True)
    asked, hits = np.bincount(rows), np.bincount(rows, right)
    drawn = np.random.default_rng(seed).multinomial(len(asked), np.full(len(asked), 1 / len(asked)), _DRAWS)
    return np.percentile(drawn @ hits / (drawn @ asked), [2.5, 97.5]).tolist()


def measure_linker(linker: Linker, asked: Questions) -> dict:
    """Task A of `radfm.knowledge.disorders.link`, how often what it calls confident is right, and what it missed.

    Returns:
        Figure -> value, and "misses", a list of {"name", "curators": their codes, "answer": the first code, its
        "description", "accepted": whether a coder would accept it, None where nobody has judged it}.
    """
    hits, sure, right, count, missed = np.zeros(3), 0, 0, 0, []
    judged = {(row["name"], row["code"]): row["accepted"] == "yes" for row in read_table("judged.csv", "radfm.eval")}
    for term in asked.terms:
        if wanted := _answers(term):
            ranked = list(dict.fromkeys(found.code[:_LONGEST_CODE] for found in linker.rank(term.name, top=10)))[:5]
            hits += _hits(ranked, wanted)
            count += 1
            confident = linker.link(term.name, top=1).codes
            sure += bool(confident)
            right += bool(confident) and confident[0][:3] in {code[:3] for code in wanted}
            if not wanted & set(ranked[:1]):
                answer = {"answer": ranked[0], "description": icd10cm.get(ranked[0]).description} if ranked else {}
                accepted = judged.get((term.name, answer.get("answer")))
                missed.append({"name": term.name, "curators": sorted(wanted), **answer, "accepted": accepted})
    figures = dict(zip(FIGURES[:3], (hits / count).tolist(), strict=True))
    return figures | {"confident": sure / count, "category of the confident": right / max(sure, 1), "misses": missed}


def compare_prompts(encode: Encode, asked: Questions) -> dict[str, dict[str, float]]:
    """Task B with terms shown in each style of `Disorder.prompts`; the synonym asked about is never among the texts."""
    from radfm.knowledge.disorders import Coding, Disorder

    queries = [(s.text, term) for term in asked.terms for s in term.synonyms if s.scope == "EXACT"]
    asked_vectors = _dense(encode([text for text, _ in queries]))
    row_of = {term.id: row for row, term in enumerate(asked.candidates)}
    truth = np.array([row_of[term.id] for _, term in queries])
    disorders = []
    for term in asked.candidates:
        synonyms = tuple(s.text for s in term.synonyms if s.scope == "EXACT")
        codings = tuple(Coding(code, 1.0, "") for code in term.icd10cm)
        disorders.append(Disorder(term.name, synonyms, term.definition, codings))
    found = {}
    for style in ("name", "description", "synonyms", "path"):
        prompts = [disorder.prompts(style) for disorder in disorders]
        vectors = _dense(encode([text for texts in prompts for text in texts]))
        starts = np.cumsum([0, *map(len, prompts)])
        total = np.add.reduceat(vectors, starts[:-1])
        likeness = asked_vectors @ _unit(total).T
        if style == "synonyms":  # of the true term, the average without the synonym that is asked about
            for i, (text, _) in enumerate(queries):
                row = truth[i]
                kept = [starts[row] + k for k, t in enumerate(prompts[row]) if t != text]
                likeness[i, row] = asked_vectors[i] @ _unit(vectors[kept].sum(0, keepdims=True))[0]
        ranks = (likeness > likeness[np.arange(len(truth)), truth][:, None]).sum(1)
        found[style] = {"R@1": float((ranks < 1).mean()), "R@10": float((ranks < 10).mean())}
    return found


def variants(encode: Encode) -> list[tuple[str, bool]]:
    """Task D, row by row: the kind of variant, and whether it was found."""
    rows = read_table("variants.csv", "radfm.eval")
    names = list(dict.fromkeys(row["name"] for row in rows))
    candidates = names + [entry.description for entry in icd10cm.entries("category")]
    likeness = _dense(encode([row["variant"] for row in rows]) @ encode(candidates).T)
    return [(row["kind"], candidates[int(likeness[i].argmax())] == row["name"]) for i, row in enumerate(rows)]


def tfidf() -> Encode:
    """The baseline: TF-IDF of character 3- to 5-grams within words, weighed over ICD-10-CM."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectorizer.fit([icd10cm.get(code).description for code in _codes()])
    return vectorizer.transform


def encoder(folder: str | Path | None) -> Encode:
    """Of a SentenceTransformer's folder or name; None: all-MiniLM-L6-v2, untrained. Each text is embedded once."""
    from radfm.starting_points.sentence_encoder import load_encoder

    model = load_encoder(folder).bfloat16()
    known: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str]) -> np.ndarray:
        new = list(dict.fromkeys(text for text in texts if text not in known))
        lengths = [len(ids) for ids in model.tokenizer(new, truncation=True)["input_ids"]] if new else []
        for rows in batches_of_one_length(lengths):
            batch = [new[i] for i in rows]
            vectors = model.encode(batch, batch_size=len(batch), convert_to_tensor=True, normalize_embeddings=True)
            known.update(zip(batch, vectors.float().cpu().numpy(), strict=True))
        return np.stack([known[text] for text in texts])

    return encode


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of an encoder's weights, for caches; of its name where it has no file of weights."""
    file = Path(resolve(folder)) / "model.safetensors"
    return hashlib.sha256(file.read_bytes() if file.is_file() else str(folder).encode()).hexdigest()


def trained_on(folder: str | Path) -> dict | None:
    """The recipe beside an encoder that radfm trained, or None."""
    file = Path(resolve(folder)) / TEXT_RECIPE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _codes() -> list[str]:
    return [e.code for e in icd10cm.entries("category", "subcategory") if len(e.code) <= _LONGEST_CODE]


def _answers(term: Term) -> set[str]:
    return {code for code in term.icd10cm if "-" not in code and len(code) <= _LONGEST_CODE}


def _hits(codes: list[str], wanted: set[str]) -> np.ndarray:
    """First right, one of five right, category of the first right."""
    first = codes[0] if codes else ""
    return np.array([first in wanted, bool(wanted & set(codes[:5])), first[:3] in {code[:3] for code in wanted}])


def _linking(names, candidates, codes: list[str], owners: np.ndarray, terms: list[Term], suffix: str) -> Hits:
    owned, hits = [], []
    for i, term in enumerate(terms):
        if not (wanted := _answers(term)):
            continue
        likeness = _dense(names[i : i + 1] @ candidates.T)[0]
        best = np.argsort(-likeness)[:60]
        hits.append(_hits(list(dict.fromkeys(codes[owners[j]] for j in best))[:5], wanted))
        owned.append(i)
    columns = np.array(hits).T
    return {f"{figure}{suffix}": (np.array(owned), column) for figure, column in zip(FIGURES[:3], columns, strict=True)}


def _synonyms(encode: Encode, asked: Questions) -> Hits:
    queries = [(s.text, term.id) for term in asked.terms for s in term.synonyms if s.scope == "EXACT"]
    ids = [term.id for term in asked.candidates]
    rows = {term_id: row for row, term_id in enumerate(ids)}
    truth = np.array([rows[term_id] for _, term_id in queries])
    likeness = _dense(encode([text for text, _ in queries]) @ encode([term.name for term in asked.candidates]).T)
    ranks = (likeness > likeness[np.arange(len(truth)), truth][:, None]).sum(1)
    return {"B@1": (truth, ranks < 1), "B@10": (truth, ranks < 10)}


def _hierarchy(encode: Encode, held_out: int, seed: int = 0) -> dict[str, float]:
    """Spearman (negative: the farther, the less alike; given as its size with the sign turned) and triplets."""
    rng = random.Random(seed)
    codes = [code for code in _codes() if fold(code[:3]) == held_out]
    lineage = {code: [code, *(above.code for above in icd10cm.get(code).ancestors)] for code in codes}
    below: dict[str, list[str]] = {}
    for code in codes:
        for above in lineage[code][1:]:
            below.setdefault(above, []).append(code)
    pairs = []
    while len(pairs) < _PAIRS:
        first = rng.choice(codes)
        above = rng.choice([*lineage[first][1:], None])
        pairs.append((first, rng.choice(below[above] if above else codes)))
    triplets = []
    while len(triplets) < _PAIRS // 2:
        code = rng.choice(codes)
        parent, grandparent = lineage[code][1:3]
        near = [other for other in below[parent] if other != code and lineage[other][1] == parent]
        far = [o for o in below[grandparent] if parent not in lineage[o] and lineage[o][2:3] == [grandparent]]
        strangers = [other for other in rng.choices(codes, k=20) if lineage[other][-1] != lineage[code][-1]]
        if near and strangers:
            triplets.append((code, rng.choice(near), rng.choice(far) if far else None, strangers[0]))
    texts = {code: icd10cm.get(code).description for code in codes}
    vectors = encode([texts[code] for code in codes])
    row = {code: i for i, code in enumerate(codes)}

    def cosines(left: list[str], right: list[str]) -> np.ndarray:
        a, b = vectors[[row[c] for c in left]], vectors[[row[c] for c in right]]
        return np.asarray((a.multiply(b) if hasattr(a, "multiply") else a * b).sum(1)).ravel()

    steps = [icd10cm.distance(a, b) for a, b in pairs if a != b]
    alike = cosines([a for a, b in pairs if a != b], [b for a, b in pairs if a != b])
    sibling = cosines([t[0] for t in triplets], [t[1] for t in triplets])
    stranger = cosines([t[0] for t in triplets], [t[3] for t in triplets])
    have = np.array([t[2] is not None for t in triplets])
    cousin = cosines([t[0] for t in triplets if t[2]], [t[2] for t in triplets if t[2]])
    ordered = [sibling > stranger, sibling[have] > cousin, cousin > stranger[have]]
    return {
        "C Spearman": -float(spearmanr(alike, steps).statistic),
        "C triplets": float(np.concatenate(ordered).mean()),
    }


def _dense(product) -> np.ndarray:
    return product.toarray() if hasattr(product, "toarray") else np.asarray(product)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
