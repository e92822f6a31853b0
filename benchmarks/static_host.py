"""A plain host for a folder of static files, as the public ones are: compressed, and kept by the browser for a while.

python static_host.py FOLDER     prints its address; GET /-/sent tells the bytes sent so far
"""

from __future__ import annotations

import gzip
import http.server
import mimetypes
import sys
import zlib
from pathlib import Path


class Host(http.server.SimpleHTTPRequestHandler):
    """Every file of the folder from memory, compressed once."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet, not in several that wait for each other
    files: dict[str, bytes]
    sent = 0

    def do_GET(self) -> None:
        """A file, or the count of bytes."""
        path = self.path.partition("?")[0].removeprefix("/") or "index.html"
        if path == "-/sent":
            self.answer(str(Host.sent).encode(), {"Content-Type": "text/plain"})
        elif path in self.files:
            body = self.files[path]
            kept = {"Cache-Control": "max-age=600", "ETag": f'"{zlib.crc32(body)}"'}
            if self.headers["If-None-Match"] == kept["ETag"]:
                self.answer(b"", kept, 304)
                return
            Host.sent += len(body)
            kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
            self.answer(body, {"Content-Type": kind, "Content-Encoding": "gzip", **kept})
        else:
            self.send_error(404)

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        """These, and how long the body is."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the address is the one line of output."""


def main() -> None:
    """Serve on a free port until a signal."""
    folder = Path(sys.argv[1])
    paths = [path for path in folder.rglob("*") if path.is_file()]
    Host.files = {path.relative_to(folder).as_posix(): gzip.compress(path.read_bytes()) for path in paths}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
