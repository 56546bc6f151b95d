package aggregator

import (
	"fmt"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// The APIService of a custom kind outlives a restart: while the custom kinds are not all known, none is left over.
func TestDecide(t *testing.T) {
	service := func(group, label string) *apiregistrationv1.APIService {
		p := ofGroup(metav1.SchemeGroupVersion.WithKind("").GroupVersion())
		return &apiregistrationv1.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: "v1." + group, Labels: map[string]string{managed: label}},
			Spec:       apiregistrationv1.APIServiceSpec{Group: group, Version: "v1", GroupPriorityMinimum: p.Group, VersionPriority: p.Version},
		}
	}
	have := map[string]*apiregistrationv1.APIService{
		"v1.custom.example.com": service("custom.example.com", managedAlways),
		"v1.old.k8s.io":         service("old.k8s.io", managedOnStart),
		"v1.own.example.com":    {ObjectMeta: metav1.ObjectMeta{Name: "v1.own.example.com"}},
	}
	rows := []*resources.Row{{Group: "apps", Version: "v1"}}
	for _, c := range []struct {
		first, whole bool
		want         []string
	}{
		{true, false, []string{"create v1.apps", "delete v1.old.k8s.io"}},
		{true, true, []string{"create v1.apps", "delete v1.custom.example.com", "delete v1.old.k8s.io"}},
		{false, false, nil},
		{false, true, []string{"delete v1.custom.example.com"}},
	} {
		var got []string
		for _, s := range Decide(rows, have, c.first, c.whole) {
			got = append(got, s.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("first %t, whole %t: %v, want %v", c.first, c.whole, fmt.Sprint(got), c.want)
		}
	}
}
