# Everything there is to do here, by name. `make` alone lists it.
#
# Variables (make up HOME_DIR=/tmp/mine, say):
#   HOME_DIR       the stack's folder (DEVSTACK_HOME), .devstack by default
#   BENCH_SECONDS  how long `make bench` puts load on, 120 by default
#   SEEDS          how many seeds `make simulate` runs, 100000 by default; FIRST with which to begin
#   SOAK_MINUTES   how long `make soak` inflicts faults, 60 by default
#   FUZZ_SECONDS   how long `make fuzz` gives each target, 60 by default
#   CARGO          the cargo to use
#   ARGS           passed on: to the tests (make test-unit ARGS=retention), to devstack, to the bench; targets for make fuzz

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO ?= cargo
BENCH_SECONDS ?= 120
SEEDS ?= 100000
FIRST ?= 0
SOAK_MINUTES ?= 60
FUZZ_SECONDS ?= 60
HOME_DIR ?=
ARGS ?=

devstack := target/debug/devstack

ifneq ($(HOME_DIR),)
export DEVSTACK_HOME := $(HOME_DIR)
endif
# The programs stand where these rules look for them, whatever the caller's environment says.
export CARGO_TARGET_DIR := $(CURDIR)/target

.PHONY: help setup build demo up test test-unit test-simulation simulate test-fuzz test-system test-browser soak fuzz lint bench fmt clean

help: ## List what there is to do
	@echo 'usage: make <target>'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@sed -n '/^# Variables/,/^$$/s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

setup: ## Install what this machine lacks, and download Kafka (once; never asks)
	@tools/setup

build: setup ## Build everything, tests included
	$(CARGO) build --locked --workspace --all-targets

# exec: Ctrl-C is then devstack's alone to answer, and no shell waits beside it.
demo: build ## See the whole system at work on a private stack
	@exec $(devstack) demo $(ARGS)

up: build ## Keep a private stack running until Ctrl-C
	@exec $(devstack) up $(ARGS)

test: test-unit test-simulation test-fuzz test-system test-browser ## All tests

# The whole workspace in each of them, also where less would do: with another selection of crates their dependencies get other
# features, and all of them would be built once more.
test-unit: setup ## Tests of seconds: no network but the own machine, no services
	$(CARGO) test --locked --workspace --no-fail-fast --lib --bins --test tidy --test keyring-kms --test memory $(ARGS)

test-simulation: setup ## The batcher in a world where everything fails: 6,000 seeds, and mutants
	$(CARGO) test --locked --workspace --no-fail-fast --test simulation $(ARGS) -- --nocapture

simulate: setup ## More seeds: make simulate SEEDS=1000000
	SIMULATE_SEEDS=$(SEEDS) SIMULATE_FIRST=$(FIRST) $(CARGO) test --locked --workspace --test simulation \
	    every_event -- --nocapture

test-fuzz: setup ## Each fuzz target for 3 seconds, from what earlier runs found
	@CARGO='$(CARGO)' fuzz/run 3

# Tests wait more than they work: four at once on two cores take two thirds of the time of three.
test-system: build ## Tests over real processes and real faults
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} $(CARGO) test --locked --workspace --no-fail-fast --test devstack --test system $(ARGS)

test-browser: build ## Masked recordings in rrweb's player, in a browser that it installs
	@tools/test-browser $(ARGS)

soak: build ## All faults of the system tests, on and on; a table of what was sent, lost and doubled
	SOAK_MINUTES=$(SOAK_MINUTES) target/debug/examples/soak

fuzz: setup ## Look for inputs that break a parser; findings in fuzz/artifacts
	@CARGO='$(CARGO)' fuzz/run $(FUZZ_SECONDS) $(ARGS)

lint: setup ## Format, clippy and docs, warnings being errors
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@CARGO='$(CARGO)' fuzz/run --clippy
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --locked --workspace --no-deps --document-private-items

bench: build ## Measure this machine: load, verification, report
	target/debug/bench run --seconds $(BENCH_SECONDS) $(ARGS)

fmt: ## Format the code
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml

clean: ## Remove what was built and the default stack's folder; Kafka's jars and what fuzzing found stay
	@if [ -f .devstack/postgres.elsewhere ]; then rm -rf "$$(cat .devstack/postgres.elsewhere)"; fi
	rm -rf .devstack
	$(CARGO) clean --profile dev
	$(CARGO) clean --doc
	rm -rf fuzz/target
