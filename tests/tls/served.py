"""Parts of the tests of TLS with other programs: an origin, and the real binary in front of it."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
BINARY = os.environ.get("LARDER_BINARY", str(ROOT / "target/quick/larder"))
DEADLINE = 30.0
NAMES = ("ecdsa.larder.test", "rsa.larder.test")

# The type and the content of a response.
Page = tuple[str, bytes]


class Origin:
    """An application whose pages are all cacheable, and sent with what scanners want to see of an application."""

    def __init__(self) -> None:
        self.page: Callable[[str], Page] = lambda path: ("text/html", path.encode())
        answers = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                kind, content = answers.page(self.path)
                self.send_response(200)
                for name, value in (
                    ("Content-Type", kind),
                    ("Content-Length", str(len(content))),
                    ("Cache-Control", "public, max-age=3600"),
                    ("X-Frame-Options", "DENY"),
                    ("X-Content-Type-Options", "nosniff"),
                    ("Content-Security-Policy", "default-src 'self'; script-src 'self' 'unsafe-inline'"),
                    ("Referrer-Policy", "no-referrer"),
                ):
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            # As many as a page asks for at once: a connection that finds no room waits for seconds, and then for more.
            request_queue_size = 256

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Larder:
    """The binary with a certificate of each kind. The files of the first are the test's own: it may replace them."""

    def __init__(self, origin: int, certificates: Path, directory: Path) -> None:
        self.chain, self.key = directory / "tls.pem", directory / "tls.key"
        shutil.copy(certificates / "ecdsa.pem", self.chain)
        shutil.copy(certificates / "ecdsa.key", self.key)
        config = directory / "larder.toml"
        config.write_text(f"""
            [server]
            listen = ["https://127.0.0.1:0"]
            hsts = "max-age=31536000"
            [upstream]
            url = "http://127.0.0.1:{origin}"
            [durable]
            url = "off"
            [admin]
            listen = "127.0.0.1:0"
            [[tls.certificate]]
            chain = "{self.chain}"
            key = "{self.key}"
            [[tls.certificate]]
            chain = "{certificates / 'rsa.pem'}"
            key = "{certificates / 'rsa.key'}"
        """)
        self.process = subprocess.Popen([BINARY, "--config", config], stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.port = self._port_after(r"listening on https://[\d.]+:(\d+)")
        self.admin = self._port_after(r"admin on [\d.]+:(\d+)")
        threading.Thread(target=self._read_log, daemon=True).start()

    def _port_after(self, pattern: str) -> int:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(pattern, line):
                return int(found[1])
        raise AssertionError("Larder did not start:\n" + "".join(self.log))

    def _read_log(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line)

    def metric(self, name: str) -> float:
        """The value of a metric, with its labels as /metrics has them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=DEADLINE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"there is no metric {name}"
        return float(found[1])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE)
