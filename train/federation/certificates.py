"""Kits: what a server and its sites need to trust each other, by the certificates of NVIDIA FLARE.

Decisions:
- One kit each: the certificate of the federation's authority, an own certificate with the name of the site, its key,
  and the address of the server. Both ends of a connection show their certificate (mutual TLS).
- The key of the authority is not kept. A site that joins later needs new kits for all.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key

from radfm.data_prep.tables import write_text

SERVER = "server"
_AUTHORITY, _CERTIFICATE, _KEY, _FACTS = "authority.pem", "certificate.pem", "key.pem", "kit.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class Kit:
    """A kit as it was read: `name` of the site, or `SERVER`; `address` of the server, such as "localhost:8002"."""

    folder: Path
    name: str
    address: str

    @classmethod
    def load(cls, folder: Path) -> "Kit":
        """Raises: ValueError: the folder holds no kit."""
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(f"{folder} is no kit: radfm federate kits writes one for each site") from None
        return cls(folder, facts["name"], facts["address"])

    @property
    def credentials(self) -> dict[str, str]:
        """As a cell of NVIDIA FLARE takes them."""
        side = "server" if self.name == SERVER else "client"
        files = {"ca_cert": _AUTHORITY, f"{side}_cert": _CERTIFICATE, f"{side}_key": _KEY}
        return {name: str(self.folder / file) for name, file in files.items()}


def write_kits(out: Path, host: str, port: int, sites: Sequence[str], days: int = 360) -> list[Path]:
    """Writes a folder for the server and for each site, and returns them.

    Args:
        host: name of the server's machine, as the sites reach it.
        days: that the certificates are valid.
    Raises:
        ValueError: a name of a site cannot be used or comes twice, or the folder exists.
    """
    for name in sites:
        if not _NAME.fullmatch(name) or name == SERVER or sites.count(name) > 1:
            raise ValueError(
                f"{name!r} cannot be the name of a site: use each name once, of small letters, digits and hyphens, and "
                f"not {SERVER!r}"
            )
    if out.exists():
        raise ValueError(f"{out} exists: choose another folder, since new kits do not fit to old ones")
    private, public = generate_keys()
    authority = Identity("radfm", "radfm")
    root = generate_cert(authority, authority, private, public, days, ca=True)
    folders = [out / name for name in (SERVER, *sites)]
    for folder in folders:
        folder.mkdir(parents=True)
        own_private, own_public = generate_keys()
        own_host = host if folder.name == SERVER else None
        own = generate_cert(
            Identity(folder.name, "radfm"), authority, private, own_public, days, server_default_host=own_host
        )
        (folder / _AUTHORITY).write_bytes(serialize_cert(root))
        (folder / _CERTIFICATE).write_bytes(serialize_cert(own))
        (folder / _KEY).touch(0o600)
        (folder / _KEY).write_bytes(serialize_pri_key(own_private))
        write_text(folder / _FACTS, json.dumps({"name": folder.name, "address": f"{host}:{port}"}) + "\n")
    return folders
