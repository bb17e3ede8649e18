# Every target sets up what it needs; nothing but Python >= 3.11 and make has to be there.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
, := ,
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-crash test-power test-streams test-peers test-alerts observe-tools test-proxies proxy-tools test-clients test-tours client-tools client-packages proto-lint e2e fuzz soak bench bench-mixes bench-uploads bench-tools overload check check-types check-install format lock proto calls clean test-browser browser-tools docs docs-serve docs-picture

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# The stamp is newer than the lock and the project file when the environment matches them.
$(VENV)/.dev: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("gatherd needs Python >= 3.11, this is " + sys.version) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "could not make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (once, about a minute)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/.dev  ## serve a real pre-trained table, look it up over every wire, train it (DEMO_ONCE=1 stops after the tour)
	@$(BIN)/python deploy/demo/demo.py

serve: $(VENV)/.dev  ## serve the demo's table without the tour
	@$(BIN)/python deploy/demo/demo.py --serve-only

# With bytecode, also where the environment forbids to write it: without, each of some 250 servers and
# commands that the tests start compiles 180 modules, half a second of CPU time.
test: $(VENV)/.dev  ## run the test suite
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-crash: $(VENV)/.dev  ## kill real servers 200 times under concurrent updates (eight minutes; make test does it 20 times)
	CRASH_KILLS=200 CRASH_ROWS=10000000 $(BIN)/python -m pytest tests/crash -v -s

test-power: $(VENV)/.dev  ## judge 20,000 simulated power cuts (about 20 minutes; make test does 240)
	POWER_CUTS=20000 $(BIN)/python -m pytest tests/durability/test_power_cuts.py -v

test-streams: $(VENV)/.dev  ## hold 5,000 streams of HTTP requests against h11 (two minutes; make test does 250)
	HTTP_STREAMS=2500 $(BIN)/python -m pytest tests/http/test_streams.py -v

fuzz: $(VENV)/.dev  ## feed every decoder what befalls its inputs, for two minutes (FUZZ_SECONDS=3600 for longer)
	$(BIN)/python tests/fuzz/fuzz.py

soak: $(VENV)/.dev  ## ten minutes of lookups and pushes on one server, memory flat, no error (SOAK_SECONDS=120 for shorter)
	$(BIN)/python tests/soak/soak.py

# Debian's prometheus has promtool. It isn't started, nor does anything here need it running.
observe-tools:
	@command -v promtool > /dev/null || \
	  { RUNLEVEL=1 apt-get install -qq -y --no-install-recommends prometheus || \
	    { apt-get update -qq && RUNLEVEL=1 apt-get install -qq -y --no-install-recommends prometheus; }; \
	  } > /dev/null 2>&1 || \
	    echo "no promtool: apt-get couldn't install it (it takes Debian and root); what needs it is skipped"

test-alerts: $(VENV)/.dev observe-tools  ## have Prometheus judge the alert rules, also on what real servers tell (a minute)
	$(BIN)/python -m pytest -rs tests/operations/test_alerts.py tests/operations/test_failures.py tests/operations/test_hung_writer.py

# The recipe of an environment of its own, in the target's folder: the lock's packages, and gatherd.
define environment
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@echo "setting up $(@D) ($(TOLD))"
	@$(@D)/bin/python -m pip install -q --disable-pip-version-check $(HASHES) -r $<
	@$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
endef

PEERS := .venv-peers
# Its lock has no hashes: torch is the CPU build, under whatever name the index at hand has it.
$(PEERS)/.ready: TOLD = once, a few minutes: torch, jax, keras, gensim
$(PEERS)/.ready: requirements-peers.lock pyproject.toml
	$(environment)

test-peers: $(PEERS)/.ready  ## hold gatherd against torch, jax, keras, gensim, gguf and IPython, in an environment of their own
	KERAS_BACKEND=torch $(PEERS)/bin/python -m pytest tests/peers

