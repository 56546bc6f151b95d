package criconfig

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "2"}
	for in, want := range map[string]string{
		"":            "",
		"plain":       "plain",
		"$(A)-$(B)":   "1-2",
		"$$(A)":       "$(A)",
		"$$$(A)":      "$1",
		"$(C)":        "$(C)",
		"$(A":         "$(A",
		"$A":          "$A",
		"cost: 5$":    "cost: 5$",
		"$(A)$(A)$$$": "11$$",
	} {
		if got := Expand(in, vars); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestDNS(t *testing.T) {
	node := NodeDNS{ClusterServers: []string{"10.96.0.10"}, ClusterDomain: "cluster.local",
		Host: ParseResolvConf("# comment\nnameserver 192.0.2.53\nsearch example.com. lab\noptions timeout:2\n")}
	two := "2"
	own := &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"my.dns"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}
	for _, row := range []struct {
		says string
		spec corev1.PodSpec
		want string // servers | searches | options
	}{
		{"the cluster's DNS, and the node's searches behind", corev1.PodSpec{DNSPolicy: "ClusterFirst"},
			"10.96.0.10|ns.svc.cluster.local svc.cluster.local cluster.local example.com lab|ndots:5"},
		{"on the host's network ClusterFirst is the node's", corev1.PodSpec{DNSPolicy: "ClusterFirst", HostNetwork: true},
			"192.0.2.53|example.com lab|timeout:2"},
		{"unless it is asked for", corev1.PodSpec{DNSPolicy: "ClusterFirstWithHostNet", HostNetwork: true},
			"10.96.0.10|ns.svc.cluster.local svc.cluster.local cluster.local example.com lab|ndots:5"},
		{"Default is the node's", corev1.PodSpec{DNSPolicy: "Default"}, "192.0.2.53|example.com lab|timeout:2"},
		{"None is the pod's own", corev1.PodSpec{DNSPolicy: "None", DNSConfig: own}, "1.1.1.1|my.dns|ndots:2 edns0"},
		{"the pod's options win, its lists are appended", corev1.PodSpec{DNSPolicy: "ClusterFirst", DNSConfig: own},
			"10.96.0.10 1.1.1.1|ns.svc.cluster.local svc.cluster.local cluster.local example.com lab my.dns|ndots:2 edns0"},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: row.spec}
		d := DNS(node, p)
		got := strings.Join(d.Servers, " ") + "|" + strings.Join(d.Searches, " ") + "|" + strings.Join(d.Options, " ")
		if got != row.want {
			t.Errorf("%s:\n got %s\nwant %s", row.says, got, row.want)
		}
	}
}

type objects map[string]map[string]string

var errMissing = errors.New("not found")

func (o objects) ConfigMap(name string) (*corev1.ConfigMap, error) {
	if o[name] == nil {
		return nil, errMissing
	}
	return &corev1.ConfigMap{Data: o[name]}, nil
}

func (o objects) Secret(name string) (*corev1.Secret, error) {
	s := &corev1.Secret{Data: map[string][]byte{}}
	if o[name] == nil {
		return nil, errMissing
	}
	for k, v := range o[name] {
		s.Data[k] = []byte(v)
	}
	return s, nil
}

func (objects) File(string, string, string) (string, bool, error) { return "", false, nil }
func (objects) NotFound(err error) bool                           { return errors.Is(err, errMissing) }

