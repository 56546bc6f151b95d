package webhook_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionapi "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/admission/webhook"
	"github.com/keelson/keelson/apiserver/audit/audittest"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/readertest"
	"github.com/keelson/keelson/apiserver/resources"
)

// peer is a webhook that answers what a test wants. Its certificate is for example.com:
// it is reached as a service only by a test that says so.
type peer struct {
	*httptest.Server
	calls  atomic.Int32
	answer func(r *admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse
}

func newPeer(t *testing.T, answer func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse) *peer {
	p := &peer{answer: answer}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.calls.Add(1)
		var rv admissionapi.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&rv); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/hang") {
			<-r.Context().Done()
			return
		}
		rv.Response = p.answer(rv.Request)
		if rv.Response.UID == "" {
			rv.Response.UID = rv.Request.UID
		}
		rv.Request = nil
		_ = json.NewEncoder(w).Encode(&rv)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *peer) client(path string) admissionv1.WebhookClientConfig {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
	return admissionv1.WebhookClientConfig{URL: ptr.To(p.URL + path), CABundle: ca}
}

func everything(ops ...admissionv1.OperationType) []admissionv1.RuleWithOperations {
	return []admissionv1.RuleWithOperations{{Operations: ops, Rule: admissionv1.Rule{
		APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"},
	}}}
}

// table is made once: rows are compared by identity.
var table = resources.Table()

func row(t *testing.T, group, version, plural string) *resources.Row {
	for _, r := range table {
		if r.Group == group && r.Version == version && r.Plural == plural {
			return r
		}
	}
	t.Fatalf("no row %s %s %s", group, version, plural)
	return nil
}

type world struct {
	t        *testing.T
	tree     *readertest.Tree
	chain    admission.Chain
	warnings []string
	dry      bool
	counts   *prometheus.Registry
	ctx      context.Context
}

// counted are the counters that have counted, and how often a time was taken: as "name{values in the order of their labels} n".
func (w *world) counted() string {
	families, err := w.counts.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		for _, m := range f.Metric {
			var values []string
			for _, l := range m.Label {
				if l.GetName() != "name" && l.GetName() != "operation" { // always the same here
					values = append(values, l.GetValue())
				}
			}
			n := m.GetCounter().GetValue()
			if h := m.Histogram; h != nil {
				n = float64(h.GetSampleCount())
			}
			name := strings.TrimPrefix(f.GetName(), "apiserver_admission_webhook_")
			out = append(out, fmt.Sprintf("%s{%s} %v", name, strings.Join(values, " "), n))
		}
	}
	return strings.Join(out, "; ")
}

func newWorld(t *testing.T, reach func(string, string, string) (string, error), objs ...resources.Object) *world {
	w := &world{t: t, tree: readertest.New(objs...)}
	w.tree.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"in": "yes"}}})
	w.counts = prometheus.NewRegistry()
	m, v := webhook.New(webhook.Config{Read: w.tree, Rows: func() []*resources.Row { return table }, Reach: reach, Metrics: webhook.NewMetrics(w.counts, expr.NewMetrics(w.counts))})
	w.chain = admission.Chain{m, v}
	return w
}

