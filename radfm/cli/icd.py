"""The command `radfm icd`."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radfm.cli.console import Json, quiet_transformers, show, step, table

if TYPE_CHECKING:
    from radfm.knowledge.linking import Link, Linker
    from radfm.knowledge.ontology import Ontology
    from radfm.knowledge.orphanet import RareDiseases

COLUMNS = ("name", "verdict", "codes", "best_code", "description", "confidence", "evidence", "orpha")


def icd(
    text: Annotated[
        str | None, typer.Argument(metavar="DISORDER", help="A disorder, as a clinician would write it.")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="A file of many: one per line, or a JSON list or dictionary. Prints CSV, or JSON."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="A text encoder for further evidence: radfm-text-mini or a folder. Slow on first use."),
    ] = None,
    ontology: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An OBO file: adds its names to the evidence, and its ORPHA codes."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many codes to print.")] = 5,
    as_json: Json = False,
) -> None:
    """Find the ICD-10-CM codes of a disorder.

    A rare disease has its ORPHA code of Orphanet, too.

    Example: radfm icd "ACL tear"
    """
    if (text is None) == (names is None):
        raise ValueError('give a disorder, as in radfm icd "ACL tear", or --names FILE')
    linker, rare = _load(encoder, ontology)
    if names is not None:
        links = _link_file(linker, names)
        if as_json:
            print(json.dumps([_to_dict(link, rare) for link in links], indent=2))
        else:
            _print_csv(links, rare)
        return
    assert text is not None
    result = linker.link(text, top=top)
    if as_json:
        print(json.dumps(_to_dict(result, rare), indent=2))
        return
    _show_link(result)
    if disease := rare.find(text):
        prevalence = f", prevalence {disease.prevalence}" if disease.prevalence else ""
        show(f"Rare disease: {', '.join(disease.orpha)}, {disease.name}{prevalence}", markup=False, highlight=False)


def _show_link(result: "Link") -> None:
    if not result.candidates:
        show(f"{result.text}: unlinked, no entry of ICD-10-CM is similar enough", markup=False)
        return
    show(f"{result.text}: {result.verdict}" + ("" if result.codes else ", check before you use it"), markup=False)
    rows = table("code", "description", ">confidence", "evidence")
    for candidate in result.candidates:
        rows.add_row(candidate.code, candidate.description, f"{candidate.confidence:.2f}", candidate.evidence)
    show(rows)
    best = result.candidates[0]
    show(f"{best.code}: " + " > ".join(best.path), markup=False, highlight=False)


def _to_dict(link: "Link", rare: "RareDiseases") -> dict:
    disease = rare.find(link.text)
    return link.to_dict() | {
        "orpha": rare.codes(link.text),
        "prevalence": disease.prevalence or None if disease else None,
    }


def _load(encoder: str | None, file: Path | None) -> tuple["Linker", "RareDiseases"]:
    """The linker, and the rare diseases of the ontology, before those of radfm."""
    from radfm.knowledge import orphanet
    from radfm.knowledge.ontology import read

    ontology = read(file) if file is not None else None
    own = orphanet.of_ontology(ontology) if ontology is not None else ()
    return _load_linker(encoder, ontology), orphanet.RareDiseases([*own, *orphanet.shipped().diseases])


def _load_linker(encoder: str | None, ontology: "Ontology | None") -> "Linker":
    from radfm.knowledge.linking import Linker

    if encoder is None:
        return Linker(ontology)
    with step(f"Loading {encoder}, and its embeddings of ICD-10-CM"):
        from radfm.checkpoints import resolve
        from radfm.reference_radfm import weights_sha256
        from radfm.starting_points import text_embedder

        quiet_transformers()
        return Linker(ontology, encoder=text_embedder(encoder), fingerprint=weights_sha256(resolve(encoder)))


def _link_file(linker: "Linker", file: Path) -> list["Link"]:
    """The links of all names of a file. A name that cannot be one, as it is empty or too long, is unlinked."""
    from radfm.knowledge.linking import Link

    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8: save it as text in UTF-8, or as JSON") from None
    if text.lstrip()[:1] in ("[", "{"):
        names = list(json.loads(text))
    else:
        names = [line for line in text.splitlines() if line.strip()]
    links = []
    with step(f"Linking {len(names):,} names") as progress:
        for done, name in enumerate(names, 1):
            try:
                links.append(linker.link(name, top=1))
            except (TypeError, ValueError):
                links.append(Link(str(name), "unlinked", ()))
            progress(done, len(names))
    return links


def _print_csv(links: list["Link"], rare: "RareDiseases") -> None:
    """Prints one line of CSV per name, and on standard error how many names had each verdict."""
    output = csv.writer(sys.stdout)
    output.writerow(COLUMNS)
    for link in links:
        row = [""] * 4
        if link.candidates:
            best = link.candidates[0]
            row = [best.code, best.description, f"{best.confidence:.2f}", best.evidence]
        output.writerow([link.text, link.verdict, "; ".join(link.codes), *row, "; ".join(rare.codes(link.text))])
    verdicts = Counter(link.verdict for link in links)
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.most_common())
    print(f"{len(links):,} names: {counts}", file=sys.stderr)
