"""A proxy in front of an S3 server that fails, delays and cuts answers, and counts what goes through.

    python -m benchmarks.flaky_s3 ARCHIVE MODELS [--fail 0.05] [--delay 0.05] [--cut 0.01] [--seed 0]

Classifies an archive from and to S3 (moto in server mode) twice, once directly and once through the proxy,
and prints what went wrong on the way and both ``content_sha256``; the exit code is 1 if they differ.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import random
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP_BY_HOP = {"connection", "transfer-encoding", "expect", "keep-alive", "content-length", "date", "server"}


class FlakyS3:
    """Passes requests on to an S3 server; a context manager.

    Parameters
    ----------
    endpoint : str
        The server behind it.
    fail, delay, cut : float
        Shares of the requests that are answered with 503 or 500 without being passed on, that wait, and of
        which the answer breaks off (or is lost altogether where it has no body).
    delay_seconds : float
    seed : int

    Attributes
    ----------
    counts : Counter
        Requests by method and by what was done to them, ``list`` and ``bytes_read`` among them.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        fail: float = 0.0,
        delay: float = 0.0,
        cut: float = 0.0,
        delay_seconds: float = 2.0,
        seed: int = 0,
    ) -> None:
        target = urlsplit(endpoint)
        self._host, self._port = target.hostname, target.port
        self._shares = (fail, delay, cut)
        self._delay_seconds = delay_seconds
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self.counts: Counter[str] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FlakyS3:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, *names: str, by: int = 1) -> None:
        """Add to some of the counts."""
        with self._lock:
            self.counts.update(dict.fromkeys(names, by))

    def _fate(self) -> tuple[bool, bool, bool]:
        with self._lock:
            fail, delay, cut = (self._draw.random() < share for share in self._shares)
        return fail, delay, cut

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Read a request, pass it on or not, and answer."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fail, delay, cut = self._fate()
        listing = request.command == "GET" and "list-type" in request.path
        self.count(request.command, *(["list"] if listing else []))
        if delay:
            self.count("delayed")
            time.sleep(self._delay_seconds)
        if fail:
            self.count("failed")
            status = 503 if self._draw.random() < 0.5 else 500
            self._answer(request, status, {"Content-Type": "application/xml"}, SLOW_DOWN, False)
            return
        upstream = http.client.HTTPConnection(self._host or "", self._port, timeout=60)
        kept = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        upstream.request(request.command, request.path, body or None, kept)
        answer = upstream.getresponse()
        data = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP}
        if request.command == "HEAD":
            headers["Content-Length"] = answer.getheader("Content-Length") or "0"
        upstream.close()
        if request.command == "GET" and not listing:
            self.count("bytes_read", by=len(data))
        if cut:
            self.count("cut")
        self._answer(request, answer.status, headers, data, cut)

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, cut: bool
    ) -> None:
        if cut and not data:
            request.close_connection = True
            return
        try:
            request.send_response(status)
            for key, value in headers.items():
                request.send_header(key, value)
            if "Content-Length" not in headers:
                request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(data[: len(data) // 2] if cut else data)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True
        if cut:
            request.close_connection = True


def main() -> int:
    """Classify with and without the faults."""
    from applecider_batch.catalog.build import build_catalog
    from applecider_batch.engine import api
    from applecider_batch.storage import Store

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("models")
    parser.add_argument("--fail", type=float, default=0.05)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--cut", type=float, default=0.01)
    parser.add_argument("--objects-per-shard", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = {}
    with s3_server() as endpoint:
        calm = s3_options(endpoint)
        archive = Store("s3://bucket/archive", calm)
        for path in sorted(p for p in Path(arguments.archive).rglob("*") if p.is_file()):
            archive.write_atomic(str(path.relative_to(arguments.archive)), path.read_bytes())
        shares = {"fail": arguments.fail, "delay": arguments.delay, "cut": arguments.cut}
        for name, given in (("undisturbed", {}), ("unreliable", shares)):
            with FlakyS3(endpoint, **given, seed=arguments.seed) as proxy:
                options = s3_options(proxy.endpoint)
                run = f"s3://bucket/{name}"
                start = time.monotonic()
                api.classify(
                    archive.url,
                    arguments.models,
                    run,
                    objects_per_shard=arguments.objects_per_shard,
                    device="cpu",
                    storage_options=options,
                    progress=False,
                )
                built = build_catalog(run, f"{run}-catalogue", storage_options=options)
                seconds = time.monotonic() - start
                found[name] = built["content_sha256"]
                counts = json.dumps(dict(sorted(proxy.counts.items())))
                print(f"{name:<12} {seconds:7.1f} s  {built['content_sha256']}  {counts}", flush=True)
    return int(len(set(found.values())) != 1)


def s3_options(endpoint: str) -> dict[str, Any]:
    """fsspec options of a server without real credentials."""
    return {
        "key": "test",
        "secret": "test",
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": "us-east-1"},
    }


class s3_server:
    """moto's S3 server with an empty bucket named ``bucket``; a context manager that gives its endpoint."""

    def __enter__(self) -> str:
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="bucket")
        return endpoint

    def __exit__(self, *exc: object) -> None:
        self._server.stop()


if __name__ == "__main__":
    sys.exit(main())
