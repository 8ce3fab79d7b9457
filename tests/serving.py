"""A real server on a loopback port, in a thread of the test process."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from lm_retrieval.server.app import create_app
from lm_retrieval.server.run import listen
from lm_retrieval.server.served import Served
from lm_retrieval.server.settings import ServerSettings


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    app: FastAPI
    client: httpx.Client

    @property
    def served(self) -> Served:
        served = self.app.state.served
        assert isinstance(served, Served)
        return served

    def metric(self, name: str) -> float:
        """The value of a line of /metrics."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


@contextmanager
def serving(settings: ServerSettings, *, wait: bool = True) -> Iterator[Running]:
    """Serves until the block ends; with `wait` everything is loaded when it begins."""
    with ThreadPoolExecutor(1) as pool:
        app = pool.submit(asyncio.run, _created(settings)).result()
    listening = listen(settings.model_copy(update={"port": 0}))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            eventually(lambda: server.started)
            if wait:
                eventually(lambda: client.get("/health").json()["status"] != "loading")
            yield Running(url, app, client)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


async def _created(settings: ServerSettings) -> FastAPI:
    """In a loop: gradio would otherwise open one and leave it."""
    return create_app(settings)


def settings_of(models: dict[str, Path | str], **options: Any) -> ServerSettings:
    """Settings for tests: these models, no index unless given."""
    return ServerSettings.model_validate(
        {"models": tuple((name, str(path)) for name, path in models.items()), "device": "cpu", **options}
    )


def eventually(holds: Any, *, seconds: float = 20) -> None:
    """Waits until `holds()` is true."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def error_of(response: httpx.Response, status: int) -> dict[str, str]:
    """The error of an answer, whose shape is checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code"}
    assert all(isinstance(value, str) and value for value in body["error"].values())
    error: dict[str, str] = body["error"]
    return error
