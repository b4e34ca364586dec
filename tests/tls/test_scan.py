"""Checks that two scanners find nothing of medium severity or worse, with a certificate of each kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from served import NAMES, Larder

TESTSSL = shutil.which("testssl") or shutil.which("testssl.sh")
SSLYZE = os.environ.get("LARDER_TEST_SSLYZE") or shutil.which("sslyze")
# WARN is a question that could not be asked.
HARMLESS = ("OK", "INFO", "LOW", "DEBUG", "WARN")


@pytest.mark.skipif(TESTSSL is None, reason="testssl is not installed: apt-get install testssl.sh")
def test_testssl_finds_nothing_of_medium_severity(larder: Larder, certificates: Path, tmp_path: Path) -> None:
    assert TESTSSL
    scans = {}
    for name in NAMES:
        # It looks for its files, and leaves others, in a directory of its own.
        command = [TESTSSL, "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1"]
        command += ["--add-ca", str(certificates / "ca.pem"), "--jsonfile", f"{name}.json", f"https://{name}:{larder.port}/"]
        scans[name] = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for name, scan in scans.items():
        output, _ = scan.communicate(timeout=600)
        report = tmp_path / f"{name}.json"
        assert report.exists(), output
        findings = {finding["id"]: finding for finding in json.loads(report.read_text())}
        bad = [finding for finding in findings.values() if finding["severity"] not in HARMLESS]
        assert not bad, f"{name}:\n{json.dumps(bad, indent=1)}"
        # It has looked at this certificate, by these versions.
        kind = "EC 256" if name.startswith("ecdsa") else "RSA 2048"
        assert kind in findings["cert_keySize"]["finding"]
        assert findings["TLS1"]["finding"].startswith("not offered")
        assert findings["TLS1_3"]["severity"] == "OK"
        assert findings["cert_chain_of_trust"]["severity"] == "OK"


@pytest.mark.skipif(SSLYZE is None, reason="sslyze is not installed: pip install sslyze")
@pytest.mark.parametrize("name", NAMES)
def test_sslyze_finds_what_mozilla_recommends(larder: Larder, certificates: Path, name: str) -> None:
    assert SSLYZE
    command = [SSLYZE, "--mozilla_config", "intermediate", "--certinfo_ca_file", str(certificates / "ca.pem"), "--sni", name, f"127.0.0.1:{larder.port}"]
    scan = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert scan.returncode == 0, scan.stdout + scan.stderr
    assert "OK - Compliant" in scan.stdout, scan.stdout
    assert "Errors during" not in scan.stdout, scan.stdout
