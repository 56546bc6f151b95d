package resources

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/alloc"
	"github.com/keelson/keelson/apiserver/resources/check"
)

var (
	servicesGR     = schema.GroupResource{Resource: "services"}
	serviceCIDRsGR = schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}
)

const (
	// A choice at random avoids what was chosen in the last seconds; a wish is
	// refused only for what the tree cannot show yet.
	heldFromRandom = 10 * time.Second
	heldFromWish   = time.Second
	// takenFor is how long one scan of all Services is believed.
	takenFor = time.Second
)

type nodePort struct {
	protocol corev1.Protocol
	port     int32
}

// allocator hands out what Services need that no other Service may have.
type allocator struct {
	cfg   Config
	ips   alloc.Ledger[netip.Addr]
	ports alloc.Ledger[nodePort]

	mu    sync.Mutex
	taken *takenSet // guarded by mu; the set itself is not changed after it was made
}

type takenSet struct {
	at     time.Time
	ips    map[netip.Addr]string // by owner, "namespace/name"
	ports  map[nodePort]string
	ranges []netip.Prefix
}

// scan returns what the tree says is taken; fresh asks for a new look.
func (a *allocator) scan(rq *Request, fresh bool) (*takenSet, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken != nil && !fresh && rq.Now.Sub(a.taken.at) < takenFor {
		return a.taken, nil
	}
	t := &takenSet{at: rq.Now, ips: map[netip.Addr]string{}, ports: map[nodePort]string{}, ranges: a.cfg.ServiceCIDRs}
	err := rq.Read.Each(servicesGR, "", func(o Object) bool {
		s, ok := o.(*corev1.Service)
		if !ok {
			return true
		}
		owner := s.Namespace + "/" + s.Name
		for _, text := range s.Spec.ClusterIPs {
			if ip, err := netip.ParseAddr(text); err == nil {
				t.ips[ip] = owner
			}
		}
		for _, p := range servicePorts(s) {
			t.ports[p] = owner
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list services to allocate from: %w", err)
	}
	err = rq.Read.Each(serviceCIDRsGR, "", func(o Object) bool {
		if c, ok := o.(*networkingv1.ServiceCIDR); ok && c.DeletionTimestamp == nil {
			for _, text := range c.Spec.CIDRs {
				if r, err := netip.ParsePrefix(text); err == nil && !containsPrefix(t.ranges, r) {
					t.ranges = append(t.ranges[:len(t.ranges):len(t.ranges)], r)
				}
			}
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list service CIDRs to allocate from: %w", err)
	}
	a.taken = t
	return t, nil
}

func containsPrefix(list []netip.Prefix, r netip.Prefix) bool {
	for _, l := range list {
		if l.Masked() == r.Masked() {
			return true
		}
	}
	return false
}

// servicePorts are all node ports that a Service holds, health check included.
func servicePorts(s *corev1.Service) []nodePort {
	var out []nodePort
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, nodePort{p.Protocol, p.NodePort})
		}
	}
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		out = append(out, nodePort{corev1.ProtocolTCP, n})
	}
	return out
}

func familyOf(ip netip.Addr) corev1.IPFamily {
	if ip.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// allocate fills in addresses and ports and reserves them. What the old object
// holds already is kept; what it no longer holds is free as soon as the write is seen.
func (a *allocator) allocate(rq *Request, s, old *corev1.Service) (undo func(), err error) {
	var undos []func()
	release := func() {
		for _, u := range undos {
			u()
		}
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	t, err := a.scan(rq, false)
	if err != nil {
		return nil, err
	}
	owner := s.Namespace + "/" + s.Name
	var f check.Faults

	// Addresses.
	if s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP != corev1.ClusterIPNone {
		had := map[string]bool{}
		if old != nil && old.Spec.Type != corev1.ServiceTypeExternalName {
			for _, ip := range old.Spec.ClusterIPs {
				had[ip] = true
			}
		}
		for i, family := range s.Spec.IPFamilies {
			if i < len(s.Spec.ClusterIPs) && s.Spec.ClusterIPs[i] != "" {
				text := s.Spec.ClusterIPs[i]
				if had[text] {
					continue
				}
				ip, perr := netip.ParseAddr(text)
				if perr != nil {
					continue // reported by the rules
				}
				if why := a.wishAddress(rq, &t, ip, owner); why != "" {
					f.Invalid(field.NewPath("spec", "clusterIPs"), []string{text}, fmt.Sprintf("failed to allocate IP %s: %s", text, why))
					continue
				}
				undos = append(undos, func() { a.ips.Free(ip) })
				continue
			}
			ip, ok := a.pickAddress(rq, t, family)
			if !ok {
				return nil, apierrors.NewInternalError(errors.New("failed to allocate a serviceIP: range is full"))
			}
			undos = append(undos, func() { a.ips.Free(ip) })
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs[:i:i], ip.String())
		}
		if len(s.Spec.ClusterIPs) > 0 {
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		}
	}

	// Node ports.
	had := map[nodePort]bool{}
	if old != nil {
		for _, p := range servicePorts(old) {
			had[p] = true
		}
	}
	mine := map[nodePort]bool{} // by this call
	wish := func(p nodePort, at *field.Path) {
		if had[p] || mine[p] {
			return
		}
		if why := a.wishPort(rq, &t, p, owner); why != "" {
			f.Invalid(at, p.port, why)
			return
		}
		mine[p] = true
		undos = append(undos, func() { a.ports.Free(p) })
	}
	if needsNodePorts(s) {
		for i, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				wish(nodePort{p.Protocol, p.NodePort}, field.NewPath("spec", "ports").Index(i).Child("nodePort"))
			}
		}
		allocate := s.Spec.Type == corev1.ServiceTypeNodePort || valueOr(s.Spec.AllocateLoadBalancerNodePorts, true)
		shared := map[int32]int32{} // one port number with two protocols gets one node port
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			if p.NodePort != 0 {
				shared[p.Port] = p.NodePort
			}
		}
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			if p.NodePort != 0 || !allocate {
				continue
			}
			if n, ok := shared[p.Port]; ok {
				if key := (nodePort{p.Protocol, n}); !mine[key] && !had[key] && a.wishPort(rq, &t, key, owner) == "" {
					p.NodePort = n
					mine[key] = true
					undos = append(undos, func() { a.ports.Free(key) })
					continue
				}
			}
			n, ok := a.pickPort(rq, t, p.Protocol)
			if !ok {
				return nil, apierrors.NewInternalError(errors.New("failed to allocate a nodePort: range is full"))
			}
			key := nodePort{p.Protocol, n}
			mine[key] = true
			undos = append(undos, func() { a.ports.Free(key) })
			p.NodePort, shared[p.Port] = n, n
		}
	}
	if needsHealthPort(s) {
		if s.Spec.HealthCheckNodePort != 0 {
			wish(nodePort{corev1.ProtocolTCP, s.Spec.HealthCheckNodePort}, field.NewPath("spec", "healthCheckNodePort"))
		} else {
			n, ok := a.pickPort(rq, t, corev1.ProtocolTCP)
			if !ok {
				return nil, apierrors.NewInternalError(errors.New("failed to allocate a HealthCheck NodePort: range is full"))
			}
			key := nodePort{corev1.ProtocolTCP, n}
			undos = append(undos, func() { a.ports.Free(key) })
			s.Spec.HealthCheckNodePort = n
		}
	}
	if !f.Empty() {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, s.Name, f.List())
	}
	return release, nil
}

