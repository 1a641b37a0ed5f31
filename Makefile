# On a bare Debian 12: `make demo` to see it, `make test` to check it. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/sbin:/sbin

CARGO ?= cargo
SEEDS ?= 20000
FIRST := $(or $(FIRST),$(shell date +%s))
RUNS ?= 5
PAIRS ?= 12
ROUNDS ?= 10
ARGS ?=
MINUTES ?= 5
MODE ?= quorum
SIM_LOG ?= docs/measured/simulation.csv
TORTURE_LOG ?= docs/measured/torture.csv

# cargo-nextest runs each test in a process of its own, in the groups of .config/nextest.toml. Without it plain
# cargo test does the same work one binary after another; tests that must not meet then need one thread.
NEXTEST := $(shell PATH='$(PATH)' command -v cargo-nextest 2>/dev/null)
DENY = $(shell PATH='$(PATH)' command -v cargo-deny 2>/dev/null)

.PHONY: help deps build fmt lint lint-deps unit doc test test-full soak torture sim bench-failover bench-commit bench-guard bench-decide demo clean

help: ## This list.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | awk -F'\t' '{ printf "  %-16s %s\n", $$1, $$2 }'

deps: ## Installs what is missing: PostgreSQL 15, etcd, protoc, network tools, Rust (by rustup).
	@.ci/deps

build: deps ## The release binary: target/release/pgbaton.
	$(CARGO) build --locked --release --bin pgbaton

fmt: ## Formatting is rustfmt's.
	$(CARGO) fmt --check

lint: deps ## clippy, with every warning an error.
	$(CARGO) clippy --locked --all-targets -- -D warnings

lint-deps: ## Licences, sources and banned crates (needs cargo-deny).
ifeq ($(DENY),)
	@echo "skipped: cargo-deny is not here (make install-deny; it takes minutes)"
else
	$(CARGO) deny --locked --all-features check bans licenses sources
endif

.PHONY: install-deny
install-deny: ## Builds cargo-deny.
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked

unit: deps ## The tests, without fmt, clippy and the rest.
ifeq ($(NEXTEST),)
	@echo "cargo-nextest is not here: using cargo test"
	$(CARGO) test --locked --lib --bins
	$(CARGO) test --locked --tests -- --test-threads=1
else
	$(CARGO) nextest run --locked
endif

doc: deps ## Examples in the documentation.
	$(CARGO) test --locked --doc

test: deps fmt lint lint-deps doc unit ## Everything that a change has to pass.

# Slow tests are ignored ones whose name begins with slow_; soak_, torture_ and bench_ have targets of their own. Other ignored
# tests are parts of a test that starts them by itself.
test-full: deps install-deny test test-17 ## The slow suites too: many repetitions, PostgreSQL 17.
ifeq ($(NEXTEST),)
	$(CARGO) test --locked --release --tests -- --test-threads=1 --ignored slow_
else
	$(CARGO) nextest run --locked --release --profile full --run-ignored only --no-tests=pass -E 'test(/(^|::)slow_/)'
endif

PG17 := /var/tmp/pgbaton/postgresql-17

.PHONY: test-17
test-17: deps ## The tests that start PostgreSQL, on PostgreSQL 17.
	.ci/postgres-tree trixie 17 $(PG17)
ifeq ($(NEXTEST),)
	PGBATON_TEST_BIN=$(PG17)/usr/lib/postgresql/17/bin $(CARGO) test --locked --test 'postgres*' --test 'integration*' -- --test-threads=1
else
	PGBATON_TEST_BIN=$(PG17)/usr/lib/postgresql/17/bin $(CARGO) nextest run --locked -E 'binary(/^(postgres|integration)/)'
endif

soak: deps ## Every fault ROUNDS=10 times in a row; goes on where it stopped, ends by itself after SOAK_MINUTES=n.
	SOAK_ROUNDS=$(ROUNDS) $(CARGO) test --locked --release --test integration -- --ignored --nocapture --test-threads=1 soak_

torture: deps ## Clients and faults by a seed, judged by their history: MINUTES=5 MODE=quorum|strict-quorum|async; SEED=n for one run, PART=n to end after minutes.
	TORTURE_LOG=$(TORTURE_LOG) TORTURE_MINUTES=$(MINUTES) TORTURE_MODE=$(MODE) TORTURE_SEED=$(SEED) TORTURE_PART=$(PART) \
		$(CARGO) test --locked --release --test integration -- --ignored --nocapture --test-threads=1 torture_

# Other seeds for each state of the sources, unless FIRST says which; what has passed for the same state counts.
sim: deps ## The simulator over SEEDS=20000 fresh seeds of ten minutes, in all modes; goes on where it stopped, PART=n to end after minutes.
	SIM_LOG=$(SIM_LOG) FIRST=$(FIRST) SEEDS=$(SEEDS) SIM_PART=$(PART) \
		$(CARGO) test --locked --release --test sim_campaign -- --ignored --nocapture sim_fresh_seeds

bench-failover: deps ## Longest gap between two acknowledged writes, by fault: medians of RUNS=5.
	BENCH_RUNS=$(RUNS) $(CARGO) test --locked --release --test bench_failover -- --ignored --nocapture --test-threads=1 bench_failover

bench-commit: deps ## What a commit takes in quorum, against plain ANY 1 without agents: the ratio of PAIRS=12 interleaved pairs.
	BENCH_PAIRS=$(PAIRS) $(CARGO) test --locked --release --test bench_commit -- --ignored --nocapture bench_commit

bench-guard: deps ## From the deadline to the last process dead, by kill mode, also stopped: medians of RUNS=5.
	BENCH_RUNS=$(RUNS) $(CARGO) test --locked --release --test guard -- --ignored --nocapture --test-threads=1 bench_

bench-decide: deps ## How long one decision takes: median, p99, p99.9.
	$(CARGO) test --locked --release --test decide -- --ignored --nocapture bench_decide

# An unoptimised build starts minutes sooner on a fresh clone, and what is waited for in a failover is not the processor.
demo: deps ## Three nodes and three etcd members on this machine; ARGS=--script for the unattended tour.
	$(CARGO) build --locked --bin pgbaton
	target/debug/pgbaton demo $(ARGS)

clean: ## Removes what was built and what runs left behind.
	$(CARGO) clean
	rm -rf lab-out $(PG17)
