"""A Flask application whose slow function is memoized on the server at `COMPAT_CACHE_PORT`.

Each time the function runs, it adds a line to the file `COMPAT_RUNS`.
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask
from flask_caching import Cache

app = Flask(__name__)
app.config["CACHE_TYPE"] = "RedisCache"
app.config["CACHE_REDIS_URL"] = f"redis://127.0.0.1:{os.environ['COMPAT_CACHE_PORT']}/0"
cache = Cache(app)


@cache.memoize(timeout=3600)
def square(number: int) -> int:
    with Path(os.environ["COMPAT_RUNS"]).open("a") as runs:
        runs.write(f"{number}\n")
    return number * number


@app.get("/<int:number>")
def show(number: int) -> str:
    return f"{os.getpid()} {square(number)}"


@app.delete("/<int:number>")
def forget(number: int) -> str:
    cache.delete_memoized(square, number)
    return "forgotten"
