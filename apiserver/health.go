package apiserver

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/keelson/keelson/apiserver/bootstrap"
	"github.com/keelson/keelson/libs/log"
)

// steps of the start are taken once and stay taken: liveness may hang on them.
type steps map[string]*atomic.Bool

// rangesChecked is the step after which addresses and node ports are known to be those of the Services.
const rangesChecked = "the check of addresses and node ports"

func newSteps() steps {
	s := steps{rangesChecked: {}}
	for _, p := range bootstrap.Parts {
		s[string(p)] = &atomic.Bool{}
	}
	return s
}

func (s steps) take(name string) { s[name].Store(true) }

// taken is the check of a step.
func (s steps) taken(name string) func() error {
	done := s[name]
	return func() error {
		if !done.Load() {
			return fmt.Errorf("%s: not done yet", name)
		}
		return nil
	}
}

// A check is of readiness, and of liveness too when it says so.
type check struct {
	name string
	live bool
	f    func() error
}

// checks ties upstream's names, which people and tools wait for, to what they stand for here, in
// upstream's order. Where upstream has several controllers for what is one step here, several names
// hang on it. Names of what this server does not have are missing: its identity lease, requests
// to peers, a certificate for itself.
func (s *server) checks() []check {
	loaded := func() error {
		select {
		case <-s.cache.Ready():
			return nil
		default:
			return errors.New("the watch cache is not loaded")
		}
	}
	made := func(p bootstrap.Part) func() error { return s.steps.taken(string(p)) }
	// once is something that is done at the start and stays done.
	once := func(name string, f func() error) check { return check{"poststarthook/" + name, true, f} }
	const logPatience = 2 * time.Minute // as upstream

	all := []check{
		{"log", true, func() error { return log.Blocked(s.log, logPatience) }},
		{"etcd", true, s.cache.Alive},
		{"etcd-readiness", false, s.cache.Alive},
	}
	if s.secret != nil {
		all = append(all, check{"kms-providers", false, s.secret.Healthy})
	}
	all = append(all,
		check{"informer-sync", false, loaded},
		once("start-apiserver-admission-initializer", loaded), // every plugin reads the cache
		once("generic-apiserver-start-informers", loaded),
	)
	if s.cfg.PriorityFairness {
		all = append(all,
			once("priority-and-fairness-config-consumer", s.fair.Digested),
			once("priority-and-fairness-filter", s.fair.Running),
		)
	}
	all = append(all,
		once("storage-object-count-tracker-hook", loaded), // the cache counts
		once("start-apiextensions-informers", loaded),
		once("start-apiextensions-controllers", s.custom.Served),
		once("crd-informer-synced", s.custom.Served),
		once("start-system-namespaces-controller", made(bootstrap.Namespaces)),
		once("start-cluster-authentication-info-controller", made(bootstrap.FrontProxy)),
		once("storage-readiness", loaded),
		once("start-legacy-token-tracking-controller", made(bootstrap.TokenTracking)),
		once("start-service-ip-repair-controllers", s.steps.taken(rangesChecked)),
		once("rbac/bootstrap-roles", made(bootstrap.Roles)),
		once("scheduling/bootstrap-system-priority-classes", made(bootstrap.PriorityClasses)),
	)
	if s.cfg.PriorityFairness {
		all = append(all, once("priority-and-fairness-config-producer", s.fair.Kept))
	}
	return append(all,
		once("bootstrap-controller", made(bootstrap.Services)),
		once("start-kubernetes-service-cidr-controller", made(bootstrap.ServiceRange)),
		once("start-kube-aggregator-informers", s.others.Routed),
		once("apiservice-status-local-available-controller", s.others.Registered),
		once("apiservice-status-remote-available-controller", s.others.Routed),
		once("apiservice-registration-controller", s.others.Routed),
		once("apiservice-wait-for-first-sync", s.others.Routed),
		once("apiservice-discovery-controller", s.others.Routed),
		once("kube-apiserver-autoregistration", s.others.Registered),
		check{"autoregister-completion", true, s.others.Registered},
		once("apiservice-openapi-controller", s.others.Routed),
		once("apiservice-openapiv3-controller", s.others.Routed),
	)
}
