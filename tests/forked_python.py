"""A Python that starts at once: each process is forked from one that has imported torch, transformers and DeepSpeed.

Starting Python and importing these takes ten seconds of a processor, longer than most commands and trainings of the
tests, and there are more than a hundred. `serving` starts a server that imports them once, and gives a program that
takes the place of `python`: `PROGRAM -m MODULE ...`, `PROGRAM -c CODE ...` and `PROGRAM FILE ...`.

Decisions:
- Each command is a process of its own, with the folder, the environment and the standard files of the program that
  asked for it. What that program had as limits (`resource.setrlimit`) it does not have.
- A process that is forked ends when the program that asked for it ends, also when that is killed.
- `sys.executable` is the program, so that what torchrun and DeepSpeed's launcher start is forked, too. The processes of
  `multiprocessing` start as ever.
- The variables that a library reads when it is imported (`HF_ENDPOINT`, `DS_ACCELERATOR`, ...) are those of the server.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import sleep
from types import ModuleType

import psutil
from filelock import FileLock

CRASHED = 70  # exit status of the program where the process ends without one

PROGRAM = f"""#!{sys.executable} -ISs
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect("SOCKET")
request = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.recv(8) or {CRASHED}))
"""


@contextmanager
def serving(
    folder: Path, environment: Mapping[str, str], first: Path | None = None, keep: bool = False
) -> Iterator[Path]:
    """The path of the program, of a server that works in `folder`. Processes that give the same folder share it.

    Args:
        environment: the server's, when it imports.
        first: a file of Python that the server runs before it imports.
        keep: the server is not ended; the next that gives the same folder finds it.
    """
    program, address = folder / "python", folder / "socket"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not program.exists():
            # A worker of pytest-xdist may end before others do; its parent ends last.
            user = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            command = [sys.executable, __file__, str(address), str(0 if keep else user), str(first or "")]
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
            server = subprocess.Popen(command, cwd=folder, env=dict(environment), start_new_session=True, **pipes)
            if server.stdout.readline() != b"ready\n":
                raise RuntimeError("the server of the forked Python did not start: its errors are above")
            program.write_text(PROGRAM.replace("SOCKET", str(address)))
            program.chmod(0o755)
    yield program


def _serve(address: str, user: int, first: str) -> None:
    """Answers until the process `user` ends; for ever if that is 0."""
    if first:
        runpy.run_path(first, run_name="__main__")
    import deepspeed  # noqa: F401  all that most commands import
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from radfm import cli, modeling_radfm, pipeline_radfm, starting_points  # noqa: F401
    from radfm.eval import diagnosis  # noqa: F401
    from radfm.train import finetune, text  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child becomes a zombie
    print("ready", flush=True)
    if user:
        Thread(target=_end_with, args=[user], daemon=True).start()
    while True:
        client, _ = listener.accept()
        size, files, _, _ = socket.recv_fds(client, 4, 3)
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request = client.makefile("rb").read(int.from_bytes(size))
            Thread(target=_die_with, args=[client], daemon=True).start()
            client.sendall(str(_run(*json.loads(request), files)).encode())
            os._exit(0)
        for file in files:
            os.close(file)
        client.close()


def _end_with(user: int) -> None:
    while Path(f"/proc/{user}").exists():
        sleep(1)
    os._exit(0)


def _die_with(client: socket.socket) -> None:
    client.recv(1)  # which it never sends: this returns when it is gone
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _run(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> int:
    """What `python` does with these arguments: its exit status."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - until the process ends
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.executable, *arguments = arguments
    if arguments[0] == "-u":
        del arguments[0]
    option, *rest = arguments
    try:
        if option == "-m":
            sys.argv = rest
            sys.path.insert(0, folder)
            sys.modules.pop(rest[0], None)  # it runs as __main__, anew
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif option == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.path.insert(0, folder)
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(option).absolute().parent))
            runpy.run_path(option, run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    del sys.path[0]  # this folder, where the folder radfm would be taken for the package
    _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
