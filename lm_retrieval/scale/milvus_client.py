"""Connections to Milvus: addresses, errors as this package says them, and closing what was opened."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lm_retrieval.errors import ConfigError, IndexFormatError, LmRetrievalError, MissingExtraError, StorageError

CONNECT_SECONDS = 5
CALL_SECONDS = 60
LOAD_SECONDS = 1800
TOKEN_VARIABLE = "MILVUS_TOKEN"
FILE_SUFFIX = ".db"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")

# they write a traceback for every error, also for those that are raised, and told by us
_TALKATIVE = ("pymilvus", "milvus_lite", "grpc._server")  # the last is the server of Milvus Lite, in this process
# Milvus Lite hangs up on a client that asks whether it is alive as often as pymilvus does
_LITE_CHANNEL = {"grpc.keepalive_time_ms": 2**31 - 1}
_opened: dict[Path, int] = {}
"""How many connections of this process use a file: Milvus Lite holds it until it is told to stop."""
_opening = threading.Lock()


class Address(NamedTuple):
    """Where a collection is: a file or the URL of a server, and its name there; None where none was said."""

    uri: str
    collection: str | None

    def __str__(self) -> str:
        """Without a password: it stands in messages."""
        where = re.sub(r"(?<=://)[^/@]*@", "", self.uri)
        return f"milvus+{where}" + (f"#{self.collection}" if self.collection else "")

    @property
    def name(self) -> str:
        """The collection, else the file or the host."""
        return self.collection or (Path(self.uri).stem if "://" not in self.uri else urlsplit(self.uri).hostname or "")

    @property
    def file(self) -> Path | None:
        """The file of Milvus Lite."""
        return None if "://" in self.uri else Path(self.uri).resolve()


def parse_address(text: str) -> Address:
    """`URI#COLLECTION`, or a URI alone.

    Raises:
        ConfigError: neither a URL nor a file that Milvus Lite takes, or not the name of a collection.
    """
    uri, _, collection = text.partition("#")
    address = Address(uri, collection or None)
    if "://" in uri:
        if urlsplit(uri).scheme not in ("http", "https", "tcp", "unix"):
            raise ConfigError(f"{address}: not the URL of a Milvus server; write http://HOST:PORT or https://HOST:PORT")
    elif not uri.endswith(FILE_SUFFIX) or uri == FILE_SUFFIX:
        raise ConfigError(f"{address}: the file of Milvus Lite must end in {FILE_SUFFIX}, and a server begin with http")
    if collection and not _NAME.fullmatch(collection):
        raise ConfigError(
            f"'{collection}' cannot be the name of a collection; use letters, digits and '_', and no digit first"
        )
    return address


def default_collection(name: str) -> str:
    """The name of an index as that of a collection."""
    found = re.sub(r"[^A-Za-z0-9_]", "_", name)[:255]
    return found if _NAME.fullmatch(found) else f"_{found}"[:255]


class Connection:
    """An open client.

    Attributes:
        address: of what it is a client.
        client: pymilvus's own.
        server: the server's name and version.
    """

    def __init__(self, address: Address) -> None:
        """Connects, within some seconds.

        Raises:
            MissingExtraError: pymilvus or milvus-lite is not installed.
            StorageError: the server does not answer, or the file is in use or cannot be written.
            IndexFormatError: the file is damaged.
        """
        try:
            import pymilvus
        except ImportError:
            raise MissingExtraError("Milvus", extra="milvus") from None
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.address = address
        self._file = address.file
        token = os.environ.get(TOKEN_VARIABLE, "")
        if self._file is None:
            with milvus_errors(address):
                self.client = pymilvus.MilvusClient(address.uri, token=token, timeout=CONNECT_SECONDS)
                self.server = f"Milvus {self.client.get_server_version(timeout=CONNECT_SECONDS)}"
            return
        _check_file(self._file, address)
        with _opening:
            with _lite_errors(self._file, address), milvus_errors(address):
                self.client = pymilvus.MilvusClient(
                    str(self._file), timeout=CONNECT_SECONDS, grpc_options=_LITE_CHANNEL
                )
                version = str(self.client.get_server_version())
            _opened[self._file] = _opened.get(self._file, 0) + 1
        self.server = f"Milvus Lite {version.rpartition('-')[2]}"

    def close(self) -> None:
        """Ends the connection; the last one of a file lets other processes have it."""
        client, self.client = self.client, None
        if client is None:
            return
        with contextlib.suppress(Exception):  # whatever the server says, we are gone
            client.close()
        if self._file is None:
            return
        with _opening:
            _opened[self._file] -= 1
            if not _opened[self._file]:
                del _opened[self._file]
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(str(self._file))

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def milvus_errors(address: Address) -> Iterator[None]:
    """Turns what Milvus says into an error with advice."""
    try:
        import grpc
        from pymilvus.exceptions import MilvusException
    except ImportError:
        raise MissingExtraError("Milvus", extra="milvus") from None
    try:
        yield
    except LmRetrievalError:
        raise
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise _explain(error, address) from error


def _explain(error: Exception, address: Address) -> LmRetrievalError:
    said = " ".join(str(getattr(error, "message", "") or error).split())[:300]
    lowered = said.lower()
    if any(word in lowered for word in ("fail connecting", "unavailable", "failed to connect", "connection refused")):
        return StorageError(f"{address}: Milvus does not answer; check the address, and that the server runs")
    if "deadline" in lowered or "timeout" in lowered or "timed out" in lowered:
        return StorageError(f"{address}: Milvus did not answer in time ({said}); look at the server, then try again")
    if any(word in lowered for word in ("unauthenticated", "auth check", "permission", "privilege")):
        return StorageError(f"{address}: Milvus refused ({said}); set {TOKEN_VARIABLE} to a token, or to user:password")
    if "not found" in lowered and "collection" in lowered:
        return IndexFormatError(f"{address}: no such collection; load one with `lmr index INDEX --backend milvus`")
    if address.file is not None and ("parquet" in lowered or "arrow" in lowered):
        return IndexFormatError(f"{address}: damaged ({said}); delete {address.file} and load again")
    return IndexFormatError(f"{address}: Milvus refused: {said}")


def _check_file(file: Path, address: Address) -> None:
    try:
        import milvus_lite  # noqa: F401
    except ImportError:
        raise MissingExtraError("a file of Milvus Lite", extra="milvus") from None
    if not file.parent.is_dir():
        raise StorageError(f"{address}: no such folder {file.parent}; make it, or check the path")
    if file.exists() and not file.is_dir():
        raise IndexFormatError(f"{address}: not a file of Milvus Lite (it keeps a folder of that name); choose another")


@contextlib.contextmanager
def _lite_errors(file: Path, address: Address) -> Iterator[None]:
    """Milvus Lite logs why it cannot start and raises nothing that says it: we listen, and nobody else does."""
    heard: list[BaseException] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                heard.append(record.exc_info[1])

    logger = logging.getLogger("milvus_lite.server_manager")
    listener, propagates, level = Listener(), logger.propagate, logger.level
    logger.addHandler(listener)
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    except LmRetrievalError as error:
        if not heard:
            raise
        reason = heard[0]
        if type(reason).__name__ == "DataDirLockedError":
            message = f"{address}: another process uses this file; wait for it, or stop it"
            raise StorageError(message) from error
        if isinstance(reason, OSError):
            raise StorageError(f"{address}: {reason.strerror or reason}; check the path and its permissions") from error
        message = (
            f"{address}: damaged, or written by another version of Milvus Lite ({reason}); delete it and load again"
        )
        raise IndexFormatError(message) from error
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagates
        logger.setLevel(level)


def as_dict(value: Any) -> dict[str, Any]:
    """What pymilvus returns as a mapping."""
    return dict(value) if value else {}