// wishAddress reserves one address, or says why it cannot be had. A refusal is
// given only after a fresh look at the tree.
func (a *allocator) wishAddress(rq *Request, t **takenSet, ip netip.Addr, owner string) string {
	free := func() bool {
		who, used := (*t).ips[ip]
		return !used || who == owner
	}
	in := func() bool {
		for _, r := range (*t).ranges {
			if r.Contains(ip) && r.Masked().Addr() != ip {
				return true
			}
		}
		return false
	}
	if !free() || !in() {
		if fresh, err := a.scan(rq, true); err == nil {
			*t = fresh
		}
	}
	if !in() {
		return fmt.Sprintf("the provided IP (%s) is not in the valid range. The range of valid IPs is %s", ip, rangesText((*t).ranges, ip))
	}
	if !free() || !a.ips.Take(ip, rq.Now, heldFromWish) {
		return "provided IP is already allocated"
	}
	return ""
}

func rangesText(ranges []netip.Prefix, ip netip.Addr) string {
	text := ""
	for _, r := range ranges {
		if r.Addr().Is4() == ip.Is4() {
			if text != "" {
				text += ", "
			}
			text += r.String()
		}
	}
	return text
}

func (a *allocator) pickAddress(rq *Request, t *takenSet, family corev1.IPFamily) (netip.Addr, bool) {
	for _, r := range t.ranges {
		if familyOf(r.Addr()) != family {
			continue
		}
		ip, ok := alloc.Address(r, func(ip netip.Addr) bool {
			_, used := t.ips[ip]
			return used || !a.ips.Take(ip, rq.Now, heldFromRandom)
		}, spread(rq.Now))
		if ok {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func (a *allocator) wishPort(rq *Request, t **takenSet, p nodePort, owner string) string {
	r := a.cfg.NodePorts
	if p.port < r.First || p.port > r.Last {
		return fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", r.First, r.Last)
	}
	free := func() bool {
		who, used := (*t).ports[p]
		return !used || who == owner
	}
	if !free() {
		if fresh, err := a.scan(rq, true); err == nil {
			*t = fresh
		}
	}
	if !free() || !a.ports.Take(p, rq.Now, heldFromWish) {
		return "provided port is already allocated"
	}
	return ""
}

// pickPort takes a port that no protocol uses, so that one can be added later.
func (a *allocator) pickPort(rq *Request, t *takenSet, protocol corev1.Protocol) (int32, bool) {
	return alloc.Port(a.cfg.NodePorts.First, a.cfg.NodePorts.Last, func(n int32) bool {
		for _, other := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
			key := nodePort{other, n}
			if _, used := t.ports[key]; used || a.ports.Held(key, rq.Now, heldFromRandom) {
				return true
			}
		}
		return !a.ports.Take(nodePort{protocol, n}, rq.Now, heldFromRandom)
	}, spread(rq.Now))
}

func needsNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func needsHealthPort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// spread picks numbers by the time of the request, so that equal requests at equal times choose alike.
func spread(now time.Time) alloc.Random {
	state := uint64(now.UnixNano())
	return func(n uint64) uint64 {
		// SplitMix64: one step of a generator with good bits in every place.
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return (z ^ z>>31) % n
	}
}
