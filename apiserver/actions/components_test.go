package actions

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestComponentsSayHowTheyAre(t *testing.T) {
	answer := func(code int, body string) string {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	gone := httptest.NewTLSServer(http.NotFoundHandler())
	gone.Close()
	look := Components([]Component{
		{"well", AskHTTPS(answer(200, "ok"))},
		{"ill", AskHTTPS(answer(500, "[-]loop failed"))},
		{"gone", AskHTTPS(gone.URL)},
		{"etcd-0", AskStore(func(context.Context) (int64, error) { return 7, nil })},
		{"etcd-1", AskStore(func(context.Context) (int64, error) { return 0, errors.New("no leader") })},
	})
	want := []corev1.ComponentCondition{ // by name
		{Status: corev1.ConditionTrue, Message: "ok"},
		{Status: corev1.ConditionFalse, Error: "no leader"},
		{Status: corev1.ConditionFalse, Message: "connection refused"},
		{Status: corev1.ConditionFalse, Message: "HTTP probe failed with statuscode: 500"},
		{Status: corev1.ConditionTrue, Message: "ok"},
	}
	all := look(t.Context(), "")
	if len(all) != len(want) {
		t.Fatalf("%d components, want %d", len(all), len(want))
	}
	for i, name := range []string{"etcd-0", "etcd-1", "gone", "ill", "well"} {
		cs := all[i].(*corev1.ComponentStatus)
		if cs.Name != name || len(cs.Conditions) != 1 {
			t.Errorf("component %d is %s with %d conditions, want %s with one", i, cs.Name, len(cs.Conditions), name)
			continue
		}
		got := cs.Conditions[0]
		if got.Type != corev1.ComponentHealthy || got.Status != want[i].Status || got.Error != want[i].Error || !strings.Contains(got.Message, want[i].Message) {
			t.Errorf("%s says %+v, want %+v", name, got, want[i])
		}
	}
	if one := look(t.Context(), "ill"); len(one) != 1 || one[0].GetName() != "ill" {
		t.Errorf("asked for one: %v", one)
	}
	if none := look(t.Context(), "nobody"); len(none) != 0 {
		t.Errorf("asked for a component that is none: %v", none)
	}
}

func TestComponentsAreAskedTogetherAndNotForLongerThanTheRequest(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan struct{}, 2)
	silent := func(ctx context.Context) (int64, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	}
	go func() { <-asked; <-asked; cancel() }() // never, unless both are asked at the same time
	for _, o := range Components([]Component{{"a", AskStore(silent)}, {"b", AskStore(silent)}})(ctx, "") {
		if got := o.(*corev1.ComponentStatus).Conditions[0]; got.Status != corev1.ConditionFalse || got.Error != context.Canceled.Error() {
			t.Errorf("%s says %+v", o.GetName(), got)
		}
	}
}
