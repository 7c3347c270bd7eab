"""The `radfm` of the documents: the same program, with options and config keys that shorten long commands.

The documents do not show these. `SHORTER` has all of them. In addition, `serve` ends after its page was loaded once.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Thread

SIDE = 64  # pixels, side of the pictures
CASES = 1500 if "RADFM_SLOW" in os.environ else 60  # number of phantoms: slow blocks need cases of rare disorders
FOLD = 4  # the ontology in ../shared has no term in fold 0
_PHANTOMS = [f"--cases={CASES}", f"--size={SIDE}", "--max-slices=4", "--processes=1", "--fractions=0.3,0.4,0.3"]
_STEPS = ["training.max_steps=2", "training.save_steps=2", "training.eval_strategy=no", "training.warmup_steps=1"]
_FEDERATION = [
    *("federation.rounds=1", "federation.steps=1", "sampling.slices_per_step=8", "model.tower_weights=null"),
    "model.architecture.vision_config={family: resnet, tower: test_resnet, image_size: 32}",
]
_STUDY = ["training.max_steps=1", "training.save_steps=1", "training.warmup_steps=1", "sampling.slices_per_step=8"]
# First words of a command -> arguments that are appended. If an option or a key is given twice, the last one counts.
SHORTER = {
    ("prepare", "phantoms"): _PHANTOMS,
    ("train", "text"): [
        *_STEPS,
        "data.hierarchy_pairs=64",
        "training.per_device_train_batch_size=8",
        f"data.held_out={FOLD}",
    ],
    ("train", "diagnosis"): [*_STEPS, "sampling.slices_per_step=16", "training.report_to=[]"],
    ("train", "autoencoder"): [
        *("training.max_steps=2", "training.batch_size=4", "training.warmup_steps=1"),
        *("model.size=32", "model.channels=[8,8]", "objectives.adversarial_from=0.5"),
    ],
    ("train", "latent-classifier"): [*_STEPS, "sampling.slices_per_step=16", "training.report_to=[]"],
    ("train", "diffusion"): [
        *("training.max_steps=2", "training.batch_size=4", "training.warmup_steps=1"),
        "model.arguments={block_out_channels: [16, 16]}",
    ],
    ("prepare", "synthetic"): ["--per-disorder=1", "--steps=2", "--threshold=0", "--rank=133", "--processes=1"],
    ("evaluate", "learnability"): [*_STUDY, "training.report_to=[]", "--seeds=1"],
    ("evaluate", "augmentation"): [*_STUDY, "training.report_to=[]", "--seeds=1"],
    ("evaluate", "course"): ["--bootstraps=20", "--seeds=1"],
    ("evaluate", "transfer"): ["--method=linear", "--least=5", "--bootstraps=20", "training.report_to=[]"],
    ("evaluate", "sharing"): ["--limit=20", "--bootstraps=20"],
    ("evaluate", "anomaly"): ["--limit=8", "--bootstraps=20", "--training-cases=8", "--slices=2"],
    ("evaluate", "denoising"): ["--limit=4", "--bootstraps=20", "--strength=0.1"],
    ("federate", "simulate"): [*_FEDERATION, "--least-cases=2", "--bootstraps=20"],
    ("federate", "kits"): [f"--port={20000 + os.getpid() % 20000}"],
    ("federate", "server"): _FEDERATION,
    ("evaluate", "selection"): ["--labels=4,8", "--seeds=2", "--limit=30"],
    ("select",): ["--budget=3", "--split=all"],
    ("finetune",): ["training.max_steps=2"],
    ("evaluate", "saliency"): ["--limit=2"],
}
# This command prints a table for users to fill in. Here it also prints the rows of FILLED_IN.
TEMPLATE = ("prepare", "manifest", "--template")
FILLED_IN = Path("filled_in.csv")


def shorter(arguments: list[str]) -> list[str]:
    """The command with the arguments of `SHORTER`. A command with `--help` stays as it is."""
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
    """Loads the page as soon as the server answers, then stops the server as Ctrl+C does."""
    status = None
    while status != 200:
        time.sleep(0.2)
        with suppress(OSError, HTTPException):
            connection = HTTPConnection("127.0.0.1", port, timeout=600)
            connection.request("GET", "/")
            status = connection.getresponse().status
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    # Imports `tests` from the repository, and nothing from the folder of this file.
    sys.path[:] = [*sys.path[1:], str(Path(__file__).parents[2])]
    main(sys.argv[1:])
