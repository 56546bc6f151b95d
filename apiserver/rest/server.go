// Package rest serves the resource paths of the Kubernetes API: every verb once,
// written against a row of the resource table.
//
// Three layers, in the order of a request: [ParseInfo] reads what is asked for;
// [Server] negotiates, decodes and answers; [Objects] does it, without HTTP. The
// decisions are made elsewhere: rows validate, admission admits, patch merges.
//
// It promises upstream's statuses, reasons and messages, and that a list or a watch
// costs little more than copying bytes. It authenticates and authorizes nobody:
// the chain before it does, with the same Info. It starts no goroutine but those
// that read a WebSocket until its watch ends.
package rest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/discovery"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// Config is what a Server works with. Registry, Cache and Store are required.
type Config struct {
	Registry  *resources.Registry
	Cache     *watchcache.Cache
	Store     store.Store
	Admission admission.Chain
	// Subs are subresources with a protocol or a kind of their own, by
	// "<plural>[.<group>]/<name>": "pods/exec". "scale" has a handler of its own.
	Subs map[string]SubHandler
	// Virtual answers for kinds that are not stored: it gets the decoded, defaulted and
	// validated object and returns the answer.
	Virtual map[schema.GroupResource]func(rq *resources.Request, obj resources.Object) (resources.Object, error)
	// Observed finds out what there is of kinds that are not stored but can be read.
	Observed map[schema.GroupResource]Observe
	// Others is what discovery and OpenAPI say of other servers; nil: nothing.
	Others discovery.Others
	// Allocated is told what a write was given that no other object may have: got, where asked was wanted and old
	// was there before. nil: nobody asks.
	Allocated func(asked, got, old resources.Object, took time.Duration)
	// Metrics count; nil: nobody asks.
	Metrics *Metrics
	// MaxBody bounds request bodies; default 3 MiB.
	MaxBody int64
	// Version is the gitVersion, shown in the OpenAPI documents.
	Version string
	Log     *slog.Logger
	Now     func() time.Time
}

// SubHandler serves one subresource of a named object.
type SubHandler func(w http.ResponseWriter, r *http.Request, c *Call)

// Server is the handler of /api, /apis and /openapi.
type Server struct {
	cfg     Config
	objects *Objects
	router  *mux.Router
	frames  frames
}

// New returns a Server. It starts nothing.
func New(cfg Config) *Server {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 3 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, objects: NewObjects(cfg.Registry, cfg.Cache, cfg.Store, cfg.Admission, cfg.Now)}
	s.objects.allocatedTo = cfg.Allocated
	s.router = mux.NewRouter().SkipClean(true).UseEncodedPath()
	s.router.MatcherFunc(func(r *http.Request, _ *mux.RouteMatch) bool { return infoOf(r).Resource }).HandlerFunc(s.resource)
	disco := discovery.New(cfg.Registry, cfg.Others, cfg.Version)
	s.router.NewRoute().Handler(disco)
	s.router.NotFoundHandler = http.HandlerFunc(notFound)
	s.router.MethodNotAllowedHandler = http.HandlerFunc(notFound)
	return s
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "404 page not found", http.StatusNotFound)
}

// Objects are the verbs without HTTP.
func (s *Server) Objects() *Objects { return s.objects }

type infoKey struct{}

// WithInfo stores what ParseInfo has read, so that it is read once.
func WithInfo(ctx context.Context, in *Info) context.Context {
	return context.WithValue(ctx, infoKey{}, in)
}

// InfoFrom returns the request's Info, or nil.
func InfoFrom(ctx context.Context) *Info {
	in, _ := ctx.Value(infoKey{}).(*Info)
	return in
}

func infoOf(r *http.Request) *Info {
	if in := InfoFrom(r.Context()); in != nil {
		return in
	}
	return ParseInfo(r)
}

// ServeHTTP answers every resource path, discovery and OpenAPI.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if InfoFrom(r.Context()) == nil {
		r = r.WithContext(WithInfo(r.Context(), ParseInfo(r)))
	}
	s.router.ServeHTTP(w, r)
}

// Call is one request for a resource.
type Call struct {
	W       http.ResponseWriter
	R       *http.Request
	Info    *Info
	Row     *resources.Row
	Query   url.Values
	User    *authn.User
	Request *resources.Request // Subresource and DryRun are set
	Objects *Objects
	Server  *Server
	// Namespace and Name of the object; Namespace is empty for cluster scope.
	Namespace, Name string

	format codec.Format
}

