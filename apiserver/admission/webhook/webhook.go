// Package webhook asks the admission webhooks that the cluster's users have
// configured: MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
//
// [New] gives the two plugins. Mutating webhooks are asked one after the other, in
// the order of their configurations' names; each sees what those before it have
// changed. Validating webhooks are asked side by side, and all answers are waited for.
//
// What is worked out of a configuration (selectors, compiled conditions) is kept as long as the
// configuration is unchanged, and goes with it. Calls are bounded in time by the
// webhook's timeout, in number by maxCalls, in size by maxAnswer. Nothing runs between
// requests. The configurations themselves are never shown to a webhook, so that a bad
// one can always be removed.
//
// Source: Kubernetes documentation, "Dynamic Admission Control".
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	admissionapi "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/admission/match"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
)

// The resources that configure webhooks; their etcd prefixes are the same words.
const (
	Mutating   = "mutatingwebhookconfigurations"
	Validating = "validatingwebhookconfigurations"
	group      = "admissionregistration.k8s.io"
)

// Config is what webhooks need of the server.
type Config struct {
	Read resources.Reader
	// Rows are the resources served now.
	Rows func() []*resources.Row
	// Changed makes a function that gives the revision of the last change below a prefix; nil: always read again.
	Changed    func(prefix string) func() int64
	Authorizer authz.Authorizer
	// Reach finds host:port of a ready endpoint of a service port.
	Reach   func(namespace, name, port string) (string, error)
	Metrics *Metrics // nil: none
	Log     *slog.Logger
}

// New returns the plugins MutatingAdmissionWebhook and ValidatingAdmissionWebhook.
func New(cfg Config) (mutating, validating admission.Plugin) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{cfg: cfg, caller: NewCaller(cfg.Reach)}
	follow := func(plural string, build func(resources.Object) []hook) *match.Followed[[]*hook] {
		f := &match.Followed[[]*hook]{Build: func(old []*hook) ([]*hook, error) { return s.load(plural, build, old) }}
		if cfg.Changed != nil {
			f.Changed = cfg.Changed(plural)
		}
		return f
	}
	change, check := follow(Mutating, mutatingHooks), follow(Validating, validatingHooks)
	return admission.Plugin{
			Name:   "MutatingAdmissionWebhook",
			Mutate: func(ctx context.Context, a *admission.Attributes) error { return s.mutate(ctx, a, change) },
		}, admission.Plugin{
			Name: "ValidatingAdmissionWebhook",
			Validate: func(ctx context.Context, a *admission.Attributes) (func(), error) {
				return nil, s.validate(ctx, a, check)
			},
		}
}

type server struct {
	cfg    Config
	caller *Caller
}

// hook is one webhook of one configuration.
type hook struct {
	id, rev    string // "<configuration>/<index>/<name>", and UID and revision of the configuration
	of         string // the configuration
	name       string
	client     admissionv1.WebhookClientConfig
	rules      []admissionv1.RuleWithOperations
	match      *admissionv1.MatchPolicyType
	namespaces *metav1.LabelSelector
	objects    *metav1.LabelSelector
	conditions []admissionv1.MatchCondition
	failOpen   bool
	sideEffect bool // a dry run cannot be shown to it
	timeout    time.Duration
	version    string // of AdmissionReview
	again      bool   // reinvocationPolicy IfNeeded
	where      string // admitting or validating

	criteria *match.Criteria
	fault    error                     // the configuration cannot be read
	compile  func() (*compiled, error) // once, when first needed
}

// compiled are the match conditions of a webhook.
type compiled struct {
	scope *expr.Scope
	all   expr.Conditions
}

