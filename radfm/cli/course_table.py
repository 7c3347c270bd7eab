"""The table of a course on the terminal, for `radfm diagnose --course`."""

from radfm.cli.console import show, table
from radfm.presentation import plural


def show_course(course: dict) -> None:
    """Args: course: of `radfm.course.diagnose_course`."""
    heads = [f"{date['days']:g} days\nbefore" if date["days"] else "newest" for date in course["dates"]]
    show("Course: scores of each date alone, the oldest first")
    rows = table("disorder", *(f">{head}" for head in heads), "change")
    for one in course["disorders"]:
        style = None if one["direction"] == "stays" else "bold"
        rows.add_row(one["label"], *(f"{score:.3g}" for score in one["scores"]), one["direction"], style=style)
    show(rows)
    if not course["same_modalities"]:
        modalities = "; ".join(", ".join(date["modalities"]) for date in course["dates"])
        show(f"[bold yellow]The dates have different modalities, which alone may change a score: {modalities}.[/]")
    if outside := sum(bool(date["out_of_distribution"]) for date in course["dates"]):
        show(f"[bold yellow]{plural(outside, 'date')} out of distribution: no score of it is a probability.[/]")
    if course["undated"]:
        show(f"{plural(course['undated'], 'scan')} without a date left out of the course.")
