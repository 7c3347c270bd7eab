"""What server and sites send each other, by a cell of NVIDIA FLARE: mutual TLS, streams, and new connections.

Decisions:
- A message is JSON and tensors of safetensors, or files: nothing that runs code when it is read.
- The layer of cells is used, without the jobs, consoles and processes above it: a federation here is one process at
  each site, and a server that was killed is started again by the same command.
- A cell accepts a name only from the owner of its certificate.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply, new_cell_message
from nvflare.fuel.f3.message import Message
from safetensors.numpy import load, save

from radfm.train.federation.certificates import Kit
from radfm.train.federation.updates import Weights

CHANNEL = "radfm"
JOIN, TRAIN, FINISH = "join", "train", "finish"
ERROR = "error"  # key of the facts of a reply


def cell_of(kit: Kit) -> Cell:
    """Not started."""
    logging.getLogger("nvflare").setLevel(logging.CRITICAL)  # a lost connection is told in one line by radfm
    return Cell(kit.name, f"grpcs://{kit.address}", True, kit.credentials)


def ask(
    cell: Cell, topic: str, sites: list[str], message: dict[str, Any], timeout_s: float
) -> dict[str, dict[str, Any] | str]:
    """Asks several sites at once.

    Args:
        message: of `packed`.
    Returns:
        site -> the message of its reply, or in words why there is none.
    """
    request = new_cell_message({}, message)
    replies = cell.broadcast_request(
        channel=CHANNEL, topic=topic, targets=sites, request=request, timeout=timeout_s, optional=True
    )
    return {site: _content(replies.get(site), timeout_s) for site in sites}


def packed(facts: Mapping[str, Any], weights: Weights | None = None, files: Mapping[str, bytes] | None = None) -> dict:
    return {"facts": json.dumps(facts), "weights": save(weights) if weights else b"", "files": dict(files or {})}


def facts_of(message: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(message["facts"])


def weights_of(message: Mapping[str, Any]) -> Weights:
    """Raises: ValueError: they are damaged."""
    try:
        return load(message["weights"]) if message["weights"] else {}
    except Exception as error:
        raise ValueError(f"the weights cannot be read ({type(error).__name__})") from error


def reply_of(message: dict[str, Any]) -> Message:
    return make_reply(ReturnCode.OK, body=message)


def _content(reply: Message | None, timeout_s: float) -> dict[str, Any] | str:
    code = reply.get_header(MessageHeaderKey.RETURN_CODE) if reply is not None else ReturnCode.COMM_ERROR
    if code == ReturnCode.OK and reply is not None and isinstance(reply.payload, dict):
        return reply.payload
    if code == ReturnCode.TIMEOUT:
        return f"it did not answer within {timeout_s:,.0f} s"
    return (
        "it is not connected"
        if code in (ReturnCode.COMM_ERROR, ReturnCode.TARGET_UNREACHABLE)
        else f"it failed ({code})"
    )
