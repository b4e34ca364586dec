"""The application of bench/origins.py: pages that no cache may store, which take as long as a file says.

`$ORIGIN_STATE` is a file of numbers that the benchmark and each worker of this origin map: how long a page takes (in
microseconds), the pages under way, the most that there were at once, and the pages begun.
"""

import fcntl
import mmap
import os
import struct
import threading
import time

from flask import Flask, Response

app = Flask(__name__)

DELAY, UNDER_WAY, MOST, BEGUN = range(0, 32, 8)
name = os.environ["ORIGIN_NAME"]
file = open(os.environ["ORIGIN_STATE"], "r+b")  # noqa: SIM115
state = mmap.mmap(file.fileno(), 32)
lock = threading.Lock()


def read(at: int) -> int:
    return struct.unpack_from("<q", state, at)[0]


def add(at: int, by: int) -> int:
    value = read(at) + by
    struct.pack_into("<q", state, at, value)
    return value


def count(by: int) -> None:
    # The lock of a file is a process's, so that its threads need another.
    with lock:
        fcntl.lockf(file, fcntl.LOCK_EX)
        now = add(UNDER_WAY, by)
        if by > 0:
            add(BEGUN, 1)
            struct.pack_into("<q", state, MOST, max(now, read(MOST)))
        fcntl.lockf(file, fcntl.LOCK_UN)


def answer(control: str) -> Response:
    return Response("x" * 1024, headers={"Cache-Control": control, "X-Origin": name})


@app.get("/healthz")
def healthz() -> Response:
    return answer("no-store")


@app.get("/hit")
def hit() -> Response:
    return answer("max-age=3600")


@app.route("/page/<number>", methods=["GET", "POST"])
def page(number: str) -> Response:
    count(1)
    try:
        time.sleep(read(DELAY) / 1e6)
    finally:
        count(-1)
    return answer("no-store")
