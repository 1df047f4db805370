# `make demo` and `make test` are the two commands of a newcomer; the rest are their parts.
# Everything builds in the dev profile: the crates that compute are optimised in it (see Cargo.toml), so one build serves all.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
# rustup's folder, for a shell that was opened before rustup was installed.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# Real requests for the demo's peak, where they are; else it makes some up.
TRACE := ../shared/traces/azure-llm-2023-conversation.csv
PEAK := $(if $(wildcard $(TRACE)),--trace $(TRACE))
step = @printf '\n==> %s\n' "$(1)"

.PHONY: help
help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: tools model ## Serve a real model and change its precision under load
	$(call step,building)
	cargo build --workspace --bins
	"$$(. tests/scripts/lib.sh; binaries)/demo" $(PEAK)

# What the tests start is built as the tests are: without them, the crates below would have fewer features, and all of it would
# be compiled once more.
test: export BINARIES := --bins --tests
.PHONY: test
test: tools fmt-check test-code test-serving test-demo ## Run everything the project tests
	$(call step,all tests passed)

# From nothing the cluster's parts take nine minutes of Go's compiler, and foreign readers 5 GB of Python packages: much of that
# fits where cargo links and tests wait.
.PHONY: test-code
test-code:
	$(call step,the code; beside it, what later steps want is installed where it is not there)
	tests/scripts/beside.sh install tests/scripts/install-test-tools.sh -- \
	  $(MAKE) --no-print-directory clippy doc test-rust test-cuda

# The scenarios wait a third of their time: for clocks, and for what they took away to come back. What foreign readers do has no
# limits of time, and takes what that leaves of the processors.
.PHONY: test-serving
test-serving: model
	$(call step,what users drive, up to a cluster; beside it, what foreign readers make of quantized models)
	cargo build --workspace $(or $(BINARIES),--bins)
	tests/scripts/beside.sh interchange tests/scripts/test-interchange.sh -- \
	  $(MAKE) --no-print-directory test-openai test-charts test-bench test-cluster-harness test-cluster

.PHONY: tools
tools: ## Check that what the other targets need is installed
	@. tests/scripts/lib.sh && need_cargo && need_python

.PHONY: model
model: ## Get models/SmolLM2-135M-Instruct-Q4_1.gguf
	@tests/scripts/model.sh

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: fmt-check
fmt-check:
	$(call step,format)
	cargo fmt --all --check

.PHONY: clippy
clippy:
	$(call step,lints)
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	@# --all-targets leaves out the tests that want a device: their targets say `test = false`.
	cargo clippy --workspace --test cuda --test device --all-features -- -D warnings

.PHONY: doc
doc:
	$(call step,documentation)
	@# With all features and the examples: else the crates below have other features than they had for the lints, and are read anew.
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --lib --bins --examples --no-deps --quiet

# Many tests wait about as long as they compute, so that on few processors four at once end sooner than one on each.
test-rust test-cuda: export RUST_TEST_THREADS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? 4 : n)))
.PHONY: test-rust
test-rust: model
	$(call step,Rust tests)
	cargo test --workspace

.PHONY: test-cuda
test-cuda: ## Test the CUDA backend on an emulated device; CUDASIM_KIND=race looks for races
	$(call step,the CUDA backend on an emulated device)
	tests/scripts/test-cuda.sh

.PHONY: cuda-check
cuda-check: ## Hold the GPU kernels' registers, occupancy and instructions against the committed table; UPDATE=1 writes it
	@tests/scripts/cuda-check.sh $(if $(UPDATE),--update)

.PHONY: coverage-cuda
coverage-cuda: ## Print which lines of the GPU backend and its kernels the tests execute
	@tests/scripts/coverage-cuda.sh

.PHONY: mutants-cuda
mutants-cuda: ## Break the GPU kernels in one place after the other and see a test fail; files of kernels in MUTANTS="..."
	@tests/scripts/mutants-cuda.sh $(MUTANTS)

.PHONY: test-gpu-check
test-gpu-check: ## Run make gpu-check in tiny sizes on the emulated device: shows that it works
	$(call step,gpu-check on an emulated device)
	OUT=$$(mktemp -d) tests/scripts/gpu-check.sh --emulated

.PHONY: gpu-check
gpu-check: ## Test and measure a GPU beside its roofline; results in gpu-check-results
	@tests/scripts/gpu-check.sh

