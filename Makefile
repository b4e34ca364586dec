# What a newcomer runs: `make demo` and `make test`. Everything they need beyond cargo, python3,
# node and a C compiler they install themselves, below target/.

PYTHON ?= python3
# LARDER is what is measured; LARDER_QUICK, which is built in half the time, what is shown and tested.
LARDER := target/release/larder
LARDER_QUICK := target/quick/larder
VENV := target/test-venv
SHELL := /bin/sh

.PHONY: all demo test python-test wheel conformance check bench large fmt clean

all: $(LARDER)

# Always asks cargo, which knows best whether there is anything to do.
.PHONY: $(LARDER) $(LARDER_QUICK)
$(LARDER):
	cargo build --release --locked

$(LARDER_QUICK):
	cargo build --profile quick --locked --bin larder

# The story of a cache in front of a Flask application. ONCE=1 ends by itself; S3=1 uses an S3
# server for the durable tier instead of a directory.
demo: $(LARDER_QUICK)
	$(PYTHON) scripts/demo.py --larder $(LARDER_QUICK) $(if $(ONCE),--once) $(if $(S3),--s3)

# The Flask application and a second S3 server, for the tests that use real ones, and what the Python tests need.
REQUIREMENTS := examples/flask-app/requirements.txt scripts/requirements-s3.txt python/requirements-test.txt tests/http2/requirements.txt
$(VENV)/stamp: $(REQUIREMENTS)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(REQUIREMENTS))
	touch $@

# The wheel: the release binary and the Python module, for machines without cargo.
wheel: $(VENV)/stamp
	$(VENV)/bin/maturin build --release --locked --out target/wheels

