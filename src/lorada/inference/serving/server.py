"""Takes the address that a server listens at, and runs an application until it is told to stop."""

import logging
import os
import signal
import socket

import uvicorn
from starlette.applications import Starlette

LAST = 600  # seconds, at the end, for requests that still run


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 is any free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error  # names that are none have others
        raise ValueError(
            f"cannot listen at {host} port {port}: {reason}; choose another"
        ) from error


def address_of(at: socket.socket) -> str:
    """The address of a socket for a browser."""
    host, port = at.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_until_stopped(app: Starlette, at: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, and then those that run, for ``LAST`` seconds."""
    # Its line for each request goes to the error stream, as all else that is no answer.
    uvicorn.config.LOGGING_CONFIG["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config = uvicorn.Config(
        app, log_level="warning", server_header=False, timeout_graceful_shutdown=LAST
    )
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    # uvicorn raises the signal again once it has shut down; the command has ended well then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[at])
