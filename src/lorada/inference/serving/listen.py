"""Takes the address that the server will listen at, before a model is loaded."""

import os
import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 is any free one.

    Raises:
        ValueError: if the address is taken, or not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else error  # names that are none have others
        raise ValueError(
            f"cannot listen at {host} port {port}: {reason}; choose another"
        ) from error


def address_of(at: socket.socket) -> str:
    """The address of a socket for a browser."""
    host, port = at.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
