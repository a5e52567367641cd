# Everything that a developer or CI does has a target here; `make` lists them.
# Tools are Go tools pinned in tools/*/go.mod and built once into a cache outside the tree, keyed by version.

SHELL      := bash
.SHELLFLAGS := -euo pipefail -c
GO         ?= go
BIN        := bin
DATA       ?= data
TOOLCACHE  ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kvstore-tools
BUF_V      := $(shell awk '$$1=="github.com/bufbuild/buf"||$$2=="github.com/bufbuild/buf"{for(i=1;i<=NF;i++)if($$i~/^v[0-9]/)print $$i}' tools/buf/go.mod)
LINT_V     := $(shell awk '/golangci-lint\/v2 /{for(i=1;i<=NF;i++)if($$i~/^v[0-9]/)print $$i}' tools/lint/go.mod)
DAPRD_V    := $(shell awk '$$1=="github.com/dapr/dapr"{print $$2}' tools/daprd/go.mod)
PLACEMENT_V := $(shell awk '$$1=="github.com/dapr/dapr"{print $$2}' tools/placement/go.mod)
BUF        := $(TOOLCACHE)/buf-$(BUF_V)
LINT       := $(TOOLCACHE)/golangci-lint-$(LINT_V)
COMPOSE_V  := $(shell awk '$$1=="github.com/docker/compose/v2"{print $$2}' tools/compose/go.mod)
SIDECARS   := $(TOOLCACHE)/sidecars-$(DAPRD_V)-$(PLACEMENT_V)
REDISPY    := $(TOOLCACHE)/redis-py-8.1.0
FUZZTIME   ?= 30s
ROUNDS     ?= 20
TRACE      ?= 500

.PHONY: help
help: ## List the targets.
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build kvstored and kvctl into bin/.
	$(GO) build -trimpath -o $(BIN)/ ./services/cmd/...

.PHONY: run
run: build ## Build, start the embedded store in $(DATA), replay the first part of a real prompt trace, keep serving.
	@./tests/e2e/demo.sh $(BIN) $(DATA)

CLUSTER    ?= cluster-data
.PHONY: up
up: build sidecars ## Start a cluster as processes: Redis, placement, 3 hosts of shards, 2 frontends, each with its daprd; logs are in $(CLUSTER).
	@PATH="$$PATH:$(SIDECARS)" ./tests/e2e/cluster.sh up $(BIN) $(CLUSTER)

.PHONY: down
down: ## Stop that cluster; what it stored stays in $(CLUSTER).
	@./tests/e2e/cluster.sh down $(CLUSTER)

.PHONY: test
test: build nofence ## Everything that CI checks, targets side by side; what each says comes when it has ended.
	@# First what uses the processors. Then clusters, which mostly wait, and fuzzing, which takes what they leave. What is timed there has generous
	@# bounds (KVSTORE_BUSY): what counts is that nothing is lost and nothing stale is read.
	@MAKE=$(MAKE) ./tests/lint/lanes.sh 'sidecars compose-tool' 'alerts lint check-proto unit race tagged'
	@KVSTORE_BUSY=1 MAKE=$(MAKE) ./tests/lint/lanes.sh 'chaos-ci dapr compose-test' 'fault redis crash e2e slow-reader watch-check overload' fuzz
	@echo "make test: all passed"

.PHONY: alerts
alerts: ## Prometheus's configuration, alert rules and the queries of Grafana's dashboard, checked and tested with promtool (of Debian's package prometheus).
	cd infra/prometheus && promtool check config --syntax-only prometheus.yml && promtool check rules kvstore.rules.yaml && promtool test rules kvstore.rules.test.yaml
	KVSTORE_PROMTOOL=promtool $(GO) test -count=1 -run TestDashboard ./services/node

.PHONY: unit
unit: ## Unit, script and model tests: go test ./... alone.
	$(GO) test -count=1 ./...

.PHONY: race
race: ## The concurrent packages under the race detector, with invariants compiled in.
	$(GO) test -count=1 -vet=off -race -tags invariants -short $(RACE_PKGS)
	$(GO) test -count=1 -vet=off -race -tags invariants -run TestReaders ./components/btree
RACE_PKGS := ./components/authn/... ./actors/directory/... ./actors/host/... ./components/wal/... ./services/... ./client/...

.PHONY: tagged
tagged: ## Bugs planted behind a build tag must each be found; the tree with its invariants checked after each write.
	$(GO) test -count=1 -tags plantedbugs -run Planted ./actors/shard
	$(GO) test -count=1 -tags invariants ./components/btree

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZTIME (30s), with the processor time that nobody else wants.
	@chrt --idle 0 ./tests/lint/fuzz.sh $(FUZZTIME)

.PHONY: fault
fault: build ## Disk faults with real kernels: full ext4, strace-observed syncs (needs root and strace).
	KVSTORE_FAULT=1 $(GO) test -count=1 -timeout 10m ./tests/fault/...