# Debian starts what it installs, unless the run level says that it's no time for it.
APT := DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get
proxy-tools:
	@for tool in nginx haproxy curl java:default-jdk-headless; do \
	  command -v $${tool%%:*} > /dev/null && continue; \
	  { $(APT) install -qq -y --no-install-recommends $${tool##*:} || \
	    { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends $${tool##*:}; }; \
	  } > /dev/null 2>&1 || \
	    echo "no $${tool%%:*}: apt-get couldn't install it (it takes Debian and root); what needs it is skipped"; \
	done

test-proxies: $(VENV)/.dev proxy-tools  ## nginx and HAProxy in front of a server, and clients in Java and curl
	TEST_PROXIES=1 $(BIN)/python -m pytest tests/proxies -rs

# Compilers and libraries of other languages; the programs in tests/clients are built with them.
CLIENT_TOOLS := curl g++ pkg-config protobuf-compiler \
  libgrpc++-dev protobuf-compiler-grpc \
  golang-go golang-google-grpc-dev golang-google-genproto-dev golang-github-golang-protobuf-1-5-dev \
  protoc-gen-go-1-5 protoc-gen-go-grpc \
  default-jdk-headless libgrpc-java libnetty-java libperfmark-java libprotobuf-java \
  protobuf-compiler-grpc-java-plugin
client-tools:
	@missing=; for package in $(CLIENT_TOOLS); do \
	  dpkg -s $$package > /dev/null 2>&1 || missing="$$missing $$package"; \
	done; \
	command -v npm > /dev/null || missing="$$missing nodejs npm"; \
	test -z "$$missing" || \
	  { $(APT) install -qq -y --no-install-recommends $$missing || \
	    { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends $$missing; }; \
	  } > /dev/null 2>&1 || \
	  for package in $$missing; do \
	    $(APT) install -qq -y --no-install-recommends $$package > /dev/null 2>&1 || \
	      echo "no $$package: apt-get couldn't install it (it takes Debian and root); what needs it is skipped"; \
	  done

# buf, Connect and gRPC for Node, as tests/clients/node/package-lock.json pins them.
NODE := tests/clients/node
$(NODE)/node_modules/.ready: $(NODE)/package-lock.json
	@npm ci --prefix $(NODE) --ignore-scripts --no-audit --no-fund --loglevel=error > /dev/null
	@touch $@

client-packages:
	@if command -v npm > /dev/null; then $(MAKE) -s $(NODE)/node_modules/.ready; else \
	  echo "no npm: what needs it is skipped"; fi

test-clients: $(VENV)/.dev client-tools client-packages  ## clients in Node, Go, Java, C++ and curl; buf lints the .proto files and reflects (three minutes)
	TEST_CLIENTS=1 $(BIN)/python -m pytest tests/clients -rs

proto-lint: $(NODE)/node_modules/.ready  ## have buf lint the .proto files (takes npm), and with AGAINST=TAG say what breaks clients
	$(NODE)/node_modules/.bin/buf lint proto
	$(if $(AGAINST),$(NODE)/node_modules/.bin/buf breaking proto --against '.git#tag=$(AGAINST)$(,)subdir=proto')

test-tours: $(VENV)/.dev  ## four users' first hours with an installed wheel, their mistakes and what the errors propose (two minutes)
	PYTHONPATH=tests $(BIN)/python tests/tours/run.py

BROWSER := .venv-browser
$(BROWSER)/.ready: TOLD = once, a minute: playwright
$(BROWSER)/.ready: HASHES = --require-hashes
$(BROWSER)/.ready: requirements-browser.lock pyproject.toml
	$(environment)

# Debian's, which playwright drives: its own builds come from elsewhere.
browser-tools:
	@command -v chromium > /dev/null || \
	  { $(APT) install -qq -y --no-install-recommends chromium fonts-dejavu-core || \
	    { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends chromium fonts-dejavu-core; }; \
	  } > /dev/null 2>&1 || \
	    echo "no chromium: apt-get couldn't install it (it takes Debian and root); what needs it is skipped"

test-browser: $(BROWSER)/.ready browser-tools  ## the pages in headless Chromium, and Connect from a page (two minutes; SCREENSHOTS=docs/images writes the docs' pictures)
	$(BROWSER)/bin/python -m pytest tests/browser -rs --timeout 600

DOCS := .venv-docs
$(DOCS)/.ready: TOLD = once, a minute: MkDocs, and gatherd for its docstrings and commands
$(DOCS)/.ready: HASHES = --require-hashes
$(DOCS)/.ready: requirements-docs.lock pyproject.toml
	$(environment)

docs: $(DOCS)/.ready  ## build the documentation site to build/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

docs-serve: $(DOCS)/.ready  ## show the site at http://127.0.0.1:8100, built anew at each change
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs serve --dev-addr 127.0.0.1:8100

docs-picture: docs  ## take docs/images/site.png anew (takes Debian's chromium)
	$(DOCS)/bin/python docs/site_picture.py

BENCH := .venv-bench
# Without hashes, as the peers' lock, and for the same reason.
$(BENCH)/.ready: TOLD = once, a few minutes: torch, pyarrow, redis, matplotlib
$(BENCH)/.ready: requirements-bench.lock pyproject.toml
	$(environment)

bench-tools:
	@for tool in redis-server wrk; do \
	  command -v $$tool > /dev/null && continue; \
	  { $(APT) install -qq -y --no-install-recommends $$tool || \
	    { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends $$tool; }; \
	  } > /dev/null 2>&1 || \
	    echo "no $$tool: apt-get couldn't install it (it takes Debian and root); what needs it is skipped"; \
	done

e2e: $(VENV)/.dev  ## build the images and see the whole deployment work, with COMPOSE="docker compose" or another (ten minutes)
	$(BIN)/python deploy/e2e/run.py

bench: $(BENCH)/.ready bench-tools  ## measure gatherd beside Redis, Arrow Flight, grpcio, torch; writes docs/benchmarks.md (20 minutes, 8 GB)
	$(BENCH)/bin/python tests/bench/bench.py

bench-uploads: $(VENV)/.dev  ## uploads beside a bare socket, and both ends' memory (three minutes, 3 GB of disk)
	$(BIN)/python tests/bench/uploads.py

bench-mixes: $(BENCH)/.ready bench-tools  ## many tables and keys beside Redis and Flight, in a minute (BEFORE=TREE asks another checkout, too)
	$(BENCH)/bin/python tests/bench/bench.py mixes --quick $(if $(BEFORE),--before $(BEFORE))

overload: $(VENV)/.dev  ## load a server with three times what it can take (a minute)
	PYTHONPATH=tests $(BIN)/python -m bench.overload

check: $(VENV)/.dev check-install  ## format, lint, types, import rules, stubs, base install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python client/generate_async.py --check

TYPES := .venv-types
$(TYPES)/.ready: requirements-types.lock
	@test -x $(TYPES)/bin/python || $(PYTHON) -m venv $(TYPES)
	@$(TYPES)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-types.lock
	@touch $@

# pyright is an npm package, which its PyPI namesake fetches at the first run, for the Node.js that it brings.
check-types: $(VENV)/.dev $(TYPES)/.ready  ## mypy and pyright, both strict, find the mistakes planted in a user's script
	PYRIGHT_PYTHON_CACHE_DIR=$(CURDIR)/$(TYPES)/cache PYRIGHT_PYTHON_IGNORE_WARNINGS=1 \
	  $(BIN)/python tests/typed/judge.py $(TYPES)/bin/pyright

check-install: $(VENV)/.dev  ## a fresh `pip install .` is the client and brings no web framework
	$(BIN)/python tests/check_base_install.py

format: $(VENV)/.dev  ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/.dev  ## regenerate the committed stubs
	$(BIN)/python proto/generate.py

calls: $(VENV)/.dev  ## write the awaited client's calls anew from the blocking client's
	$(BIN)/python client/generate_async.py

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
lock: $(VENV)/.dev  ## resolve the lock files anew from pyproject.toml
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(UV_COMPILE) --extra server --extra formats --extra remote --extra otel --group dev pyproject.toml -o requirements-dev.lock
	$(UV_COMPILE) --extra server --extra remote --extra otel --group build -c requirements-dev.lock pyproject.toml -o requirements-server.lock
	$(UV_COMPILE) --extra server --group build --group browser -c requirements-dev.lock pyproject.toml -o requirements-browser.lock
	$(UV_COMPILE) --extra formats -c requirements-dev.lock pyproject.toml -o requirements-formats.lock
	$(UV_COMPILE) --extra server --group docs -c requirements-dev.lock pyproject.toml -o requirements-docs.lock
	$(UV_COMPILE) -c requirements-dev.lock pyproject.toml deploy/model_server/requirements.in -o deploy/model_server/requirements.lock

clean:  ## remove what the targets made
	rm -rf $(VENV) $(PEERS) $(TYPES) $(BROWSER) $(DOCS) $(BENCH) build .cache .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
