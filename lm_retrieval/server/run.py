"""Serving an application until it is told to stop."""

import logging
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from lm_retrieval.errors import ConfigError
from lm_retrieval.server.settings import ServerSettings

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients (httpx 5 s, nginx 60 s) keep one, so that they close it
and no request meets a connection that is being closed."""


def serve(app: FastAPI, settings: ServerSettings, *, announce: Callable[[str], None]) -> None:
    """Answers requests until SIGINT or SIGTERM, then finishes what is running.

    Args:
        app: the application.
        settings: its settings.
        announce: is told the address once connections are accepted.

    Raises:
        ConfigError: the address cannot be used.
    """
    if not settings.local and settings.api_key is None:
        logger.warning(
            "warning: %s can be reached from other machines and needs no key; set LMR_API_KEY", settings.host
        )
    listening = listen(settings)
    announce(f"http://{_shown_host(settings.host)}:{listening.getsockname()[1]}")
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


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
