package admission_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/audit/audittest"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/readertest"
	"github.com/keelson/keelson/apiserver/resources"
)

type world struct {
	tree  *readertest.Tree
	chain admission.Chain
}

func newWorld(objs ...resources.Object) *world {
	w := &world{tree: readertest.New(objs...)}
	w.tree.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	w.tree.Put(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "default"}})
	w.chain = admission.Table(admission.Config{
		Read: w.tree, Now: time.Now, Authorizer: authz.Chain{authz.Masters{}},
		UpdateQuota: func(namespace, name string, change func(*corev1.ResourceQuota) error) error {
			q, _ := resources.Lookup[corev1.ResourceQuota](w.tree, corev1.Resource("resourcequotas"), namespace, name)
			c := q.DeepCopy()
			if err := change(c); err != nil {
				return err
			}
			w.tree.Put(c)
			return nil
		},
	})
	return w
}

// row finds a resource by "<plural>[.<group>]".
func row(name string) *resources.Row {
	plural, group, _ := strings.Cut(name, ".")
	for _, r := range resources.Table() {
		if r.Group == group && r.Plural == plural {
			return r
		}
	}
	panic(name)
}

func (w *world) admit(op admission.Operation, plural string, obj, old resources.Object, user *authn.User) (func(), error) {
	plural, part, _ := strings.Cut(plural, "/")
	a := &admission.Attributes{
		Operation: op, Row: row(plural), Subresource: part, User: user, Request: &resources.Request{Read: w.tree, Now: time.Now(), Warn: func(string) {}},
	}
	if obj != nil {
		a.Object, a.Namespace, a.Name = obj, obj.GetNamespace(), obj.GetName()
	}
	if old != nil {
		a.Old, a.Namespace, a.Name = old, old.GetNamespace(), old.GetName()
	}
	if err := w.chain.Mutate(context.Background(), a); err != nil {
		return nil, err
	}
	return w.chain.Validate(context.Background(), a)
}

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

var root = &authn.User{Name: "admin", Groups: []string{authn.GroupMasters}}

func TestPodGetsAccountTokenPriorityAndTolerations(t *testing.T) {
	w := newWorld(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 7})
	p := pod(func(p *corev1.Pod) { p.Spec.PriorityClassName = "high" })
	if _, err := w.admit(admission.Create, "pods", p, nil, root); err != nil {
		t.Fatal(err)
	}
	if p.Spec.ServiceAccountName != "default" || *p.Spec.Priority != 7 || len(p.Spec.Tolerations) != 2 {
		t.Errorf("account %q, priority %d, tolerations %v", p.Spec.ServiceAccountName, *p.Spec.Priority, p.Spec.Tolerations)
	}
	m := p.Spec.Containers[0].VolumeMounts
	if len(m) != 1 || m[0].MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" || !m[0].ReadOnly ||
		len(p.Spec.Volumes) != 1 || p.Spec.Volumes[0].Name != m[0].Name || len(p.Spec.Volumes[0].Projected.Sources) != 3 {
		t.Errorf("mounts %v, volumes %v", m, p.Spec.Volumes)
	}
	again := p.DeepCopy()
	if _, err := w.admit(admission.Create, "pods", again, nil, root); err != nil || len(again.Spec.Volumes) != 1 {
		t.Errorf("admission is not idempotent: %v, %v", err, again.Spec.Volumes)
	}
}

