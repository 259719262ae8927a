"""Runs an application until it is told to stop; requests that are running then end first."""

import logging
import signal
import socket
import sys

import uvicorn
from starlette.applications import Starlette


def serve_until_stopped(app: Starlette, at: socket.socket, patience: float) -> None:
    """Answer requests until SIGTERM or SIGINT.

    After either, no new requests are taken, and those that are running have ``patience`` seconds to
    end.
    """
    _log()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=int(patience),
    )  # fmt: skip
    # uvicorn raises the signal again once it has shut down; the command has ended well then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[at])


def _log() -> None:
    """A line on the error stream for each request."""
    logger = logging.getLogger("lorada.inference.serving")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