func (w *world) admit(op admission.Operation, r *resources.Row, sub string, obj, old resources.Object) error {
	a := &admission.Attributes{
		Operation: op, Row: r, Subresource: sub, User: &authn.User{Name: "jane", Groups: []string{"devs"}}, Namespace: "ns", Name: "x",
		Request: &resources.Request{Read: w.tree, DryRun: w.dry, Warn: func(s string) { w.warnings = append(w.warnings, s) }},
		Options: &metav1.CreateOptions{},
	}
	if obj != nil {
		a.Object = obj
	}
	if old != nil {
		a.Old = old
	}
	if w.ctx == nil {
		w.ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	if err := w.chain.Mutate(ctx, a); err != nil {
		return err
	}
	_, err := w.chain.Validate(ctx, a)
	return err
}

func configMap(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", Labels: map[string]string{"app": "a"}}, Data: data}
}

func allow(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
	return &admissionapi.AdmissionResponse{Allowed: true, Warnings: []string{"careful"}}
}

func TestValidating(t *testing.T) {
	deny := func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
		return &admissionapi.AdmissionResponse{Result: &metav1.Status{Message: "no such thing", Reason: metav1.StatusReasonForbidden, Code: 403}}
	}
	selects := func(k, v string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}
	}
	for _, c := range []struct {
		name   string
		answer func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse
		change func(w *admissionv1.ValidatingWebhook, p *peer)
		dry    bool
		want   string // part of the error; "" for none
		code   int32
		calls  int32
		counts string
	}{
		{name: "allows, with a warning", counts: `admission_duration_seconds{false validating} 1; request_total{200 false validating} 1`, answer: allow, calls: 1},
		{name: "refuses with its own code", counts: `admission_duration_seconds{true validating} 1; rejection_count{no_error 403 validating} 1; request_total{403 true validating} 1`, answer: deny, want: `admission webhook "a.b.c" denied the request: no such thing`, code: 403, calls: 1},
		{name: "refuses without a reason", answer: func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
			return &admissionapi.AdmissionResponse{}
		}, want: `admission webhook "a.b.c" denied the request without explanation`, code: 400, calls: 1},
		{name: "another operation", answer: deny, change: func(w *admissionv1.ValidatingWebhook, _ *peer) { w.Rules = everything(admissionv1.Delete) }},
		{name: "another namespace", answer: deny, change: func(w *admissionv1.ValidatingWebhook, _ *peer) { w.NamespaceSelector = selects("in", "no") }},
		{name: "another object", answer: deny, change: func(w *admissionv1.ValidatingWebhook, _ *peer) { w.ObjectSelector = selects("app", "b") }},
		{name: "cluster scope only", answer: deny, change: func(w *admissionv1.ValidatingWebhook, _ *peer) {
			w.Rules[0].Scope = ptr.To(admissionv1.ClusterScope)
		}},
		{name: "a condition that does not hold", answer: deny, change: func(w *admissionv1.ValidatingWebhook, _ *peer) {
			w.MatchConditions = []admissionv1.MatchCondition{{Name: "c", Expression: "object.metadata.name != 'x'"}}
		}},
		{name: "a condition on the caller that holds", answer: deny, want: "denied", code: 403, calls: 1, change: func(w *admissionv1.ValidatingWebhook, _ *peer) {
			w.MatchConditions = []admissionv1.MatchCondition{{Name: "c", Expression: "'devs' in request.userInfo.groups && request.resource.resource == 'configmaps'"}}
		}},
		{name: "a condition that fails refuses", answer: allow, want: "no such key: nothing", code: 403, change: func(w *admissionv1.ValidatingWebhook, _ *peer) {
			w.MatchConditions = []admissionv1.MatchCondition{{Name: "c", Expression: "object.nothing == 1"}}
		}},
		{name: "no answer in time", counts: `admission_duration_seconds{true validating} 1; rejection_count{calling_webhook_error 500 validating} 1; request_total{500 true validating} 1`, answer: allow, want: `failed calling webhook "a.b.c": failed to call webhook: Post "https://`, code: 500, calls: 1, change: func(w *admissionv1.ValidatingWebhook, p *peer) {
			w.ClientConfig, w.TimeoutSeconds = p.client("/hang"), ptr.To(int32(1))
		}},
		{name: "no answer in time, and ignored", counts: `admission_duration_seconds{false validating} 1; fail_open_count{validating} 1; request_total{500 false validating} 1`, answer: allow, calls: 1, change: func(w *admissionv1.ValidatingWebhook, p *peer) {
			w.ClientConfig, w.TimeoutSeconds, w.FailurePolicy = p.client("/hang"), ptr.To(int32(1)), ptr.To(admissionv1.Ignore)
		}},
		{name: "a wrong certificate", answer: allow, want: "certificate", code: 500, change: func(w *admissionv1.ValidatingWebhook, _ *peer) {
			w.ClientConfig.CABundle = nil
		}},
		{name: "an answer to another question", answer: func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
			return &admissionapi.AdmissionResponse{UID: "other", Allowed: true}
		}, want: "expected response.uid", code: 500, calls: 1},
		{name: "a patch, though it denies", answer: func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
			return &admissionapi.AdmissionResponse{Patch: []byte("[]")}
		}, want: "validating webhook may not return response.patch", code: 500, calls: 1},
		{name: "the type of a patch alone", answer: func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
			return &admissionapi.AdmissionResponse{Allowed: true, PatchType: ptr.To(admissionapi.PatchTypeJSONPatch)}
		}, want: "validating webhook may not return response.patchType", code: 500, calls: 1},
		{name: "a dry run and side effects", counts: `admission_duration_seconds{true validating} 1; rejection_count{apiserver_internal_error 0 validating} 1; request_total{0 true validating} 1`, answer: allow, dry: true, want: `admission webhook "a.b.c" does not support dry run`, code: 400, change: func(w *admissionv1.ValidatingWebhook, _ *peer) {
			w.SideEffects = ptr.To(admissionv1.SideEffectClassSome)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPeer(t, c.answer)
			w := admissionv1.ValidatingWebhook{
				Name: "a.b.c", Rules: everything(admissionv1.Create), ClientConfig: p.client(""), SideEffects: ptr.To(admissionv1.SideEffectClassNone),
				AdmissionReviewVersions: []string{"v1"},
			}
			if c.change != nil {
				c.change(&w, p)
			}
			world := newWorld(t, nil, &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Webhooks: []admissionv1.ValidatingWebhook{w}})
			world.dry = c.dry
			err := world.admit(admission.Create, row(t, "", "v1", "configmaps"), "", configMap(nil), nil)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
			} else {
				st, ok := err.(apierrors.APIStatus)
				if !ok || !strings.Contains(err.Error(), c.want) || st.Status().Code != c.code {
					t.Fatalf("got %v (%T), want code %d and %q", err, err, c.code, c.want)
				}
			}
			if got := p.calls.Load(); got != c.calls {
				t.Errorf("the webhook was asked %d times, want %d", got, c.calls)
			}
			if got := world.counted(); c.counts != "" && got != c.counts || c.calls == 0 && c.counts == "" && strings.Contains(got, "request_total{200") {
				t.Errorf("counted\n %s, want\n %s", got, c.counts)
			}
			if c.name == "allows, with a warning" && (len(world.warnings) != 1 || world.warnings[0] != "careful") {
				t.Errorf("warnings %q", world.warnings)
			}
		})
	}
}