// What others hold outlives them: a finalizer says so from the beginning, once.
// Pods that a namespace's policy would not allow are counted, and the audit event says so.
func TestPodSecurityIsTold(t *testing.T) {
	reg := prometheus.NewRegistry()
	tree := readertest.New(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{
		"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/audit": "restricted", "pod-security.kubernetes.io/audit-version": "v1.99",
	}}})
	chain := admission.Chain{}
	for _, p := range admission.Table(admission.Config{Read: tree, Now: time.Now, Metrics: reg}) {
		if p.Name == "PodSecurity" {
			chain = append(chain, p)
		}
	}
	ctx, end := audittest.Begin(t, "Metadata")
	p := pod(nil)
	if _, err := chain.Validate(ctx, &admission.Attributes{
		Operation: admission.Create, Row: row("pods"), Object: p, Namespace: "ns", Name: "p", Request: &resources.Request{Read: tree},
	}); err != nil {
		t.Fatal(err)
	}
	notes := end()
	if got := notes["pod-security.kubernetes.io/enforce-policy"]; got != "baseline:latest" {
		t.Errorf("enforced is %q", got)
	}
	if got := notes["pod-security.kubernetes.io/audit-violations"]; !strings.HasPrefix(got, `would violate PodSecurity "restricted:v1.99": allowPrivilegeEscalation != false`) {
		t.Errorf("violations are %q", got)
	}
	want := `# HELP pod_security_evaluations_total Pods and pod templates that were looked at, and what was found; of audit and warn only what would not be allowed.
# TYPE pod_security_evaluations_total counter
pod_security_evaluations_total{decision="allow",mode="enforce",policy_level="baseline",policy_version="latest",request_operation="create",resource="pod",subresource=""} 1
pod_security_evaluations_total{decision="deny",mode="audit",policy_level="restricted",policy_version="future",request_operation="create",resource="pod",subresource=""} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestStorageInUseIsProtected(t *testing.T) {
	w := newWorld()
	for name, c := range map[string]struct {
		obj  resources.Object
		want string
	}{
		"persistentvolumeclaims":                 {&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}}, "kubernetes.io/pvc-protection"},
		"persistentvolumes":                      {&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}}, "kubernetes.io/pv-protection"},
		"volumeattributesclasses.storage.k8s.io": {&storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}}, "kubernetes.io/vac-protection"},
	} {
		for range 2 {
			if _, err := w.admit(admission.Create, name, c.obj, nil, root); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.obj.GetFinalizers(); len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	now := metav1.Now()
	w := newWorld(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "going", DeletionTimestamp: &now}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "strict", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "strict", Name: "default"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other"}, Spec: corev1.PodSpec{NodeName: "n2"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{"cpu": resource.MustParse("1")}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}, Status: corev1.NodeStatus{DeclaredFeatures: []string{"InPlacePodLevelResourcesVerticalScaling"}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w", Labels: map[string]string{corev1.LabelOSStable: "windows"}}},
	)
	grown := func(node, cpu string) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Generation, p.Spec.NodeName = 2, node
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse(cpu)}
		})
	}
	parts := func(node string) *corev1.Pod { // the pod as a whole and its first container have grown
		return pod(func(p *corev1.Pod) {
			p.Generation, p.Spec.NodeName = 2, node
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1m")}}
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Resources: *p.Spec.Resources}}
		})
	}
	initial := pod(func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "i"}} })
	kubelet := &authn.User{Name: "system:node:n1", Groups: []string{authn.GroupNodes}}
	for _, c := range []struct {
		text     string
		op       admission.Operation
		plural   string
		obj, old resources.Object
		user     *authn.User
		want     string
	}{
		{"a namespace that is not there", admission.Create, "configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "none", Name: "x"}}, nil, root, `namespaces "none" not found`},
		{"a namespace that is going", admission.Create, "configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "going", Name: "x"}}, nil, root, "because it is being terminated"},
		{"the default namespace", admission.Delete, "namespaces", nil, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, root, "this namespace may not be deleted"},
		{"an account that is not there", admission.Create, "pods", pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "no" }), nil, root, `serviceaccount "no" not found`},
		{"a priority class that is not there", admission.Create, "pods", pod(func(p *corev1.Pod) { p.Spec.PriorityClassName = "no" }), nil, root, "no PriorityClass with name no was found"},
		{"a priority of one's own", admission.Create, "pods", pod(func(p *corev1.Pod) { p.Spec.Priority = ptr.To(int32(3)) }), nil, root, "must not be provided in pod spec"},
		{"a privileged pod in a strict namespace", admission.Create, "pods", pod(func(p *corev1.Pod) {
			p.Namespace, p.Spec.HostNetwork = "strict", true
		}), nil, root, `violates PodSecurity "baseline:latest"`},
		{"an ordinary pod of a kubelet", admission.Create, "pods", pod(nil), nil, kubelet, "can only create mirror pods"},
		{"another node's pod", admission.Delete, "pods", nil, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other"}, Spec: corev1.PodSpec{NodeName: "n2"}}, kubelet, "spec.nodeName set to itself"},
		{"another node", admission.Update, "nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, kubelet, `not allowed to modify node "n2"`},
		{"a restricted label", admission.Create, "nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"node-restriction.kubernetes.io/x": "y"}}}, nil, kubelet, "not allowed to modify labels"},
		{"more than the node has", admission.Update, "pods/resize", grown("n1", "1100m"), pod(nil), root, "node didn't have enough allocatable resources: cpu, requested: 1100, allocatable: 1000"},
		{"a resize where there is none", admission.Update, "pods/resize", grown("w", "1"), pod(nil), root, `pod resize is only supported on linux nodes, node "w" is "windows"`},
		{"a resize that the node does not know", admission.Update, "pods/resize", parts("n1"), initial, root,
			`pod update requires features InPlacePodLevelResourcesVerticalScaling, InPlacePodVerticalScalingInitContainers which are not available on node "n1"`},
		{"a resize that the node knows in part", admission.Update, "pods/resize", parts("n3"), initial, root, `pod update requires features InPlacePodVerticalScalingInitContainers which`},
		{"a resize of parts on a node that is gone", admission.Update, "pods/resize", parts("gone"), initial, root, `node "gone" not found`},
		{"no account and no priority", admission.Create, "pods", pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName, p.Spec.PriorityClassName = "no", "no" }), nil, root, `serviceaccount "no" not found`},
		{"a resize on a node that is gone", admission.Update, "pods/resize", grown("gone", "1"), pod(nil), root, `node "gone" not found`},
	} {
		_, err := w.admit(c.op, c.plural, c.obj, c.old, c.user)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", c.text, err, c.want)
		}
	}
}

func TestLimitRange(t *testing.T) {
	list := func(cpu string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
	w := newWorld(&corev1.LimitRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "l"},
		Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
			Type: corev1.LimitTypeContainer, Max: list("2"), Min: list("100m"), Default: list("1"), DefaultRequest: list("500m"),
		}}},
	})
	p := pod(nil)
	if _, err := w.admit(admission.Create, "pods", p, nil, root); err != nil {
		t.Fatal(err)
	}
	r := p.Spec.Containers[0].Resources
	if r.Limits.Cpu().String() != "1" || r.Requests.Cpu().String() != "500m" {
		t.Errorf("defaults: %v", r)
	}
	for cpu, want := range map[string]string{"3": "maximum cpu usage per Container is 2, but limit is 3", "50m": "minimum cpu usage per Container is 100m, but request is 50m"} {
		_, err := w.admit(admission.Create, "pods", pod(func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Limits = list(cpu) }), nil, root)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("limit %s: got %v, want %q", cpu, err, want)
		}
	}
}

func TestQuotaIsBookedAndTakenBack(t *testing.T) {
	hard := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1")}
	w := newWorld(&corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: hard},
		Status: corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
	})
	undo, err := w.admit(admission.Create, "pods", pod(nil), nil, root)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.admit(admission.Create, "pods", pod(nil), nil, root)
	if want := "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"; err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("second pod: got %v, want %q", err, want)
	}
	undo()
	if _, err := w.admit(admission.Create, "pods", pod(nil), nil, root); err != nil {
		t.Errorf("after the booking was taken back: %v", err)
	}
}

// A claim for the extended resources of a pod counts for no more than the pod has been counted for.
func TestQuotaOfExtendedResources(t *testing.T) {
	gpu, yes := "example.com/gpu", true
	amount := func(n string) corev1.ResourceList {
		return corev1.ResourceList{"requests.example.com/gpu": resource.MustParse(n)}
	}
	claim := func(name string, devices int64) *resourcev1.ResourceClaim {
		return &resourcev1.ResourceClaim{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: name, Annotations: map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u", Controller: &yes}},
			},
			Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{Name: "r",
				Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gold", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: devices}}}}},
		}
	}
	w := newWorld(
		&resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}, Spec: resourcev1.DeviceClassSpec{ExtendedResourceName: &gpu}},
		&corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: amount("3")},
			Status: corev1.ResourceQuotaStatus{Hard: amount("3"), Used: amount("0")},
		})
	p := pod(func(p *corev1.Pod) {
		p.UID = "u"
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{"example.com/gpu": resource.MustParse("2")}, Limits: corev1.ResourceList{"example.com/gpu": resource.MustParse("2")}}
	})
	admit := func(kind string, obj resources.Object, want string) {
		t.Helper()
		_, err := w.admit(admission.Create, kind, obj, nil, root)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Fatalf("%s: got %v, want %q", obj.GetName(), err, want)
		}
		if err == nil {
			w.tree.Put(obj)
		}
	}
	admit("pods", p, "")
	admit("resourceclaims.resource.k8s.io", claim("a", 2), "")
	admit("resourceclaims.resource.k8s.io", claim("b", 2), "exceeded quota: q, requested: requests.example.com/gpu=2, used: requests.example.com/gpu=2, limited: requests.example.com/gpu=3")
	admit("resourceclaims.resource.k8s.io", claim("c", 1), "")
}

// The whole chain and every plugin that does something are timed, by what became of it.
func TestTimes(t *testing.T) {
	reg := prometheus.NewRegistry()
	yes := func(context.Context, *admission.Attributes) error { return nil }
	no := func(context.Context, *admission.Attributes) (func(), error) { return nil, errors.New("no") }
	c := admission.Chain{{Name: "First", Mutate: yes}, {Name: "Second", Mutate: yes, Validate: no}}.Timed(reg)
	a := &admission.Attributes{Operation: admission.Update}
	if err := c.Mutate(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Validate(t.Context(), a); err == nil {
		t.Fatal("no refusal")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.Metric {
			var values []string
			for _, l := range m.Label {
				values = append(values, l.GetValue())
			}
			got = append(got, fmt.Sprintf("%s{%s} %d", f.GetName(), strings.Join(values, " "), m.Histogram.GetSampleCount()))
		}
	}
	want := `apiserver_admission_controller_admission_duration_seconds{First UPDATE false admit} 1
apiserver_admission_controller_admission_duration_seconds{Second UPDATE false admit} 1
apiserver_admission_controller_admission_duration_seconds{Second UPDATE true validate} 1
apiserver_admission_step_admission_duration_seconds{UPDATE false admit} 1
apiserver_admission_step_admission_duration_seconds{UPDATE true validate} 1`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}