# Python: types, and the tests of the module and of the shop, with the module as its wheel installs it. `pip wheel` builds
# this wheel as `pip install ./` does, but with the binary of the quick profile, which the demo uses as well.
python-test: $(VENV)/stamp $(LARDER_QUICK)
	rm -rf target/test-wheels
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--config-settings build-args="--profile quick --locked" --wheel-dir target/test-wheels .
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --force-reinstall target/test-wheels/*.whl
	$(VENV)/bin/mypy
	LARDER_BINARY="$(CURDIR)/$(VENV)/bin/larder" LARDER_TEST_WHEEL="$$(ls $(CURDIR)/target/test-wheels/*.whl)" $(VENV)/bin/python -m pytest

# Attacks by HTTP/2, and its exchanges, frame by frame.
.PHONY: http2-test
http2-test: $(VENV)/stamp $(LARDER_QUICK)
	LARDER_BINARY="$(CURDIR)/$(LARDER_QUICK)" $(VENV)/bin/python -m pytest tests/http2

# A name changes its addresses under load, in namespaces of its own; skipped where those are not permitted.
.PHONY: names-test
names-test: $(VENV)/stamp $(LARDER_QUICK)
	LARDER_BINARY="$(CURDIR)/$(LARDER_QUICK)" $(VENV)/bin/python -m pytest -rs tests/names

# Two scanners look at TLS as Larder comes, Chromium loads a page by HTTP/2, and certificates are replaced under load.
# Installs Debian's packages for that where it can; a test that lacks one says so and is skipped.
SCANNERS := $(CURDIR)/target/scan-venv
TLS_PACKAGES := testssl.sh chromium libnss3-tools
$(SCANNERS)/stamp: scripts/requirements-scan.txt
	rm -rf $(SCANNERS)
	$(PYTHON) -m venv $(SCANNERS)
	$(SCANNERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

.PHONY: tls-packages
tls-packages:
	@{ { command -v testssl && command -v chromium && command -v certutil; } >/dev/null; } || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -q -y $(TLS_PACKAGES) >/dev/null 2>&1; } || true

.PHONY: tls-test
tls-test: $(VENV)/stamp $(SCANNERS)/stamp $(LARDER_QUICK) tls-packages
	LARDER_BINARY="$(CURDIR)/$(LARDER_QUICK)" LARDER_TEST_SSLYZE=$(SCANNERS)/bin/sslyze $(VENV)/bin/python -m pytest -rs tests/tls

# The scanners alone.
.PHONY: scan
scan: $(VENV)/stamp $(SCANNERS)/stamp $(LARDER_QUICK) tls-packages
	LARDER_BINARY="$(CURDIR)/$(LARDER_QUICK)" LARDER_TEST_SSLYZE=$(SCANNERS)/bin/sslyze $(VENV)/bin/python -m pytest -rs tests/tls/test_scan.py

# The public HTTP cache tests, eight times over: as shipped, as the RFC has it, through the durable tier
# alone, with restarts in between, with Surrogate-Control, over TLS by HTTP/1.1 and by HTTP/2, and with three
# origins. ID=… runs one and prints the exchange, PROFILE=… picks one of the eight, RECORD=1 writes down what comes out, PEERS=1 prints
# what the package has of other caches.
conformance/node_modules/.package-lock.json: conformance/package-lock.json conformance/package.json
	cd conformance && npm ci --no-audit --no-fund --loglevel=error
	touch $@

conformance: $(LARDER_QUICK) conformance/node_modules/.package-lock.json
	node --no-warnings conformance/run.mjs --larder $(CURDIR)/$(LARDER_QUICK) $(if $(ID),--id '$(ID)') $(if $(PROFILE),--profile $(PROFILE)) $(if $(RECORD),--record) $(if $(PEERS),--peers)

# Rules, proxy over real sockets, both tiers, certificates from a CA for tests (pebble, which is installed where it can be),
# the binary in front of Flask; the Python module; HTTP/2; names that change; TLS; the demo, 2 GiB each way, and the instructions that a
# request takes. Only the last needs the release build.
test: $(VENV)/stamp
	@command -v pebble >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -q -y pebble >/dev/null 2>&1; } || true
	LARDER_TEST_GUNICORN=$(CURDIR)/$(VENV)/bin/gunicorn LARDER_TEST_MOTO=$(CURDIR)/$(VENV)/bin/moto_server cargo test --locked
	$(MAKE) python-test
	$(MAKE) http2-test
	$(MAKE) names-test
	$(MAKE) tls-test
	$(MAKE) conformance
	$(MAKE) demo ONCE=1
	$(MAKE) demo ONCE=1 S3=1
	$(MAKE) large
	$(MAKE) instructions

# What a change should pass before it is sent: formatting, lints, documentation, the oldest Rust,
# dependencies, tests. What can't be checked for want of a tool says so and passes.
check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	$(MAKE) doc
	$(MAKE) msrv
	$(MAKE) deny
	$(MAKE) fuzz-build
	$(MAKE) test

# The documentation, of what is private as well; a warning is an error.
.PHONY: doc
doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# The oldest Rust that Cargo.toml promises compiles everything, where rustup has it or can fetch it.
.PHONY: msrv
msrv:
	@msrv=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); \
	if ! command -v rustup >/dev/null; then echo "no rustup here: Rust $$msrv is not tried"; \
	elif rustup run $$msrv rustc --version >/dev/null 2>&1 || rustup toolchain install --profile minimal $$msrv; then \
		set -x; cargo +$$msrv check --locked --all-targets; \
	else echo "Rust $$msrv is not here and can't be installed: it is not tried"; fi

# Licences, sources, second versions and known vulnerabilities of all dependencies, by deny.toml. To have
# it: cargo install cargo-deny --locked
.PHONY: deny
deny:
	@if ! cargo deny --version >/dev/null 2>&1; then \
		echo "no cargo-deny here: the dependencies are not checked. To install it: cargo install cargo-deny --locked"; \
	else \
		cargo deny --locked check licenses sources bans || exit 1; \
		if cargo deny --locked fetch db >/dev/null 2>&1; then cargo deny --locked check advisories; \
		else echo "the advisory database can't be reached: known vulnerabilities are not looked for"; fi; \
	fi

# Builds the fuzz targets where there is a nightly compiler. To run one, with cargo-fuzz installed:
# cargo +nightly fuzz run directives
.PHONY: fuzz-build
fuzz-build:
	@if rustup toolchain list 2>/dev/null | grep -q '^nightly'; then \
		cargo +nightly build --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz; \
	else echo "no nightly compiler here: the fuzz targets are not built"; fi

# Other projects' tests for Redis, unchanged, against redis-server and Larder, and the pages for people who come
# from them. Installs below target/compat; needs redis-server, Python 3.11, and some fifteen minutes.
.PHONY: compat
compat: $(LARDER_QUICK) $(VENV)/stamp
	$(PYTHON) compat/run.py --larder $(LARDER_QUICK) --moto $(VENV)/bin/moto_server

# 2 GiB down and up, with Larder's memory watched.
large: $(LARDER_QUICK)
	$(PYTHON) bench/large.py --larder $(LARDER_QUICK)

# The instructions that a request takes, beside those of bare hyper: not 5 % more than is on record. Where
# there is no valgrind, and none can be installed, they are not counted. RECORD=1 writes down what comes out.
.PHONY: instructions
instructions:
	@command -v valgrind >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -q -y valgrind >/dev/null 2>&1; } || true
	@if command -v valgrind >/dev/null; then cargo build --release --locked && $(PYTHON) bench/instructions.py --larder $(LARDER) $(if $(RECORD),--record); \
	else echo "no valgrind here: the instructions of a request are not counted"; fi

# Micro-benchmarks, and CPU time a request beside the peers, which are installed where they can be.
bench: $(LARDER)
	cargo bench --locked
	$(PYTHON) bench/compare

fmt:
	cargo fmt

clean:
	cargo clean
