"""redis-cli and redis-benchmark, on the server at `COMPAT_CACHE_PORT`."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time

import pytest

PORT = os.environ["COMPAT_CACHE_PORT"]


def cli(*words: str, text: str | None = None, options: tuple[str, ...] = ()) -> str:
    command = ["redis-cli", "-p", PORT, *options, *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def empty() -> None:
    assert cli("flushall") == "OK"


@pytest.mark.parametrize("options", [(), ("-3",)], ids=["RESP2", "RESP3"])
def test_commands_of_one_line(options: tuple[str, ...]) -> None:
    assert cli("set", "key", "a value", "ex", "100", options=options) == "OK"
    assert cli("get", "key", options=options) == "a value"
    assert cli("get", "absent", options=options) == ""
    assert cli("incrby", "counter", "-3", options=options) == "-3"
    assert cli("mget", "key", "absent", "counter", options=options).splitlines() == ["a value", "", "-3"]
    assert cli("ttl", "key", options=options) in ("100", "99")
    assert cli("type", "key", options=options) == "string"
    assert cli("exists", "key", "key", "absent", options=options) == "2"
    assert cli("-n", "3", "dbsize", options=options) == "0"
    assert cli("dbsize", options=options) == "2"
    assert cli("del", "key", "absent", options=options) == "1"


def test_an_unknown_command_is_an_error() -> None:
    assert re.match(r"ERR unknown command 'nonsense', with args beginning with: 'a' 'b'", cli("nonsense", "a", "b"))
    assert cli("set", "key") == "ERR wrong number of arguments for 'set' command"
    assert cli("incr", "key", "2") == "ERR wrong number of arguments for 'incr' command"
    cli("set", "key", "text")
    assert cli("incr", "key") == "ERR value is not an integer or out of range"


def test_commands_from_standard_input() -> None:
    assert cli(text="set a 1\nget a\nmulti\nincr a\nincr a\nexec\n").splitlines() == ["OK", "1", "OK", "QUEUED", "QUEUED", "2", "3"]


def test_a_value_from_standard_input() -> None:
    value = "x" * 100_000
    assert cli("set", "key", text=value, options=("-x",)) == "OK"
    assert cli("get", "key") == value


def test_a_mass_insertion() -> None:
    lines = "".join(f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n$1\r\nv\r\n" for key in (f"key:{number}" for number in range(1000)))
    assert "errors: 0, replies: 1000" in cli(text=lines, options=("--pipe",))
    assert cli("dbsize") == "1000"


def test_scans() -> None:
    for number in range(30):
        cli("set", f"a:{number}", "v")
    cli("set", "b:1", "v")
    assert sorted(cli(options=("--scan", "--pattern", "a:*")).split()) == sorted(f"a:{number}" for number in range(30))
    assert cli("keys", "b:*") == "b:1"
    assert "Biggest string found" in cli(options=("--bigkeys",))


def test_a_conversation() -> None:
    """Types as a person does: redis-cli asks for the commands' documentation first."""
    master, slave = pty.openpty()
    process = subprocess.Popen(["redis-cli", "-p", PORT], stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "dumb"})
    os.close(slave)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + 30
        while text not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 1)[0]:
                shown += os.read(master, 65536).decode(errors="replace")

    try:
        wait_for(f"127.0.0.1:{PORT}>")
        os.write(master, b"set key spoken\n")
        wait_for("OK")
        os.write(master, b"get key\n")
        wait_for('"spoken"')
        os.write(master, b"info server\n")
        wait_for("redis_version:")
        os.write(master, b"quit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.mark.parametrize("pipeline", ["1", "16"])
@pytest.mark.parametrize("tests", ["ping_inline,ping_mbulk", "set,get,incr", "mset"])
def test_a_benchmark(tests: str, pipeline: str) -> None:
    command = ["redis-benchmark", "-p", PORT, "-n", "2000", "-c", "10", "-r", "100", "-d", "1024", "-P", pipeline, "-t", tests, "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "Error" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert len(re.findall(r"requests per second", done.stdout)) >= len(tests.split(","))
