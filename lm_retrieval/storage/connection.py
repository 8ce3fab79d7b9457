"""File systems of `pyarrow.fs`, opened once each, and their errors in words.

pyarrow finds credentials and the region itself (AWS_ACCESS_KEY_ID, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS, …);
endpoints are read here. Timeouts are short, so that a typo is told in seconds.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_retrieval.errors import StorageError

_CONNECT_SECONDS = 2.5
_REQUEST_SECONDS = 20.0
_ATTEMPTS = 3
_PROBE_SECONDS = 3.0
_GCS_SECONDS = 8.0
_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


def file_system(scheme: str, authority: str) -> Any:
    """The file system of a bucket or name node.

    Raises:
        StorageError: it cannot be opened, for example HDFS without Hadoop's libraries.
    """
    return _open(scheme, authority, tuple(os.environ.get(name) for name in _VARIABLES))


@lru_cache(maxsize=16)
def _open(scheme: str, authority: str, environment: tuple[str | None, ...]) -> Any:
    openers: dict[str, Callable[[str], Any]] = {"s3": _open_s3, "gs": _open_gcs, "hdfs": _open_hdfs}
    with remote_errors(f"{scheme}://{authority}"):
        try:
            return openers[scheme](authority)
        except ImportError as error:
            raise StorageError(f"{scheme}: this build of pyarrow cannot open it; pip install pyarrow") from error


def _open_s3(bucket: str) -> Any:
    from pyarrow import fs

    options: dict[str, Any] = {}
    address = endpoint("s3")
    if address is not None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise StorageError(f"AWS_ENDPOINT_URL={address}: an address such as http://127.0.0.1:9000 is needed")
        options = {"endpoint_override": parts.netloc + parts.path.rstrip("/"), "scheme": parts.scheme}
        if not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
            options["region"] = "us-east-1"
    else:
        with suppress(OSError):  # the request itself will say what is wrong
            options["region"] = fs.resolve_s3_region(bucket)
    _probe(fs.S3FileSystem(**_patience(_PROBE_SECONDS, 2), **options), bucket)
    return fs.S3FileSystem(**_patience(_REQUEST_SECONDS, _ATTEMPTS), **options)


def _patience(seconds: float, attempts: int) -> dict[str, Any]:
    from pyarrow import fs

    strategy = fs.AwsStandardS3RetryStrategy(max_attempts=attempts)
    return {"connect_timeout": _CONNECT_SECONDS, "request_timeout": seconds, "retry_strategy": strategy}


def _probe(store: Any, bucket: str) -> None:
    """Asks once with little patience, which is enough to hear whether anybody answers, but not for large files."""
    try:
        store.get_file_info(bucket)
    except OSError as error:
        if any(word in str(error) for word in _UNREACHABLE):
            raise


def _open_gcs(bucket: str) -> Any:
    from pyarrow import fs

    options: dict[str, Any] = {}
    address = endpoint("gs")
    if address is not None:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        options = {"anonymous": True, "endpoint_override": parts.netloc, "scheme": parts.scheme}
    return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_GCS_SECONDS), **options)


def _open_hdfs(authority: str) -> Any:
    from pyarrow import fs

    return fs.FileSystem.from_uri(f"hdfs://{authority}/")[0]


def endpoint(scheme: str) -> str | None:
    """The address that the environment gives for a kind of store; None for the provider's own."""
    names = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "gs": ("STORAGE_EMULATOR_HOST",)}.get(scheme, ())
    return next((value for name in names if (value := os.environ.get(name))), None)


def _shown_endpoint(scheme: str) -> str:
    address = endpoint(scheme)
    return "the store" if address is None else re.sub(r"//[^/@]*@", "//", address)


@contextmanager
def remote_errors(uri: object) -> Iterator[None]:
    """Turns what a store says about `uri` into a StorageError with advice."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{uri}: {_explain(error, str(uri).partition('://')[0])}") from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise StorageError(f"{uri}: {_scrubbed(error)}") from error


def _explain(error: OSError, scheme: str) -> str:
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file or folder; check the name"
    for words, reason in (
        (
            ("libjvm", "libhdfs"),
            "HDFS needs Java and Hadoop; install them and set JAVA_HOME, HADOOP_HOME and CLASSPATH",
        ),
        (("NO_SUCH_BUCKET", "bucket does not exist"), "no such bucket; check the name"),
        (("NO_SUCH_KEY", "NOT_FOUND"), "no such file or folder; check the name"),
        (_DENIED, f"access denied; {_credentials(scheme)}"),
        (
            _UNREACHABLE,
            f"{_shown_endpoint(scheme)} cannot be reached; check {_CHECK.get(scheme, 'the address')}",
        ),
    ):
        if any(word in text for word in words):
            return reason
    return _scrubbed(error)


_DENIED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_SIGNATURE",
    "UNRECOGNIZED_CLIENT",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "OAuth2 access token",
    "HTTP status 403",
    "HTTP response code: 403",
    "ExpiredToken",
)
_UNREACHABLE = ("NETWORK_CONNECTION", "curlCode", "CURL error", "REQUEST_TIMEOUT", "Connection refused")
_CHECK = {"s3": "AWS_ENDPOINT_URL and the network", "gs": "the network", "hdfs": "the name node's address"}


def _credentials(scheme: str) -> str:
    """What to do about credentials."""
    if scheme == "gs":
        return "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run on a machine with a service account"
    if scheme != "s3":
        return "check the permissions"
    stored = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser().is_file()
    if not os.environ.get("AWS_ACCESS_KEY_ID") and not os.environ.get("AWS_PROFILE") and not stored:
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE) and what they allow"


def _scrubbed(error: Exception) -> str:
    """One line of the store's own words, without anything secret."""
    text = " ".join(str(error).split()).partition(" (Request ID")[0]
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return text
