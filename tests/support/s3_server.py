"""An S3 server in the test's process: moto."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3  # type: ignore[import-untyped]  # it has no types
from botocore.config import Config  # type: ignore[import-untyped]  # see boto3
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS: dict[str, Any] = {
    "access_key_id": "mail",
    "secret_access_key": "hunter2",
    "region": "us-east-1",
}


class S3Server:
    """An S3 server with a bucket ``mail``.

    :ivar url: its endpoint
    """

    def __init__(self, port: int = 0) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        with self._client() as client:
            client.create_bucket(Bucket="mail")

    @contextmanager
    def _client(self) -> Iterator[Any]:
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="x",
            aws_secret_access_key="x",
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )
        try:
            yield client
        finally:
            client.close()

    def names(self) -> set[str]:
        with self._client() as client:
            listed = client.list_objects_v2(Bucket="mail").get("Contents", [])
        return {each["Key"] for each in listed}

    def objects(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Return the content and the metadata of all objects, by name."""
        found = {}
        with self._client() as client:
            for each in client.list_objects_v2(Bucket="mail").get("Contents", []):
                answer = client.get_object(Bucket="mail", Key=each["Key"])
                with answer["Body"] as body:
                    found[each["Key"]] = (body.read(), answer["Metadata"])
        return found

    def clear(self) -> None:
        with self._client() as client:
            for each in client.list_objects_v2(Bucket="mail").get("Contents", []):
                client.delete_object(Bucket="mail", Key=each["Key"])

    def stop(self) -> None:
        self._server.stop()
