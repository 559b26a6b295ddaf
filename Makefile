# The two commands to know: `make demo` and `make test`.

# ip and nft live in sbin, which is not on every user's path.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
SHELL := /bin/bash -o pipefail
export CARGO_TERM_COLOR ?= auto

.PHONY: help dist package reproducible packages-test demo test test-vm sim sim-campaign quiet outage recovery idle lockout kill-matrix mutations reload-storm pairs measure exhaust flood restart cluster bench lint \
  supply-chain semver fuzz mutants chaos backends browser

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: ## two nodes behind two NATs on this machine: watch them connect (ARGS="--nat-a full-cone" and so on)
	@scripts/deps.sh demo
	@echo 'compiling natpunch and its dependencies: minutes the first time, seconds later'
	cargo build --locked --bin natpunch
	@cargo run --locked --quiet --bin natpunch -- demo $(ARGS)

test: ## all tests
	@scripts/deps.sh test
	cargo test --workspace --locked --no-fail-fast

test-vm: ## the main job on kernel WireGuard, in a virtual machine
	tests/vm/run

sim: ## the simulator's scenarios over many more seeds
	cargo test --locked -p natpunch-sim --test sim --no-fail-fast -- --include-ignored --skip campaign::

quiet: ## the log of an hour in which nothing happens: of nodes, a hub that serves and a server (an hour)
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture quiet_hour | grep -E '^(measured|test )'

sim-campaign: ## any pair of NATs with any fault, 100,000 seeds (an hour on two idle cores; NATPUNCH_SIM_SEEDS=1000 for fewer)
	cargo test --release --locked -p natpunch-sim --test sim -- --ignored --nocapture campaign::

outage: ## outages of 1 to 20 minutes without traffic, direct and relayed: a pair is back by itself (25 minutes)
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture --test-threads=10 outage | grep -E '^(measured|test )'
	cargo test --locked -p natpunch-wg --test devices -- --ignored --nocapture outage

recovery: ## how soon a pair is back after each fault, direct, pinned and relayed, 200 seeds each (NATPUNCH_SIM_SEEDS=20)
	cargo test --release --locked -p natpunch-sim --test sim -- --ignored --nocapture recovery:: | grep -E '^(measured|test )'

idle: ## what idle pairs cost at their NATs, direct, pinned and relayed, behind NATs of 15 to 120 s (16 minutes)
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture --test-threads=12 idle:: | grep -E '^(measured|test )'

lockout: ## the lock-out matrix: 60 changes that break the way to a peer, each undone in time (4 minutes)
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture lockout | grep -E '^(measured|test )'

kill-matrix: ## kill -9 at every step of a change, under traffic, with three states of the disk (3 minutes)
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture kill_matrix | grep -E '^(measured|test )'

mutations: ## 10,000 broken meshes: none panics, none reaches the kernel of a running agent (1 minute)
	cargo test --locked --test config -- --ignored --nocapture mutations | grep -E '^(measured|test )'
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture broken_versions | grep -E '^(measured|test )'

reload-storm: ## 10,000 versions of a mesh of 1,000 peers in 60 s, under traffic
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture ten_thousand_versions | grep -E '^(measured|test )'

pairs: ## 23 pairs of real NATs, 20 to 60 times each: how often and how soon direct, at what cost for others (an hour)
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture --test-threads=1 pairs::campaign | grep -E '^(measured|test )'

browser: ## the page of `natpunch web` in headless Chromium (PICTURES=DIR to keep pictures of it)
	@scripts/deps.sh browser
	NATPUNCH_SCREENSHOTS=$(if $(PICTURES),$(abspath $(PICTURES))) cargo test --locked --lib -- --ignored --test-threads=1 in_a_browser

measure: ## time from start to the first ping, many times over, in the lab
	@scripts/deps.sh bench
	cargo test --locked --test lab -- --ignored --nocapture --test-threads=1 measure | grep -E '^(measured|test )'

backends: ## each discovery backend alone, all together, and any two while the others are dead, hang or lie (5 minutes)
	@scripts/deps.sh test
	cargo test --locked --test lab -- --ignored --nocapture --test-threads=1 campaign_of_backends | grep -E '^(measured|test )'

chaos: ## a plugin's program that crashes a thousand times, floods and lies: what the node pays has a bound (7 minutes)
	cargo test --locked --test plugin -- --ignored --nocapture chaos | grep -E '^(measured|test )'

fuzz: ## libFuzzer on every parser and state machine (SECONDS=60 for each; TARGETS="uapi stun")
	tests/fuzz/run $(or $(SECONDS),60) $(TARGETS)

exhaust: ## every datagram of 0 to 3 bytes, to the server and the clients of the rendezvous
	cargo test --release --locked -p natpunch-rendezvous -- --ignored --nocapture up_to_three_bytes | grep -E '^(measured|test )'

flood: ## the server under 60,000 packets a second from spoofed sources, with clients that come and go (1 minute)
	cargo test --release --locked --test server -- --ignored --nocapture campaign_flood | grep -E '^(measured|test )'

cluster: ## 100,000 clients of three server processes that share a Redis: pushes within and between, the store killed (5 minutes)
	cargo test --release --locked --test server -- --ignored --nocapture campaign_cluster | grep -E '^(measured|test )'

restart: ## 100,000 clients of one server that restarts: all are back within a minute (3 minutes)
	cargo test --release --locked --test server -- --ignored --nocapture campaign_restart | grep -E '^(measured|test )'

mutants: ## mutation tests of the pure crates: many hours, or a part of them (SHARD=0/20 CRATES=natpunch-rollout)
	scripts/mutants "$(SHARD)" $(CRATES)

dist: ## what is handed out, in target/dist-out: program, manual, completions, units, licences (many minutes)
	scripts/dist

package: dist ## the same as .deb and .rpm
	@scripts/deps.sh package
	scripts/package

reproducible: ## `make dist` twice, in two folders: equal to the byte (twice as many minutes)
	scripts/reproducible

packages-test: ## the .deb of `make dist` installed, upgraded under traffic, removed, purged in a booted Debian (5 minutes)
	@scripts/deps.sh packages
	tests/packages/run

bench: ## benchmarks, each against its baseline in the same run
	@scripts/deps.sh bench
	cargo bench --workspace --locked --bench '*'

lint: ## formatting, clippy, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --workspace --no-deps --locked --quiet
	@# Its lock file is one of its own, and follows the workspace's dependencies.
	cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null

supply-chain: ## licences, sources and duplicates of the dependencies, and dependencies that nothing uses
	@scripts/deps.sh supply
	scripts/supply-chain

semver: ## whether the plugin API still is what a plugin was written against (BASELINE=REVISION; the last tag)
	scripts/semver $(BASELINE)
