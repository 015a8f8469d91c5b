# What there is to do with this repository. `make` alone lists it.
#
# Nothing but Go and PostgreSQL's binaries (or npm, which can fetch them) is
# needed; the tools below are built from source at first use.

GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION   := v1.9.0

# Where a tool of the pinned version is; it is installed into bin/tools when
# there is none.
golangci-lint = $$(.ci/tool github.com/golangci/golangci-lint/v2 cmd/golangci-lint $(GOLANGCI_LINT_VERSION))
govulncheck   = $$(.ci/tool golang.org/x/vuln cmd/govulncheck $(GOVULNCHECK_VERSION))

# The race detector needs a C compiler; without one the tests run without it.
race := $(shell command -v "$$(go env CC)" >/dev/null 2>&1 && echo -race)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ See it

.PHONY: demo
demo: ## Show three orders on their way to the cardholder, in an environment of its own
	go run ./cmd/server demo

.PHONY: dev
dev: ## Run everything on this machine, with a simulator of D1, until Ctrl-C
	go run ./cmd/server dev

##@ Make it

.PHONY: build
build: ## Build bin/server and bin/d1sim, static
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/ ./cmd/...

.PHONY: fmt
fmt: ## Format the Go files
	gofmt -w $$(git ls-files --cached --others --exclude-standard '*.go')

.PHONY: clean
clean: ## Remove what was built; the data of `make dev` stays (it is in .dev)
	rm -rf bin
	go clean -testcache

##@ Check it

.PHONY: test
test: ## Run all tests, with the race detector; they start their own PostgreSQL
	$(if $(race),,@echo 'no C compiler: the race detector is off')
	go test $(race) -timeout=30m ./...

.PHONY: smoke
smoke: ## Kill and restart the real binaries and see that no order is lost or made twice
	go run ./test/smoke

.PHONY: chaos
chaos: ## Break everything around the service for a minute, by a seed, and count the cards (CHAOSFLAGS=-h)
	go run ./test/chaos $(CHAOSFLAGS)

.PHONY: bench
bench: ## Print how fast orders are accepted and sent, against what is possible (BENCHFLAGS=-h)
	cd bench && go run . $(BENCHFLAGS)

.PHONY: vet
vet: ## Let go vet look for mistakes
	go vet ./...

.PHONY: lint
lint: ## Let golangci-lint look for mistakes and for broken rules of this repository
	tool=$(golangci-lint) && "$$tool" run ./...

# Spectral as package-lock.json pins it; npm writes the second file when it is done.
spectral  := .ci/openapi/node_modules/.bin/spectral
installed := .ci/openapi/node_modules/.package-lock.json

$(installed): .ci/openapi/package-lock.json
	npm --prefix .ci/openapi ci --ignore-scripts --no-audit --no-fund
	@touch $@

.PHONY: lint-api
lint-api: $(installed) ## Let Spectral look for mistakes in the OpenAPI document (needs npm)
	$(spectral) lint --fail-severity=hint --ruleset .ci/openapi/spectral.yaml internal/api/openapi.yaml

.PHONY: lint-rules
lint-rules: rules := deploy/prometheus/cardorder.rules
lint-rules: ## Check the alerting rules, and play them (needs promtool, or Debian's apt-get)
	tool=$$(.ci/promtool) && "$$tool" check rules $(rules).yaml && "$$tool" test rules $(rules).test.yaml

.PHONY: vuln
vuln: ## Look for known vulnerabilities in what is really called
	tool=$(govulncheck) && .ci/vuln "$$tool"

.PHONY: fuzz
fuzz: ## Fuzz each target for 10 seconds (FUZZTIME=30s for longer)
	.ci/fuzz $(or $(FUZZTIME),10s)

.PHONY: nightly
nightly: ## What takes long: tests five times over, longer chaos, a minute of each fuzz target, PostgreSQL by npm
	go test $(race) -count=5 -timeout=60m ./...
	go run ./test/chaos -regressions
	go run ./test/chaos -duration 5m -replicas 2
	go run ./test/chaos -duration 10m -replicas 4 -rate 40
	.ci/fuzz $(or $(FUZZTIME),60s)
	CARDORDER_TEST_NPM=1 go test -count=1 -v -run NPM ./internal/pgrun

.PHONY: ci
ci: ## All that decides whether a change may land
	.ci/run

##@ Help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
