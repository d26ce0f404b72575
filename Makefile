# What can be done here. `make help` lists it.

CARGO   ?= cargo
# One profile for everything, so that wasmtime is compiled once.
PROFILE := --release
SERVER  := target/release/stepwell
# Guests are built for another target, into a folder of their own.
GUEST_DIR := target/guests
GUESTS    := examples/document-digest examples/omni-task tests/guests/probe tests/guests/hostile tests/guests/waits bench/guests/noop
COMPONENTS := $(GUEST_DIR)/wasm32-unknown-unknown/release

.PHONY: help build wasm guests run test sim client check bench clean

help: ## Lists what can be done
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

build: wasm ## Compiles the program
	$(CARGO) build $(PROFILE) --locked -p stepwell

wasm: ## Makes sure that Rust can compile for WebAssembly
	@scripts/wasm-toolchain.sh

guests: build wasm ## Compiles the examples and the guests of the tests to components
	@for guest in $(GUESTS); do \
	  CARGO_TARGET_DIR=$(CURDIR)/$(GUEST_DIR) $(SERVER) build $$guest > /dev/null || exit 1; \
	done

run: guests ## Starts a server and shows the main job on real input (ONCE=1: stops after it)
	@SERVER=$(SERVER) COMPONENTS=$(COMPONENTS) ONCE=$(ONCE) scripts/run.sh

test: guests ## Passes all tests
	@CARGO="$(CARGO)" GUEST_DIR=$(CURDIR)/$(GUEST_DIR) scripts/test.sh

RUNS ?= 1000000
sim: ## Plays random runs against the rules of the core (SEED=17: that one; RUNS=100000: so many, else a million)
	$(if $(SEED),STEPWELL_SEED=$(SEED),STEPWELL_SEEDS=$(RUNS)) $(CARGO) test $(PROFILE) --locked -p stepwell-core --lib simulation

client: guests ## Tests the TypeScript client against the real program, and in a browser
	@scripts/client-test.sh

check: wasm ## Formatting, lints and documentation, with warnings as errors
	$(CARGO) fmt --all --check
	cd examples && $(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --locked --workspace --all-targets -- -D warnings
	cd examples && CARGO_TARGET_DIR=$(CURDIR)/$(GUEST_DIR) $(CARGO) clippy $(PROFILE) --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --locked --workspace --no-deps --document-private-items

bench: guests ## Prints what this machine does, and writes it to target/bench.json (QUICK=1: a rough look)
	$(CARGO) build $(PROFILE) --locked -p stepwell-bench
	target/release/stepwell-bench --server $(SERVER) --noop $(COMPONENTS)/stepwell_noop.component.wasm \
	  --probe $(COMPONENTS)/stepwell_probe.component.wasm --waits $(COMPONENTS)/stepwell_waits.component.wasm $(if $(QUICK),--quick)

clean: ## Removes everything that was built
	rm -rf target
