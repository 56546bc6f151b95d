# Keelson: build, test and run. A bare `make` lists the verbs.

MODULES  := apiserver scheduler controller-manager kubelet kube-proxy libs proto deploy e2e
DAEMONS  := apiserver scheduler controller-manager kubelet kube-proxy
BIN      := $(CURDIR)/bin
GO       ?= go
VERSION  ?= v1.36.6+keelson.0
# kubectl (in keelson) and client-go report what is linked into them.
KVERSION := k8s.io/component-base/version
LDFLAGS  := -s -w -X github.com/keelson/keelson/libs/config.Version=$(VERSION) \
            -X $(KVERSION).gitVersion=$(VERSION) -X $(KVERSION).gitMajor=1 -X $(KVERSION).gitMinor=36 \
            -X $(KVERSION).gitTreeState=clean -X k8s.io/client-go/pkg/version.gitVersion=$(VERSION)
export CGO_ENABLED = 0
export GOFLAGS     = -buildvcs=false

# Every module has packages; ./... in a workspace means the current module only.
PACKAGES := $(foreach m,$(MODULES),./$(m)/...)

.PHONY: help build up down reset status check test race unit fuzz golden generate graph e2e lab bench clean

help: ## list the verbs
	@printf 'Keelson: an independent Kubernetes. Verbs:\n\n'
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'
	@printf '\nFirst steps: sudo make up, then sudo bin/keelson kubectl get nodes\n'

build: ## compile all daemons and the keelson command into bin/
	@$(GO) version >/dev/null 2>&1 || { echo 'Go is needed to build: https://go.dev/doc/install (1.26 or later)'; exit 1; }
	@mkdir -p $(BIN)
	@echo "building $(DAEMONS) keelson (the first time takes some minutes)"
	@n=0; for d in $(DAEMONS) keelson-net keelson pause; do n=$$((n+1)); m=$$d; case $$d in keelson|pause) m=deploy;; keelson-net) m=kube-proxy;; esac; \
	  printf '  [%d/8] %-20s' $$n $$d; s=$$(date +%s); \
	  $(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/$$d ./$$m/cmd/$$d || exit 1; \
	  printf '%ds\n' $$(( $$(date +%s) - s )); done

up: build ## start a cluster on this machine (sudo)
	@$(BIN)/keelson up $(UPFLAGS)

down: ## stop it and keep its data (sudo)
	@test -x $(BIN)/keelson || { echo 'nothing was built here, so nothing runs'; exit 0; }; $(BIN)/keelson down

reset: ## stop it and forget it (sudo)
	@$(BIN)/keelson reset

status: ## show how it is (sudo)
	@$(BIN)/keelson status

check: ## format, vet, modules in order, house rules: what CI runs before the tests
	@bad=$$(gofmt -l $(MODULES)); test -z "$$bad" || { echo "gofmt differs in:"; echo "$$bad"; exit 1; }
	@$(GO) vet $(PACKAGES)
	@for m in $(MODULES) e2e/clients; do (cd $$m && GOWORK=off $(GO) mod verify >/dev/null) || { echo "$$m: go mod verify failed"; exit 1; }; done
	@if [ -d libs/archtest ]; then $(GO) test -count=1 ./libs/archtest/...; fi
	@echo check: in order

unit: ## unit tests, scripts and suites, without the race detector
	$(GO) test $$($(GO) list $(PACKAGES) | grep -v /e2e/cases)

race: ## the same with the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 20m $$($(GO) list $(PACKAGES) | grep -v /e2e/cases)

FUZZTIME ?= 1m
fuzz: ## run every fuzz target for FUZZTIME each (default 1m); what is found is kept in testdata/fuzz
	@for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' $(MODULES)); do \
	  for n in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' $$f); do \
	    echo "$$(dirname $$f) $$n"; \
	    $(GO) test -run '^$$' -fuzz "^$$n\$$" -fuzztime $(FUZZTIME) $(FUZZFLAGS) ./$$(dirname $$f) || exit 1; \
	  done; done

e2e: build ## the stories, on a lab cluster of two machines made of namespaces (sudo)
	@test "$$(id -u)" = 0 || { echo 'make e2e needs root: sudo make e2e'; exit 1; }
	KEELSON_BIN=$(BIN) $(GO) test -count=1 -timeout 40m -v ./e2e/cases/... $(E2EFLAGS)

test: check race e2e ## everything: check, unit tests with the race detector, the stories (sudo)

lab: build ## keep a cluster of two machines made of namespaces until Ctrl-C (sudo)
	@test "$$(id -u)" = 0 || { echo 'make lab needs root: sudo make lab'; exit 1; }
	@KEELSON_BIN=$(BIN) $(GO) run ./e2e/cmd/lab $(LABFLAGS)

golden: ## rewrite expected outputs of scripts; explain each changed line in the commit
	$(GO) test $$(grep -rlE 'libs/testkit"|flag.Bool\("update"' --include='*_test.go' $(MODULES) | xargs -n1 dirname | sort -u | sed 's|^|./|') -update

generate: ## regenerate what lies in proto/
	$(GO) generate ./proto/...

graph: ## print who reads and writes what among the controllers (DOT)
	@$(GO) run ./controller-manager/cmd/controller-manager graph

bench: build ## measure this build on a lab cluster; prints a table (sudo)
	@test "$$(id -u)" = 0 || { echo 'make bench needs root: sudo make bench'; exit 1; }
	@KEELSON_BIN=$(BIN) $(GO) run ./e2e/bench

clean: ## remove what was built
	rm -rf $(BIN)