// resource serves one request for a resource. A watch stays in it: what it takes to get there is in functions of their own,
// whose variables do not stay on the stack.
func (s *Server) resource(w http.ResponseWriter, r *http.Request) {
	switch c := s.call(w, r); {
	case c == nil: // it has been answered
	case c.Info.Verb == "watch" && c.Info.Subresource == "":
		c.watch()
	default:
		c.short()
	}
}

// call finds the row, and whether it has the verb; nil when it has answered.
func (s *Server) call(w http.ResponseWriter, r *http.Request) *Call {
	in := infoOf(r)
	if strings.HasPrefix(r.URL.Path, "//") || strings.HasPrefix(r.URL.Path, "/apis//") { // read as if it were one, so that nothing is allowed by it; but no path of ours
		notFound(w, r)
		return nil
	}
	row := s.cfg.Registry.Lookup(in.Group, in.Version, in.Plural)
	if row == nil {
		if in.Group != "" && !slices.Contains(s.cfg.Registry.Groups(), in.Group) {
			notFound(w, r) // nobody answers for such a group
			return nil
		}
		WriteError(w, r, missing(in))
		return nil
	}
	warn := &warnings{w: w}
	c := &Call{W: w, R: r, Info: in, Row: row, Query: query(r), User: authn.From(r.Context()), Objects: s.objects, Server: s, Name: in.Name}
	if row.Namespaced {
		c.Namespace = in.Namespace
	} else if in.Namespace != "" && in.Plural != "namespaces" {
		WriteError(w, r, missing(in))
		return nil
	}
	c.Request = &resources.Request{Context: r.Context(), Now: s.cfg.Now(), Subresource: in.Subresource, Warn: warn.add,
		Read: s.cfg.Cache.Reader(), DryRun: len(c.Query["dryRun"]) > 0}
	if c.User != nil {
		c.Request.User, c.Request.UID, c.Request.Groups, c.Request.Extra = c.User.Name, c.User.UID, c.User.Groups, c.User.Extra
	}
	if in.watchPath && (in.Subresource != "" || !row.Can("watch")) {
		WriteError(w, r, missing(in))
		return nil
	}
	if in.watchPath && r.Method != http.MethodGet && r.Method != http.MethodHead {
		WriteError(w, r, NotAllowed())
		return nil
	}
	if in.Verb == "create" && row.Custom != nil && !row.Can("create") && c.Namespace != "" == row.Namespaced {
		c.deprecation()
		c.serve(c.tooLate)
		return nil
	}
	if in.Subresource != "" {
		return c
	}
	everywhere := row.Namespaced && c.Namespace == ""
	if !exists(row, in, everywhere) {
		WriteError(w, r, missing(in))
		return nil
	}
	if !row.Can(in.Verb) || !possible(in) || r.Method == http.MethodHead ||
		everywhere && (in.Verb == "create" || in.Verb == "deletecollection") {
		WriteError(w, r, NotAllowed())
		return nil
	}
	c.deprecation()
	return c
}

// short serves what is no watch of a kind.
func (c *Call) short() {
	if c.Info.Subresource != "" {
		c.Server.subresource(c)
		return
	}
	switch c.Info.Verb {
	case "get", "patch", "delete":
		for _, fault := range path.IsValidPathSegmentName(c.Name) { // it would be another key
			c.fail(apierrors.NewBadRequest(fmt.Sprintf("Name parameter invalid: %q: %s", c.Name, fault)))
			return
		}
	}
	if export, _ := strconv.ParseBool(c.Query.Get("export")); export && c.Info.Verb == "get" {
		c.fail(apierrors.NewBadRequest("the export parameter, deprecated since v1.14, is no longer supported"))
		return
	}
	switch c.Info.Verb {
	case "get":
		c.serve(c.get)
	case "list":
		c.serve(c.list)
	case "create":
		c.serve(c.create)
	case "update":
		c.serve(func() { c.update("") })
	case "patch":
		c.serve(func() { c.patch("") })
	case "delete":
		c.serve(c.delete)
	case "deletecollection":
		c.serve(c.deleteCollection)
	default:
		WriteError(c.W, c.R, NotAllowed())
	}
}

// deprecated kinds come with a warning, in the words that clients may be silencing.
var deprecated = map[schema.GroupVersionKind]string{
	{Version: "v1", Kind: "Endpoints"}:       "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
	{Version: "v1", Kind: "ComponentStatus"}: "v1 ComponentStatus is deprecated in v1.19+",
}