.PHONY: test-openai
test-openai: model
	$(call step,the API through the OpenAI client)
	tests/scripts/test-openai.sh

.PHONY: test-interchange
test-interchange: model
	$(call step,what foreign readers make of quantized models)
	tests/scripts/test-interchange.sh

.PHONY: test-demo
test-demo: model
	$(call step,switching under load)
	cargo build --workspace $(or $(BINARIES),--bins)
	@# Exit code 2: nothing failed but a gap was too long, or what was to be a peak was none, which can be the machine's, where
	@# a neighbour takes a core. Then a second run must be clean.
	demo() { "$$(. tests/scripts/lib.sh; binaries)/demo" $(PEAK); }; demo || { [ $$? = 2 ] && demo; }

.PHONY: test-charts
test-charts: ## Check the charts, deploy/install.yaml, examples and images
	$(call step,charts)
	tests/scripts/test-charts.sh

.PHONY: cluster
cluster: ## Start a real one-node Kubernetes cluster, leave it running, and print its KUBECONFIG
	@tests/cluster/cluster.py up

.PHONY: cluster-down
cluster-down: ## Stop what `make cluster` started
	@tests/cluster/cluster.py down

.PHONY: test-cluster-harness
test-cluster-harness:
	$(call step,a cluster for tests starts and leaves nothing behind)
	tests/scripts/test-cluster-harness.sh

.PHONY: test-cluster
test-cluster: model ## Run the scenarios on a real one-node cluster; names of some in SCENARIOS="..."
	$(call step,scenarios on a real cluster)
	tests/scripts/test-cluster.sh $(SCENARIOS)

.PHONY: test-bench
test-bench:
	$(call step,what the benchmarks make of their figures)
	PYTHONPATH=tests/bench python3 -m unittest discover -s tests/bench/peers/tests -t tests/bench

.PHONY: bench-peers
bench-peers: ## Measure the worker beside llama.cpp, vLLM and OpenVINO; options in BENCH, e.g. BENCH="--quick --without vllm"
	@tests/scripts/bench-peers.sh $(BENCH)

.PHONY: bench
bench: ## Measure the worker beside llama.cpp on SmolLM2, in minutes; writes target/bench/bench.json
	@tests/scripts/bench-peers.sh --reference $(BENCH)

.PHONY: bench-compare
bench-compare: ## Hold what `make bench` wrote against tests/bench/baseline.json; UPDATE=1 writes the baseline
	@PYTHONPATH=tests/bench python3 -m peers.baseline $(or $(FILE),target/bench/bench.json) tests/bench/baseline.json $(if $(UPDATE),--update)

.PHONY: bench-operator
bench-operator: ## Measure the operator with 1,000 and 5,000 models of fake workers; options in BENCH, e.g. BENCH=--quick
	@tests/scripts/bench-operator.sh $(BENCH)

.PHONY: bench-quality
bench-quality: ## Quality of quantized models beside other tools; options in BENCH, e.g. BENCH="--quick --without vllm,gptqmodel"
	@tests/scripts/bench-quality.sh $(BENCH)

.PHONY: bench-kernels
bench-kernels: ## Operations per second of each kernel on one thread
	cargo bench -p modelprofile-kernels --bench products

.PHONY: bench-policy
bench-policy: ## Time of a decision, speed of the simulator, and its errors against published throughput
	cargo bench -p modelprofile-policy --bench decide
	cargo run --release --quiet -p modelprofile-operator --example bench-policy -- "$(or $(CARGO_TARGET_DIR),target)"

.PHONY: bench-peak
bench-peak: model ## Time to the first token in a peak of real requests, switching beside pinned, in three pairs
	cargo build --workspace --bins
	"$$(. tests/scripts/lib.sh; binaries)/bench-peak" $(BENCH)

.PHONY: fuzz
fuzz: ## Ten minutes of mutated files for each parser; FUZZ_SECONDS, FUZZ_SEED
	MODELPROFILE_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) MODELPROFILE_FUZZ_SEED=$(or $(FUZZ_SEED),$(shell date +%s)) \
	  cargo test -p modelprofile-engine -p modelprofile-worker --test fuzz -- --nocapture --test-threads=1

.PHONY: crd
crd: ## Write the CustomResourceDefinition from the Rust types
	# By way of another file: the build reads the present one.
	cargo run --quiet -p modelprofile-operator -- crd > crds/new.yaml
	mv crds/new.yaml crds/modelprofiles.modelprofile.dev.yaml
