package rest

import (
	"context"
	"net/http"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"

	"github.com/keelson/keelson/apiserver/admission"
)

func TestAdmissionSeesAndChangesAScale(t *testing.T) {
	var rounds []int
	h := newHarness(t, admission.Plugin{Name: "seven", Mutate: func(_ context.Context, a *admission.Attributes) error {
		if a.Subresource != "scale" {
			return nil
		}
		rounds = append(rounds, a.Round)
		s, ok := a.Object.(*autoscalingv1.Scale)
		if !ok || a.Kind().Kind != "Scale" {
			t.Errorf("admission sees %T as %s", a.Object, a.Kind())
			return nil
		}
		if old, ok := a.Old.(*autoscalingv1.Scale); !ok || old.Spec.Replicas != 1 {
			t.Errorf("old is %+v", a.Old)
		}
		if s.Spec.Replicas == 3 {
			s.Spec.Replicas = 7
			a.Again()
		}
		return nil
	}})
	h.must(http.StatusCreated, "POST", "/api/v1/namespaces", `{"metadata":{"name":"ns"}}`)
	h.must(http.StatusCreated, "POST", "/apis/apps/v1/namespaces/ns/deployments", `{"metadata":{"name":"d"},"spec":{"replicas":1,"selector":{"matchLabels":{"a":"b"}},
		"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`)
	h.must(http.StatusOK, "PUT", "/apis/apps/v1/namespaces/ns/deployments/d/scale", `{"metadata":{"name":"d","namespace":"ns"},"spec":{"replicas":3}}`)
	if got := string(h.must(http.StatusOK, "GET", "/apis/apps/v1/namespaces/ns/deployments/d", "").body); !strings.Contains(got, `"replicas":7`) {
		t.Errorf("stored: %s", got)
	}
	if len(rounds) != 2 || rounds[1] != 1 {
		t.Errorf("rounds %v", rounds)
	}
}
