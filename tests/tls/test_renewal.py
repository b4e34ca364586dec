"""Certificates are replaced while clients come and go."""

from __future__ import annotations

import http.client
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

from served import DEADLINE, Larder

SWAPS = 100
CLIENTS = 4


class Load:
    """Clients that ask over and over, each request on a new connection but for those of the last client."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.answered = [0] * (CLIENTS + 1)
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(CLIENTS + 1)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        keeps = number == CLIENTS
        connection = self._connection()
        while not self._stop.is_set():
            try:
                connection.request("GET", "/page")
                response = connection.getresponse()
                if (response.status, response.read()) != (200, b"/page"):
                    self.failures.append(f"status {response.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
            self.answered[number] += 1
            if not keeps:
                connection.close()
                connection = self._connection()
        connection.close()

    def _connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self._port, timeout=DEADLINE, context=self._context)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)


def shown(port: int, context: ssl.SSLContext) -> bytes:
    """The certificate that a new client is shown."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as stream:
            return stream.getpeercert(binary_form=True) or b""


def test_no_request_fails_while_certificates_are_replaced_100_times(larder: Larder, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    load = Load(larder.port, context)
    for number in range(1, SWAPS + 1):
        before = list(load.answered)
        chain, key = certificates / f"{number}.pem", certificates / f"{number}.key"
        # Not at once, as most tools do it: a look between the two finds a pair that does not fit.
        larder.key.write_bytes(key.read_bytes())
        larder.chain.write_bytes(chain.read_bytes())
        larder.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + DEADLINE
        wanted = ssl.PEM_cert_to_DER_cert(chain.read_text())
        while shown(larder.port, context) != wanted or not all(now > then for now, then in zip(load.answered, before)):
            assert time.monotonic() < deadline, f"certificate {number} is not shown, or a client got no answer:\n" + "".join(larder.log[-20:])
    load.stop()
    assert load.failures == []
    # Each client was answered while each certificate was shown.
    assert min(load.answered) >= SWAPS
    assert larder.metric('larder_tls_renewals_total{outcome="taken"}') >= SWAPS


def test_a_replaced_certificate_is_taken_without_being_told(larder: Larder, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    larder.key.write_bytes((certificates / "1.key").read_bytes())
    larder.chain.write_bytes((certificates / "1.pem").read_bytes())
    wanted = ssl.PEM_cert_to_DER_cert((certificates / "1.pem").read_text())
    deadline = time.monotonic() + DEADLINE
    while shown(larder.port, context) != wanted:
        assert time.monotonic() < deadline, "the new certificate is not shown:\n" + "".join(larder.log[-20:])
        time.sleep(0.1)