func patch(text string) *admissionapi.AdmissionResponse {
	return &admissionapi.AdmissionResponse{Allowed: true, Patch: []byte(text), PatchType: ptr.To(admissionapi.PatchTypeJSONPatch)}
}

func TestMutating(t *testing.T) {
	var seen []string
	p := newPeer(t, func(r *admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
		var cm corev1.ConfigMap
		if err := json.Unmarshal(r.Object.Raw, &cm); err != nil || cm.Kind != "ConfigMap" || cm.APIVersion != "v1" {
			t.Errorf("object %s: %v", r.Object.Raw, err)
		}
		seen = append(seen, strings.Join([]string{cm.Data["a"], cm.Data["b"]}, "+"))
		if cm.Data["a"] == "" {
			return patch(`[{"op":"add","path":"/data","value":{"a":"1"}}]`)
		}
		if cm.Data["b"] == "" {
			return patch(`[{"op":"add","path":"/data/b","value":"2"}]`)
		}
		return &admissionapi.AdmissionResponse{Allowed: true}
	})
	hook := func(name string, again admissionv1.ReinvocationPolicyType) admissionv1.MutatingWebhook {
		return admissionv1.MutatingWebhook{
			Name: name, Rules: everything(admissionv1.Create), ClientConfig: p.client(""), SideEffects: ptr.To(admissionv1.SideEffectClassNone),
			AdmissionReviewVersions: []string{"v1"}, ReinvocationPolicy: &again,
		}
	}
	w := newWorld(t, nil, &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "conf"},
		Webhooks:   []admissionv1.MutatingWebhook{hook("a.b.c", admissionv1.IfNeededReinvocationPolicy), hook("b.b.c", admissionv1.NeverReinvocationPolicy)},
	})
	cm := configMap(nil)
	if err := w.admit(admission.Create, row(t, "", "v1", "configmaps"), "", cm, nil); err != nil {
		t.Fatal(err)
	}
	if cm.Data["a"] != "1" || cm.Data["b"] != "2" {
		t.Errorf("data %v", cm.Data)
	}
	// The first is asked again, because the second has changed the object after it.
	if got, want := strings.Join(seen, " "), "+ 1+ 1+2"; got != want {
		t.Errorf("the webhooks have seen %q, want %q", got, want)
	}
}

