package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/keelson/keelson/apiserver/aggregator"
	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/fairness"
	"github.com/keelson/keelson/apiserver/impersonation"
	"github.com/keelson/keelson/apiserver/rest"
)

// chain is what every request passes before its handler, in this order: panics
// become 500, an audit id, who is it, on whose behalf, a place among the requests in
// flight, may it, a deadline.
type chain struct {
	authorizer   authz.Authorizer
	impersonator *impersonation.Impersonator
	fair         *fairness.Controller
	reading      atomic.Int64 // requests being served
	writing      atomic.Int64
	timeout      time.Duration
	metrics      *metrics
	log          *slog.Logger
	handler      http.Handler // resources, discovery, OpenAPI
	others       *aggregator.Aggregator
	other        http.Handler // health, metrics, debug, version
	credentials  func(*http.Request) (*authn.User, error)
	ready        <-chan struct{} // closed when there is something to read
	ending       context.Context // ends when watches and streams shall end
	audit        *audit.Auditor  // nil: nothing is recorded
}

func (c *chain) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	p := &passage{chain: c, w: &answer{ResponseWriter: rw}, r: r, info: rest.ParseInfo(r), started: time.Now()}
	p.last = p.started
	p.long = p.info.Long || strings.HasPrefix(p.info.Path, "/debug/pprof/")
	defer p.end()
	switch {
	case !p.begin() || !p.identify() || !p.impersonate(): // it has been answered
	case p.long:
		p.serveLong()
	default:
		p.serveShort()
	}
}

// passage is one request on its way. Its steps answer what they refuse, and return false then. Each is a function of
// its own, also because the stack of a watch holds what they need for as long as it lasts.
type passage struct {
	*chain
	w       *answer
	r       *http.Request
	info    *rest.Info
	long    bool // a watch or a stream
	started time.Time
	last    time.Time // when the last step ended
	limit   time.Duration
	record  *audit.Record
	asked   authz.Attributes
}

func (p *passage) passed(f filter) time.Duration {
	now := time.Now()
	took := now.Sub(p.last)
	p.last = now
	p.metrics.filters[f].Observe(took.Seconds())
	return took
}

// end is what becomes of every request, and of the panics of its handler.
func (p *passage) end() {
	if reason := recover(); reason != nil {
		p.record.End(reason, p.long)
		if reason == http.ErrAbortHandler {
			p.metrics.broken(p.info)
			panic(reason)
		}
		p.log.Error("request panicked", "verb", p.info.Verb, "path", p.info.Path, "panic", fmt.Sprint(reason), "stack", string(debug.Stack()))
		if p.w.code != 0 {
			p.metrics.observe(p.info, p.w, p.long, time.Since(p.started))
			p.metrics.broken(p.info)
			panic(http.ErrAbortHandler) // the answer has begun: only a broken connection tells
		}
		p.w.record = nil // its event has been written
		rest.WriteError(p.w, p.r, apierrors.NewInternalError(errors.New("the request panicked; the log has the stack")))
		p.record = nil
	}
	p.metrics.observe(p.info, p.w, p.long, time.Since(p.started))
	p.record.End(nil, p.long)
}

// begin gives the request its id, and answers for a server that is not ready.
func (p *passage) begin() bool {
	h := p.w.Header()
	h.Set("Audit-Id", cmp.Or(sentID(p.r), uuid.NewString()))
	h.Set("Cache-Control", "no-cache, private")
	select {
	case <-p.ready:
		return true
	default:
	}
	if health(p.info.Path) {
		p.other.ServeHTTP(p.w, p.r)
		return false
	}
	h.Set("Retry-After", "1")
	rest.WriteError(p.w, p.r, apierrors.NewServiceUnavailable("the server is starting: its store is not loaded yet"))
	return false
}

// sentID is the client's own audit id, if it may be used.
func sentID(r *http.Request) string {
	id := r.Header.Get("Audit-Id")
	if len(id) > 64 {
		return ""
	}
	return id
}

