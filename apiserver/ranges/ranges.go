// Package ranges repairs what is booked of addresses and node ports: it makes the
// IPAddress objects and the set of node ports agree with the Services.
//
// Writes of this server keep them in step by themselves, in one transaction. What is left
// to repair comes from elsewhere: an IPAddress that somebody has deleted, Services that were
// stored by an older version, an upstream server that was killed between its two writes.
//
// The main calls are [Decide] (pure) and [Loop.Run]. It promises that no repair is made
// on a state that has changed meanwhile: each is one transaction that checks the Service
// which it was concluded from, and what it finds unused for the first time is left alone,
// because an upstream server beside this one books before it writes the Service.
package ranges

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/resources/alloc"
	"github.com/keelson/keelson/apiserver/store"
)

var (
	grServices  = schema.GroupResource{Resource: "services"}
	grAddresses = schema.GroupResource{Group: "networking.k8s.io", Resource: "ipaddresses"}
	grPorts     = schema.GroupResource{Resource: "rangeallocations"}
)

// State is what a pass has read. Ports and Addresses were read before Services.
type State struct {
	Range     resources.PortRange
	Ports     *corev1.RangeAllocation // nil: there is none
	Addresses map[string]*networkingv1.IPAddress
	Services  []*corev1.Service
	// Unused is what the pass before has found unused: addresses and "port/30000".
	Unused map[string]bool
}

// Step is one repair: all of it or nothing.
type Step struct {
	What   string
	Beside []resources.Beside
}

func (s Step) String() string { return s.What }

// Decide returns the repairs, the faults that nobody can repair without taking something from a
// Service, and what is unused and may be freed by the next pass.
func Decide(s State) (steps []Step, faults []string, unused map[string]bool) {
	unused = map[string]bool{}
	holders := map[string]*corev1.Service{}
	services := map[string]*corev1.Service{}
	taken := map[int32]*corev1.Service{}
	for _, svc := range s.Services {
		services[svc.Namespace+"/"+svc.Name] = svc
		for _, ip := range resources.ServiceAddresses(svc) {
			text := ip.String() // as the IPAddress is called, however the Service spells it
			if other := holders[text]; other != nil {
				faults = append(faults, fmt.Sprintf("address %s is held by services %s/%s and %s/%s: recreate one of them", text, other.Namespace, other.Name, svc.Namespace, svc.Name))
				continue
			}
			holders[text] = svc
			if s.Addresses[text] == nil {
				steps = append(steps, Step{
					What: fmt.Sprintf("book address %s of service %s/%s", text, svc.Namespace, svc.Name),
					Beside: []resources.Beside{
						{Resource: grAddresses, Name: text, Object: resources.NewIPAddress(ip, svc.Namespace, svc.Name)},
						{Resource: grServices, Namespace: svc.Namespace, Name: svc.Name, Seen: svc.ResourceVersion, Do: resources.DoCheck},
					},
				})
			}
		}
		ports := []int32{svc.Spec.HealthCheckNodePort}
		mine := map[int32]bool{0: true}
		for _, p := range svc.Spec.Ports {
			ports = append(ports, p.NodePort)
		}
		for _, n := range ports {
			if mine[n] {
				continue
			}
			mine[n] = true
			if other := taken[n]; other != nil {
				faults = append(faults, fmt.Sprintf("node port %d is held by services %s/%s and %s/%s: recreate one of them", n, other.Namespace, other.Name, svc.Namespace, svc.Name))
				continue
			}
			taken[n] = svc
		}
	}
	for name, a := range s.Addresses {
		r := a.Spec.ParentRef
		if a.Labels[networkingv1.LabelManagedBy] != resources.AddressManager || r == nil || r.Group != "" || r.Resource != "services" {
			continue // somebody's own
		}
		of := services[r.Namespace+"/"+r.Name]
		if of != nil && holders[name] == of {
			continue
		}
		if !s.Unused[name] {
			unused[name] = true
			continue
		}
		check := resources.Beside{Resource: grServices, Namespace: r.Namespace, Name: r.Name, Do: resources.DoCheck}
		if of != nil {
			check.Seen = of.ResourceVersion
		}
		steps = append(steps, Step{
			What:   fmt.Sprintf("free address %s, which service %s/%s does not hold", name, r.Namespace, r.Name),
			Beside: []resources.Beside{{Resource: grAddresses, Name: name, Seen: a.ResourceVersion, Do: resources.DoRemove}, check},
		})
	}
	if step, err := decidePorts(s, taken, unused); err != nil {
		faults = append(faults, err.Error())
	} else if step != nil {
		steps = append(steps, *step)
	}
	return steps, faults, unused
}