// deprecation warns of a kind, or a version of it, that shall not be used any more.
func (c *Call) deprecation() {
	if text := deprecated[c.Row.GVK()] + c.Row.Warning; text != "" {
		c.Request.Warn(text)
		c.Server.cfg.Metrics.deprecated(c.Info, c.Row)
	}
}

// exists reports whether the path has any verb: all namespaces together can only be read, and
// what is only created has no object that could be named.
func exists(row *resources.Row, in *Info, everywhere bool) bool {
	switch {
	case in.Named():
		return !everywhere && (row.Can("get") || row.Can("update") || row.Can("patch") || row.Can("delete"))
	case everywhere:
		return row.Can("list") || row.Can("watch")
	}
	return true
}

// possible: creations have no name in their path, and updates have one.
func possible(in *Info) bool {
	switch in.Verb {
	case "create":
		return !in.Named()
	case "update", "patch":
		return in.Named()
	}
	return true
}

// NotAllowed is the 405 of a path that exists.
func NotAllowed() error {
	e := statusError(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "the server does not allow this method on the requested resource")
	e.ErrStatus.Details = &metav1.StatusDetails{}
	return e
}

func missing(*Info) error {
	e := apierrors.NewNotFound(schema.GroupResource{}, "")
	e.ErrStatus.Message = "the server could not find the requested resource"
	e.ErrStatus.Details = &metav1.StatusDetails{}
	return e
}

// serve negotiates the answer's form, then runs the verb.
func (c *Call) serve(verb func()) {
	f, ok := codec.Negotiate(c.accept(), false, wantsPretty(c.R))
	switch {
	case c.Row.Custom == nil && (!ok || !named(c.R)):
		c.fail(c.unacceptable())
		return
	case !ok:
		c.fail(notAcceptable(accepted))
		return
	}
	c.format = f
	verb()
}

// accept is the Accept header without what the kind has no form in: custom objects
// have no protobuf, but their metadata has. A client that has another choice gets it.
func (c *Call) accept() string {
	header := c.R.Header.Get("Accept")
	if c.Row.Custom == nil || c.Info.Subresource == "scale" || header == "" {
		return header
	}
	var left []string
	for _, clause := range strings.Split(header, ",") {
		media, params, _ := strings.Cut(strings.TrimSpace(clause), ";")
		if strings.TrimSpace(media) != codec.MediaProtobuf || strings.Contains(params, "as=") {
			left = append(left, clause)
		}
	}
	if left == nil {
		return codec.Nothing
	}
	return strings.Join(left, ",")
}

func (s *Server) subresource(c *Call) {
	in, row := c.Info, c.Row
	missing := missing
	if row.Custom != nil && in.Named() { // upstream asks for subresources where it asks for the object
		missing = func(*Info) error { return apierrors.NewNotFound(row.GR(), in.Name) }
	}
	if !in.Named() || row.Namespaced && c.Namespace == "" || in.Rest != "" && in.Subresource != "proxy" {
		c.fail(missing(in))
		return
	}
	key := row.GR().String() + "/" + in.Subresource
	for _, sub := range row.Subs {
		if sub.Name != in.Subresource {
			continue
		}
		if sub.Name != "proxy" && (!slices.Contains(sub.Verbs, in.Verb) || c.R.Method == http.MethodHead) { // a proxy passes every method on
			c.fail(NotAllowed())
			return
		}
		h := s.cfg.Subs[key]
		if h == nil && sub.Name == "scale" {
			h = func(_ http.ResponseWriter, _ *http.Request, c *Call) { c.scale() }
		}
		if h == nil {
			c.fail(missing(in))
			return
		}
		c.deprecation()
		if discovery.Connects(sub.Name) || sub.Name == "log" { // it answers with what is not ours
			c.format, _ = codec.Negotiate(c.R.Header.Get("Accept"), false, wantsPretty(c.R))
			h(c.W, c.R, c)
			return
		}
		c.serve(func() { h(c.W, c.R, c) })
		return
	}
	if _, ok := row.Parts[in.Subresource]; !ok {
		c.fail(missing(in))
		return
	}
	if !slices.Contains(discovery.PartVerbs(in.Subresource), in.Verb) || c.R.Method == http.MethodHead {
		c.fail(NotAllowed())
		return
	}
	c.deprecation()
	switch in.Verb {
	case "get":
		c.serve(c.get)
	case "update":
		c.serve(func() { c.update(in.Subresource) })
	case "patch":
		c.serve(func() { c.patch(in.Subresource) })
	}
}
