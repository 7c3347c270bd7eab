"""`radfm` for the commands of the documents: the same program, with options and keys that make long things short.

The documents do not mention these. Everything that is made short is in `SHORTER`, and `serve` ends when its page has
been loaded once.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Thread

SIDE = 64  # pixels, of pictures
CASES = 1500 if "RADFM_SLOW" in os.environ else 60  # phantoms; some disorders are rare
FOLD = 4  # of the ontology in ../shared, which has no term of fold 0
_PHANTOMS = [f"--cases={CASES}", f"--size={SIDE}", "--max-slices=4", "--processes=1", "--fractions=0.3,0.4,0.3"]
_STEPS = ["training.max_steps=2", "training.save_steps=2", "training.eval_strategy=no", "training.warmup_steps=1"]
# The beginning of a command -> what is added to it. Of an option or a key that is given twice, the last counts.
SHORTER = {
    ("prepare", "phantoms"): _PHANTOMS,
    ("train", "text"): [
        *_STEPS,
        "data.hierarchy_pairs=64",
        "training.per_device_train_batch_size=8",
        f"data.held_out={FOLD}",
    ],
    ("train", "diagnosis"): [*_STEPS, "sampling.slices_per_step=16", "training.report_to=[]"],
    ("finetune",): ["training.max_steps=2"],
    ("evaluate", "saliency"): ["--limit=2"],
}
TEMPLATE = ("prepare", "manifest", "--template")  # prints a table that its user fills in, here with the rows of:
FILLED_IN = Path("filled_in.csv")


def shorter(arguments: list[str]) -> list[str]:
    """The command with what makes it short. A command with `--help` stays as it is."""
    for beginning, added in SHORTER.items():
        if tuple(arguments[: len(beginning)]) == beginning and "--help" not in arguments:
            return [*arguments, *added]
    return arguments


def main(arguments: list[str]) -> None:
    from radfm.cli import main as radfm

    sys.argv = ["radfm", *shorter(arguments)]
    if arguments[:1] == ["serve"]:
        from tests.waiting import free_port

        port = free_port()
        sys.argv.append(f"--port={port}")
        Thread(target=_visit, args=[port], daemon=True).start()
    try:
        radfm()
    finally:
        if tuple(arguments[:3]) == TEMPLATE and FILLED_IN.exists():
            print(FILLED_IN.read_text(), end="")


def _visit(port: int) -> None:
    """Loads the page as soon as it is there, then stops the server as Ctrl+C does."""
    status = None
    while status != 200:
        time.sleep(0.2)
        with suppress(OSError, HTTPException):
            connection = HTTPConnection("127.0.0.1", port, timeout=600)
            connection.request("GET", "/")
            status = connection.getresponse().status
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.path[:] = [*sys.path[1:], str(Path(__file__).parents[2])]  # not from this folder; `tests` from where it is
    main(sys.argv[1:])