func mutatingHooks(o resources.Object) []hook {
	c, ok := o.(*admissionv1.MutatingWebhookConfiguration)
	if !ok {
		return nil
	}
	out := make([]hook, len(c.Webhooks))
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		out[i] = hook{
			name: w.Name, client: w.ClientConfig, rules: w.Rules, match: w.MatchPolicy, namespaces: w.NamespaceSelector, objects: w.ObjectSelector,
			conditions: w.MatchConditions, failOpen: ignores(w.FailurePolicy), sideEffect: effects(w.SideEffects),
			timeout: timeout(w.TimeoutSeconds), version: version(w.AdmissionReviewVersions),
			where: admitting, again: w.ReinvocationPolicy != nil && *w.ReinvocationPolicy == admissionv1.IfNeededReinvocationPolicy,
		}
	}
	return out
}

func validatingHooks(o resources.Object) []hook {
	c, ok := o.(*admissionv1.ValidatingWebhookConfiguration)
	if !ok {
		return nil
	}
	out := make([]hook, len(c.Webhooks))
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		out[i] = hook{
			name: w.Name, client: w.ClientConfig, rules: w.Rules, match: w.MatchPolicy, namespaces: w.NamespaceSelector, objects: w.ObjectSelector,
			conditions: w.MatchConditions, failOpen: ignores(w.FailurePolicy), sideEffect: effects(w.SideEffects),
			timeout: timeout(w.TimeoutSeconds), version: version(w.AdmissionReviewVersions), where: validating,
		}
	}
	return out
}

func ignores(p *admissionv1.FailurePolicyType) bool {
	return p != nil && *p == admissionv1.Ignore
}

func effects(e *admissionv1.SideEffectClass) bool {
	return e == nil || *e != admissionv1.SideEffectClassNone && *e != admissionv1.SideEffectClassNoneOnDryRun
}

func timeout(seconds *int32) time.Duration {
	if seconds == nil {
		return 10 * time.Second
	}
	return time.Duration(*seconds) * time.Second
}

// version is the first review version that both sides know.
func version(list []string) string {
	for _, v := range list {
		if v == "v1" || v == "v1beta1" {
			return v
		}
	}
	return "v1"
}

// load reads the configurations of one kind, in the order of their names.
func (s *server) load(plural string, build func(resources.Object) []hook, old []*hook) ([]*hook, error) {
	known := make(map[string]*hook, len(old))
	for _, h := range old {
		known[h.id+"@"+h.rev] = h
	}
	var out []*hook
	err := s.cfg.Read.Each(schema.GroupResource{Group: group, Resource: plural}, "", func(o resources.Object) bool {
		for i, h := range build(o) {
			h.of = o.GetName()
			h.id = fmt.Sprintf("%s/%d/%s", o.GetName(), i, h.name)
			h.rev = string(o.GetUID()) + "/" + o.GetResourceVersion()
			if same := known[h.id+"@"+h.rev]; same != nil && o.GetResourceVersion() != "" {
				out = append(out, same)
				continue
			}
			out = append(out, ready(h))
		}
		return true
	})
	return out, err
}

func ready(h hook) *hook {
	rules := make([]admissionv1.NamedRuleWithOperations, len(h.rules))
	for i := range h.rules {
		rules[i].RuleWithOperations = h.rules[i]
	}
	h.criteria, h.fault = match.New(&admissionv1.MatchResources{
		ResourceRules: rules, MatchPolicy: h.match, NamespaceSelector: h.namespaces, ObjectSelector: h.objects,
	})
	if len(rules) == 0 {
		h.criteria = nil // no rules: never asked
	}
	texts := h.conditions
	h.compile = sync.OnceValues(func() (*compiled, error) {
		scope, err := expr.NewScope(expr.Options{})
		if err != nil {
			return nil, err
		}
		c := &compiled{scope: scope}
		for _, m := range texts {
			c.all = append(c.all, scope.Compile(m.Expression, expr.Bool))
		}
		return c, nil
	})
	return &h
}

// view is the request as a webhook sees it.
type view struct {
	row      *resources.Row
	obj, old runtime.Object // copies, with their kind; nil where there is none
}

func viewOf(a *admission.Attributes, row *resources.Row) (*view, error) {
	obj, err := match.As(a, row, a.Object)
	if err != nil {
		return nil, err
	}
	old, err := match.As(a, row, a.Old)
	return &view{row: row, obj: obj, old: old}, err
}

