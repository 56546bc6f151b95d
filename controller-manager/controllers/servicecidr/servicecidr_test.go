package servicecidr

import (
	"context"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func cidr(name string, ranges ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: ranges}}
}

func address(ip, by string) *networkingv1.IPAddress {
	return &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: ip, Labels: map[string]string{networkingv1.LabelManagedBy: by}}}
}

func TestNeeded(t *testing.T) {
	r := cidr("r", "10.0.0.0/24", "fd00::/120")
	going := cidr("going", "10.0.0.0/16")
	going.DeletionTimestamp = &metav1.Time{}
	for _, c := range []struct {
		name   string
		others []*networkingv1.ServiceCIDR
		ip     string
		by     string
		want   bool
	}{
		{"an address of it", nil, "10.0.0.7", manager, true},
		{"of its second family", nil, "fd00::7", manager, true},
		{"covered by a larger range", []*networkingv1.ServiceCIDR{cidr("o", "10.0.0.0/16")}, "10.0.0.7", manager, false},
		{"covered by one that goes too", []*networkingv1.ServiceCIDR{going}, "10.0.0.7", manager, true},
		{"not covered by one beside it", []*networkingv1.ServiceCIDR{cidr("o", "10.0.1.0/24")}, "10.0.0.7", manager, true},
		{"an address of another range", nil, "10.0.1.7", manager, false},
		{"somebody's own address", nil, "10.0.0.7", "me", false},
	} {
		if got := Needed(r, append(c.others, r), []*networkingv1.IPAddress{address(c.ip, c.by)}); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestLife(t *testing.T) {
	ctx := context.Background()
	objects := []kruntime.Object{cidr("r", "10.0.0.0/24"), address("10.0.0.7", manager)}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.NetworkingV1().ServiceCIDRs()
		ready := func() *metav1.Condition {
			r := ctrltest.Must(api.Get(ctx, "r", metav1.GetOptions{}))
			return meta.FindStatusCondition(r.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
		}
		if c := ready(); c == nil || c.Status != metav1.ConditionTrue {
			t.Fatalf("a new range becomes ready: %+v", c)
		}
		if err := api.Delete(ctx, "r", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if c := ready(); c == nil || c.Status != metav1.ConditionFalse || c.Reason != networkingv1.ServiceCIDRReasonTerminating {
			t.Errorf("a range that is needed stays and says so: %+v", c)
		}
		if err := h.Client.NetworkingV1().IPAddresses().Delete(ctx, "10.0.0.7", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		h.After(11 * time.Second)
		if _, err := api.Get(ctx, "r", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("then it goes: %v", err)
		}
	})
}
