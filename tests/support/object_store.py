"""An object store on this machine for tests: moto's server, which speaks S3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

BUCKET = "corpus"


@contextmanager
def serve(**variables: str) -> Iterator[Any]:
    """A store with the empty bucket `BUCKET` while the block runs, to which the environment leads; the server.

    Its state is that of the process: a second server serves the same buckets.
    """
    boto3, s3fs = map(pytest.importorskip, ("boto3", "s3fs"))
    ThreadedMotoServer = pytest.importorskip("moto.server").ThreadedMotoServer  # noqa: N806
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    with mock.patch.dict(os.environ, settings | variables):
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        try:
            yield server
        finally:
            server.stop()
            s3fs.S3FileSystem.clear_instance_cache()
