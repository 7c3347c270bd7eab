"""`radfm` for the commands of the documents: one process imports everything, and forks a child for each command.

Decisions:
- Starting Python and importing torch takes longer than most commands, and there are about a hundred. Each still is a
  process of its own, in its own folder, with the shell's own files as standard input, output and error.
- Long things are made short here and nowhere else: see `SHORTER`. The documents say what a reader wants to type.
- `radfm serve` ends when it has had a visitor.
- The Hugging Face Hub of all commands is a stand-in, which runs here. How it is reached lies beside the socket.
"""

import io
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Thread

SIDE = 64  # of pictures
CASES = 1500 if "RADFM_SLOW" in os.environ else 60  # of phantoms; some disorders are rare
_DRAWN = [f"--cases={CASES}", f"--size={SIDE}", "--max-slices=4", "--processes=1", "--fractions=0.3,0.4,0.3"]
_STEPS = ["training.max_steps=2", "training.save_steps=2", "training.eval_strategy=no", "training.warmup_steps=1"]
FOLD = 4  # of the ontology in ../shared, which has no term of fold 0
# The command that a line begins with -> what is added to it. An option, or a key of a config, that comes last counts.
SHORTER = {
    ("prepare", "phantoms"): _DRAWN,
    ("train", "text"): [*_STEPS, "hierarchy_pairs=64", "training.per_device_train_batch_size=8", f"held_out={FOLD}"],
    ("train", "diagnosis"): [*_STEPS, "slices_per_step=16", "training.report_to=[]"],
    ("finetune",): ["training.max_steps=2"],
    ("evaluate", "saliency"): ["--limit=2"],
}
SHORT = f"""#!{sys.executable}
import sys
sys.path.append({str(Path(__file__).parent)!r})
from radfm_server import shorter
from radfm.cli import main
sys.argv[1:] = shorter(sys.argv[1:])
if __name__ == "__main__":
    main()
"""  # the same without the server, for who has a radfm of their own
TEMPLATE = ("prepare", "manifest", "--template")  # its user fills it in: the rows of this file in the folder are added
FILLED_IN = Path("filled_in.csv")

HUB = "hub.json"  # the environment of who talks to the stand-in

CLIENT = f"""#!{sys.executable} -ISs
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ["RADFM_SERVER"])
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.recv(8) or 70))  # nothing: the child died
"""


def serve(address: str) -> None:
    """Answers commands at a Unix socket until it is killed."""
    sys.path.append(str(Path(__file__).parents[1] / "radfm"))
    import hub

    with hub.running() as stand_in:
        environment = stand_in.environment(Path(address).with_name("home"))
        Path(address).with_name(HUB).write_text(json.dumps(environment))
        os.environ.update(environment)  # before anything of Hugging Face is imported, which reads it once
        stand_in.repos["organisation/name"] = {"data/train-00000-of-00001.parquet": _pictures()}
        _serve(address)


def _pictures() -> bytes:
    """A data set of labelled pictures."""
    import datasets
    import numpy as np
    from PIL import Image

    rng, count = np.random.default_rng(0), 20
    columns = {
        "image": [Image.fromarray(rng.integers(0, 255, (SIDE, SIDE), np.uint8)) for _ in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["Glioma", "Meningioma"])}
    file = io.BytesIO()
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(file)
    return file.getvalue()


def _serve(address: str) -> None:
    import torch  # noqa: F401  before the fork, as all that most commands import
    import transformers  # noqa: F401

    from radfm import cli, modeling_radfm, pipeline_radfm, starting_points  # noqa: F401
    from radfm.eval import diagnosis  # noqa: F401
    from radfm.train import finetune  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        size, files, _, _ = socket.recv_fds(client, 4, 3)
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request = client.makefile("rb").read(int.from_bytes(size))
            client.sendall(str(_answer(*json.loads(request), files)).encode())
            os._exit(0)
        for file in files:
            os.close(file)
        client.close()


def shorter(arguments: list[str]) -> list[str]:
    """A command with what makes it short; `--help` and its like stay as they are."""
    for beginning, added in SHORTER.items():
        if tuple(arguments[: len(beginning)]) == beginning and "--help" not in arguments:
            return [*arguments, *added]
    return arguments


def _answer(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> int:
    from radfm.cli import main

    os.chdir(folder)
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.argv = ["radfm", *shorter(arguments)]
    if arguments[:1] == ["serve"]:
        sys.argv.append(f"--port={(port := _free_port())}")
        Thread(target=_visit, args=[port], daemon=True).start()
    try:
        main()
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:  # as Python itself would, which is not asked here
        sys.excepthook(*sys.exc_info())
        status = 1
    if tuple(arguments[:3]) == TEMPLATE and FILLED_IN.exists():
        print(FILLED_IN.read_text(), end="")
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def _visit(port: int) -> None:
    """Asks for the page until it is there, then stops the server, as Ctrl+C does."""
    answer = None
    while answer != 200:
        time.sleep(0.2)
        with suppress(OSError, HTTPException):
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            answer = connection.getresponse().status
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    serve(sys.argv[1])