// decidePorts compares the set with the Services. Whoever gives a Service a port writes the set in
// the same transaction, so the set's revision alone shows that nothing has changed.
func decidePorts(s State, taken map[int32]*corev1.Service, unused map[string]bool) (*Step, error) {
	if s.Ports == nil {
		return nil, nil // the first Service with a node port makes it
	}
	set, err := alloc.ReadPorts(s.Range.First, s.Range.Last, s.Ports.Range, s.Ports.Data)
	if err != nil {
		return nil, err
	}
	added, freed := 0, 0
	for n := s.Range.First; n <= s.Range.Last; n++ {
		switch id := fmt.Sprintf("port/%d", n); {
		case taken[n] != nil && !set.Has(n):
			set.Take(n)
			added++
		case taken[n] == nil && set.Has(n) && s.Unused[id]:
			set.Free(n)
			freed++
		case taken[n] == nil && set.Has(n):
			unused[id] = true
		}
	}
	if added == 0 && freed == 0 {
		return nil, nil
	}
	next := s.Ports.DeepCopy()
	next.Range, next.Data = set.Range(), set.Data()
	return &Step{
		What:   fmt.Sprintf("book %d node ports and free %d", added, freed),
		Beside: []resources.Beside{{Resource: grPorts, Name: resources.NodePortsName, Seen: s.Ports.ResourceVersion, Object: next}},
	}, nil
}

// Loop repairs at the start, and then when something has changed.
type Loop struct {
	Range resources.PortRange
	Read  resources.Reader
	// Commit writes the parts of a step as one; store.ErrConflict when something has changed.
	Commit func(ctx context.Context, beside []resources.Beside) error
	// Changed grows when a Service, an address or the set of ports changes.
	Changed func() int64
	Log     *slog.Logger

	unused map[string]bool
	told   map[string]bool
}

// Every is the pause between passes. What is unused is freed by the second pass that finds it so.
const Every = time.Minute

// Run repairs until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	var seen int64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := l.Changed()
		if now == seen && len(l.unused) == 0 {
			continue
		}
		if err := l.Pass(ctx); err != nil && ctx.Err() == nil {
			l.Log.Warn("addresses and node ports could not all be checked", "err", err)
			continue
		}
		seen = now
	}
}

// Pass reads, decides and repairs once.
func (l *Loop) Pass(ctx context.Context) error {
	s := State{Range: l.Range, Addresses: map[string]*networkingv1.IPAddress{}, Unused: l.unused}
	var err error
	if s.Ports, err = resources.Lookup[corev1.RangeAllocation](l.Read, grPorts, "", resources.NodePortsName); err != nil {
		return err
	}
	err = l.Read.Each(grAddresses, "", func(o resources.Object) bool {
		if a, ok := o.(*networkingv1.IPAddress); ok {
			s.Addresses[a.Name] = a
		}
		return true
	})
	if err != nil {
		return err
	}
	err = l.Read.Each(grServices, "", func(o resources.Object) bool {
		if svc, ok := o.(*corev1.Service); ok {
			s.Services = append(s.Services, svc)
		}
		return true
	})
	if err != nil {
		return err
	}
	steps, faults, unused := Decide(s)
	l.unused = unused
	if l.told == nil {
		l.told = map[string]bool{}
	}
	for _, f := range faults {
		if !l.told[f] {
			l.told[f] = true
			l.Log.Error("two services share what only one may have", "fault", f)
		}
	}
	var errs []error
	for _, step := range steps {
		switch err := l.Commit(ctx, step.Beside); {
		case err == nil:
			l.Log.Info("repaired", "step", step.String())
		case errors.Is(err, store.ErrConflict): // it has changed: the next pass looks again
		default:
			errs = append(errs, fmt.Errorf("%s: %w", step, err))
		}
	}
	return errors.Join(errs...)
}
