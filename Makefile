# t3c: `make help` lists the targets.
CARGO ?= cargo
T3C = target/release/t3c
LLVM_FREE = -p t3c-schedule -p t3c-sim -p t3c-runtime -p t3c-rl

.PHONY: help setup build demo test bless docs bench lint deny plugin ci clean

help:   ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup:  ## install what this machine lacks (LLVM and MLIR 22 from Debian)
	@scripts/setup.sh

build: setup  ## build the t3c command (release)
	$(CARGO) build --release --locked

demo: build  ## compile, simulate and train a real model
	@scripts/demo.sh $(T3C)

test: setup  ## run every test
	$(CARGO) test --workspace --locked
	RUSTFLAGS="--cfg loom" $(CARGO) test --locked --release -p t3c-runtime --test loom --target-dir target/loom
	@scripts/llvm-free.sh $(LLVM_FREE)
	@scripts/plugin.sh target/plugin

bless: build  ## update snapshots and generated pages; read the diff like code
	INSTA_UPDATE=always $(CARGO) test --workspace --locked
	@scripts/generate-docs.sh $(T3C)

docs: setup  ## build the API documentation and the book
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked
	@scripts/book.sh

bench: build  ## measure the kernels against the machine's peak
	$(T3C) bench gemm

lint: setup deny  ## formatting, clippy and dependency checks
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

deny:   ## licences and sources of all dependencies
	@scripts/deny.sh

plugin: setup  ## build the dialect plugin for mlir-opt-22
	@scripts/plugin.sh target/plugin

ci:     ## everything that must hold before a change is merged
	@.ci/run

clean:  ## remove build outputs
	$(CARGO) clean
