# What is done with this repository, in one place. `.ci/run` does lint and test.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build test lint fmt bench demo spire packages

# cargo-deny is a tool of its own; the version is raised by hand.
DENY_VERSION := 0.20.2
TOOLS := $(CURDIR)/target/tools
export PATH := $(TOOLS)/bin:$(PATH)

build:
	cargo build --locked --release

# Everything. The tests with a real SPIRE want root and Go; without them they pass unrun and say so,
# except where CI=true.
test: packages
	@set -x # shows what is done
	if [[ $${CI:-} == true ]] || { [[ $$(id -u) == 0 ]] && command -v go >/dev/null; }; then
	  tests/spire/build.sh
	  tests/interop/build.sh
	  export SPIFFE_ENTRA_REQUIRE_SPIRE=1
	else
	  echo "make test: no root or no Go: without the tests that run a real SPIRE" >&2
	fi
	cargo test --locked --workspace --no-fail-fast

# The programs of others that the tests run: SPIRE, and clients that share no code with this project.
# What is there already is not built again.
spire:
	tests/spire/build.sh
	tests/interop/build.sh

lint: packages
	@set -x # shows what is done
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	# Read with the private items, as the modules' own guides are: links to them are fine.
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" \
	  cargo doc --locked --workspace --no-deps --document-private-items
	if ! cargo deny --version 2>/dev/null | grep -F ' $(DENY_VERSION)' >/dev/null; then
	  cargo install cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS)
	fi
	cargo deny --locked check --hide-inclusion-graph bans licenses sources
	# The advisory database is a git repository that not every network reaches.
	if timeout 120 cargo deny fetch db >/dev/null 2>&1; then
	  cargo deny --locked check --hide-inclusion-graph --disable-fetch advisories
	else
	  echo "make lint: the advisory database is out of reach: advisories are not checked" >&2
	fi
	if command -v shellcheck >/dev/null; then
	  git ls-files -z -- '*.sh' .ci | xargs -0 shellcheck
	else
	  echo "make lint: no shellcheck: the scripts are not checked" >&2
	fi

fmt:
	cargo fmt --all

# Measures beside the limit, in one run: `make bench BENCH="--only warm --json FILE"` for a part of it.
bench:
	cargo build --locked --release
	cargo build --locked --release --package lab --bin bench
	"$${CARGO_TARGET_DIR:-target}/release/bench" $(BENCH)

# The main job, told as it happens, on the lab's stand-ins: a machine with cargo is enough.
# `make demo HOLD=1` keeps it up and prints commands to try.
demo:
	cargo build --locked --workspace --bin spiffe-entra --bin demo
	"$${CARGO_TARGET_DIR:-target}/debug/demo" $(if $(HOLD),--hold)

packages:
	.ci/packages

.ONESHELL:
