package resources

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/alloc"
	"github.com/keelson/keelson/apiserver/resources/check"
)

var (
	servicesGR         = schema.GroupResource{Resource: "services"}
	serviceCIDRsGR     = schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}
	endpointsGR        = schema.GroupResource{Resource: "endpoints"}
	ipAddressesGR      = schema.GroupResource{Group: "networking.k8s.io", Resource: "ipaddresses"}
	rangeAllocationsGR = schema.GroupResource{Resource: "rangeallocations"}
)

const (
	// NodePortsName is the object that holds the set of node ports; its key is upstream's.
	NodePortsName = "servicenodeports"
	// AddressManager is the value of the label that says who has made an IPAddress. Source: upstream.
	AddressManager = "ipallocator.k8s.io"
)

// rangeAllocations is the storage of what is taken of a range. Nobody is served it.
func rangeAllocations() *Row {
	row := Resource[corev1.RangeAllocation]{
		Version: "v1", Kind: "RangeAllocation", Plural: "rangeallocations", Prefix: "ranges", Scope: Cluster, NoGeneration: true,
	}.Row()
	row.Hidden = true
	return row
}

type nodePort struct {
	protocol corev1.Protocol
	port     int32
}

// ServicePorts are all node ports that a Service holds, health check included.
func ServicePorts(s *corev1.Service) []int32 {
	var out []int32
	if s == nil {
		return nil
	}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, p.NodePort)
		}
	}
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		out = append(out, n)
	}
	return out
}

// ServiceAddresses are the addresses that a Service holds.
func ServiceAddresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	if s == nil || s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	for _, text := range s.Spec.ClusterIPs {
		if ip, ok := check.ParseIP(text); ok {
			out = append(out, ip)
		}
	}
	return out
}

func familyOf(ip netip.Addr) corev1.IPFamily {
	if ip.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// NewIPAddress is the object that says that a Service has an address.
//
// Source: KEP-1880; labels and reference are what upstream's allocator writes.
func NewIPAddress(ip netip.Addr, namespace, name string) *networkingv1.IPAddress {
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: ip.String(), Labels: map[string]string{
			networkingv1.LabelIPAddressFamily: string(familyOf(ip)), networkingv1.LabelManagedBy: AddressManager,
		}},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Resource: "services", Namespace: namespace, Name: name,
		}},
	}
}

// refersTo reports whether the address was made for the Service.
func refersTo(a *networkingv1.IPAddress, s *corev1.Service) bool {
	r := a.Spec.ParentRef
	return r != nil && r.Group == "" && r.Resource == "services" && r.Namespace == s.Namespace && r.Name == s.Name
}

// allocator hands out what Services need that no other Service may have. It has no
// memory: the tree says what is taken, and the store refuses what the tree did not show yet.
type allocator struct{ cfg Config }

// addressRange is a range that new addresses may come from, with the object that says so.
type addressRange struct {
	prefix     netip.Prefix
	name, seen string // of the ServiceCIDR; "" for the server's own range in a new cluster
}

