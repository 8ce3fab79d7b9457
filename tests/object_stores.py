"""A real S3 API on this machine, for the test modules about object stores."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Store:
    """A server with one bucket; what it holds is looked at through boto3, another client than the package's."""

    BUCKET = "our-notes"

    def __init__(self, server: Any) -> None:
        import boto3

        self.address = "http://{}:{}".format(*server.get_host_and_port())
        self.client = boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing-secret",
        )

    def uri(self, name: str) -> str:
        return f"s3://{self.BUCKET}/{name}"

    def put(self, folder: Path, name: str) -> str:
        """Copies a local folder or file there, as other tools do; returns its URI."""
        files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            key = name if path == folder else f"{name}/{path.relative_to(folder).as_posix()}"
            self.client.put_object(Bucket=self.BUCKET, Key=key, Body=path.read_bytes())
        return self.uri(name)

    def objects(self, name: str) -> dict[str, bytes]:
        """Every object below a name; keys that end in a slash stand for folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.BUCKET, Prefix=f"{name}/")
        keys = [row["Key"] for page in pages for row in page.get("Contents", ()) if row["Key"][-1] != "/"]
        read = self.client.get_object
        return {key.removeprefix(f"{name}/"): read(Bucket=self.BUCKET, Key=key)["Body"].read() for key in keys}

    @contextmanager
    def denied(self, name: str) -> Iterator[None]:
        """The server refuses everything below a name."""
        resource = f"arn:aws:s3:::{self.BUCKET}/{name}/*"
        rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": resource}
        self.client.put_bucket_policy(
            Bucket=self.BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        )
        try:
            yield
        finally:
            self.client.delete_bucket_policy(Bucket=self.BUCKET)


@contextmanager
def running_store() -> Iterator[Store]:
    """Starts the server, empty but for the bucket."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("boto3", reason="needs boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    try:
        store = Store(server)
        store.client.create_bucket(Bucket=Store.BUCKET)
        yield store
    finally:
        server.stop()


def use_store(monkeypatch: pytest.MonkeyPatch, store: Store, cache: Path) -> None:
    """The environment that leads there, and a cache of its own."""
    for name, value in {
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "LMR_CACHE": str(cache),
    }.items():
        monkeypatch.setenv(name, value)