// wants reports whether the webhook is to be asked, and in which version. views keeps
// what was converted for other webhooks.
func (s *server) wants(ctx context.Context, a *admission.Attributes, h *hook, views map[*resources.Row]*view) (*view, error) {
	if h.fault != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("webhook %q: %w", h.name, h.fault))
	}
	if h.criteria == nil {
		return nil, nil
	}
	row, ok, err := h.criteria.Match(a, s.cfg.Read, s.cfg.Rows())
	if err != nil || !ok {
		return nil, err
	}
	v := views[row]
	if v == nil {
		if v, err = viewOf(a, row); err != nil {
			return nil, err
		}
		views[row] = v
	}
	if len(h.conditions) == 0 {
		return v, nil
	}
	met, err := s.met(ctx, a, h, v)
	switch {
	case err != nil && h.failOpen, err == nil && !met:
		return nil, nil
	case err != nil:
		return nil, apierrors.NewForbidden(a.Row.GR(), a.Called(), err)
	}
	return v, nil
}

func (s *server) met(ctx context.Context, a *admission.Attributes, h *hook, v *view) (bool, error) {
	c, err := h.compile()
	if err != nil {
		return false, err
	}
	in, err := expr.InputOf(a, v.row, v.obj, v.old, nil, nil, s.cfg.Authorizer)
	if err != nil {
		return false, err
	}
	return c.all.Met(c.scope.Start(ctx, in, expr.ConditionBudget), s.cfg.Metrics.conditions(h, string(a.Operation)))
}

// review is the body that is sent, and the UID that must come back.
func review(a *admission.Attributes, h *hook, v *view) ([]byte, types.UID, error) {
	rq := expr.Review(a, v.row)
	rq.UID = types.UID(uuid.NewString())
	rq.Object, rq.OldObject = runtime.RawExtension{Object: v.obj}, runtime.RawExtension{Object: v.old}
	body, err := json.Marshal(&admissionapi.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/" + h.version, Kind: "AdmissionReview"}, Request: rq,
	})
	return body, rq.UID, err
}

