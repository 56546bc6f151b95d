package apiserver

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/readertest"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/resources/alloc"
)

// What Services hold and were given is shown under upstream's names.
func TestServiceMetrics(t *testing.T) {
	ports := alloc.Ports{First: 30000, Last: 30009}
	ports.Take(30001)
	ports.Take(30002)
	tree := readertest.New(
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/24", "fd00::/120"}}},
		&networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.96.0.1"}},
		&networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.97.0.1"}},
		&corev1.RangeAllocation{ObjectMeta: metav1.ObjectMeta{Name: resources.NodePortsName}, Range: ports.Range(), Data: ports.Data()},
	)
	reg := prometheus.NewRegistry()
	m := newServiceMetrics(reg, tree, resources.PortRange{First: 30000, Last: 30009})
	service := func(ips []string, nodePorts ...int32) *corev1.Service {
		s := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIPs: ips}}
		for _, n := range nodePorts {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{NodePort: n})
		}
		return s
	}
	m.allocated(service([]string{"", ""}, 30001, 0), service([]string{"10.96.0.7", "fd00::7"}, 30001, 30002), nil, time.Second)
	m.allocated(service([]string{"10.96.0.8"}, 30001), service([]string{"10.96.0.8"}, 30001), service(nil, 30001), time.Second)
	text := exposition(t, reg)
	for _, want := range []string{
		`kube_apiserver_clusterip_allocator_allocated_ips{cidr="10.96.0.0/24"} 1`, `kube_apiserver_clusterip_allocator_available_ips{cidr="10.96.0.0/24"} 253`,
		`kube_apiserver_clusterip_allocator_allocated_ips{cidr="fd00::/120"} 0`, `kube_apiserver_clusterip_allocator_available_ips{cidr="fd00::/120"} 255`,
		`kube_apiserver_clusterip_allocator_allocation_total{cidr="10.96.0.0/24",scope="dynamic"} 1`, `kube_apiserver_clusterip_allocator_allocation_total{cidr="10.96.0.0/24",scope="static"} 1`,
		`kube_apiserver_clusterip_allocator_allocation_total{cidr="fd00::/120",scope="dynamic"} 1`,
		`kube_apiserver_nodeport_allocator_allocated_ports 2`, `kube_apiserver_nodeport_allocator_available_ports 8`,
		`kube_apiserver_nodeport_allocator_allocation_total{scope="static"} 1`, `kube_apiserver_nodeport_allocator_allocation_total{scope="dynamic"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("not shown: %s", want)
		}
	}
}