// What webhooks did is told to the audit event: their patches only where the request itself is recorded.
func TestAuditEventSaysWhatWebhooksDid(t *testing.T) {
	ignore := admissionv1.Ignore
	p := newPeer(t, func(r *admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
		a := patch(`[{"op":"add","path":"/data","value":{"a":"b"}}]`)
		a.AuditAnnotations = map[string]string{"seen": r.Name}
		return a
	})
	gone := newPeer(t, allow)
	gone.Close()
	hook := func(name string, at *peer) admissionv1.MutatingWebhook {
		return admissionv1.MutatingWebhook{Name: name, ClientConfig: at.client("/"), Rules: everything(admissionv1.Create), FailurePolicy: &ignore,
			SideEffects: ptr.To(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"}}
	}
	for level, patched := range map[string]string{
		"Metadata": "", "Request": `{"configuration":"c","webhook":"a.b.c","patch":[{"op":"add","path":"/data","value":{"a":"b"}}],"patchType":"JSONPatch"}`,
	} {
		w := newWorld(t, nil, &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Webhooks: []admissionv1.MutatingWebhook{hook("a.b.c", p), hook("d.e.f", gone)}})
		ctx, end := audittest.Begin(t, level)
		w.ctx = ctx
		if err := w.admit(admission.Create, row(t, "", "v1", "configmaps"), "", configMap(nil), nil); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"a.b.c/seen": "x",
			"mutation.webhook.admission.k8s.io/round_0_index_0":             `{"configuration":"c","webhook":"a.b.c","mutated":true}`,
			"mutation.webhook.admission.k8s.io/round_0_index_1":             `{"configuration":"c","webhook":"d.e.f","mutated":false}`,
			"failed-open.mutation.webhook.admission.k8s.io/round_0_index_1": "d.e.f",
		}
		if patched != "" {
			want["patch.webhook.admission.k8s.io/round_0_index_0"] = patched
		}
		if diff := cmp.Diff(want, end()); diff != "" {
			t.Errorf("%s: annotations (-want +got)\n%s", level, diff)
		}
	}
}