// identify finds out who asks, and begins the record.
func (p *passage) identify() bool {
	user, err := p.credentials(p.r)
	p.metrics.authenticated(user, err, p.passed(authentication))
	// Nobody in particular: whoever is refused here is recorded too.
	r, record, lost := p.audit.Begin(p.r, p.w.Header().Get("Audit-Id"), subject(user, p.info), p.long, p.started)
	p.r, p.record = r, record
	if lost != nil {
		rest.WriteError(p.w, p.r, apierrors.NewInternalError(lost))
		return false
	}
	p.note(user, err)
	p.passed(auditing)
	p.w.record, p.w.long = p.record, p.long
	var bad error
	if p.limit, bad = p.limitOf(p.r); bad != nil && !p.long {
		rest.WriteError(p.w, p.r, apierrors.NewBadRequest(bad.Error()))
		return false
	}
	if err != nil {
		p.log.Debug("request is not authenticated", "path", p.info.Path, "remote", p.r.RemoteAddr, "err", err)
		rest.WriteError(p.w, p.r, apierrors.NewUnauthorized("Unauthorized"))
		return false
	}
	p.r.Header.Del("Authorization") // no handler and no proxied server may see it
	p.asked = attributes(user, p.info)
	return true
}

// impersonate makes the request that of whom its headers name.
func (p *passage) impersonate() bool {
	wanted, err := impersonation.Parse(p.r.Header)
	if err != nil {
		p.w.Header().Set("X-Content-Type-Options", "nosniff")
		rest.WriteError(p.w, p.r, apierrors.NewBadRequest(err.Error()))
		return false
	}
	if wanted != nil {
		tried := time.Now()
		acting, err := p.impersonator.As(p.r.Context(), p.asked, wanted)
		p.metrics.impersonations.observe(acting.Mode, err == nil, time.Since(tried))
		if err != nil {
			p.w.Header().Set("X-Content-Type-Options", "nosniff")
			rest.WriteError(p.w, p.r, refused(err))
			return false
		}
		impersonation.Strip(p.r.Header)
		p.record.Impersonated(acting.User, acting.Constraint)
		p.asked.User = acting.User
	}
	p.passed(impersonating)
	return true
}

// serveLong serves watches and streams. The beginning of a watch takes its turn; what follows costs little.
func (p *passage) serveLong() {
	ctx, cancel := context.WithCancelCause(p.r.Context())
	defer cancel(nil)
	defer context.AfterFunc(p.ending, func() { cancel(errStopping) })()
	if p.info.Verb == "watch" {
		seat, err := p.fair.Enter(ctx, &p.asked, p.w.Header())
		if err != nil {
			p.refuse(err)
			return
		}
		seat.Leave()
	}
	if h := p.permitted(ctx); h != nil {
		defer p.metrics.lasting(p.info)()
		h.ServeHTTP(p.w, p.r)
	}
}

// serveShort serves requests that have a deadline and keep their seat to the end.
func (p *passage) serveShort() {
	ctx, cancel := context.WithTimeout(p.r.Context(), p.limit)
	defer cancel()
	defer func() {
		if p.w.code == http.StatusGatewayTimeout && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			p.metrics.terminated(p.info, p.w.code)
		}
	}()
	seat, err := p.fair.Enter(ctx, &p.asked, p.w.Header())
	if err != nil {
		p.refuse(err)
		return
	}
	defer seat.Leave()
	served := &p.reading
	if writes(p.r.Method) {
		served = &p.writing
	}
	served.Add(1)
	defer served.Add(-1)
	if h := p.permitted(ctx); h != nil {
		h.ServeHTTP(p.w, p.r)
	}
}

// permitted returns who serves the request, which goes on in ctx. It is nil when the user may not.
func (p *passage) permitted(ctx context.Context) http.Handler {
	p.info.Waited += p.passed(queueing)
	reason, d, err := permit(ctx, p.authorizer, p.asked)
	p.metrics.authorized(d, p.passed(authorization))
	if d == "error" {
		p.record.Annotate("authorization.k8s.io/reason", "internal error")
		rest.WriteError(p.w, p.r, apierrors.NewInternalError(err))
		return nil
	}
	if err != nil {
		p.record.Annotate("authorization.k8s.io/decision", "forbid")
		p.record.Annotate("authorization.k8s.io/reason", reason)
		p.w.Header().Set("X-Content-Type-Options", "nosniff")
		rest.WriteError(p.w, p.r, refused(err))
		return nil
	}
	p.record.Annotate("authorization.k8s.io/decision", "allow")
	p.record.Annotate("authorization.k8s.io/reason", reason)
	p.r = p.r.WithContext(rest.WithInfo(authn.With(ctx, p.asked.User), p.info))
	path := p.info.Path
	if h := p.others.For(path); h != nil {
		return h
	}
	switch {
	case p.info.Resource, strings.HasPrefix(path, "/api"), strings.HasPrefix(path, "/openapi"):
		return p.handler
	case !clean(path):
		return http.NotFoundHandler() // a redirection to another path would be answered by other rules than this one's
	}
	return p.other
}

