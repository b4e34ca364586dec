"""The shop behind a real Larder: what is kept, what is not, and that an edit shows at once."""

from __future__ import annotations

import os
import random
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from larder._binary import find_binary
from larder.testing import Client, LiveLarder, Response
from shop import create_app
from shop.models import COLOURS, NAMES
from sqlalchemy import event

PASSWORD = "the password of this test"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return create_app(
        {
            "TESTING": True,
            "SHOP_DATABASE": f"sqlite:///{tmp_path}/shop.db",
            "SHOP_ADMIN_PASSWORD": PASSWORD,
            # However slow the machine: an edit is answered after its purge.
            "LARDER_PURGE_WAIT": 30,
        }
    )


@pytest.fixture
def users(live_larder: LiveLarder) -> tuple[Client, Client]:
    alice, bob = live_larder.client("alice"), live_larder.client("bob")
    for user in (alice, bob):
        assert user.post("/login", data={"user": user.name}).status == 303
    return alice, bob


@pytest.fixture
def admin(live_larder: LiveLarder) -> Client:
    client = live_larder.client("admin")
    assert client.post("/admin/login", data={"password": PASSWORD}).status == 303
    return client


def test_pages_for_everybody_are_kept(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    alice, bob = users
    for path in ["/", "/item/3", "/item/999", "/search?q=lamp", "/image/1-1.svg"]:
        live_larder.stored(alice.get(path))
        live_larder.hit(bob.get(path))
        assert live_larder.shared(alice, bob, path).reused, path


def test_a_search_that_finds_nothing_takes_no_place(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    for user in users:
        live_larder.not_stored(user.get("/search?q=nonsense"))


def test_a_visitors_own_pages_are_not(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    alice, bob = users
    alice.post("/cart/1", data={"note": "for Grandma"})
    for path in ["/cart", "/greeting", "/login", "/admin/"]:
        live_larder.not_stored(alice.get(path))
        live_larder.not_stored(bob.get(path))
        assert not live_larder.shared(alice, bob, path).reused, path
    assert "for Grandma" in alice.get("/cart").text
    assert "for Grandma" not in bob.get("/cart").text
    assert (alice.get("/greeting").json(), bob.get("/greeting").json()) == (
        {"user": "alice", "cart": 1},
        {"user": "bob", "cart": 0},
    )


def test_an_edit_shows_on_the_next_request(
    live_larder: LiveLarder, users: tuple[Client, Client], admin: Client
) -> None:
    alice, _ = users
    before = {path: alice.get(path).text for path in ["/", "/item/1", "/item/2", "/search?q=lamp"]}
    assert admin.post("/admin/item/1", data={"cents": "12345", "colour": "sienna"}).status == 303
    for path in ["/", "/item/1", "/search?q=lamp"]:
        assert "123.45 €" in alice.get(path).text, path
    live_larder.hit(alice.get("/item/2"))
    assert alice.get("/item/2").text == before["/item/2"]
    assert "sienna" in alice.get("/image/1-2.svg").text


def test_an_edit_that_fails_purges_nothing(
    live_larder: LiveLarder, users: tuple[Client, Client], admin: Client
) -> None:
    alice, _ = users
    alice.get("/item/1")
    assert admin.post("/admin/item/1", data={"cents": "100", "colour": "ultraviolet"}).status == 400
    assert alice.post("/admin/item/1", data={"cents": "100"}).status == 403
    live_larder.hit(alice.get("/item/1"))


def test_an_order_shows_in_the_stock(live_larder: LiveLarder, users: tuple[Client, Client]) -> None:
    alice, bob = users
    assert "1000 in stock" in bob.get("/item/5").text
    alice.post("/cart/5")
    alice.post("/cart/5")
    assert alice.post("/order", follow_redirects=True).text.count("It is empty.") == 1
    assert "998 in stock" in bob.get("/item/5").text
    assert live_larder.client("nobody").post("/order").status == 403


# ---- values on the [resp] listener


@pytest.fixture
def resp_url(tmp_path: Path) -> str:
    """The URL of a `[resp]` listener that is to be; skips the test where the command has none."""
    known = subprocess.run([find_binary(), "config", "resp.listen"], capture_output=True)
    if known.returncode != 0:
        pytest.skip("this larder has no [resp] listener")
    return f"unix://{tmp_path}/resp.sock"


def test_a_memoized_value_is_computed_once_for_all_workers(tmp_path: Path, resp_url: str) -> None:
    computed: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        # Nothing else adds up what was ordered.
        if "sum(" in statement:
            computed.append(statement)

    settings = {"SHOP_CACHE_URL": resp_url, "SHOP_DATABASE": f"sqlite:///{tmp_path}/shop.db", "LARDER_PURGE_WAIT": 30}
    larder_settings = {"resp.listen": resp_url.replace("unix://", "unix:")}
    workers = [create_app(settings), create_app(settings)]
    for worker in workers:
        event.listen(worker.extensions["shop"].engine, "before_cursor_execute", note)
    with LiveLarder(workers[0], settings=larder_settings) as larder:
        alice, bob = larder.client("alice"), larder.client("bob")
        for user in (alice, bob):
            user.post("/login", data={"user": user.name})
        for number in (1, 2):
            alice.post(f"/cart/{number}")
        assert alice.post("/order").status == 303
        assert "Others also bought" in bob.get("/item/1").text
        larder.purge("/item/1")
        # The page is made again, and by another worker; the value is not computed again.
        assert "Others also bought" in bob.get("/item/1").text
        with workers[1].test_client() as other:
            assert "Others also bought" in other.get("/item/1").text
        assert len(computed) == 1
        # Another order: computed anew, and shown at once.
        bob.post("/cart/1")
        bob.post("/cart/5")
        assert bob.post("/order").status == 303
        text = alice.get("/item/1").text
        assert re.findall(r'href="/item/(\d+)"', text) == ["2", "5"], text
        assert len(computed) == 2


# ---- the crowd

CROWD = 12
REQUESTS = 10_000
ITEMS = range(1, len(NAMES) + 1)
NAME = re.compile(r"visitor-\d+")
SHOWN = re.compile(r'data-item="(\d+)" data-version="(\d+)"')
LINE = re.compile(r'data-line="(\d+)" data-count="(\d+)".*?<q>(.*?)</q>')


class Edits:
    """The versions of the items that the admin was told are there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._editing = {number: threading.Lock() for number in ITEMS}
        self._versions = dict.fromkeys(ITEMS, 1)

    def known(self) -> dict[int, int]:
        with self._lock:
            return dict(self._versions)

    def edit(self, admin: Client, number: int, cents: int, colour: str) -> None:
        with self._editing[number]:
            answer = admin.post(f"/admin/item/{number}", data={"cents": str(cents), "colour": colour})
            assert answer.status == 303, answer
            with self._lock:
                self._versions[number] += 1


class Visitor:
    """A user who does random things, and checks each answer against what they know to be true of themselves."""

    def __init__(self, name: str, larder: LiveLarder, edits: Edits, seed: str) -> None:
        self.name = name
        self.client = larder.client(name)
        self.admin = larder.client(f"{name} as admin")
        self.random = random.Random(f"{seed} {name}")
        self.edits = edits
        self.is_logged_in = False
        self.cart: dict[int, tuple[int, str]] = {}
        self.done: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    def run(self, requests: int) -> None:
        assert self.admin.post("/admin/login", data={"password": PASSWORD}).status == 303
        actions: list[tuple[Callable[[], None], int]] = [
            (self.look_at_the_list, 20),
            (self.look_at_an_item, 30),
            (self.search, 8),
            (self.look_at_an_image, 10),
            (self.look_at_the_cart, 10),
            (self.ask_who_i_am, 8),
            (self.add, 6),
            (self.remove, 2),
            (self.order, 1),
            (self.log_in, 3),
            (self.log_out, 1),
            (self.edit, 1),
        ]
        chosen = self.random.choices([act for act, _ in actions], [weight for _, weight in actions], k=requests)
        for act in chosen:
            self.done[act.__name__] += 1
            act()

    def _ask(self, method: str, path: str, **form: str) -> Response:
        response = self.client.request(method, path, data=form or None)
        told = response.cache_status
        self.answers["hit" if told.hit else "collapsed" if told.collapsed else "forwarded"] += 1
        return response

    def _get(self, path: str) -> Response:
        known = self.edits.known()
        response = self._ask("GET", path)
        assert response.status == 200, response
        # Nobody sees another's name: it is in their greeting, in their cart, and in the notes in it.
        seen = set(NAME.findall(response.text)) - {self.name}
        assert not seen, f"{self.name} sees {seen} at {path}: {response}\n{response.text}"
        # Shows every edit that was answered before this request.
        for number, version in SHOWN.findall(response.text):
            assert int(version) >= known[int(number)], f"{path} shows item {number} of old: {response}"
        return response

    def _item(self) -> int:
        return self.random.choice(ITEMS)

    def look_at_the_list(self) -> None:
        assert len(SHOWN.findall(self._get("/").text)) == len(ITEMS)

    def look_at_an_item(self) -> None:
        number = self._item()
        shown = SHOWN.findall(self._get(f"/item/{number}").text)
        assert [int(found) for found, _ in shown] == [number]

    def search(self) -> None:
        word = self.random.choice(NAMES).lower()
        assert f"“{word}”" in self._get(f"/search?q={word}").text

    def look_at_an_image(self) -> None:
        number = self._item()
        response = self._ask("GET", f"/image/{number}-{self.edits.known()[number]}.svg")
        # An edit may have come in between.
        assert response.status in (200, 404), response

    def look_at_the_cart(self) -> None:
        text = self._get("/cart").text
        found = {int(number): (int(count), note) for number, count, note in LINE.findall(text)}
        assert found == self.cart, f"{self.name} has {self.cart} and sees {found}"
        assert (f"The cart of {self.name}" in text) == self.is_logged_in

    def ask_who_i_am(self) -> None:
        told = self._get("/greeting").json()
        assert told == {"user": self.name if self.is_logged_in else None, "cart": len(self.cart)}

    def add(self) -> None:
        number, note = self._item(), f"from {self.name}, {self.random.randrange(10**6)}"
        assert self._ask("POST", f"/cart/{number}", note=note).status == 303
        self.cart[number] = (self.cart.get(number, (0, ""))[0] + 1, note)

    def remove(self) -> None:
        number = self._item()
        assert self._ask("POST", f"/cart/{number}/remove").status == 303
        self.cart.pop(number, None)

    def order(self) -> None:
        answer = self._ask("POST", "/order")
        assert answer.status == (303 if self.is_logged_in else 403), answer
        if self.is_logged_in:
            self.cart = {}

    def log_in(self) -> None:
        assert self._ask("POST", "/login", user=self.name).status == 303
        self.is_logged_in = True

    def log_out(self) -> None:
        assert self._ask("POST", "/logout").status == 303
        self.is_logged_in, self.cart = False, {}

    def edit(self) -> None:
        self.edits.edit(self.admin, self._item(), self.random.randrange(100, 99_999), self.random.choice(COLOURS))


@pytest.fixture
def seed() -> Iterator[str]:
    """`SHOP_SEED`, or the same every time. The same seed makes every visitor do the same; their order may differ."""
    yield os.environ.get("SHOP_SEED", "7")


def test_a_crowd_sees_only_its_own(live_larder: LiveLarder, seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    edits, failures = Edits(), list[str]()
    visitors = [Visitor(f"visitor-{n}", live_larder, edits, seed) for n in range(CROWD)]
    share = [REQUESTS // CROWD + (n < REQUESTS % CROWD) for n in range(CROWD)]

    def run(visitor: Visitor, requests: int) -> None:
        try:
            visitor.run(requests)
        except BaseException as error:
            failures.append(f"{visitor.name}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=pair) for pair in zip(visitors, share)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, f"seed {seed}:\n" + "\n".join(failures)

    done = sum((visitor.done for visitor in visitors), Counter[str]())
    answers = sum((visitor.answers for visitor in visitors), Counter[str]())
    edited = sum(seen.method == "POST" and seen.path.startswith("/admin/item/") for seen in live_larder.requests())
    asked = live_larder.count() - live_larder.count("/admin/login")
    assert sum(done.values()) == sum(answers.values()) + edited == REQUESTS
    # Agrees with Cache-Status: the application saw the requests that it calls misses.
    assert asked == answers["forwarded"] + edited
    assert answers["hit"] > REQUESTS / 3, "pages for everybody are kept"
    with capsys.disabled():
        print(f"\n{REQUESTS} requests of {CROWD} visitors (seed {seed}), {edited} edits, {done['order']} orders: ", end="")
        print(f"{answers['hit']} hits, {asked} requests reached the application.")
