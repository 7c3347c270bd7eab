"""A stand-in of the Hugging Face Hub on loopback: as much of its HTTP interface as is needed to create, upload and load
a model, and to stream a data set.

Written against what huggingface_hub's client sends and expects (hf_api.py, _commit_api.py, lfs.py, file_download.py),
with Git LFS for large files; HF_HUB_DISABLE_XET=1 tells the client not to look for the other storage.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import yaml

TOKEN = "hf_stand_in"
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "unknown", "other")  # a few of the Hub's


class Hub(ThreadingHTTPServer):
    """
    Attributes:
        repos: "owner/name" -> {path: content}.
        requests: (method, path) of all requests.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # SHA-256 -> content
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home) -> dict[str, str]:
        """For a client that knows no other Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def faults(card: str) -> list[str]:
    """What the Hub's specification has against the head of a card; see huggingface.co/docs/hub/model-cards."""
    head = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    about = yaml.safe_load(head.group(1)) if head else None
    if not isinstance(about, dict):
        return ["the card has no head"]
    errors = []
    if about.get("license") not in LICENCES:
        errors.append(f'"license" is not one of the known: {about.get("license")}')
    for key in ("tags", "metrics"):
        if not all(isinstance(one, str) for one in about.get(key, [])):
            errors.append(f'"{key}" must be a list of strings')
    for model in about.get("model-index", []):
        for result in model["results"]:
            for key in ("task.type", "dataset.type", "dataset.name"):
                group, name = key.split(".")
                if not isinstance(result.get(group, {}).get(name), str):
                    errors.append(f'"model-index[0].results.{key}" is required')
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float):
                    errors.append('"model-index[0].results.metrics" must have type and value')
    return errors


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(_GET)

    def do_HEAD(self):
        self._answer(_GET)

    def do_POST(self):
        self._answer(_POST)

    def do_PUT(self):
        self._answer({r"/large/(\w+)": self.__class__.put})

    def _answer(self, routes) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        path, _, self.query = self.path.partition("?")
        self.server.requests.append((self.command, path))
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                authorization = self.headers.get("Authorization")
                if self.command == "POST" and answer is not _Handler.validate and authorization != f"Bearer {TOKEN}":
                    return self._send(401, {"error": "Invalid credentials in Authorization header"})
                return answer(self, *match.groups())
        return self._send(404, {"error": f"{self.command} {path} is not known"})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repo(self, name: str) -> dict[str, bytes] | None:
        if (repo := self.server.repos.get(name)) is None:
            self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repo

    def create(self) -> None:
        request = json.loads(self.body)
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] == "somebody-else":
            return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return self._send(status, {"url": f"{self.server.url}/{name}", "name": name, "id": "1"})

    def validate(self) -> None:
        errors = faults(json.loads(self.body)["content"])
        self._send(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def preupload(self, name: str) -> None:
        files = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False, "oid": None}
            for one in json.loads(self.body)["files"]
        ]  # fmt: skip
        self._send(200, {"files": files})

    def batch(self, name: str) -> None:
        objects = [
            {"oid": one["oid"], "size": one["size"],
             "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]  # fmt: skip
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self._send(400, {"error": "the content is not what its SHA-256 says"})
        self.server.large[digest] = self.body
        return self._send(200, {})

    def commit(self, name: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                repo[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                repo[value["path"]] = self.server.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del repo[value["path"]]
        self._send(200, {"commitUrl": f"{self.server.url}/{name}/commit/{_sha(repo)}", "commitOid": _sha(repo)})

    def info(self, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) is not None:
            files = [{"rfilename": path} for path in sorted(repo)]
            self._send(200, {"id": name, "sha": _sha(repo), "private": False, "tags": [], "siblings": files})

    def tree(self, name: str, folder: str = "") -> None:
        if (repo := self._repo(name)) is None:
            return None
        top = f"{folder}/" if folder else ""
        inside = {path: content for path, content in sorted(repo.items()) if path.startswith(top)}
        if folder and not inside:
            return self._send(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in inside.items()
            if "recursive=true" in self.query.lower() or "/" not in path.removeprefix(top)
        ]
        folders = dict.fromkeys(top + below.partition("/")[0] for path in inside if "/" in (below := path[len(top) :]))
        return self._send(200, [{"type": "directory", "path": path, "oid": _sha(repo)} for path in folders] + files)

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None:
            return None
        if path not in repo:
            return self._send(404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=_sha(repo))
        content = repo[path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        more = {"Content_Type": "application/octet-stream", "X_Repo_Commit": _sha(repo), "ETag": etag}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            place = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[first : last + 1], Content_Range=place, **more)
        return self._send(200, content, **more)


def _sha(repo: dict[str, bytes]) -> str:
    """Of the newest commit; here all there is."""
    digest = hashlib.sha1()
    for path, content in sorted(repo.items()):
        digest.update(path.encode() + hashlib.sha1(content).digest())
    return digest.hexdigest()


_REPO = r"([\w.-]+/[\w.-]+)"
_EITHER = rf"/api/(?:models|datasets)/{_REPO}"
_GET = {
    rf"{_EITHER}(?:/revision/(\w+))?": _Handler.info,
    rf"{_EITHER}/tree/\w+(?:/(.+))?": lambda self, name, folder=None: self.tree(name, folder or ""),
    rf"/(?:datasets/)?{_REPO}/resolve/(\w+)/(.+)": _Handler.resolve,
}
_POST = {
    r"/api/repos/create": _Handler.create,
    r"/api/validate-yaml": _Handler.validate,
    rf"/api/models/{_REPO}/preupload/\w+": _Handler.preupload,
    rf"/{_REPO}\.git/info/lfs/objects/batch": _Handler.batch,
    rf"/api/models/{_REPO}/commit/\w+": _Handler.commit,
}