// A patch may not make another kind of the object, and an empty one has no type that could be wrong.
func TestOddPatches(t *testing.T) {
	for text, want := range map[string]string{
		`[{"op":"replace","path":"/kind","value":"Pod"}]`: `admission webhook "a.b.c" made a /v1, Kind=Pod of a /v1, Kind=ConfigMap`,
		`[{"op":"add","path":"/data","value":{}}]`:        `unsupported patch type "Merge"`,
		`[]`: "",
	} {
		p := newPeer(t, func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
			a := patch(text)
			if want != "" && !strings.Contains(want, "Kind=") || want == "" {
				a.PatchType = ptr.To(admissionapi.PatchType("Merge"))
			}
			return a
		})
		w := newWorld(t, nil, &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Webhooks: []admissionv1.MutatingWebhook{{
			Name: "a.b.c", Rules: everything(admissionv1.Create), ClientConfig: p.client(""), SideEffects: ptr.To(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		}}})
		err := w.admit(admission.Create, row(t, "", "v1", "configmaps"), "", configMap(nil), nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// What is no answer is told as the webhook has told it.
func TestSendTellsWhatWentWrong(t *testing.T) {
	for _, c := range []struct {
		code             int
		kind, body, want string
	}{
		{200, "application/json", "", "0-length response with status code: 200 and content type: application/json"},
		{500, "application/json", `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"boom","code":500}`, "boom"},
		{500, "text/html", "<p>oops</p>", `an error on the server ("<p>oops</p>") has prevented the request from succeeding`},
		{403, "application/json", "nope", "unknown"},
		{503, "text/plain", "", "the server is currently unable to handle the request"},
	} {
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", c.kind)
			w.WriteHeader(c.code)
			fmt.Fprint(w, c.body)
		}))
		bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
		_, err := webhook.NewCaller(nil).Send(t.Context(), &admissionv1.WebhookClientConfig{URL: &srv.URL, CABundle: bundle}, "test", []byte("{}"))
		if err == nil || err.Error() != c.want {
			t.Errorf("%d %s %q: got %v, want %q", c.code, c.kind, c.body, err, c.want)
		}
		srv.Close()
	}
}

func TestEquivalentVersionThroughAService(t *testing.T) {
	p := newPeer(t, allow)
	c := p.client("")
	c.URL, c.Service = nil, &admissionv1.ServiceReference{Namespace: "prod", Name: "hook", Port: ptr.To(int32(8443)), Path: ptr.To("/p")}
	reached := ""
	w := newWorld(t, func(namespace, name, port string) (string, error) {
		reached = namespace + "/" + name + ":" + port
		return strings.TrimPrefix(p.URL, "https://"), nil
	}, &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Webhooks: []admissionv1.ValidatingWebhook{{
		Name: "a.b.c", ClientConfig: c, SideEffects: ptr.To(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{"*"}, Rule: admissionv1.Rule{
			APIGroups: []string{"events.k8s.io"}, APIVersions: []string{"v1"}, Resources: []string{"events"},
		}}},
	}}})
	ev := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x"}}
	err := w.admit(admission.Create, row(t, "", "v1", "events"), "", ev, nil)
	// The certificate is not for hook.prod.svc: that the name is checked is part of the promise.
	if err == nil || !strings.Contains(err.Error(), "hook.prod.svc") || reached != "prod/hook:8443" {
		t.Errorf("error %v, reached %q", err, reached)
	}
}

func TestConfigurationsAreExempt(t *testing.T) {
	p := newPeer(t, func(*admissionapi.AdmissionRequest) *admissionapi.AdmissionResponse {
		return &admissionapi.AdmissionResponse{}
	})
	w := newWorld(t, nil, &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Webhooks: []admissionv1.ValidatingWebhook{{
		Name: "a.b.c", ClientConfig: p.client(""), Rules: everything(admissionv1.OperationAll), AdmissionReviewVersions: []string{"v1"},
	}}})
	old := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "conf"}}
	if err := w.admit(admission.Delete, row(t, "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations"), "", nil, old); err != nil || p.calls.Load() != 0 {
		t.Errorf("error %v, %d calls", err, p.calls.Load())
	}
	if err := w.admit(admission.Delete, row(t, "", "v1", "configmaps"), "", nil, configMap(nil)); err == nil {
		t.Error("deletions of other objects are shown")
	}
	opts := &corev1.PodAttachOptions{Container: "c"}
	a := &admission.Attributes{Operation: admission.Connect, Row: row(t, "", "v1", "pods"), Subresource: "attach", Namespace: "ns", Name: "x", Object: opts,
		User: &authn.User{Name: "jane"}, Request: &resources.Request{Read: w.tree}}
	if _, err := w.chain.Validate(context.Background(), a); err == nil {
		t.Error("streams are shown")
	}
}