.PHONY: redis
redis: $(REDISPY) ## The Redis engine on real redis-servers that are killed, cut short, filled up and disturbed; our RESP beside one, and with its clients.
	KVSTORE_REDIS=1 $(GO) test -count=1 -timeout 10m ./components/wal/redislog/... ./services/node
	KVSTORE_REDIS=1 KVSTORE_REDISPY=$(REDISPY) $(GO) test -count=1 -timeout 5m -run TestRedis ./services/resp
	KVSTORE_REDIS=1 $(GO) test -count=1 -timeout 5m -run TestManualExamples/doctor ./tests/e2e

.PHONY: crash
crash: build ## ROUNDS (20) rounds of kill -9 under 32 checked clients, on disk and on Redis; make crash ROUNDS=200 is the full run.
	KVSTORE_REDIS=1 KVSTORE_CRASH_ROUNDS=$(ROUNDS) KVSTORE_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 60m -v -run TestCrash ./tests/crash

.PHONY: e2e
e2e: build ## The built binaries, from outside: trace replays, damage. Restarts, doors and command lines (tests/e2e) need nothing and are in unit.
	KVSTORE_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 25m -v ./tests/damage ./tests/replay

EVENTS     ?= 20000
.PHONY: watch-check
watch-check: build sidecars ## Watches of every kind, broken in all ways, until EVENTS (20000) were judged, on disk and on a cluster; from 1000000 on it writes tests/watchcheck/REPORT.md.
	PATH="$$PATH:$(SIDECARS)" KVSTORE_DAPR=1 KVSTORE_REDIS=1 KVSTORE_BIN=$(CURDIR)/$(BIN) KVSTORE_WATCH_EVENTS=$(EVENTS) \
	  KVSTORE_WATCH_REPORT=$(if $(shell [ $(EVENTS) -ge 1000000 ] && echo long),$(CURDIR)/tests/watchcheck/REPORT.md) $(GO) test -count=1 -timeout 3h -v ./tests/watchcheck

STOPPED    ?= 1m
.PHONY: slow-reader
slow-reader: build ## What readers that stop reading cost a server under load, for STOPPED (1m; make slow-reader STOPPED=10m).
	KVSTORE_STOPPED=$(STOPPED) KVSTORE_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 30m -v -run TestStoppedReaders ./tests/e2e

OVERLOAD   ?= $(if $(KVSTORE_BUSY),10s,1m)
.PHONY: overload
overload: build ## A server on a slow Redis offered twice what it can do for OVERLOAD (1m; 10s within make test); and one whose Redis stops answering.
	KVSTORE_OVERLOAD=$(OVERLOAD) KVSTORE_REDIS=1 KVSTORE_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 10m -v ./tests/overload

.PHONY: sidecars
sidecars: $(foreach b,daprd sentry placement,$(if $(shell command -v $b),,$(SIDECARS)/$b)) ## Build daprd, sentry and placement (once, minutes) unless they are on PATH; print where they are.
	@PATH="$$PATH:$(SIDECARS)"; for b in daprd sentry placement; do command -v $$b; done

.PHONY: dapr
dapr: sidecars build ## Hosts of shards on real daprd, placement and Redis: crashes, moves, stale and wedged sidecars; an app that uses the store through Dapr.
	cd tests/daprapp && $(GO) build -o ../../$(BIN)/ .
	PATH="$$PATH:$(SIDECARS)" KVSTORE_BIN=$(CURDIR)/$(BIN) KVSTORE_DAPR=1 KVSTORE_REDIS=1 $(GO) test -count=1 -timeout 15m -v ./tests/dapr/...
	PATH="$$PATH:$(SIDECARS)" KVSTORE_BIN=$(CURDIR)/$(BIN) KVSTORE_DAPR=1 KVSTORE_REDIS=1 KVSTORE_TRACE=$(TRACE) $(GO) test -count=1 -timeout 15m -v -run TestTraceOnCluster ./tests/replay

CHAOS = PATH="$$PATH:$(SIDECARS)" KVSTORE_DAPR=1 KVSTORE_REDIS=1 KVSTORE_BIN=$(CURDIR)/$(BIN)
.PHONY: chaos-ci
chaos-ci: build nofence sidecars ## A cluster taken apart under checked clients: a tenth of the faults of make chaos; two owners of a shard; a rolling restart.
	$(CHAOS) KVSTORE_CHAOS_TENTHS=1 $(GO) test -count=1 -timeout 20m -v ./tests/chaos

.PHONY: nofence
nofence: ## kvstored whose Redis log takes records from whomever, for the test that must notice: bin/nofence/kvstored.
	$(GO) build -trimpath -tags nofence -o $(BIN)/nofence/ ./services/cmd/kvstored

.PHONY: owners
owners: build nofence sidecars ## Two hosts that both believe that a shard is theirs, for a minute, with the fence and without.
	$(CHAOS) $(GO) test -count=1 -timeout 10m -v -run 'TestTwoOwners|TestJudge' ./tests/chaos

