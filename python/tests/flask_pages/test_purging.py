"""Purges: what is asked of Larder, and what happens when it can't be asked."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable

import larder
import larder.aio
import pytest
from flask import Flask
from larder import _purging
from larder._admin import Address
from larder.flask import Larder, purge_failed, purged

ROOT = Path(__file__).resolve().parents[3]


def test_addresses_are_read_and_mistakes_named() -> None:
    for text, expected in [
        ("http://127.0.0.1:9090", "http://127.0.0.1:9090"),
        ("127.0.0.1:9091", "http://127.0.0.1:9091"),
        ("larder.internal", "http://larder.internal:9090"),
        ("http://[::1]:9090/", "http://[::1]:9090"),
        ("https://admin.example", "https://admin.example:443"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
    ]:
        assert str(Address.parse(text)) == expected
    for text in ("", "unix:", "ftp://a", "http://a/purge", "http://a:x", "http://u:p@a", "http://a:99999"):
        with pytest.raises(ValueError, match="admin listener|names no socket"):
            Address.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": " "},
        {"all": True, "tag": "a"},
        {"url": "/a"},
        {"url": "item/7"},
        {"prefix": "*"},
        {"tag": "a", "scheme": "x"},
    ],
)
def test_what_no_larder_could_purge_is_an_error_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        larder.purge(**wrong)


def test_what_is_for_asyncio_needs_no_import_of_its_own(admin: Any) -> None:
    program = "import asyncio, larder; asyncio.run(larder.aio.purge(tag='a'))"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "LARDER_ADMIN": admin.address}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=30)
    assert admin.asked == [{"tag": "a"}]


def test_every_kind_is_sent_over_one_connection(admin: Any) -> None:
    larder.configure(admin.address, "secret")
    larder.purge(url=["https://shop.example/a", "https://shop.example/b"], prefix="/item/", tag=["x", "x", "a b"])
    larder.purge(tag="soft", soft=True)
    larder.purge(url="https://shop.example/c", scheme="exact")
    assert larder.flush()
    larder.purge(all=True)
    assert larder.flush()
    assert admin.asked == [
        {"url": "https://shop.example/a"},
        {"url": "https://shop.example/b"},
        {"prefix": "/item/"},
        {"tag": "x"},
        {"tag": "a%20b"},
        {"tag": "soft", "soft": True},
        {"url": "https://shop.example/c", "scheme": "exact"},
        {"all": True},
    ]
    assert admin.connections == 1
    assert {fields["Authorization"] for fields in admin.fields} == {"Bearer secret"}


def test_what_waits_already_is_not_queued_again_and_all_covers_it(admin: Any) -> None:
    client = larder.configure(admin.address)
    admin.gate.clear()
    larder.purge(tag="first")
    admin.wait_for(1)
    for _ in range(50):
        larder.purge(tag=["first", "second"])
        larder.purge(tag="second", soft=True)
    waiting = [purge.value for purge in client.pending()[admin.address]]
    assert waiting == ["first", "second"]
    larder.purge(all=True)
    assert [str(purge) for purge in client.pending()[admin.address]] == ["everything"]
    admin.gate.set()
    assert larder.flush()
    assert admin.asked == [{"tag": "first"}, {"all": True}]


def test_a_unix_socket_and_several_larders(fake_admin: Callable[..., Any]) -> None:
    tcp, unix = fake_admin(), fake_admin(unix=True)
    larder.configure([tcp.address, unix.address])
    larder.purge(tag="a")
    assert larder.flush()
    assert tcp.asked == unix.asked == [{"tag": "a"}]
    larder.configure(f"{tcp.address}, {unix.address}")
    assert [answer.address for answer in larder.purge_now(tag="b")] == [tcp.address, unix.address]


def test_purge_now_returns_what_larder_said_or_raises(admin: Any) -> None:
    larder.configure(admin.address)
    (answer,) = larder.purge_now(tag="a", wait=0.25)
    assert answer.told == {"purged": {"tag": "a"}} and answer.held is None
    assert admin.asked == [{"tag": "a", "path": "/purge?wait=250ms"}]
    admin.statuses = [200, 401]
    with pytest.raises(larder.PurgeError, match="LARDER_TOKEN is missing") as raised:
        larder.purge_now(tag=["b", "c"])
    assert [str(answer.purge) for answer in raised.value.answers] == ["what is tagged b"]
    assert [failure.status for failure in raised.value.failures] == [401]


def test_purge_now_says_that_nobody_listens(free_port: int) -> None:
    larder.configure(f"127.0.0.1:{free_port}")
    with pytest.raises(larder.PurgeError, match="nobody listens there"):
        larder.purge_now(tag="a")


def app_with(admin: str, **config: Any) -> Flask:
    app = Flask(__name__)
    app.config.update(LARDER_ADMIN=admin, **config)
    Larder(app)

    @app.post("/change")
    def change() -> str:
        larder.purge(tag="a")
        return "changed"

    return app


class Heard:
    """Collects signals, and waits for them."""

    def __init__(self, app: Flask) -> None:
        self.purged: list[Any] = []
        self.failed: list[Any] = []
        self._changed = threading.Condition()
        purged.connect(self._on_purged, app)
        purge_failed.connect(self._on_failed, app)

    def _on_purged(self, _app: Flask, answer: Any) -> None:
        with self._changed:
            self.purged.append(answer)
            self._changed.notify_all()

    def _on_failed(self, _app: Flask, failure: Any) -> None:
        with self._changed:
            self.failed.append(failure)
            self._changed.notify_all()

    def wait(self, found: Callable[[], Any]) -> None:
        with self._changed:
            assert self._changed.wait_for(found, 10)


def test_a_request_waits_until_its_purge_is_made(admin: Any) -> None:
    app = app_with(admin.address)
    assert app.test_client().post("/change").status_code == 200
    # No waiting here: the answer came after the purge.
    assert admin.asked == [{"tag": "a"}]


def test_a_larder_that_does_not_answer_delays_a_request_once(admin: Any) -> None:
    app = app_with(admin.address, LARDER_PURGE_WAIT=0.05, LARDER_PURGE_TIMEOUT=0.05)
    heard = Heard(app)
    admin.gate.clear()
    client = app.test_client()
    assert client.post("/change").text == "changed"
    admin.gate.set()
    heard.wait(lambda: heard.purged)


def test_a_larder_that_is_down_breaks_nothing_is_retried_and_signalled(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with(f"127.0.0.1:{free_port}", LARDER_PURGE_RETRY=0.3)
    heard = Heard(app)
    with caplog.at_level(logging.WARNING):
        assert app.test_client().post("/change").text == "changed"
        heard.wait(lambda: heard.failed)
    (failure,) = heard.failed
    assert str(failure.purge) == "what is tagged a" and "nobody listens" in failure.reason
    assert "it is tried again for 0.3 s" in caplog.text and "given up" in caplog.text
    assert not heard.purged


def test_what_may_pass_is_tried_again_and_what_may_not_is_given_up(admin: Any) -> None:
    app = app_with(admin.address)
    heard = Heard(app)
    admin.statuses = [502, 503, 200]
    app.test_client().post("/change")
    heard.wait(lambda: heard.purged)
    assert admin.asked == [{"tag": "a"}] * 3 and not heard.failed
    admin.statuses = [401]
    app.test_client().post("/change")
    heard.wait(lambda: heard.failed)
    assert len(admin.asked) == 4


def test_a_larder_that_is_down_does_not_hold_up_another(admin: Any, free_port: int) -> None:
    larder.configure([f"127.0.0.1:{free_port}", admin.address])
    larder.purge(tag="a")
    assert admin.wait_for(1) == [{"tag": "a"}]


def test_a_queue_that_is_full_gives_up_what_comes(admin: Any) -> None:
    app = app_with(admin.address, LARDER_PURGE_QUEUE=3)
    heard = Heard(app)
    admin.gate.clear()
    with app.app_context():
        larder.purge(tag="first")
        admin.wait_for(1)
        larder.purge(tag=[f"t{number}" for number in range(5)])
        assert [str(failure.purge) for failure in heard.failed] == ["what is tagged t3", "what is tagged t4"]
        # A purge of everything always fits.
        larder.purge(all=True)
    admin.gate.set()
    assert larder.flush()
    assert admin.asked == [{"tag": "first"}, {"all": True}]


def test_a_wrong_setting_breaks_no_request(caplog: pytest.LogCaptureFixture) -> None:
    app = app_with("off")
    app.config["LARDER_ADMIN"] = "ftp://nowhere"
    assert app.test_client().post("/change").text == "changed"
    assert "nothing is purged" in caplog.text
    with pytest.raises(ValueError, match="ftp://nowhere"):
        app_with("ftp://nowhere")


def test_paths_are_of_the_host_that_was_asked_or_of_the_site(admin: Any) -> None:
    app = app_with(admin.address)

    @app.post("/path")
    def path() -> str:
        larder.purge(url="/item/7")
        return "done"

    app.test_client().post("/path", base_url="https://shop.example")
    app.config["LARDER_SITE"] = "https://www.example/"
    app.test_client().post("/path", base_url="https://shop.example")
    assert admin.asked == [{"url": "https://shop.example/item/7"}, {"url": "https://www.example/item/7"}]


def test_a_block_holds_purges_back_and_drops_them_when_it_raises(admin: Any) -> None:
    larder.configure(admin.address)
    with larder.purging():
        larder.purge(tag="a")
        with larder.purging():
            larder.purge(tag=["a", "b"])
        with pytest.raises(RuntimeError), larder.purging():
            larder.purge(tag="dropped")
            raise RuntimeError
        assert not admin.asked
    assert larder.flush()
    assert admin.asked == [{"tag": "a"}, {"tag": "b"}]
    with pytest.raises(KeyError), larder.purging():
        larder.purge(tag="dropped")
        raise KeyError
    assert larder.flush() and len(admin.asked) == 2


def test_a_larder_that_restarts_is_found_again(start_larder: Callable[..., Any], tmp_path: Path) -> None:
    listen = f"admin.listen=unix:{tmp_path / 'admin.sock'}"
    process, _, admin = start_larder("http://127.0.0.1:9", listen)
    app = app_with(admin)
    heard = Heard(app)
    app.test_client().post("/change")
    assert len(heard.purged) == 1
    process.stop()
    start_larder("http://127.0.0.1:9", listen)
    # The connection that was kept is of no use any more: another is made at once, without a pause.
    app.test_client().post("/change")
    assert len(heard.purged) == 2 and not heard.failed


# ---- asyncio ----


def test_asyncio_purges_over_sockets_of_its_own(fake_admin: Callable[..., Any]) -> None:
    tcp, unix = fake_admin(), fake_admin(unix=True)
    larder.configure([tcp.address, unix.address], "secret")
    threads = threading.active_count()

    async def work() -> None:
        await larder.aio.purge(tag=["a", "b"])
        assert tcp.asked == unix.asked == [{"tag": "a"}, {"tag": "b"}]
        answers = await larder.aio.purge_now(url="http://a.example/", wait=0.1)
        assert [answer.address for answer in answers] == [tcp.address, unix.address]
        with larder.purging():
            await larder.aio.purge(tag="held")
            assert len(tcp.asked) == 3

    asyncio.run(work())
    assert larder.flush()
    assert tcp.asked[-1] == {"tag": "held"} and tcp.connections == 3
    assert threading.active_count() >= threads


def test_asyncio_hands_what_fails_to_the_background_and_never_raises(admin: Any, free_port: int) -> None:
    larder.configure(admin.address)
    admin.statuses = [503]
    asyncio.run(larder.aio.purge(tag="a"))
    assert admin.wait_for(2) == [{"tag": "a"}] * 2
    larder.configure(f"127.0.0.1:{free_port}", options=larder.Options(retry_for=0.0))
    asyncio.run(larder.aio.purge(tag="a"))
    with pytest.raises(larder.PurgeError, match="nobody listens"):
        asyncio.run(larder.aio.purge_now(tag="a"))


def test_fastapi_and_quart_purge_while_they_serve(admin: Any) -> None:
    import fastapi
    import fastapi.testclient
    import quart

    larder.configure(admin.address)
    api = fastapi.FastAPI()

    @api.post("/change")
    async def change() -> dict[str, bool]:
        await larder.aio.purge(tag="fastapi")
        return {"done": True}

    assert fastapi.testclient.TestClient(api).post("/change").json() == {"done": True}
    site = quart.Quart(__name__)

    @site.post("/change")
    async def also() -> str:
        await larder.aio.purge(tag="quart")
        return "done"

    async def ask() -> int:
        return (await site.test_client().post("/change")).status_code

    assert asyncio.run(ask()) == 200
    assert admin.asked == [{"tag": "fastapi"}, {"tag": "quart"}]


# ---- processes ----


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = str(ROOT / "python")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
    told = {**inherited, "PYTHONPATH": path, **env}
    return subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, timeout=30)


def test_the_end_of_a_process_sends_what_is_queued(admin: Any) -> None:
    code = "import larder\nfor n in range(200): larder.purge(tag=f't{n}')\n"
    done = run(code, LARDER_ADMIN=admin.address, LARDER_TOKEN="secret")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(asked["tag"] for asked in admin.asked) == sorted(f"t{number}" for number in range(200))
    assert 1 < admin.connections <= 16, "many purges share several connections"
    assert admin.fields[0]["Authorization"] == "Bearer secret"


def test_the_end_of_a_process_does_not_wait_forever_and_tells_what_is_lost(free_port: int) -> None:
    code = (
        "import larder\n"
        f"larder.configure('127.0.0.1:{free_port}', options=larder.Options(exit_timeout=0.3))\n"
        "larder.purge(tag=['a', 'b'])\n"
    )
    done = run(code)
    assert done.returncode == 0
    assert "the process ends before 2 purges reached" in done.stderr and "what is tagged a" in done.stderr


def test_a_fork_sends_its_own_purges_and_not_its_parents(admin: Any) -> None:
    code = """