// note tells the client and the record what there is to say about a credential.
func (p *passage) note(user *authn.User, err error) {
	n := (*authn.Note)(nil)
	if refused := (*authn.NotedError)(nil); errors.As(err, &refused) {
		n = &refused.Note
	} else if user != nil {
		n = user.Noted
	}
	if n == nil {
		return
	}
	p.record.Annotate(n.Key, n.Value)
	if text, err := utilnet.NewWarningHeader(299, "-", n.Warning); n.Warning != "" && err == nil {
		p.w.Header().Add("Warning", text)
	}
}

// clean: a path has no empty elements and no dots.
func clean(p string) bool {
	to := path.Clean(p)
	return to == p || to != "/" && to+"/" == p
}

var errStopping = errors.New("the server is stopping")

// refuse answers a request that has found no seat.
func (p *passage) refuse(err error) {
	p.metrics.rejected.Inc()
	p.metrics.terminated(p.info, http.StatusTooManyRequests)
	p.w.Header().Set("Retry-After", "1")
	rest.WriteError(p.w, p.r, apierrors.NewTooManyRequests(fairness.ErrTooMany.Error(), 1))
	p.log.Debug("request is refused", "path", p.info.Path, "err", err)
}

func health(path string) bool {
	return strings.HasPrefix(path, "/healthz") || strings.HasPrefix(path, "/livez") || strings.HasPrefix(path, "/readyz")
}

// limitOf is the request's own timeout if it is shorter than ours.
func (c *chain) limitOf(r *http.Request) (time.Duration, error) {
	if !strings.Contains(r.URL.RawQuery, "timeout=") {
		return c.timeout, nil
	}
	own := r.URL.Query().Get("timeout")
	if own == "" { // it is the end of another parameter's name
		return c.timeout, nil
	}
	d, err := time.ParseDuration(own)
	if err != nil {
		return c.timeout, fmt.Errorf("invalid timeout specified in the request URL - %w", err)
	}
	if d > 0 && d < c.timeout {
		return d, nil
	}
	return c.timeout, nil
}

func writes(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}

func attributes(u *authn.User, in *rest.Info) authz.Attributes {
	return authz.Attributes{
		User: u, Verb: in.Verb, Resource: in.Resource, Group: in.Group, Version: in.Version, Plural: in.Plural,
		Subresource: in.Subresource, Namespace: in.Namespace, Name: in.Name, Path: in.Path, Fields: in.Fields,
	}
}

// permit returns the authorizer's reason, what became of it ("allowed", "denied", "no-opinion" or "error"),
// and the *authz.Refusal of whoever may not.
func permit(ctx context.Context, z authz.Authorizer, a authz.Attributes) (reason, result string, refusal error) {
	d, reason, err := z.Authorize(ctx, a)
	switch {
	case d == authz.Allow:
		return reason, "allowed", nil
	case err != nil:
		result = "error"
	case d == authz.Deny:
		result = "denied"
	default:
		result = "no-opinion"
	}
	text := reason
	if err != nil {
		text = err.Error()
		if reason != "" {
			text += ": " + reason
		}
	}
	return reason, result, &authz.Refusal{Of: a, Reason: text}
}

// refused is the answer to an *authz.Refusal.
func refused(err error) error {
	var r *authz.Refusal
	if !errors.As(err, &r) {
		return err
	}
	if !r.Of.Resource {
		return apierrors.NewForbidden(schema.GroupResource{}, "", r)
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: r.Of.Group, Resource: r.Of.Plural}, r.Of.Name, r)
}

// mayImpersonate asks on behalf of the impersonator.
func (c *chain) mayImpersonate(ctx context.Context, mode string, a authz.Attributes) error {
	asked := time.Now()
	_, _, err := permit(ctx, c.authorizer, a)
	c.metrics.questions.observe(mode, err == nil, time.Since(asked))
	return err
}
