package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// world is a Source over a few services.
type world map[string]*corev1.Service

func (w world) Service(k types.NamespacedName) *corev1.Service { return w[k.String()] }
func (w world) Namespace(n string) bool                        { return n == "ns" }
func (w world) ServiceAt(a netip.Addr) *corev1.Service {
	for _, s := range w {
		if s.Spec.ClusterIP == a.String() {
			return s
		}
	}
	return nil
}
func (w world) Slices(k types.NamespacedName) []*discoveryv1.EndpointSlice {
	if k.Name != "db" {
		return nil
	}
	return []*discoveryv1.EndpointSlice{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		Ports:      []discoveryv1.EndpointPort{{Name: ptr.To("sql"), Port: ptr.To(int32(5432)), Protocol: ptr.To(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.0.1"}, Hostname: ptr.To("db-0")},
			{Addresses: []string{"10.244.0.2"}},
			{Addresses: []string{"10.244.0.3"}, Hostname: ptr.To("db-2"), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
		},
	}}
}
func (w world) SlicesAt(a netip.Addr) []*discoveryv1.EndpointSlice {
	return w.Slices(types.NamespacedName{Name: "db"})
}

var cluster = world{
	"ns/web": {ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}},
	"ns/db":  {ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: "None"}},
	"ns/out": {ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "out"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}},
}

func TestAnswer(t *testing.T) {
	z := Zone{Domain: "cluster.local.", Source: cluster}
	for _, c := range []struct {
		name, kind string
		want       string // answers joined by "; ", or a word
	}{
		{"web.ns.svc.cluster.local.", "A", "10.96.0.7"},
		{"WEB.ns.svc.Cluster.local.", "A", "10.96.0.7"},
		{"web.ns.svc.cluster.local.", "AAAA", "no data"},
		{"nobody.ns.svc.cluster.local.", "A", "no such name"},
		{"ns.svc.cluster.local.", "A", "no data"},
		{"other.svc.cluster.local.", "A", "no such name"},
		{"_http._tcp.web.ns.svc.cluster.local.", "SRV", "80 web.ns.svc.cluster.local."},
		{"_ftp._tcp.web.ns.svc.cluster.local.", "SRV", "no such name"},
		{"db.ns.svc.cluster.local.", "A", "10.244.0.1; 10.244.0.2"},
		{"db-0.db.ns.svc.cluster.local.", "A", "10.244.0.1"},
		{"10-244-0-2.db.ns.svc.cluster.local.", "A", "10.244.0.2"},
		{"db-2.db.ns.svc.cluster.local.", "A", "no such name"},
		{"_sql._tcp.db.ns.svc.cluster.local.", "SRV", "5432 10-244-0-2.db.ns.svc.cluster.local.; 5432 db-0.db.ns.svc.cluster.local."},
		{"out.ns.svc.cluster.local.", "A", "example.com."},
		{"1-2-3-4.ns.pod.cluster.local.", "A", "1.2.3.4"},
		{"dns-version.cluster.local.", "TXT", "1.1.0"},
		{"7.0.96.10.in-addr.arpa.", "PTR", "web.ns.svc.cluster.local."},
		{"1.0.244.10.in-addr.arpa.", "PTR", "db-0.db.ns.svc.cluster.local."},
		{"9.9.9.9.in-addr.arpa.", "PTR", "not ours"},
		{"example.com.", "A", "not ours"},
		{"notcluster.local.", "A", "not ours"},
	} {
		r := z.Answer(dns.Question{Name: c.name, Qtype: dns.StringToType[c.kind], Qclass: dns.ClassINET})
		if got := describe(r); got != c.want {
			t.Errorf("%s %s: got %q, want %q", c.kind, c.name, got, c.want)
		}
	}
}

func describe(r Reply) string {
	switch {
	case !r.Ours:
		return "not ours"
	case !r.Exists:
		return "no such name"
	case len(r.Answer) == 0:
		return "no data"
	}
	var out []string
	for _, rr := range r.Answer {
		switch v := rr.(type) {
		case *dns.A:
			out = append(out, v.A.String())
		case *dns.SRV:
			out = append(out, fmt.Sprintf("%d %s", v.Port, v.Target))
		case *dns.CNAME:
			out = append(out, v.Target)
		case *dns.TXT:
			out = append(out, v.Txt[0])
		case *dns.PTR:
			out = append(out, v.Ptr)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}
