package apiserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
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
	"github.com/keelson/keelson/apiserver/rest"
)

// chain is what every request passes before its handler, in this order: panics
// become 500, an audit id, who is it, on whose behalf, a place among the requests in
// flight, may it, a deadline.
type chain struct {
	authorizer  authz.Authorizer
	fair        *fairness.Controller
	reading     atomic.Int64 // requests being served
	writing     atomic.Int64
	timeout     time.Duration
	metrics     *metrics
	log         *slog.Logger
	handler     http.Handler // resources, discovery, OpenAPI
	others      *aggregator.Aggregator
	other       http.Handler // health, metrics, debug, version
	credentials func(*http.Request) (*authn.User, error)
	ready       <-chan struct{} // closed when there is something to read
	ending      context.Context // ends when watches and streams shall end
	audit       *audit.Auditor  // nil: nothing is recorded
}

func (c *chain) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	started := time.Now()
	w := &answer{ResponseWriter: rw}
	info := rest.ParseInfo(r)
	long := info.Long || strings.HasPrefix(info.Path, "/debug/pprof/")
	var record *audit.Record
	defer func() {
		if p := recover(); p != nil {
			record.End(p, long)
			if p == http.ErrAbortHandler {
				panic(p)
			}
			c.log.Error("request panicked", "verb", info.Verb, "path", info.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if w.code == 0 {
				w.record = nil // its event has been written
				rest.WriteError(w, r, apierrors.NewInternalError(errors.New("the request panicked; the log has the stack")))
				record = nil
			} else {
				c.metrics.observe(&info, w, long, time.Since(started))
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
	c.metrics.authenticated(user, err, time.Since(started))
	// Nobody in particular: whoever is refused here is recorded too.
	var lost error
	r, record, lost = c.audit.Begin(r, id, subject(user, &info), long, started)
	if lost != nil {
		rest.WriteError(w, r, apierrors.NewInternalError(lost))
		return
	}
	w.record, w.long = record, long
	if err != nil {
		c.log.Debug("request is not authenticated", "path", info.Path, "remote", r.RemoteAddr, "err", err)
		rest.WriteError(w, r, apierrors.NewUnauthorized("Unauthorized"))
		return
	}
	r.Header.Del("Authorization") // no handler and no proxied server may see it
	ctx := r.Context()
	acting, err := c.impersonate(ctx, r, user)
	if err != nil {
		h.Set("X-Content-Type-Options", "nosniff")
		rest.WriteError(w, r, err)
		return
	}
	if acting != user {
		record.Impersonated(acting)
	}

	asked := attributes(acting, &info)
	queued := time.Now()
	if long {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(c.ending, func() { cancel(errStopping) })()
		if info.Verb == "watch" { // its beginning takes its turn; what follows costs little
			seat, err := c.fair.Enter(ctx, &asked, h)
			if err != nil {
				c.refuse(w, r, err)
				return
			}
			seat.Leave()
		}
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.limit(r))
		defer cancel()
		seat, err := c.fair.Enter(ctx, &asked, h)
		if err != nil {
			c.refuse(w, r, err)
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

	seated := time.Now()
	info.Waited += seated.Sub(queued)
	reason, d, err := permit(ctx, c.authorizer, asked)
	c.metrics.authorized(d, time.Since(seated))
	if err != nil {
		record.Annotate("authorization.k8s.io/decision", "forbid")
		record.Annotate("authorization.k8s.io/reason", reason)
		h.Set("X-Content-Type-Options", "nosniff")
		rest.WriteError(w, r, err)
		return
	}
	record.Annotate("authorization.k8s.io/decision", "allow")
	record.Annotate("authorization.k8s.io/reason", reason)
	if long {
		defer c.metrics.lasting(&info)()
	}
	ctx = rest.WithInfo(authn.With(ctx, acting), &info)
	r = r.WithContext(ctx)
	if h := c.others.For(info.Path); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	if info.Resource || strings.HasPrefix(info.Path, "/api") || strings.HasPrefix(info.Path, "/openapi") {
		c.handler.ServeHTTP(w, r)
		return
	}
	c.other.ServeHTTP(w, r)
}

var errStopping = errors.New("the server is stopping")

// refuse answers a request that has found no seat.
func (c *chain) refuse(w http.ResponseWriter, r *http.Request, err error) {
	c.metrics.rejected.Inc()
	w.Header().Set("Retry-After", "1")
	rest.WriteError(w, r, apierrors.NewTooManyRequests(fairness.ErrTooMany.Error(), 1))
	c.log.Debug("request is refused", "path", r.URL.Path, "err", err)
}

func health(path string) bool {
	return strings.HasPrefix(path, "/healthz") || strings.HasPrefix(path, "/livez") || strings.HasPrefix(path, "/readyz")
}

// limit is the request's own timeout if it is shorter than ours.
func (c *chain) limit(r *http.Request) time.Duration {
	if q := r.URL.RawQuery; strings.Contains(q, "timeout=") {
		if d, err := time.ParseDuration(r.URL.Query().Get("timeout")); err == nil && d > 0 && d < c.timeout {
			return d
		}
	}
	return c.timeout
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
// and the 403 of a refusal in upstream's words.
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
	text := ""
	if a.Resource {
		what := a.Plural
		if a.Subresource != "" {
			what += "/" + a.Subresource
		}
		text = fmt.Sprintf("User %q cannot %s resource %q in API group %q", a.User.Name, a.Verb, what, a.Group)
		if a.Namespace != "" {
			text += fmt.Sprintf(" in the namespace %q", a.Namespace)
		} else {
			text += " at the cluster scope"
		}
	} else {
		text = fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	}
	if reason != "" {
		text += ": " + reason
	}
	if err != nil && reason == "" {
		text += ": " + err.Error()
	}
	if !a.Resource {
		return reason, result, apierrors.NewForbidden(schema.GroupResource{}, "", errors.New(text))
	}
	return reason, result, apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Plural}, a.Name, errors.New(text))
}

// impersonate returns whom the request acts as; every attribute that is taken on
// needs permission of its own.
//
// Source: Kubernetes documentation, "User impersonation".
func (c *chain) impersonate(ctx context.Context, r *http.Request, u *authn.User) (*authn.User, error) {
	im, err := authn.ParseImpersonation(r.Header)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if im == nil {
		return u, nil
	}
	ask := func(group, version, plural, sub, namespace, name string) error {
		_, _, err := permit(ctx, c.authorizer, authz.Attributes{
			User: u, Verb: "impersonate", Resource: true, Group: group, Version: version,
			Plural: plural, Subresource: sub, Namespace: namespace, Name: name,
		})
		return err
	}
	if ns, name, ok := authn.SplitServiceAccount(im.User); ok {
		err = ask("", "v1", "serviceaccounts", "", ns, name)
	} else {
		err = ask("", "v1", "users", "", "", im.User)
	}
	for _, g := range im.Groups {
		if err == nil {
			err = ask("", "v1", "groups", "", "", g)
		}
	}
	for key, values := range im.Extra {
		for _, v := range values {
			if err == nil {
				err = ask("authentication.k8s.io", "v1", "userextras", key, "", v)
			}
		}
	}
	if err == nil && im.UID != "" {
		err = ask("authentication.k8s.io", "v1", "uids", "", "", im.UID)
	}
	if err != nil {
		return nil, err
	}
	im.Strip(r.Header)
	return im.As(), nil
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
