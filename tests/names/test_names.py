"""A name gets other addresses, again and again, and cannot be looked up for a while: no client notices.

The scene is bench/changing_names.py, which runs in namespaces of its own and waits for what it names, not for time to pass.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARY = os.environ.get("LARDER_BINARY", str(ROOT / "target/quick/larder"))
APART = ["unshare", "-rmn"]
CHANGES = 12


def may_be_apart() -> bool:
    if not shutil.which("unshare"):
        return False
    # The scene needs a mount there, too.
    command = [*APART, "mount", "--bind", "/etc/resolv.conf", "/etc/resolv.conf"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.skipif(not may_be_apart(), reason="namespaces of its own (unshare -rmn) are not permitted here: names are not tested")
def test_no_request_fails_while_a_name_changes_and_while_it_cannot_be_looked_up() -> None:
    script = [sys.executable, str(ROOT / "bench/changing_names.py"), "--larder", BINARY]
    command = [*APART, *script, "--changes", str(CHANGES), "--every", "0", "--rate", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == "0", f"{found}\n{done.stderr}"
    assert found["changes"] == CHANGES + 1 and found["addresses"] >= 4, found
    assert found["unanswered"] >= 9, "the names' server failed in three ways, three times each"
