package apiserver

import (
	"math/big"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/resources/alloc"
	"github.com/keelson/keelson/apiserver/series"
)

// serviceMetrics show what Services hold of the ranges of addresses and node ports, under upstream's names.
// What is held is counted when somebody asks: the objects say it.
type serviceMetrics struct {
	read      resources.Reader
	ports     resources.PortRange
	addresses *prometheus.CounterVec
	took      *prometheus.HistogramVec
	nodePorts *prometheus.CounterVec
}

func newServiceMetrics(reg prometheus.Registerer, read resources.Reader, ports resources.PortRange) *serviceMetrics {
	m := &serviceMetrics{
		read: read, ports: ports,
		addresses: series.Counter(reg, "kube_apiserver_clusterip_allocator_allocation_total", "Addresses given to Services, by whether they were asked for (static) or chosen (dynamic).", "cidr", "scope"),
		took:      series.Histogram(reg, "kube_apiserver_clusterip_allocator_allocation_duration_seconds", "Time to choose what a Service needs and to write it.", prometheus.DefBuckets, "cidr"),
		nodePorts: series.Counter(reg, "kube_apiserver_nodeport_allocator_allocation_total", "Node ports given to Services, by whether they were asked for (static) or chosen (dynamic).", "scope"),
	}
	reg.MustRegister(m)
	return m
}

// allocated counts a write that has given got what asked and old did not have.
func (m *serviceMetrics) allocated(asked, got, old resources.Object, took time.Duration) {
	wish, _ := asked.(*corev1.Service)
	is, _ := got.(*corev1.Service)
	was, _ := old.(*corev1.Service)
	if wish == nil || is == nil {
		return
	}
	had, ranges := resources.ServiceAddresses(was), m.ranges()
	wished := resources.ServiceAddresses(wish)
	for _, ip := range resources.ServiceAddresses(is) {
		if slices.Contains(had, ip) {
			continue
		}
		cidr := ""
		for _, r := range ranges {
			if r.Contains(ip) {
				cidr = r.String()
				break
			}
		}
		m.addresses.WithLabelValues(cidr, scope(slices.Contains(wished, ip))).Inc()
		m.took.WithLabelValues(cidr).Observe(took.Seconds())
	}
	held := portsOf(was)
	asking := portsOf(wish)
	for _, n := range portsOf(is) {
		if !slices.Contains(held, n) {
			m.nodePorts.WithLabelValues(scope(slices.Contains(asking, n))).Inc()
		}
	}
}

func scope(asked bool) string {
	if asked {
		return "static"
	}
	return "dynamic"
}

// portsOf are the node ports of a Service, each once: two protocols may share a number.
func portsOf(s *corev1.Service) []int32 {
	out := resources.ServicePorts(s)
	slices.Sort(out)
	return slices.Compact(out)
}

// ranges are those that addresses come from.
func (m *serviceMetrics) ranges() (out []netip.Prefix) {
	_ = m.read.Each(schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}, "", func(o resources.Object) bool {
		if c, ok := o.(*networkingv1.ServiceCIDR); ok {
			for _, text := range c.Spec.CIDRs {
				if r, err := netip.ParsePrefix(text); err == nil {
					out = append(out, r)
				}
			}
		}
		return true
	})
	return out
}

var (
	heldIPs   = prometheus.NewDesc("kube_apiserver_clusterip_allocator_allocated_ips", "Addresses that Services hold, by range.", []string{"cidr"}, nil)
	freeIPs   = prometheus.NewDesc("kube_apiserver_clusterip_allocator_available_ips", "Addresses that are free, by range.", []string{"cidr"}, nil)
	heldPorts = prometheus.NewDesc("kube_apiserver_nodeport_allocator_allocated_ports", "Node ports that Services hold.", nil, nil)
	freePorts = prometheus.NewDesc("kube_apiserver_nodeport_allocator_available_ports", "Node ports that are free.", nil, nil)
)

// Describe is prometheus.Collector's.
func (m *serviceMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{heldIPs, freeIPs, heldPorts, freePorts} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (m *serviceMetrics) Collect(ch chan<- prometheus.Metric) {
	ranges := m.ranges()
	held := make([]int, len(ranges))
	_ = m.read.Each(schema.GroupResource{Group: "networking.k8s.io", Resource: "ipaddresses"}, "", func(o resources.Object) bool {
		ip, err := netip.ParseAddr(o.GetName())
		for i, r := range ranges {
			if err == nil && r.Contains(ip) {
				held[i]++
				break
			}
		}
		return true
	})
	for i, r := range ranges {
		ch <- prometheus.MustNewConstMetric(heldIPs, prometheus.GaugeValue, float64(held[i]), r.String())
		ch <- prometheus.MustNewConstMetric(freeIPs, prometheus.GaugeValue, usable(r)-float64(held[i]), r.String())
	}
	n := 0
	if o, err := m.read.Get(schema.GroupResource{Resource: "rangeallocations"}, "", resources.NodePortsName); err == nil && o != nil {
		if a, ok := o.(*corev1.RangeAllocation); ok {
			if p, err := alloc.ReadPorts(m.ports.First, m.ports.Last, a.Range, a.Data); err == nil {
				n = p.Count()
			}
		}
	}
	ch <- prometheus.MustNewConstMetric(heldPorts, prometheus.GaugeValue, float64(n))
	ch <- prometheus.MustNewConstMetric(freePorts, prometheus.GaugeValue, float64(m.ports.Last-m.ports.First)+1-float64(n))
}

// usable is how many addresses of a range Services can have: not the network's own, nor an IPv4 broadcast address.
func usable(r netip.Prefix) float64 {
	all := new(big.Int).Lsh(big.NewInt(1), uint(r.Addr().BitLen()-r.Bits()))
	n, _ := new(big.Float).SetInt(all).Float64()
	if r.Addr().Is4() && n > 2 {
		return n - 2
	}
	return n - 1
}