import os, sys, threading
import larder
from larder import _purging, _sender
larder.purge(tag="before")
larder.flush()
client = _purging._process
sender = client._senders[0]
with sender._changed:            # as if a thread held it while another forks
    sender._queue[larder.Purge("tag", "parent")] = _sender._Waiting(0.0)
    child = os.fork()
    if child == 0:
        larder.purge(tag="child")
        os._exit(0 if larder.flush(5) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
larder.purge(tag="after")
"""
    done = run(code, LARDER_ADMIN=admin.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(asked["tag"] for asked in admin.asked) == ["after", "before", "child", "parent"]


def test_a_fork_while_another_thread_makes_the_client_purges_all_the_same(admin: Any) -> None:
    code = """
import os, signal
import larder
from flask import Flask
from larder.flask import Larder
app = Flask("shop")
Larder(app)
with app.extensions["larder"]._lock:
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        with app.app_context():
            larder.purge(tag="child")
        os._exit(0 if larder.flush(5) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = run(code, LARDER_ADMIN=admin.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert [asked["tag"] for asked in admin.asked] == ["child"]


def test_the_thread_imports_nothing_that_a_fork_could_leave_half_done(admin: Any, free_port: int) -> None:
    # A worker was forked while the thread imported encodings.idna, and never found that codec again.
    code = f"""
import sys
import larder
larder.configure("off")
found = set(sys.modules)
named = "{admin.address}".replace("127.0.0.1", "localhost")
for admin in ("{admin.address}", named, "127.0.0.1:{free_port}", "unix:/none"):
    larder.configure(admin, options=larder.Options(retry_for=0.0))
    larder.purge(tag=["a", "b"], url="https://shop.example/")
    assert larder.flush()
assert set(sys.modules) == found, set(sys.modules) - found
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "nobody listens there" in done.stderr and "no such socket" in done.stderr


def test_nothing_but_python_is_needed_to_purge() -> None:
    code = (
        "import sys, larder, larder.aio\n"
        "assert not {'flask', 'blinker', 'sqlalchemy', 'httpx', 'werkzeug'} & set(sys.modules), sys.modules\n"
    )
    assert run(code).returncode == 0
    assert _purging.current_context().client.addresses
