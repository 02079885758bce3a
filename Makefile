# make demo    see it work         make test    prove that it does
# make chaos   prove it for half an hour, with processes and brokers that die
#              SEED=, DISTURBANCES=, BROKERS=, KAFKA=, PROTOCOL=, POISON=
# make build   target/release/tonearm and its models
# make lint    formatting and clippy, as CI runs them
# make bench   how fast it is      make bench-peers    how fast beside others; see benches/README.md

.PHONY: demo test chaos build models kafka kafka-4.3 lint bench bench-peers schemas clean

demo: models kafka-4.3
	target/release/tonearm demo

# --release: one profile for everything, so that libtorch's binding and librdkafka compile once.
test: models kafka
	cargo test --release --workspace --no-fail-fast

# First the tests that take minutes, then everything that can go wrong, in the order a seed says.
chaos: models kafka
	cargo test --release --package tonearm-tests -- --ignored
	cargo run --release --package tonearm-tests --bin chaos

build:
	scripts/system-packages build
	scripts/libtorch
	cargo build --release --package tonearm

models: build
	scripts/models

# Both versions are for the tests.
kafka: kafka-4.3
	scripts/kafka fetch --version 3.9

kafka-4.3:
	scripts/system-packages kafka
	scripts/kafka fetch

bench: models kafka-4.3
	scripts/system-packages bench
	cargo bench --package tonearm-benches --bench decode --bench resample --bench log_mel --bench forward
	cargo bench --package tonearm-benches --bench table -- --keep

bench-peers: models kafka-4.3
	scripts/system-packages bench
	cargo bench --package tonearm-benches --bench table -- --peers --keep

lint: build
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- --deny warnings

# Writes what is generated from the types: JSON Schemas and the table of metrics.
schemas: build
	UPDATE=1 cargo test --release --package tonearm-schemas --test current
	target/release/tonearm metrics > docs/metrics.md

clean:
	cargo clean
