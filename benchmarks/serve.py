"""Memory and disk that `radfm serve` uses, for one visitor and for twenty at the same time.

    python benchmarks/serve.py                       # twenty visitors with CTs of 60 slices, 512 x 512
    python benchmarks/serve.py --slices 500 --visitors 5

The server runs as a process of its own. Every visitor sends a synthetic CT as NIfTI and waits for the answer. What is
printed: memory of the idle server, peak memory and memory kept for one study, and peak memory, peak disk use and
duration for all visitors together. Memory is the proportional set size (PSS) of the server and of the processes that
read studies, in which shared pages are counted once. It is sampled ten times a second from /proc, so on Linux only.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import nibabel
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="radfm-phantom-mini", help="folder or name of a checkpoint")
    parser.add_argument("--visitors", type=int, default=20, help="number of simultaneous visitors (default: 20)")
    parser.add_argument("--slices", type=int, default=60, help="slices of each study (default: 60)")
    arguments = parser.parse_args()
    body = study(arguments.slices)
    print(f"A study: CT, {arguments.slices} slices of 512 x 512, {len(body) / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "radfm.cli", "serve", "--model", arguments.model, "--port", str(port)]
        command += ["--timeout", "1800"]
        server = subprocess.Popen(command, env=os.environ | {"TMPDIR": temporary}, stdout=subprocess.DEVNULL)
        try:
            measure(server, f"http://127.0.0.1:{port}/", body, arguments.visitors, Path(temporary))
        finally:
            server.terminate()
            server.wait()
        left = sum(1 for path in Path(temporary).rglob("*") if path.is_file())
        print(f"Files left after the server has ended: {left}")


def measure(server: subprocess.Popen, url: str, body: bytes, visitors: int, temporary: Path) -> None:
    wait_for(server, url)
    with Watch(server.pid, temporary) as watch:
        print(f"Idle server: {watch.now():,.0f} MB")
        visit(url, body)  # the first study loads tables that stay in memory
        before = watch.restart()
        tokens = [visit(url, body)]
        print(
            f"One study: peak {watch.peak:,.0f} MB, of which up to {watch.peak_server:,.0f} MB in the server and up to "
            f"{watch.peak_reader:,.0f} MB in the process that reads it; kept afterwards {watch.now() - before:,.0f} MB"
        )
        watch.restart()
        started = time.perf_counter()
        threads = [threading.Thread(target=lambda: tokens.append(visit(url, body))) for _ in range(visitors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        answered = sum(token is not None for token in tokens) - 1
        print(
            f"{visitors} studies at once: {answered} answered in {seconds:,.0f} s; peak {watch.peak:,.0f} MB, of which "
            f"up to {watch.peak_server:,.0f} MB in the server and up to {watch.peak_reader:,.0f} MB in the processes "
            f"that read them; peak on disk {watch.peak_disk:,.0f} MB"
        )
        print(f"Kept for {visitors + 2} open pages: {watch.now():,.0f} MB; files on disk: {watch.files()}")


def study(slices: int) -> bytes:
    """The body of a request, as `radfm.serve.intake` documents it: a noisy cylinder, which hardly compresses."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(rows**2 + columns**2 < 0.7, 40, -1000).astype(np.int16)
    voxels = body[..., None] + random.integers(-60, 60, (512, 512, slices), np.int16)
    volume = nibabel.Nifti1Image(voxels, np.diag([-0.8, -0.8, 2.0, 1.0])).to_bytes()
    return json.dumps({"files": [["1.nii", len(volume)]], "modality": "CT"}).encode() + b"\n" + volume


def visit(url: str, body: bytes) -> str | None:
    """The token of a study that was answered; None if it was refused."""
    token = json.loads(post(url + "study", body))["study"]
    with urllib.request.urlopen(urllib.request.Request(url + "progress", headers={"X-Study": token})) as events:
        last = [json.loads(line[6:]) for line in events if line.startswith(b"data: ")][-1]
    if last["stage"] != "answered":
        print(f"refused: {last['reason']}")
        return None
    return token


def post(address: str, body: bytes) -> bytes:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return response.read()


def wait_for(server: subprocess.Popen, url: str) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


class Watch:
    """Samples memory and disk use of the server and its processes, and keeps the peaks since `restart`, in MB."""

    def __init__(self, pid: int, temporary: Path):
        self.pid, self.temporary, self.ended = pid, temporary, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self.restart()
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    def restart(self) -> float:
        self.peak = self.peak_server = self.peak_reader = self.peak_disk = 0.0
        return self.now()

    def now(self) -> float:
        """The current memory in MB. It also updates the peaks."""
        readers = {pid for task in Path(f"/proc/{self.pid}/task").iterdir() for pid in _text(task / "children").split()}
        server, reading = _megabytes(self.pid), sum(map(_megabytes, readers))
        self.peak = max(self.peak, server + reading)
        self.peak_server, self.peak_reader = max(self.peak_server, server), max(self.peak_reader, reading)
        return server + reading

    def files(self) -> int:
        """Number of files of the server on disk."""
        return sum(1 for _ in self._files())

    def _files(self):
        return (path for path in self.temporary.rglob("*") if path.is_file())

    def _watch(self) -> None:
        while not self.ended.wait(0.1):
            try:
                self.now()
                self.peak_disk = max(self.peak_disk, sum(path.stat().st_size for path in self._files()) / 1e6)
            except OSError:  # a process or file disappeared in the meantime
                continue


def _megabytes(pid: int | str) -> float:
    lines = _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""


if __name__ == "__main__":
    main()
