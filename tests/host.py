"""A plain host for a folder of static files, on this machine alone."""

from __future__ import annotations

import functools
import http.server
import threading
from contextlib import contextmanager


class Files(http.server.SimpleHTTPRequestHandler):
    """Files and nothing else; asked for anew each time, and with no word on the terminal."""

    def log_message(self, *_):
        pass

    def end_headers(self):
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


@contextmanager
def hosted(folder):
    """Its address, while it runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
