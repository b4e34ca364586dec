"""The same by TLS, where frames and records do not meet."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from wire import DATA, END_STREAM, PING, Larder, Origin, attack, frame, head


@pytest.fixture
def larder(origin: Origin, tmp_path: Path) -> Iterator[Larder]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "site.example")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=60))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("site.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain_file, key_file = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    config = f"[[tls.certificate]]\nchain = '{chain_file}'\nkey = '{key_file}'\n"
    larder = Larder(origin.port, tmp_path, 'server.listen=["https://127.0.0.1:0"]', config=config)
    yield larder
    larder.stop()


def test_exchanges(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    assert client.get("/plain").outcome == 200
    [request] = origin.requests
    assert request.all("x-forwarded-proto") == ["https"] and request.all("via")[0].startswith("2.0 larder-")
    streams = [client.begin(head(f"/size/1000000?{n}")) for n in range(20)]
    for stream in streams:
        assert len(client.wait(stream).body) == 1_000_000
    body = bytes(range(256)) * 8000
    stream = client.begin(head("/upload", "POST"), end=False)
    client.data(stream, body)
    assert client.wait(stream).outcome == 200
    assert origin.seen("/upload")[0].body == body


def test_a_stop(larder: Larder, origin: Origin) -> None:
    client = larder.client()
    stream = client.begin(head("/gate"))
    while not origin.seen("/gate"):
        client.read_for(0.01)
    larder.process.send_signal(signal.SIGTERM)
    client.until(lambda: client.goaway is not None)
    origin.gate.set()
    assert client.wait(stream).outcome == 200
    client.until(lambda: client.is_closed)
    assert larder.process.wait(10) == 0


def test_a_flood_and_tiny_records(larder: Larder) -> None:
    with attack(larder):
        client = larder.client()
        for _ in range(20_000):
            if not client.try_send(frame(PING, payload=b"8 bytes.")) or client.is_closed:
                break
            client.step(0)
        client.until(lambda: client.is_closed)
        client = larder.client()
        stream = client.begin(head("/upload", "POST"), end=False)
        for byte in frame(DATA, 0, stream, b"x" * 100) * 5 + frame(DATA, END_STREAM, stream, b"x"):
            client.send(bytes([byte]))
        assert client.wait(stream).outcome == 200
