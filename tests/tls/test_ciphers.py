"""Which cipher a client gets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from served import Larder

AES128, AES256, CHACHA = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"
OLD = {AES128: "ECDHE-ECDSA-AES128-GCM-SHA256", AES256: "ECDHE-ECDSA-AES256-GCM-SHA384", CHACHA: "ECDHE-ECDSA-CHACHA20-POLY1305"}


@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ([AES256, CHACHA, AES128], AES128),
        ([AES256, CHACHA], AES256),
        # Such a client has no instructions for AES.
        ([CHACHA, AES128, AES256], CHACHA),
        ([CHACHA, AES256], CHACHA),
        ([CHACHA], CHACHA),
    ],
)
def test_aes_128_is_preferred_but_by_clients_that_prefer_chacha20(
    larder: Larder, certificates: Path, version: str, offered: list[str], taken: str
) -> None:
    is_new = version == "-tls1_3"
    names = offered if is_new else [OLD[name] for name in offered]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{larder.port}", "-servername", "ecdsa.larder.test", version]
    command += ["-CAfile", str(certificates / "ca.pem"), "-ciphersuites" if is_new else "-cipher", ":".join(names)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"Cipher is (\S+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert found[1] == (taken if is_new else OLD[taken])
