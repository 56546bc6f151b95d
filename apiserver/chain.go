package apiserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

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
	started := time.Now()
	last := started
	passed := func(f filter) time.Duration {
		now := time.Now()
		took := now.Sub(last)
		last = now
		c.metrics.filters[f].Observe(took.Seconds())
		return took
	}
	w := &answer{ResponseWriter: rw}
	info := rest.ParseInfo(r)
	long := info.Long || strings.HasPrefix(info.Path, "/debug/pprof/")
	var record *audit.Record
	defer func() {
		if p := recover(); p != nil {
			record.End(p, long)
			if p == http.ErrAbortHandler {
				c.metrics.broken(&info)
				panic(p)
			}
			c.log.Error("request panicked", "verb", info.Verb, "path", info.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if w.code == 0 {
				w.record = nil // its event has been written
				rest.WriteError(w, r, apierrors.NewInternalError(errors.New("the request panicked; the log has the stack")))
				record = nil
			} else {
				c.metrics.observe(&info, w, long, time.Since(started))
				c.metrics.broken(&info)
				panic(http.ErrAbortHandler) // the answer has begun: only a broken connection tells
			}
		}
		c.metrics.observe(&info, w, long, time.Since(started))
		record.End(nil, long)
	}()

	id := r.Header.Get("Audit-Id")
	if id == "" || len(id) > 64 {
		id = uuid.NewString()
	}
	h := w.Header()
	h.Set("Audit-Id", id)
	h.Set("Cache-Control", "no-cache, private")

	select {
	case <-c.ready:
	default:
		if health(info.Path) {
			c.other.ServeHTTP(w, r)
			return
		}
		h.Set("Retry-After", "1")
		rest.WriteError(w, r, apierrors.NewServiceUnavailable("the server is starting: its store is not loaded yet"))
		return
	}
	user, err := c.credentials(r)
	c.metrics.authenticated(user, err, passed(authentication))
	// Nobody in particular: whoever is refused here is recorded too.
	var lost error
	r, record, lost = c.audit.Begin(r, id, subject(user, &info), long, started)
	if lost != nil {
		rest.WriteError(w, r, apierrors.NewInternalError(lost))
		return
	}
	passed(auditing)
	w.record, w.long = record, long
	limit, bad := c.limit(r)
	if bad != nil && !long {
		rest.WriteError(w, r, apierrors.NewBadRequest(bad.Error()))
		return
	}
	if err != nil {
		c.log.Debug("request is not authenticated", "path", info.Path, "remote", r.RemoteAddr, "err", err)
		rest.WriteError(w, r, apierrors.NewUnauthorized("Unauthorized"))
		return
	}
	r.Header.Del("Authorization") // no handler and no proxied server may see it
	ctx := r.Context()
	asked := attributes(user, &info)
	wanted, err := impersonation.Parse(r.Header)
	if err != nil {
		h.Set("X-Content-Type-Options", "nosniff")
		rest.WriteError(w, r, apierrors.NewBadRequest(err.Error()))
		return
	}
	if wanted != nil {
		tried := time.Now()
		acting, err := c.impersonator.As(ctx, asked, wanted)
		c.metrics.impersonations.observe(acting.Mode, err == nil, time.Since(tried))
		if err != nil {
			h.Set("X-Content-Type-Options", "nosniff")
			rest.WriteError(w, r, refused(err))
			return
		}
		impersonation.Strip(r.Header)
		record.Impersonated(acting.User, acting.Constraint)
		asked.User = acting.User
	}
	passed(impersonating)
	if long {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(c.ending, func() { cancel(errStopping) })()
		if info.Verb == "watch" { // its beginning takes its turn; what follows costs little
			seat, err := c.fair.Enter(ctx, &asked, h)
			if err != nil {
				c.refuse(w, r, &info, err)
				return
			}
			seat.Leave()
		}
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
		defer func() {
			if w.code == http.StatusGatewayTimeout && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				c.metrics.terminated(&info, w.code)
			}
		}()
		seat, err := c.fair.Enter(ctx, &asked, h)
		if err != nil {
			c.refuse(w, r, &info, err)
			return
		}
		defer seat.Leave()
		served := &c.reading
		if writes(r.Method) {
			served = &c.writing
		}
		served.Add(1)
		defer served.Add(-1)
	}

	info.Waited += passed(queueing)
	reason, d, err := permit(ctx, c.authorizer, asked)
	c.metrics.authorized(d, passed(authorization))
	if d == "error" {
		record.Annotate("authorization.k8s.io/reason", "internal error")
		rest.WriteError(w, r, apierrors.NewInternalError(err))
		return
	}
	if err != nil {
		record.Annotate("authorization.k8s.io/decision", "forbid")
		record.Annotate("authorization.k8s.io/reason", reason)
		h.Set("X-Content-Type-Options", "nosniff")
		rest.WriteError(w, r, refused(err))
		return
	}
	record.Annotate("authorization.k8s.io/decision", "allow")
	record.Annotate("authorization.k8s.io/reason", reason)
	if long {
		defer c.metrics.lasting(&info)()
	}
	ctx = rest.WithInfo(authn.With(ctx, asked.User), &info)
	r = r.WithContext(ctx)
	if h := c.others.For(info.Path); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	if info.Resource || strings.HasPrefix(info.Path, "/api") || strings.HasPrefix(info.Path, "/openapi") {
		c.handler.ServeHTTP(w, r)
		return
	}
	if !clean(info.Path) {
		http.NotFound(w, r) // a redirection to another path would be answered by other rules than this one's
		return
	}
	c.other.ServeHTTP(w, r)
}

// clean: a path has no empty elements and no dots.
func clean(p string) bool {
	to := path.Clean(p)
	return to == p || to != "/" && to+"/" == p
}

var errStopping = errors.New("the server is stopping")

// refuse answers a request that has found no seat.
func (c *chain) refuse(w http.ResponseWriter, r *http.Request, in *rest.Info, err error) {
	c.metrics.rejected.Inc()
	c.metrics.terminated(in, http.StatusTooManyRequests)
	w.Header().Set("Retry-After", "1")
	rest.WriteError(w, r, apierrors.NewTooManyRequests(fairness.ErrTooMany.Error(), 1))
	c.log.Debug("request is refused", "path", r.URL.Path, "err", err)
}

func health(path string) bool {
	return strings.HasPrefix(path, "/healthz") || strings.HasPrefix(path, "/livez") || strings.HasPrefix(path, "/readyz")
}

// limit is the request's own timeout if it is shorter than ours.
func (c *chain) limit(r *http.Request) (time.Duration, error) {
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

// answer remembers what was written, for metrics, for the panic handler and for the audit record.
type answer struct {
	http.ResponseWriter
	code   int
	bytes  int64
	record *audit.Record // nil: none
	long   bool
}

// begin notes the code of the answer, once.
func (w *answer) begin(code int) {
	if w.code == 0 {
		w.code = code
		w.record.Answering(code, w.Header().Get("Content-Type"), w.long)
	}
}

func (w *answer) WriteHeader(code int) {
	if code >= 200 {
		w.begin(code)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *answer) Write(b []byte) (int, error) {
	w.begin(http.StatusOK)
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	w.record.Answered(b[:n])
	return n, err
}

func (w *answer) Flush() {
	w.begin(http.StatusOK)
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

func (w *answer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands the connection over, on HTTP/1 only: exec, attach and port-forward.
func (w *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.begin(http.StatusSwitchingProtocols)
	return http.NewResponseController(w.ResponseWriter).Hijack()
}
