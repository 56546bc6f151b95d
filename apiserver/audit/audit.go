// Package audit records who did what: audit.k8s.io/v1 events, as a policy asks for them.
//
// Three parts, in the order of a request: [Policy] decides (pure) what of a request is
// recorded, a [Record] collects it while the request is served, and an [Auditor] hands
// the events of its stages to the backends: a file with rotation, a webhook.
//
// It promises upstream's policy files and event lines, and that no backend holds up a
// request for longer than a moment: queues are bounded, and what does not fit is dropped
// and counted in apiserver_audit_error_total. Run owns the goroutines, one for each backend;
// at the end they write what they still hold.
//
// To debug, count apiserver_audit_event_total and apiserver_audit_level_total.
//
// Source: Kubernetes documentation, "Auditing".
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/libs/run"
)

// Subject is what a request is about, before it is served.
type Subject struct {
	User        *authn.User
	Verb        string
	Resource    bool // about an API object; otherwise only Path counts
	Group       string
	Version     string
	Plural      string
	Subresource string
	Namespace   string
	Name        string
	Path        string
}

// Backend takes events. Send blocks for a moment at most; false means that the event is lost.
type Backend interface {
	Send(ev *auditv1.Event) bool
	Run(ctx context.Context) error
}

// Auditor is a policy with its backends.
type Auditor struct {
	policy   *Policy
	backends []Backend
	strict   bool
	readable func(contentType string, body []byte) []byte
	metrics  *metrics
}

// Config of an Auditor.
type Config struct {
	Policy   *Policy
	Backends []Backend
	// Strict refuses requests whose arrival cannot be recorded.
	Strict bool
	// Readable makes JSON of a body; nil when it cannot.
	Readable func(contentType string, body []byte) []byte
	Registry prometheus.Registerer
}

// New returns an Auditor. It starts nothing.
func New(cfg Config) *Auditor {
	return &Auditor{policy: cfg.Policy, backends: cfg.Backends, strict: cfg.Strict, readable: cfg.Readable, metrics: newMetrics(cfg.Registry)}
}

// Run serves the backends until ctx ends.
func (a *Auditor) Run(ctx context.Context) error {
	g := run.New(ctx)
	for _, b := range a.backends {
		g.Go("audit backend", b.Run)
	}
	return g.Wait()
}

// Record collects the event of one request. All methods may be called on nil, which records nothing.
type Record struct {
	a    *Auditor
	want Decision

	mu    sync.Mutex // guards what follows
	event auditv1.Event
	in    *capture
	out   capture
}

type recordKey struct{}

// From returns the request's record, or nil.
func From(ctx context.Context) *Record {
	r, _ := ctx.Value(recordKey{}).(*Record)
	return r
}

// ErrLost: the arrival of the request could not be recorded, and must be.
var ErrLost = errors.New("failed to store audit event")

// Begin decides what is recorded of a request and records its arrival. The returned request carries
// the record. long: the answer is a stream.
func (a *Auditor) Begin(r *http.Request, id string, s Subject, long bool, received time.Time) (*http.Request, *Record, error) {
	if a == nil {
		return r, nil, nil
	}
	want := a.policy.Decide(s)
	a.metrics.levels.WithLabelValues(string(want.Level)).Inc()
	if want.Level == auditv1.LevelNone {
		return r, nil, nil
	}
	rec := &Record{a: a, want: want}
	rec.event = auditv1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "audit.k8s.io/v1", Kind: "Event"},
		Level:    want.Level, AuditID: types.UID(id), RequestURI: r.URL.RequestURI(), Verb: s.Verb,
		UserAgent: agent(r.UserAgent()), SourceIPs: sources(r), RequestReceivedTimestamp: metav1.NewMicroTime(received),
	}
	if s.User != nil {
		rec.event.User = userInfo(s.User)
	}
	if s.Resource {
		rec.event.ObjectRef = &auditv1.ObjectReference{
			Resource: s.Plural, Namespace: s.Namespace, Name: s.Name, APIGroup: s.Group, APIVersion: s.Version, Subresource: s.Subresource,
		}
	}
	if !rec.stage(auditv1.StageRequestReceived) && a.strict {
		a.metrics.rejected.Inc()
		return r, nil, ErrLost
	}
	r = r.WithContext(context.WithValue(r.Context(), recordKey{}, rec))
	if !long && s.Resource {
		if want.Level == auditv1.LevelRequest || want.Level == auditv1.LevelRequestResponse {
			if r.Body != nil && r.Body != http.NoBody {
				rec.in = &capture{kind: r.Header.Get("Content-Type")}
				r.Body = &captured{r.Body, rec.in}
			}
		}
		if want.Level == auditv1.LevelRequestResponse {
			rec.out.on = true
			r.Header.Del("Accept-Encoding") // what is recorded must be readable
		}
	}
	return r, rec, nil
}

