"""A browser loads a page with many assets."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from served import Larder, Origin, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CERTUTIL = shutil.which("certutil")
ASSETS = 100

IMAGE = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
# Tells how each asset came, when all have come.
PAGE = """<!doctype html><title>assets</title><link rel="icon" href="/icon.svg">%s<pre id="told"></pre><script>
addEventListener('load', () => {
  const how = [performance.getEntriesByType('navigation')[0], ...performance.getEntriesByType('resource')]
  const told = how.map(({ name, nextHopProtocol, responseStatus }) => [new URL(name).pathname, nextHopProtocol, responseStatus])
  document.getElementById('told').textContent = JSON.stringify(told)
})
</script>"""


def page(path: str) -> Page:
    if path == "/":
        assets = "".join(f'<script src="/{n}.js"></script>' if n % 2 else f'<img src="/{n}.svg">' for n in range(ASSETS))
        return "text/html", (PAGE % assets).encode()
    if path.endswith(".svg"):
        return "image/svg+xml", IMAGE
    return "text/javascript", b"'use strict'\n" + b"// " + b"x" * 20_000 + b"\n"


@pytest.mark.skipif(CHROMIUM is None or CERTUTIL is None, reason="no Chromium, or no certutil, here: apt-get install chromium libnss3-tools")
def test_chromium_loads_a_page_with_100_assets_by_http2(larder: Larder, origin: Origin, certificates: Path, tmp_path: Path) -> None:
    assert CHROMIUM and CERTUTIL
    origin.page = page
    # Chromium trusts what its user's database has.
    for place in (".pki/nssdb", ".local/share/pki/nssdb"):
        database = tmp_path / place
        database.mkdir(parents=True)
        for arguments in (["-N", "--empty-password"], ["-A", "-t", "C,,", "-n", "tests", "-i", str(certificates / "ca.pem")]):
            subprocess.run([CERTUTIL, "-d", f"sql:{database}", *arguments], check=True, timeout=60)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--log-level=0", "--timeout=60000", "--dump-dom", f"https://localhost:{larder.port}/"]
    environment = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / ".local/share"), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    found = re.search(r'<pre id="told">(.+?)</pre>', done.stdout)
    assert found, done.stdout[:2000] + done.stderr[-4000:]
    told = json.loads(html.unescape(found[1]))
    came = {path for path, protocol, status in told if protocol == "h2" and status == 200}
    assert came >= {"/", *(f"/{n}.js" if n % 2 else f"/{n}.svg" for n in range(ASSETS))}, told
    # As much as a console says of a page is an error, or something that it ought not to do.
    assert "CONSOLE" not in done.stderr, done.stderr[-4000:]
    assert larder.metric('larder_tls_handshakes_total{version="1.3",kind="full"}') >= 1
