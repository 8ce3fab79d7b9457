"""Serving an application until it is told to stop."""

import logging
import socket
import threading
import time
import webbrowser
from collections.abc import Callable

import uvicorn

from lm_retrieval.errors import ConfigError
from lm_retrieval.server.app import create_app
from lm_retrieval.server.served import Served
from lm_retrieval.server.settings import ServerSettings

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients (httpx 5 s, nginx 60 s) keep one, so that they close it
and no request meets a connection that is being closed."""


def serve(settings: ServerSettings, *, announce: Callable[[str], None], show: bool = False) -> None:
    """Answers requests until SIGINT or SIGTERM, then finishes what is running.

    Args:
        settings: of the application.
        announce: is told the address once connections are accepted.
        show: open the web page in a browser when everything is loaded.

    Raises:
        ConfigError: the address cannot be used.
    """
    if not settings.local and settings.api_key is None:
        logger.warning(
            "warning: %s can be reached from other machines and needs no key; set LMR_API_KEY", settings.host
        )
    listening = listen(settings)  # first: an address that is taken is said before anything is loaded
    app = create_app(settings)
    address = f"http://{_shown_host(settings.host)}:{listening.getsockname()[1]}"
    announce(address)
    if show:
        threading.Thread(target=_show, args=(app.state.served, f"{address}/ui/"), daemon=True).start()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    uvicorn.Server(config).run(sockets=[listening])


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that accepts connections at the server's address.

    Raises:
        ConfigError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # named as TCP, or asyncio leaves small packets to wait for each other (40 ms an answer)
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{settings.host}:{settings.port}: {error.strerror or error}; choose another --host or --port"
        ) from error
    return listening


def _show(served: Served, address: str) -> None:
    while served.status == "loading":
        time.sleep(_LOOK_SECONDS)
    webbrowser.open(address)


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
