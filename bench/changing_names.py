#!/usr/bin/env python3
"""A name whose addresses change under load, and whose server fails for a while: no request may.

    unshare -rmn bench/changing_names.py --larder target/quick/larder

Runs in namespaces of its own (`unshare -rmn`), where it may say which server looks names up: its own, which answers for
`app.test` with some of 127.0.0.2 to 127.0.0.9. An application listens on each of them until the name has the address no
more, whether or not Larder has learned of that. It then ends each connection with the next answer, as a graceful one does.

The next change comes --every seconds after the last, but not before each new address has answered. After the changes the
server of names is silent, then fails (SERVFAIL), then denies the name (NXDOMAIN), each until Larder has asked it in vain
three times. Afterwards the name changes once more. Prints what it saw as JSON.

Needs Linux, Python 3.9, `unshare` and `mount`. bench/origins.py and tests/names run it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Callable

from common import Failure, free_port, get, with_settings
from origins import Clients, at, errors

NAME, PORT = "app.test", 8000
ADDRESSES = [f"127.0.0.{n}" for n in range(2, 10)]
# Finds what fails; nothing waits for it to pass.
DEADLINE = 30.0
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the binary")
    parser.add_argument("--every", type=float, default=1, metavar="SECONDS")
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--rate", type=int, default=200, help="requests a second, of which a tenth are POSTs")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="larder-names-") as directory:
            enter(Path(directory))
            print(json.dumps(asyncio.run(scene(options))))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def enter(directory: Path) -> None:
    """Brings up this network namespace, and has names looked up by our server alone in this mount namespace."""
    SIOCSIFFLAGS, IFF_UP = 0x8914, 1
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    texts = {
        "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        "/etc/nsswitch.conf": "hosts: dns\n",
    }
    for place, text in texts.items():
        ours = directory / Path(place).name
        ours.write_text(text)
        subprocess.run(["mount", "--bind", ours, os.path.realpath(place)], check=True)


class Names:
    """A server of names."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.code: int | None = NO_ERROR
        # Questions, and those that got no address.
        self.asked = self.in_vain = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        A = 1
        while True:
            question, client = self._socket.recvfrom(512)
            end = question.index(b"\0", 12) + 5
            (kind,) = struct.unpack_from(">H", question, end - 4)
            self.asked += kind == A
            self.in_vain += kind == A and self.code != NO_ERROR
            if self.code is None:
                continue
            found = self.addresses if kind == A and self.code == NO_ERROR else []
            answer = question[:2] + struct.pack(">5H", 0x8180 | self.code, 1, len(found), 0, 0) + question[12:end]
            for address in found:
                answer += struct.pack(">HHHIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton(address)
            self._socket.sendto(answer, client)


class Application:
    """An application on one address. Once it leaves, it takes no connections, and ends those it has with an answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_leaving = False
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.address, PORT, backlog=1024)

    def leave(self) -> None:
        self.is_leaving = True
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0.005)
                closes = "Connection: close\r\n" if self.is_leaving else ""
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nCache-Control: no-store\r\nX-Origin: {self.address}\r\n{closes}\r\nx".encode())
                if closes:
                    break
        writer.close()


async def until(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not is_so():
        if time.monotonic() > deadline:
            raise Failure(f"this did not happen: {what}")
        await asyncio.sleep(0.01)


async def scene(options: argparse.Namespace) -> dict[str, object]:
    chance = random.Random(options.seed)
    names = Names()
    applications: dict[str, Application] = {}

    async def change() -> None:
        new = chance.sample(ADDRESSES, chance.randint(2, 4))
        while set(new) == set(applications):
            new = chance.sample(ADDRESSES, chance.randint(2, 4))
        for address in set(new) - set(applications):
            applications[address] = Application(address)
            await applications[address].start()
        names.addresses = new

        for address in set(applications) - set(new):
            applications.pop(address).leave()

    await change()
    port, admin = free_port(), free_port()
    settings = {
        "server.listen": f"127.0.0.1:{port}",
        "upstream.url": f"http://{NAME}:{PORT}",
        "upstream.resolve_interval": "200ms",
        # Addresses go far more often here than in life, and each costs a few repetitions.
        "upstream.retry_budget": "0.9",
        "durable.url": "off",
        "admin.listen": f"127.0.0.1:{admin}",
    }
    larder = subprocess.Popen(with_settings(options.larder, settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log: list[bytes] = []
    assert larder.stderr
    threading.Thread(target=lambda: log.extend(larder.stderr), daemon=True).start()
    try:
        await until("Larder starts", lambda: any(b"the application is at" in line for line in log))
        clients = Clients(port)
        stopped = asyncio.Event()

        async def load() -> None:
            began, n, asked = time.monotonic(), 0, []
            while not stopped.is_set():
                due = began + n / options.rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                asked.append(asyncio.ensure_future(clients.ask("POST" if n % 10 == 0 else "GET", f"/page/{n}", due)))
                n += 1
            await asyncio.gather(*asked)

        loading = asyncio.ensure_future(load())

        async def changed() -> None:
            """Changes the name, and waits until each new address has answered."""
            before = len(clients.seen)
            await change()
            wanted = set(names.addresses)
            await until(f"{wanted} answer", lambda: wanted <= {one.origin for one in clients.seen[before:]})

        for _ in range(options.changes):
            await asyncio.gather(changed(), asyncio.sleep(options.every))
        for code in (None, SERVER_FAILURE, NO_SUCH_NAME):
            names.code = code
            asked = names.in_vain
            await until("names are looked up", lambda: names.in_vain >= asked + 3)
        names.code = NO_ERROR
        await changed()
        stopped.set()
        await loading
        clients.close()
        metrics = get(admin, "/metrics")[2].decode()
    except Failure as failure:
        raise Failure(f"{failure}\n{b''.join(log).decode()}") from failure
    finally:
        larder.send_signal(signal.SIGTERM)
        larder.wait(DEADLINE)
    if errors(clients.seen) != "0":
        print(b"".join(log).decode(), file=sys.stderr)
    retries = re.search(r"^larder_origin_retries_total (\d+)", metrics, re.M)
    return {
        "requests": len(clients.seen),
        "errors": errors(clients.seen),
        "retries": int(retries[1]) if retries else 0,
        "changes": options.changes + 1,
        "addresses": len(Counter(one.origin for one in clients.seen if one.origin)),
        "looked_up": names.asked,
        "unanswered": names.in_vain,
        "p99": at(clients.seen, 99),
        "max": at(clients.seen, 100),
    }


if __name__ == "__main__":
    sys.exit(main())