// ranges are those of every ServiceCIDR that is ready and not on its way out. Before the first one
// exists, those of the configuration.
func (a allocator) ranges(rq *Request) ([]addressRange, error) {
	var out []addressRange
	any := false
	err := rq.Read.Each(serviceCIDRsGR, "", func(o Object) bool {
		c, ok := o.(*networkingv1.ServiceCIDR)
		if !ok {
			return true
		}
		any = true
		if c.DeletionTimestamp != nil || !meta.IsStatusConditionTrue(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
			return true
		}
		for _, text := range c.Spec.CIDRs {
			if r, err := netip.ParsePrefix(text); err == nil {
				out = append(out, addressRange{r, c.Name, c.ResourceVersion})
			}
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list service CIDRs to allocate from: %w", err)
	}
	if !any {
		for _, r := range a.cfg.ServiceCIDRs {
			out = append(out, addressRange{prefix: r})
		}
	}
	return out, nil
}

// allocate fills in addresses and ports. What the old object holds already is kept; what
// it holds no longer is freed.
func (a allocator) allocate(rq *Request, s, old *corev1.Service) ([]Beside, error) {
	var f check.Faults
	beside, err := a.addresses(rq, s, old, &f)
	if err != nil {
		return nil, err
	}
	refused := func() error { return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, s.Name, f.List()) }
	if !f.Empty() { // whose addresses are refused is not told about ports: upstream does not come to them
		return nil, refused()
	}
	ports, err := a.nodePorts(rq, s, old, &f)
	if err != nil {
		return nil, err
	}
	if s == nil { // a Service of the same name that follows shall not find the endpoints of this one
		e, err := Lookup[corev1.Endpoints](rq.Read, endpointsGR, old.Namespace, old.Name)
		if err != nil {
			return nil, err
		}
		if e != nil {
			beside = append(beside, Beside{Resource: endpointsGR, Namespace: e.Namespace, Name: e.Name, Seen: e.ResourceVersion, Do: DoRemove})
		}
	}
	if !f.Empty() {
		return nil, refused()
	}
	return append(beside, ports...), nil
}

func (a allocator) addresses(rq *Request, s, old *corev1.Service, f *check.Faults) ([]Beside, error) {
	had := map[netip.Addr]bool{}
	for _, ip := range ServiceAddresses(old) {
		had[ip] = true
	}
	var beside []Beside
	keep := map[netip.Addr]bool{}
	if s != nil && s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP != corev1.ClusterIPNone {
		var ranges []addressRange
		checked := map[string]bool{}
		for i, family := range s.Spec.IPFamilies {
			var ip netip.Addr
			wished := i < len(s.Spec.ClusterIPs) && s.Spec.ClusterIPs[i] != ""
			if wished {
				var ok bool
				if ip, ok = check.ParseIP(s.Spec.ClusterIPs[i]); !ok {
					continue // reported by the rules
				}
				if had[ip] {
					keep[ip] = true
					continue
				}
			}
			if ranges == nil {
				var err error
				if ranges, err = a.ranges(rq); err != nil {
					return nil, err
				}
			}
			var from addressRange
			if wished {
				var why string
				if from, why = wishAddress(rq, ranges, ip); why != "" {
					f.Invalid(field.NewPath("spec", "clusterIPs"), s.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %s", ip, why))
					continue
				}
			} else {
				var ok bool
				if ip, from, ok = pickAddress(rq, ranges, family); !ok {
					return nil, apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: range is full", s.Name))
				}
				s.Spec.ClusterIPs = append(s.Spec.ClusterIPs[:i:i], ip.String())
			}
			keep[ip] = true
			beside = append(beside, Beside{Resource: ipAddressesGR, Name: ip.String(), Object: NewIPAddress(ip, s.Namespace, s.Name)})
			if from.name != "" && !checked[from.name] { // a range that goes meanwhile hands out nothing
				checked[from.name] = true
				beside = append(beside, Beside{Resource: serviceCIDRsGR, Name: from.name, Seen: from.seen, Do: DoCheck})
			}
		}
		if len(s.Spec.ClusterIPs) > 0 {
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		}
	}
	for _, ip := range ServiceAddresses(old) {
		if keep[ip] {
			continue
		}
		have, err := Lookup[networkingv1.IPAddress](rq.Read, ipAddressesGR, "", ip.String())
		if err != nil {
			return nil, err
		}
		if have != nil && refersTo(have, old) {
			beside = append(beside, Beside{Resource: ipAddressesGR, Name: ip.String(), Seen: have.ResourceVersion, Do: DoRemove})
		}
	}
	return beside, nil
}

func addressTaken(rq *Request, ip netip.Addr) bool {
	have, err := rq.Read.Get(ipAddressesGR, "", ip.String())
	return err != nil || have != nil
}

// wishAddress finds the range of an address, or says why it cannot be had.
func wishAddress(rq *Request, ranges []addressRange, ip netip.Addr) (from addressRange, why string) {
	why = "the provided network does not match the current range"
	for _, r := range ranges {
		if rq.DryRun && r.prefix.Addr().Is4() == ip.Is4() { // upstream tries one range only, and names it
			why = fmt.Sprintf("the provided IP (%s) is not in the valid range. The range of valid IPs is %s", ip, r.prefix)
		}
		if !r.prefix.Contains(ip) || !alloc.Usable(r.prefix, ip) {
			continue
		}
		if addressTaken(rq, ip) {
			return r, "provided IP is already allocated"
		}
		return r, ""
	}
	return from, why
}

func pickAddress(rq *Request, ranges []addressRange, family corev1.IPFamily) (netip.Addr, addressRange, bool) {
	for _, r := range ranges {
		if familyOf(r.prefix.Addr()) != family {
			continue
		}
		if ip, ok := alloc.Address(r.prefix, func(ip netip.Addr) bool { return addressTaken(rq, ip) }, spread(rq.Now)); ok {
			return ip, r, true
		}
	}
	return netip.Addr{}, addressRange{}, false
}

// nodePorts fills in node ports, and books in one set what the Service holds now.
func (a allocator) nodePorts(rq *Request, s, old *corev1.Service, f *check.Faults) ([]Beside, error) {
	had := map[int32]bool{}
	for _, n := range ServicePorts(old) {
		had[n] = true
	}
	if len(had) == 0 && (s == nil || !needsNodePorts(s)) {
		return nil, nil
	}
	stored, ports, err := a.takenPorts(rq)
	if err != nil {
		return nil, err
	}
	mine := map[int32]bool{} // what s holds in the end
	if s != nil && needsNodePorts(s) {
		if err := fillNodePorts(rq, s, ports, had, mine, f); err != nil {
			return nil, err
		}
	}
	changed := false
	for n := range mine {
		changed = changed || !had[n]
	}
	for n := range had {
		if !mine[n] {
			changed = true
			ports.Free(n)
		}
	}
	if !changed {
		return nil, nil
	}
	next := &corev1.RangeAllocation{Range: ports.Range(), Data: ports.Data()}
	seen := ""
	if stored != nil {
		next.ObjectMeta, seen = *stored.ObjectMeta.DeepCopy(), stored.ResourceVersion
	}
	return []Beside{{Resource: rangeAllocationsGR, Name: NodePortsName, Seen: seen, Object: next, Contended: true}}, nil
}

// takenPorts is the stored set. Where there is none yet, it is what the Services say.
func (a allocator) takenPorts(rq *Request) (*corev1.RangeAllocation, *alloc.Ports, error) {
	r := a.cfg.NodePorts
	stored, err := Lookup[corev1.RangeAllocation](rq.Read, rangeAllocationsGR, "", NodePortsName)
	if err != nil {
		return nil, nil, err
	}
	if stored != nil {
		ports, err := alloc.ReadPorts(r.First, r.Last, stored.Range, stored.Data)
		return stored, ports, err
	}
	ports := &alloc.Ports{First: r.First, Last: r.Last}
	err = rq.Read.Each(servicesGR, "", func(o Object) bool {
		if other, ok := o.(*corev1.Service); ok {
			for _, n := range ServicePorts(other) {
				ports.Take(n)
			}
		}
		return true
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list services to allocate from: %w", err)
	}
	return nil, ports, nil
}

// fillNodePorts takes the ports that s names and chooses those that it needs. A number belongs to one
// Service, which may use it once for each protocol.
func fillNodePorts(rq *Request, s *corev1.Service, ports *alloc.Ports, had, mine map[int32]bool, f *check.Faults) error {
	wish := func(n int32, at *field.Path) {
		switch {
		case mine[n]:
		case had[n]:
			ports.Take(n)
			mine[n] = true
		case !ports.Covers(n):
			f.Invalid(at, n, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %s", ports.Range()))
		case ports.Has(n):
			f.Invalid(at, n, "provided port is already allocated")
		default:
			ports.Take(n)
			mine[n] = true
		}
	}
	pick := func(what string) (int32, error) {
		n, ok := alloc.Port(ports.First, ports.Last, ports.Has, spread(rq.Now))
		if !ok {
			return 0, apierrors.NewInternalError(errors.New("failed to allocate a " + what + ": range is full"))
		}
		ports.Take(n)
		mine[n] = true
		return n, nil
	}
	shared := map[int32]int32{} // one port number with two protocols gets one node port
	used := map[nodePort]bool{}
	for i, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			wish(p.NodePort, field.NewPath("spec", "ports").Index(i).Child("nodePort"))
			shared[p.Port] = p.NodePort
			used[nodePort{p.Protocol, p.NodePort}] = true
		}
	}
	if s.Spec.Type == corev1.ServiceTypeNodePort || valueOr(s.Spec.AllocateLoadBalancerNodePorts, true) {
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			if p.NodePort != 0 {
				continue
			}
			n, ok := shared[p.Port]
			if !ok || used[nodePort{p.Protocol, n}] || !mine[n] {
				var err error
				if n, err = pick("nodePort"); err != nil {
					return err
				}
			}
			p.NodePort, shared[p.Port] = n, n
			used[nodePort{p.Protocol, n}] = true
		}
	}
	if needsHealthPort(s) && f.Empty() {
		if n, at := s.Spec.HealthCheckNodePort, field.NewPath("spec", "healthCheckNodePort"); n != 0 {
			if mine[n] {
				f.Invalid(at, n, "provided port is already allocated")
			}
			wish(n, at)
			return nil
		}
		n, err := pick("HealthCheck NodePort")
		if err != nil {
			return err
		}
		s.Spec.HealthCheckNodePort = n
	}
	return nil
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
