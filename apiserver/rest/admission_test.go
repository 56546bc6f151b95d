package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"

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

// What comes from outside may not move an object to another namespace: its key and who may write it are those of the path.
func TestAdmissionMovesNoObject(t *testing.T) {
	var options []string
	h := newHarness(t, admission.Plugin{Name: "moves", Mutate: func(_ context.Context, a *admission.Attributes) error {
		if o, ok := a.Object.(*corev1.ConfigMap); ok && o.Data["move"] != "" {
			o.Namespace = o.Data["move"]
		}
		options = append(options, fmt.Sprintf("%T", a.Options))
		return nil
	}})
	const maps = "/api/v1/namespaces/default/configmaps"
	move := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"move":"other"}}`
	if r := h.do("POST", maps, move); r.code != 400 || !strings.Contains(string(r.body), "the namespace of the provided object does not match") {
		t.Errorf("a creation that is moved: %d %s", r.code, r.body)
	}
	h.must(http.StatusCreated, "POST", maps, `{"metadata":{"name":"a"}}`)
	if r := h.do("PATCH", maps+"/a", `{"data":{"move":"other"}}`, "Content-Type", "application/merge-patch+json"); r.code != 400 {
		t.Errorf("an update that is moved: %d %s", r.code, r.body)
	}
	options = nil
	h.must(http.StatusOK, "PATCH", maps+"/a", `{}`, "Content-Type", "application/merge-patch+json")
	h.must(http.StatusCreated, "PATCH", maps+"/b?fieldManager=m", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"}}`, "Content-Type", "application/apply-patch+yaml")
	if got := strings.Join(options, " "); got != "*v1.UpdateOptions *v1.CreateOptions" {
		t.Errorf("admission sees the options %s", got)
	}
}

// A request that names no object has no name in admission either, whatever it deletes. Source: kube-apiserver 1.36.
func TestAdmissionOfCollections(t *testing.T) {
	var seen []string
	h := newHarness(t, admission.Plugin{Name: "watch", Validate: func(_ context.Context, a *admission.Attributes) (func(), error) {
		if a.Operation != admission.Delete {
			return nil, nil
		}
		old := a.Old.(*corev1.ConfigMap)
		seen = append(seen, fmt.Sprintf("%q deletes %s", a.Name, old.Name))
		if old.Name == "c" && a.Name == "" {
			return nil, errors.New("it stays")
		}
		return nil, nil
	}})
	for _, name := range []string{"a", "b", "c"} {
		h.must(http.StatusCreated, "POST", maps, configMap(name))
	}
	h.must(http.StatusOK, "DELETE", maps+"/a", "")
	if r := h.must(http.StatusForbidden, "DELETE", maps, ""); !strings.Contains(string(r.body), `configmaps \"Unknown\" is forbidden: it stays`) {
		t.Errorf("refused with %s", r.body)
	}
	if got := strings.Join(seen, ", "); got != `"a" deletes a, "" deletes b, "" deletes c` {
		t.Error(got)
	}
}