func userInfo(u *authn.User) authenticationv1.UserInfo {
	out := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	for k, v := range u.Extra {
		if out.Extra == nil {
			out.Extra = map[string]authenticationv1.ExtraValue{}
		}
		out.Extra[k] = v
	}
	return out
}

// maxAgent bounds the client's name. Source: upstream cuts at the same place.
const maxAgent = 1024

func agent(s string) string {
	if len(s) > maxAgent {
		return s[:maxAgent] + "...TRUNCATED"
	}
	return s
}

// sources are the addresses that the request came through: what proxies say, then the connection's.
func sources(r *http.Request) []string {
	var out []string
	add := func(text string) {
		if a, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil && !slices.Contains(out, a.String()) {
			out = append(out, a.String())
		}
	}
	for _, h := range r.Header.Values("X-Forwarded-For") {
		for _, p := range strings.Split(h, ",") {
			add(p)
		}
	}
	if len(out) == 0 {
		add(r.Header.Get("X-Real-Ip"))
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		add(host)
	}
	return out
}

// stage sends the event as it is now.
func (r *Record) stage(s auditv1.Stage) bool {
	if slices.Contains(r.want.Omit, s) {
		return true
	}
	r.mu.Lock()
	ev := r.event.DeepCopy()
	r.mu.Unlock()
	ev.Stage, ev.StageTimestamp = s, metav1.NowMicro()
	if s == auditv1.StageRequestReceived {
		ev.StageTimestamp = ev.RequestReceivedTimestamp
	}
	ok := true
	for _, b := range r.a.backends {
		if b.Send(ev) {
			r.a.metrics.events.Inc()
		} else {
			ok = false
		}
	}
	return ok
}

// Impersonated records on whose behalf the request is served. constraint is the verb that
// allowed it, where it is one of a constrained mode.
func (r *Record) Impersonated(u *authn.User, constraint string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	info := userInfo(u)
	r.event.ImpersonatedUser = &info
	if constraint != "" {
		r.event.AuthenticationMetadata = &auditv1.AuthenticationMetadata{ImpersonationConstraint: constraint}
	}
}

// Annotate adds to the event. The first value of a key stays.
func (r *Record) Annotate(key, value string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.event.Annotations == nil {
		r.event.Annotations = map[string]string{}
	}
	if _, ok := r.event.Annotations[key]; !ok {
		r.event.Annotations[key] = value
	}
}

// Detail is Annotate for what is recorded only where the request itself is.
func (r *Record) Detail(key, value string) {
	if r != nil && (r.want.Level == auditv1.LevelRequest || r.want.Level == auditv1.LevelRequestResponse) {
		r.Annotate(key, value)
	}
}

// Named completes the reference with what the object that was sent says.
func (r *Record) Named(o metav1.Object) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ref := r.event.ObjectRef
	if ref == nil {
		return
	}
	if ref.Name == "" {
		ref.Name = o.GetName()
	}
	if ref.Namespace == "" {
		ref.Namespace = o.GetNamespace()
	}
	ref.UID, ref.ResourceVersion = o.GetUID(), o.GetResourceVersion()
}

// Failed records the Status that is answered.
func (r *Record) Failed(s *metav1.Status) {
	if r == nil || s == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	own := s.DeepCopy()
	own.TypeMeta = metav1.TypeMeta{}
	r.event.ResponseStatus = own
}

