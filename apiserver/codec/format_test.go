package codec

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/libs/testkit"
)

// What is in etcd belongs to the users: key layout and encoding may not change, or an upstream
// etcd could not be taken over and given back. A changed line of the golden file is a
// change of the storage format.
func TestStoredFormat(t *testing.T) {
	var out strings.Builder
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&out, "# keys below --etcd-prefix, and the version that is stored")
	seen := map[schema.GroupResource]bool{}
	for _, row := range append(reg.All(), reg.Kind(corev1.SchemeGroupVersion.WithKind("RangeAllocation"))) {
		if seen[row.GR()] || row.Stored != nil || !row.Can("get") && !row.Hidden {
			continue
		}
		seen[row.GR()] = true
		fmt.Fprintf(&out, "%s = %s\n", row.Key("ns", "name"), row.GVK())
	}
	fmt.Fprintln(&out, "\n# values")
	at := metav1.NewTime(time.Unix(1_800_000_000, 0))
	meta := metav1.ObjectMeta{Name: "a", Namespace: "d", UID: "u-1", CreationTimestamp: at, Labels: map[string]string{"y": "2", "x": "1"}}
	one, grace := int32(1), int64(30)
	for _, obj := range []resources.Object{
		&corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"k": "v", "a": "b"}},
		&corev1.Secret{ObjectMeta: meta, Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"k": {0, 255}}},
		&corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "n", TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
		&appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"x": "1"}}}},
		&coordinationv1.Lease{ObjectMeta: meta, Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: &one}},
		&networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.0.0.1"}, Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "d", Name: "a"}}},
		&corev1.RangeAllocation{Range: "30000-32767", Data: []byte{1, 0}},
	} {
		kind := fmt.Sprintf("%T", obj)
		row := (*resources.Row)(nil)
		for _, r := range append(reg.All(), reg.Kind(corev1.SchemeGroupVersion.WithKind("RangeAllocation"))) {
			if r.Stored == nil && fmt.Sprintf("%T", r.New()) == kind {
				row = r
			}
		}
		value, _, err := Value(row, obj)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n%s", kind, hex.Dump(value))
		back, err := Decode(row, value, 7)
		if err != nil || back.GetName() != obj.GetName() || back.GetResourceVersion() != "7" {
			t.Errorf("%s is not read as it was written: %v, %v", kind, back, err)
		}
	}
	testkit.Golden(t, "format", out.String())
}
