# What a newcomer runs: `make demo` and `make test`. Everything they need beyond cargo, python3,
# node and a C compiler they install themselves, below target/.

PYTHON ?= python3
LARDER := target/release/larder
VENV := target/test-venv
SHELL := /bin/sh

.PHONY: all demo test conformance check bench large fmt clean

all: $(LARDER)

# Always asks cargo, which knows best whether there is anything to do.
.PHONY: $(LARDER)
$(LARDER):
	cargo build --release --locked

# The story of a cache in front of a Flask application. ONCE=1 ends by itself; S3=1 uses an S3
# server for the durable tier instead of a directory.
demo: $(LARDER)
	$(PYTHON) scripts/demo.py --larder $(LARDER) $(if $(ONCE),--once) $(if $(S3),--s3)

# The Flask application and a second S3 server, for the tests that use real ones.
$(VENV)/stamp: examples/flask-app/requirements.txt scripts/requirements-s3.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/flask-app/requirements.txt -r scripts/requirements-s3.txt
	touch $@

# The public HTTP cache tests, five times over: as shipped, as the RFC has it, through the durable tier
# alone, with restarts in between, and with Surrogate-Control. ID=… runs one and prints the exchange,
# PROFILE=… picks one of the five, RECORD=1 writes down what comes out, PEERS=1 prints what the package
# has of other caches.
conformance/node_modules/.package-lock.json: conformance/package-lock.json conformance/package.json
	cd conformance && npm ci --no-audit --no-fund --loglevel=error
	touch $@

conformance: $(LARDER) conformance/node_modules/.package-lock.json
	node --no-warnings conformance/run.mjs --larder $(CURDIR)/$(LARDER) $(if $(ID),--id '$(ID)') $(if $(PROFILE),--profile $(PROFILE)) $(if $(RECORD),--record) $(if $(PEERS),--peers)

# Rules, proxy over real sockets, both tiers, the binary in front of Flask; then the demo, 2 GiB each way
# through the release binary, and the instructions that a request takes.
test: $(VENV)/stamp
	LARDER_TEST_GUNICORN=$(CURDIR)/$(VENV)/bin/gunicorn LARDER_TEST_MOTO=$(CURDIR)/$(VENV)/bin/moto_server cargo test --locked
	$(MAKE) conformance
	$(MAKE) demo ONCE=1
	$(MAKE) demo ONCE=1 S3=1
	$(MAKE) large
	$(MAKE) instructions

# What a change should pass before it is sent: formatting, lints, documentation, tests.
check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	$(MAKE) fuzz-build
	$(MAKE) test

# Builds the fuzz targets where there is a nightly compiler. To run one, with cargo-fuzz installed:
# cargo +nightly fuzz run directives
.PHONY: fuzz-build
fuzz-build:
	@if rustup toolchain list 2>/dev/null | grep -q '^nightly'; then \
		cargo +nightly build --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz; \
	else echo "no nightly compiler here: the fuzz targets are not built"; fi

# 2 GiB down and up, with Larder's memory watched.
large: $(LARDER)
	$(PYTHON) bench/large.py --larder $(LARDER)

# The instructions that a request takes, beside those of bare hyper: not 5 % more than is on record. Where
# there is no valgrind, and none can be installed, they are not counted. RECORD=1 writes down what comes out.
.PHONY: instructions
instructions: $(LARDER)
	@command -v valgrind >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -q -y valgrind >/dev/null 2>&1; } || true
	@if command -v valgrind >/dev/null; then $(PYTHON) bench/instructions.py --larder $(LARDER) $(if $(RECORD),--record); \
	else echo "no valgrind here: the instructions of a request are not counted"; fi

# Micro-benchmarks, and CPU time a request beside the peers, which are installed where they can be.
bench: $(LARDER)
	cargo bench --locked
	$(PYTHON) bench/compare

fmt:
	cargo fmt

clean:
	cargo clean