// ask calls one webhook. The error is a *failure when it could not be asked, and a
// status for the client when it has refused.
func (s *server) ask(ctx context.Context, a *admission.Attributes, h *hook, v *view) (*admissionapi.AdmissionResponse, error) {
	if a.Request.DryRun && h.sideEffect {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q does not support dry run", h.name))
	}
	body, uid, err := review(a, h, v)
	if err != nil {
		return nil, &failure{h.name, fmt.Errorf("could not create admission objects: %w", err)}
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	answer, err := s.caller.post(ctx, h, body)
	if err != nil {
		return nil, &failure{h.name, fmt.Errorf("failed to call webhook: %w", err)}
	}
	if err := verify(answer, h, uid); err != nil {
		return nil, &failure{h.name, fmt.Errorf("received invalid webhook response: %w", err)}
	}
	for k, v := range answer.Response.AuditAnnotations {
		admission.Annotate(parent, h.name+"/"+k, v)
	}
	return answer.Response, nil
}

func verify(r *admissionapi.AdmissionReview, h *hook, uid types.UID) error {
	want := schema.GroupVersionKind{Group: "admission.k8s.io", Version: h.version, Kind: "AdmissionReview"}
	if got := r.GroupVersionKind(); h.version == "v1" && got != want && r.TypeMeta != (metav1.TypeMeta{}) { // without one it is what was asked for
		return fmt.Errorf("expected webhook response of %v, got %v", want, got)
	}
	if r.Response == nil {
		return errors.New("webhook response was absent")
	}
	if h.version == "v1" && r.Response.UID != uid {
		return fmt.Errorf("expected response.uid=%q, got %q", uid, r.Response.UID)
	}
	return nil
}

// failure: the webhook could not be asked, or has not answered as it should.
type failure struct {
	webhook string
	reason  error
}

func (f *failure) Error() string {
	return fmt.Sprintf("failed calling webhook %q: %v", f.webhook, f.reason)
}
func (f *failure) Unwrap() error { return f.reason }

// refusal is the webhook's no as the client sees it.
func refusal(name string, st *metav1.Status) error {
	by := fmt.Sprintf("admission webhook %q denied the request", name)
	if st == nil {
		st = &metav1.Status{}
	}
	if st.Code < http.StatusBadRequest {
		st.Code = http.StatusBadRequest
	}
	st.Status = metav1.StatusFailure
	switch {
	case st.Message != "":
		st.Message = by + ": " + st.Message
	case st.Reason != "":
		st.Message = by + ": " + string(st.Reason)
	default:
		st.Message = by + " without explanation"
	}
	return &rejection{&apierrors.StatusError{ErrStatus: *st}}
}

// rejection is a webhook's no.
type rejection struct{ *apierrors.StatusError }

func (r *rejection) Unwrap() error { return r.StatusError }

// verdict is what one webhook's answer means for the request: nil when it may go on. at is the place of
// the webhook for the audit event: "round_0_index_1".
func (s *server) verdict(ctx context.Context, h *hook, at string, err error) error {
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	if !h.failOpen {
		s.cfg.Log.Debug("webhook failed, the request is refused", "webhook", h.id, "err", f.reason)
		return apierrors.NewInternalError(f)
	}
	s.cfg.Log.Debug("webhook failed, the request goes on", "webhook", h.id, "err", f.reason)
	if !errors.Is(f.reason, context.Canceled) {
		admission.Annotate(ctx, "failed-open."+annotations[h.where]+at, h.name)
	}
	if ctx.Err() != nil {
		return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
	}
	return nil
}

// annotations are the prefixes of what the audit event says of webhooks.
//
// Source: Kubernetes documentation, "Audit Annotations".
var annotations = map[string]string{admitting: "mutation.webhook.admission.k8s.io/", validating: "validating.webhook.admission.k8s.io/"}

func place(round, i int) string { return fmt.Sprintf("round_%d_index_%d", round, i) }

func warn(a *admission.Attributes, list []string) {
	for _, w := range list {
		if a.Request.Warn != nil {
			a.Request.Warn(w)
		}
	}
}

// maxAsked is how many validating webhooks one request asks at the same time.
const maxAsked = 16

func (s *server) validate(ctx context.Context, a *admission.Attributes, from *match.Followed[[]*hook]) error {
	hooks, err := from.Get()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if len(hooks) == 0 || match.Exempt(a.Row) {
		return nil
	}
	type call struct {
		h      *hook
		v      *view
		answer *admissionapi.AdmissionResponse
		err    error
	}
	var calls []*call
	views := map[*resources.Row]*view{}
	for _, h := range hooks {
		v, err := s.wants(ctx, a, h, views)
		if err != nil {
			return err
		}
		if v != nil {
			calls = append(calls, &call{h: h, v: v})
		}
	}
	var wait sync.WaitGroup
	room := make(chan struct{}, maxAsked)
	for _, c := range calls {
		room <- struct{}{}
		wait.Go(func() {
			defer func() { <-room }()
			began := time.Now()
			if c.answer, c.err = s.ask(ctx, a, c.h, c.v); c.err == nil {
				c.err = checked(c.h, c.answer)
			}
			s.cfg.Metrics.asks(ctx, a, c.h, time.Since(began), c.err)
		})
	}
	wait.Wait()
	var first error
	for i, c := range calls {
		if c.answer != nil {
			warn(a, c.answer.Warnings)
		}
		if err := s.verdict(ctx, c.h, place(0, i), c.err); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// checked is what a validating webhook's answer says.
func checked(h *hook, answer *admissionapi.AdmissionResponse) error {
	switch {
	case h.version == "v1" && len(answer.Patch) > 0:
		return &failure{h.name, errors.New("received invalid webhook response: validating webhook may not return response.patch")}
	case h.version == "v1" && answer.PatchType != nil:
		return &failure{h.name, errors.New("received invalid webhook response: validating webhook may not return response.patchType")}
	case !answer.Allowed:
		return refusal(h.name, answer.Result)
	}
	return nil
}