.PHONY: chaos
chaos: build sidecars ## All 90 faults (some 25 minutes), and clean moves, held to what is promised; writes tests/chaos/REPORT.md.
	$(CHAOS) KVSTORE_CHAOS_TENTHS=10 KVSTORE_CHAOS_REPORT=$(CURDIR)/tests/chaos/REPORT.md $(GO) test -count=1 -timeout 2h -v -run 'TestChaos|TestCleanMove' ./tests/chaos

.PHONY: compose-test
compose-test: build sidecars compose-tool ## docker-compose.yml in containers, by an engine that answers or one of its own (needs docker.io, prometheus and root); TRACE=12031 replays all of the trace.
	PATH="$(TOOLCACHE)/compose-$(COMPOSE_V):$$PATH:$(SIDECARS)" KVSTORE_BIN=$(CURDIR)/$(BIN) KVSTORE_COMPOSE=1 KVSTORE_TRACE=$(TRACE) $(GO) test -count=1 -timeout 25m -v ./tests/compose

.PHONY: compose-tool
compose-tool: $(TOOLCACHE)/compose-$(COMPOSE_V)/docker-compose ## Build docker compose (once, minutes).

.PHONY: bench
bench: build sidecars ## Peers (etcd, Redis, Dapr actors) and this store in one run on one disk; prints ratios.
	cd tests/load && $(GO) build -o ../../$(BIN)/ ./...
	$(GO) build -tags nometrics -o $(BIN)/kvstored-blind ./services/cmd/kvstored
	PATH="$$PATH:$(SIDECARS)" $(BIN)/peerbench -bin $(BIN) $(BENCHFLAGS)

.PHONY: proto
proto: $(BUF) ## Generate proto/gen from proto/.
	$(BUF) generate

.PHONY: check-proto
check-proto: $(BUF) ## Lint the API and compare the checked-in generated code with a fresh one.
	$(BUF) lint
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; $(BUF) generate -o "$$tmp" && diff -r "$$tmp/proto/gen" proto/gen \
	  || { echo "proto/gen is not what proto/ generates: run make proto and commit"; exit 1; }

.PHONY: manual
manual: ## Write kvctl's manual from its help.
	$(GO) test -count=1 -run TestManual ./services/cmd/kvctl -write-manual

.PHONY: lint
lint: $(LINT) ## golangci-lint, pinned.
	$(LINT) run ./...

.PHONY: rename
rename: ## Give the module another path everywhere: make rename MODULE=example.com/kvstore.
	@[ -n "$(MODULE)" ] || { echo "usage: make rename MODULE=path"; exit 2; }
	./tests/lint/rename.sh "$(MODULE)"

.PHONY: clean
clean: ## Remove bin/ (not the data directory).
	rm -rf $(BIN)

$(BUF):
	@echo "building buf $(BUF_V) (once)"; mkdir -p $(TOOLCACHE)
	cd tools/buf && $(GO) build -o $(BUF) github.com/bufbuild/buf/cmd/buf

# Of Dapr no other module is built: daprd v1.18.3 does not resolve, and only placement v1.18.3 has a fix that placement needs.
# stablecomponents leaves out the drivers of clouds that are not used here.
$(TOOLCACHE)/compose-$(COMPOSE_V)/docker-compose:
	@echo "building docker compose $(COMPOSE_V) (once, minutes)"; mkdir -p $(@D)
	cd tools/compose && CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$(COMPOSE_V)" -o $@ github.com/docker/compose/v2/cmd

$(SIDECARS)/daprd $(SIDECARS)/sentry &:
	@echo "building daprd and sentry $(DAPRD_V) (once; 5 minutes, 3 GB of modules)"; mkdir -p $(SIDECARS)
	cd tools/daprd && $(GO) build -trimpath -tags stablecomponents -ldflags "-s -w -X github.com/dapr/dapr/pkg/buildinfo.version=$(DAPRD_V:v%=%)" \
	  -o $(SIDECARS)/ github.com/dapr/dapr/cmd/daprd github.com/dapr/dapr/cmd/sentry

$(SIDECARS)/placement:
	@echo "building placement $(PLACEMENT_V) (once; 2 minutes)"; mkdir -p $(SIDECARS)
	cd tools/placement && $(GO) build -trimpath -ldflags "-s -w -X github.com/dapr/dapr/pkg/buildinfo.version=$(PLACEMENT_V:v%=%)" \
	  -o $(SIDECARS)/ github.com/dapr/dapr/cmd/placement

$(LINT):
	@echo "building golangci-lint $(LINT_V) (once, some minutes)"; mkdir -p $(TOOLCACHE)
	cd tools/lint && $(GO) build -o $(LINT) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# Some seconds, once. Debian's python3-redis is tested too.
$(REDISPY):
	rm -rf $@.part && /usr/bin/python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --target $@.part redis==$(REDISPY:$(TOOLCACHE)/redis-py-%=%) && mv $@.part $@
