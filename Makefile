# Forebay. `make help` lists the targets; each does all its own set-up, as root or not.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV   := .venv
BIN    := $(VENV)/bin
ENV    := .forebay/toolchain/env.sh
DEPS   := .forebay/stamps/deps
KERNEL := .forebay/stamps/kernel
RUST   := $(shell find common/kernel -name '*.rs' -not -path '*/target/*') common/kernel/Cargo.toml
PACKAGES := common schemas edge_agent cloud_ingest

.PHONY: help setup demo test test-all lint format bench services services-down clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(KERNEL) ## Make .venv with every dependency and the built kernel (done by the others by themselves)

$(ENV): deploy/dev/toolchain.sh common/kernel/Cargo.toml
	@bash deploy/dev/toolchain.sh

$(DEPS): $(ENV) requirements/runtime.txt requirements/dev.txt
	@source $(ENV)
	echo "setup: Python dependencies"
	[ -x $(BIN)/python ] || make_venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	mkdir -p $(@D) && touch $@

$(KERNEL): $(DEPS) $(RUST) pyproject.toml
	@source $(ENV)
	echo "setup: building the kernel (Rust)"
	$(BIN)/maturin develop --release --quiet
	mkdir -p $(@D) && touch $@

demo: $(KERNEL) ## Watch a plant's readings reach PostgreSQL and Parquet, and the proof that none was lost
	@$(BIN)/python -m deploy.demo $(DEMO_ARGS)

test: $(KERNEL) ## Run the tests that need no other server (under 15 minutes)
	@$(BIN)/python -m pytest -m "not services and not slow" $(TEST_ARGS)

test-all: $(KERNEL) ## Run every test, on a real Kafka and PostgreSQL that it starts
	@source $(ENV)
	cargo test --release --quiet --manifest-path common/kernel/Cargo.toml
	$(MAKE) services
	trap '$(MAKE) services-down' EXIT
	$(BIN)/python -m pytest $(TEST_ARGS)

lint: $(KERNEL) ## Check style, types, the import laws, and the Rust crate
	@source $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd common/kernel
	cargo fmt --check
	cargo clippy --release --quiet --all-targets -- -D warnings

format: $(KERNEL) ## Format the code
	@source $(ENV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .
	cd common/kernel && cargo fmt

bench: $(KERNEL) ## Measure; prints tables with medians and ratios against named peers
	@$(BIN)/python -m bench $(BENCH_ARGS)

services: $(KERNEL) ## Start a real Kafka (KRaft) and a PostgreSQL, without containers
	@source $(ENV)
	$(BIN)/python -m deploy.dev.services up

services-down: ## Stop them
	@[ ! -f $(KERNEL) ] || $(BIN)/python -m deploy.dev.services down

clean: ## Remove everything that the targets above made
	@$(MAKE) services-down || true
	rm -rf $(VENV) .forebay common/_kernel*.so common/kernel/target