func TestEnv(t *testing.T) {
	yes := true
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", Labels: map[string]string{"app": "x"}}}
	c := &corev1.Container{Name: "c",
		EnvFrom: []corev1.EnvFromSource{
			{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: &yes}},
		},
		Env: []corev1.EnvVar{
			{Name: "HOST", Value: "$(DB_SERVICE_HOST):$(P_port)"},
			{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "LABEL", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
			{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.cpu", Divisor: resource.MustParse("1m")}}},
			{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
			{Name: "P_port", Value: "again $(P_port)"},
		},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("250m")}},
	}
	services := []*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: "TCP"}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "ns"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Port: 5432, Protocol: "TCP"}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "headless", Namespace: "ns"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 1}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: "elsewhere"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Port: 1}}}},
	}
	node := Node{Allocatable: corev1.ResourceList{"memory": resource.MustParse("4Gi")}}
	vars, err := Env(node, p, c, &corev1.PodStatus{PodIP: "10.1.2.3"}, services, objects{"cm": {"port": "5432"}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, v := range vars {
		got[v.Name] = v.Value
	}
	want := map[string]string{
		"HOST": "10.96.0.7:5432", "IP": "10.1.2.3", "LABEL": "x", "CPU": "250", "MEM": "4096", "P_port": "again 5432",
		"DB_SERVICE_HOST": "10.96.0.7", "DB_SERVICE_PORT": "5432", "DB_PORT": "tcp://10.96.0.7:5432", "DB_PORT_5432_TCP": "tcp://10.96.0.7:5432",
		"DB_PORT_5432_TCP_PROTO": "tcp", "DB_PORT_5432_TCP_PORT": "5432", "DB_PORT_5432_TCP_ADDR": "10.96.0.7",
		"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
		"KUBERNETES_PORT": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
		"KUBERNETES_PORT_443_TCP_PORT": "443", "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := Env(node, p, c, &corev1.PodStatus{}, nil, objects{}); !errors.Is(err, errMissing) {
		t.Errorf("a missing object that is not optional: %v", err)
	}
}

func TestSecurity(t *testing.T) {
	zero, user, yes, no := int64(0), int64(1000), true, false
	p := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, FSGroup: &user}}}
	c := &corev1.Container{Name: "c"}
	if err := checkNonRoot(p, c, &zero, ""); err == nil || !strings.Contains(err.Error(), "container has runAsNonRoot and image will run as root") {
		t.Errorf("root image: %v", err)
	}
	if err := checkNonRoot(p, c, nil, "app"); err == nil || !strings.Contains(err.Error(), "image has non-numeric user (app)") {
		t.Errorf("named user: %v", err)
	}
	c.SecurityContext = &corev1.SecurityContext{RunAsUser: &user, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: "RuntimeDefault"}}
	got, err := Container(Node{MemoryBytes: 1 << 30}, p, c, Extra{Image: &cri.ImageSpec{Image: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	s := got.Linux.SecurityContext
	if s.RunAsUser.Value != 1000 || !s.NoNewPrivs || !s.ReadonlyRootfs || s.Capabilities.DropCapabilities[0] != "ALL" ||
		s.Seccomp.ProfileType != cri.SecurityProfile_RuntimeDefault || len(s.SupplementalGroups) != 1 || len(s.MaskedPaths) == 0 {
		t.Errorf("security context %v", s)
	}
	unsafe := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.msgmax", Value: "1"}}}}}
	if ForbiddenSysctl(Node{}, unsafe) == "" || ForbiddenSysctl(Node{AllowedUnsafeSysctls: []string{"kernel.msg*"}}, unsafe) != "" {
		t.Error("an unsafe sysctl needs the administrator's leave")
	}
}

func TestResources(t *testing.T) {
	c := &corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{"cpu": resource.MustParse("250m"), "memory": resource.MustParse("64Mi")},
		Limits:   corev1.ResourceList{"cpu": resource.MustParse("1500m"), "memory": resource.MustParse("128Mi"), "hugepages-2Mi": resource.MustParse("4Mi")}}}
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{*c}}}
	node := Node{MemoryBytes: 1 << 30, CPUQuota: true, CPUQuotaPeriodMicros: 100000, SwapLimits: true,
		Capacity: corev1.ResourceList{"memory": resource.MustParse("1Gi"), "hugepages-2Mi": resource.MustParse("0"), "hugepages-1Gi": resource.MustParse("0")}}
	r := Resources(node, p, c)
	if r.CpuShares != 256 || r.CpuQuota != 150000 || r.CpuPeriod != 100000 || r.MemoryLimitInBytes != 128<<20 || r.OomScoreAdj != 938 {
		t.Errorf("resources %v", r)
	}
	pages := []*cri.HugepageLimit{{PageSize: "1GB"}, {PageSize: "2MB", Limit: 4 << 20}} // what is not asked for is not given
	if diff := cmp.Diff(pages, r.HugepageLimits, cmpopts.IgnoreUnexported(cri.HugepageLimit{})); diff != "" {
		t.Errorf("huge pages: -want +got:\n%s", diff)
	}
	node.CgroupV2 = true
	for _, row := range []struct {
		says               string
		swapLimits, single bool
		limit              bool
		unified            map[string]string
	}{
		{"all of a container dies of too little memory, and nothing of it swaps", true, false, true, map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}},
		{"also without a limit", true, false, false, map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}},
		{"unless the administrator wants it otherwise", true, true, true, map[string]string{"memory.swap.max": "0"}},
		{"or the kernel cannot", false, false, true, map[string]string{"memory.oom.group": "1"}},
		{"or neither", false, true, true, nil},
	} {
		n, one := node, *c
		n.SwapLimits, n.SingleProcessOOMKill = row.swapLimits, row.single
		if !row.limit {
			one.Resources = corev1.ResourceRequirements{}
		}
		r := Resources(n, p, &one)
		if diff := cmp.Diff(row.unified, r.Unified); diff != "" || r.MemorySwapLimitInBytes != 0 {
			t.Errorf("%s: swap %d, -want +got:\n%s", row.says, r.MemorySwapLimitInBytes, diff)
		}
	}
	node.CgroupV2 = false
	if r := Resources(node, p, c); r.MemorySwapLimitInBytes != 128<<20 || r.Unified != nil {
		t.Errorf("cgroup v1: %v", r)
	}
	node.SwapLimits = false
	if r := Resources(node, p, c); r.MemorySwapLimitInBytes != 0 {
		t.Errorf("cgroup v1 that cannot limit swap: %v", r)
	}
	for shares, weight := range map[int64]int64{0: 1, 2: 1, 102: 4, 512: 20, 1024: 39, 2048: 79, 262144: 10000, 300000: 10000} {
		if got := Weight(shares); got != weight {
			t.Errorf("weight of %d shares: %d, want %d", shares, got, weight)
		}
	}
}
