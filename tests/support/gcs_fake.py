"""Google Cloud Storage as far as obstore uses it: `python -m tests.support.gcs_fake PORT`.

No emulator speaks the XML API that obstore's library needs, so this is one: PUT with
`x-goog-if-generation-match: 0`, GET with ranges, HEAD, DELETE, and lists in pages. Buckets exist.
Some misbehave, by their names:

    ignores-conditions   PUT replaces what is there
    denies-deletes       DELETE is forbidden, as under a retention policy
    cuts-answers         each GET ends in the middle of the body
    never-lists          a list is always empty
    refuses-all          every request is forbidden
    throttles            every other request is answered by 503
"""

from __future__ import annotations

import re
import sys
import threading
from email.utils import formatdate
from hashlib import md5
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 100
"""How many objects a page of a list has; small, so that tests need few objects for two pages."""


class Objects:
    """The content of all buckets: (bucket, key) -> (bytes, generation, time)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stored: dict[tuple[str, str], tuple[bytes, int, float]] = {}
        self.generation = 0
        self.requests = 0


OBJECTS = Objects()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.body = b""

    def route(self) -> None:
        """Answer a request of any method."""
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        with OBJECTS.lock:
            OBJECTS.requests += 1
            if bucket == "refuses-all":
                return self.answer(HTTPStatus.FORBIDDEN)
            if bucket == "throttles" and OBJECTS.requests % 2:
                return self.answer(HTTPStatus.SERVICE_UNAVAILABLE)
            if self.command == "GET" and not key:
                return self.list_objects(bucket, parse_qs(parts.query))
            if self.command == "PUT":
                return self.put(bucket, key)
            if (bucket, key) not in OBJECTS.stored:
                return self.answer(HTTPStatus.NOT_FOUND)
            if self.command == "DELETE":
                return self.delete(bucket, key)
            return self.get(bucket, key)

    def do_POST(self) -> None:
        """Deny S3's way of deleting: an error for an object, within an answer of success."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        errors = "".join(
            f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>locked</Message></Error>"
            for key in re.findall("<Key>(.*?)</Key>", body)
        )
        self.answer(HTTPStatus.OK, f"<DeleteResult>{errors}</DeleteResult>".encode())

    do_GET = do_HEAD = do_PUT = do_DELETE = route  # noqa: N815

    def put(self, bucket: str, key: str) -> None:
        is_conditional = self.headers.get("x-goog-if-generation-match") == "0"
        exists = (bucket, key) in OBJECTS.stored
        if is_conditional and exists and bucket != "ignores-conditions":
            return self.answer(HTTPStatus.PRECONDITION_FAILED)
        OBJECTS.generation += 1
        OBJECTS.stored[bucket, key] = self.body, OBJECTS.generation, time()
        return self.answer(HTTPStatus.OK, headers=self.describe(bucket, key))

    def get(self, bucket: str, key: str) -> None:
        data = OBJECTS.stored[bucket, key][0]
        headers = self.describe(bucket, key)
        is_cut = bucket == "cuts-answers"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(HTTPStatus.OK, data, headers, is_cut=is_cut)
        start, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        if start >= len(data):
            return self.answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
        part = data[start : last + 1]
        return self.answer(HTTPStatus.PARTIAL_CONTENT, part, headers, is_cut=is_cut)

    def delete(self, bucket: str, key: str) -> None:
        if bucket == "denies-deletes":
            return self.answer(HTTPStatus.FORBIDDEN)
        del OBJECTS.stored[bucket, key]
        return self.answer(HTTPStatus.NO_CONTENT)

    def list_objects(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", [""])[0]
        keys = sorted(
            key
            for found, key in OBJECTS.stored
            if found == bucket and key.startswith(prefix) and key > after
        )
        page = [] if bucket == "never-lists" else keys[:PAGE]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
            f"<LastModified>{_iso(moment)}</LastModified><ETag>{_etag(data)}</ETag></Contents>"
            for key in page
            for data, _, moment in [OBJECTS.stored[bucket, key]]
        )
        more = (
            f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
            if page and len(keys) > PAGE
            else ""
        )
        xml = f"<ListBucketResult>{contents}{more}</ListBucketResult>"
        self.answer(HTTPStatus.OK, xml.encode(), {"Content-Type": "application/xml"})

    def describe(self, bucket: str, key: str) -> dict[str, str]:
        data, generation, moment = OBJECTS.stored[bucket, key]
        return {
            "ETag": _etag(data),
            "Last-Modified": formatdate(moment, usegmt=True),
            "x-goog-generation": str(generation),
        }

    def answer(
        self,
        status: HTTPStatus,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        is_cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: tests look at answers."""


def _etag(data: bytes) -> str:
    return f'"{md5(data).hexdigest()}"'


def _iso(moment: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