// Answering is called with the code, before the first byte of the answer.
func (r *Record) Answering(code int, contentType string, long bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	if r.event.ResponseStatus == nil {
		r.event.ResponseStatus = &metav1.Status{}
	}
	r.event.ResponseStatus.Code = int32(code)
	r.out.kind = contentType
	r.mu.Unlock()
	if long {
		r.stage(auditv1.StageResponseStarted)
	}
}

// Answered is given the bytes of the answer.
func (r *Record) Answered(b []byte) {
	if r == nil || !r.out.on {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out.add(b)
}

// End records the end of the request; panicked is what the handler has panicked with, or nil.
func (r *Record) End(panicked any, long bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	silent := r.event.ResponseStatus == nil
	switch {
	case panicked != nil:
		r.event.ResponseStatus = &metav1.Status{
			Code: http.StatusInternalServerError, Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Message: "the request panicked",
		}
	case silent:
		r.event.ResponseStatus = &metav1.Status{Code: http.StatusOK, Status: metav1.StatusSuccess, Message: "Connection closed early"}
	}
	if r.in != nil {
		r.event.RequestObject = r.object(r.in)
	}
	if r.out.on {
		r.event.ResponseObject = r.object(&r.out)
	}
	r.mu.Unlock()
	if panicked != nil {
		r.stage(auditv1.StagePanic)
		return
	}
	if silent && long {
		r.stage(auditv1.StageResponseStarted)
	}
	r.stage(auditv1.StageResponseComplete)
}

// object is a body as JSON, without managed fields if they are not wanted.
func (r *Record) object(c *capture) *runtime.Unknown {
	if c.cut || len(c.body) == 0 {
		return nil
	}
	text := r.a.readable(c.kind, c.body)
	if text == nil {
		return nil
	}
	if r.want.OmitManagedFields {
		text = withoutManagedFields(text)
	}
	return &runtime.Unknown{Raw: text, ContentType: runtime.ContentTypeJSON}
}

func withoutManagedFields(text []byte) []byte {
	var m map[string]any
	if json.Unmarshal(text, &m) != nil {
		return text
	}
	drop := func(v any) {
		if o, ok := v.(map[string]any); ok {
			if meta, ok := o["metadata"].(map[string]any); ok {
				delete(meta, "managedFields")
			}
		}
	}
	drop(m)
	if items, ok := m["items"].([]any); ok {
		for _, it := range items {
			drop(it)
		}
	}
	if rows, ok := m["rows"].([]any); ok {
		for _, row := range rows {
			if o, ok := row.(map[string]any); ok {
				drop(o["object"])
			}
		}
	}
	out, err := json.Marshal(m)
	if err != nil {
		return text
	}
	return out
}

// maxCapture bounds what is kept of a body; a longer one is left out of the event.
const maxCapture = 3 << 20

type capture struct {
	on, cut bool
	kind    string // media type
	body    []byte
}

func (c *capture) add(b []byte) {
	if c.cut = c.cut || len(c.body)+len(b) > maxCapture; c.cut {
		c.body = nil
		return
	}
	c.body = append(c.body, b...)
}

// captured keeps what is read. The handler has read it before the record ends.
type captured struct {
	body interface {
		Read([]byte) (int, error)
		Close() error
	}
	to *capture
}

func (c *captured) Read(b []byte) (int, error) {
	n, err := c.body.Read(b)
	c.to.add(b[:n])
	return n, err
}

func (c *captured) Close() error { return c.body.Close() }

type metrics struct {
	events, rejected prometheus.Counter
	levels           *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "apiserver_audit_event_total", Help: "Audit events given to a backend.",
		}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "apiserver_audit_requests_rejected_total", Help: "Requests refused because their arrival could not be recorded.",
		}),
		levels: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_audit_level_total", Help: "Requests by the level that the policy has chosen.",
		}, []string{"level"}),
	}
	if reg != nil {
		reg.MustRegister(m.events, m.rejected, m.levels)
	}
	return m
}

// NewErrors counts events that a backend has lost.
func NewErrors(reg prometheus.Registerer) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "apiserver_audit_error_total", Help: "Audit events that were lost.",
	}, []string{"plugin"})
	if reg != nil {
		reg.MustRegister(c)
	}
	return c
}
