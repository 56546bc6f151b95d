// Package apiserver is the front door of the API server: its configuration, and
// the wiring of its rooms.
//
//	etcd → store → watchcache ─┬─ rest (verbs) ← admission, resources, patch, codec
//	                           ├─ authn, authz, actions, streams, bootstrap (readers of the same tree)
//	                           └─ aggregator (group versions that other servers answer for)
//
// A request passes chain (who, may it, is there room) and goes to rest; a write
// goes from rest to the store and comes back to everybody through the cache's log.
//
// The main call is [Run]. It promises that every acknowledged write is in the store
// and is seen by every later read, and that it ends in order: watches are closed,
// requests finish, the cache stops, then etcd.
package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/actions"
	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/policy"
	"github.com/keelson/keelson/apiserver/aggregator"
	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/bootstrap"
	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/crd"
	"github.com/keelson/keelson/apiserver/encrypt"
	"github.com/keelson/keelson/apiserver/etcd"
	"github.com/keelson/keelson/apiserver/fairness"
	"github.com/keelson/keelson/apiserver/impersonation"
	"github.com/keelson/keelson/apiserver/ranges"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/apiserver/series"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/etcdstore"
	"github.com/keelson/keelson/apiserver/streams"
	"github.com/keelson/keelson/apiserver/watchcache"
	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/serve"
)

// Run serves until ctx ends.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(cfg.BindAddress, fmt.Sprint(cfg.Port)))
	if err != nil {
		return fmt.Errorf("%w (is another copy running? the port is set with --secure-port)", err)
	}
	defer listener.Close()

	spareCollector()
	// What lies below outlives what lies above.
	lower := run.New(context.WithoutCancel(ctx))
	st, size, end, err := openStore(ctx, cfg, log, lower)
	if err != nil {
		return err
	}
	defer end()
	defer func() { lower.Stop(); _ = lower.Wait() }()

	s, err := newServer(cfg, log, st, listener)
	if err != nil {
		return err
	}
	if size != nil {
		s.web.Registry().MustRegister(storageSize(size))
	}
	upper := run.New(ctx)
	if s.secret != nil {
		lower.Go("encryption", s.secret.Run)
	}
	if s.audit != nil {
		lower.Go("audit", s.audit.Run)
	}
	lower.Go("watch cache", s.cache.Run)
	lower.Go("compaction", func(ctx context.Context) error { return compact(ctx, st, cfg.Compaction.Duration, log) })
	lower.Go("watch below", func(ctx context.Context) error {
		<-ctx.Done()
		upper.Stop() // nothing can be served without it
		return nil
	})
	lower.Go("memory", func(ctx context.Context) error { return tendMemory(ctx, s.cache) })
	upper.Go("custom resources", s.custom.Run)
	upper.Go("aggregation", s.others.Run)
	if cfg.PriorityFairness {
		upper.Go("priority and fairness", s.fair.Run)
	}
	upper.Go("serve", s.serve)
	upper.Go("bootstrap", s.bootstrap)
	upper.Go("policy status", s.checkPolicies)
	upper.Go("ranges", s.tendRanges)
	err = upper.Wait()
	if cause := context.Cause(lower.Context()); cause != nil && !errors.Is(cause, run.ErrEnded) {
		err = errors.Join(err, cause)
	}
	log.Info("stopped serving")
	return err
}

// openStore opens the external etcd, or starts the embedded one. size tells how many bytes the database's
// file has; it is nil for an external etcd, which has metrics of its own.
func openStore(ctx context.Context, cfg Config, log *slog.Logger, g *run.Group) (st store.Store, size func() int64, end func(), err error) {
	if len(cfg.EtcdServers) > 0 {
		st, end, err := etcdstore.Dial(cfg.remote(log), cfg.EtcdPrefix)
		if err != nil {
			return nil, nil, nil, err
		}
		return st, nil, func() { _ = end() }, nil
	}
	member, err := etcd.Start(ctx, cfg.Etcd, log)
	if err != nil {
		return nil, nil, nil, err
	}
	g.Go("etcd", func(ctx context.Context) error {
		select {
		case err := <-member.Err():
			return fmt.Errorf("etcd stopped: %w", err)
		case <-member.Etcd().StopNotify():
			return errors.New("etcd stopped")
		case <-ctx.Done():
			return nil
		}
	})
	g.Go("etcd space", member.Maintain)
	size = func() int64 { return member.Etcd().Backend().Size() }
	return etcdstore.Embedded(member.Etcd(), cfg.EtcdPrefix), size, member.Close, nil
}

// compact forgets history that is older than interval. Each round forgets up to
// the revision that was current a round earlier. Several servers may do it: who comes
// second finds it done.
func compact(ctx context.Context, st store.Store, interval time.Duration, log *slog.Logger) error {
	if interval <= 0 {
		return nil
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var seen int64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, interval)
		rev, err := st.Rev(limited)
		if err == nil && seen > 0 {
			if err = st.Compact(limited, seen); errors.Is(err, store.ErrCompacted) {
				err = nil
			}
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			log.Warn("cannot compact the store", "rev", seen, "err", err)
			continue
		}
		seen = rev
	}
}

// server is the rooms, wired.
type server struct {
	cfg     Config
	log     *slog.Logger
	st      store.Store
	cache   *watchcache.Cache
	reg     *resources.Registry
	rest    *rest.Server
	web     *serve.Server
	api     *api
	custom  *crd.Keeper
	others  *aggregator.Aggregator
	fair    *fairness.Controller
	proxy   *streams.Proxy
	steps   steps
	ending  context.Context // ends when watches and streams shall end
	end     context.CancelCauseFunc
	clients *roots
	secret  *encrypt.Store // nil: nothing is encrypted
	audit   *audit.Auditor // nil: nothing is recorded
}

func newServer(cfg Config, log *slog.Logger, st store.Store, listener net.Listener) (*server, error) {
	cidrs, err := cfg.serviceCIDRs()
	if err != nil {
		return nil, err
	}
	ports, err := cfg.nodePorts()
	if err != nil {
		return nil, err
	}
	reg, err := resources.NewRegistry(policy.Expressions(resources.TableFor(resources.Config{
		ServiceCIDRs: cidrs, NodePorts: ports, EventTTLSeconds: int64(cfg.EventTTL.Seconds()), AllowPrivileged: cfg.AllowPrivileged,
	})))
	if err != nil {
		return nil, err
	}
	s := &server{cfg: cfg, log: log, st: st, reg: reg, steps: newSteps()}
	web := cfg.Config
	web.Listener = listener
	handshakes := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "apiserver_tls_handshake_errors_total", Help: "TLS handshakes that have failed.",
	})
	web.Tune = func(srv *http.Server) {
		tune(srv)
		srv.ErrorLog = stdlog.New(&handshakeLog{srv.ErrorLog.Writer(), handshakes}, "", 0)
	}
	web.DrainTimeout = cfg.RequestTimeout.Duration
	c := &chain{}
	web.Wrap = func(other http.Handler) http.Handler { c.other = other; return c }
	if s.web, err = serve.New(web, log); err != nil {
		return nil, err
	}
	s.web.Registry().MustRegister(handshakes)
	st = newTimed(st, resourceAt(reg), s.web.Registry())
	s.st = st
	if cfg.EncryptionConfig != "" {
		s.secret, err = encrypt.New(encrypt.Options{
			Below: st, File: cfg.EncryptionConfig, Reload: cfg.EncryptionReload, Prefix: cfg.EtcdPrefix,
			Resource: resourceAt(reg), Metrics: encrypt.NewMetrics(s.web.Registry()), Log: log.With("room", "encrypt"),
		})
		if err != nil {
			return nil, fmt.Errorf("--encryption-provider-config: %w", err)
		}
		s.st, st = s.secret, s.secret
	}
	s.ending, s.end = context.WithCancelCause(context.Background())
	s.cache = watchcache.New(st, reg, watchcache.Options{FormBytes: cfg.CacheFormBytes, Log: log.With("room", "watchcache")})
	read, certain := s.cache.Reader(), s.cache.Certain()

	// Who.
	accounts, err := cfg.accounts(certain)
	if err != nil {
		return nil, err
	}
	accounts.Metrics, accounts.Used = authn.NewTokenMetrics(s.web.Registry()), s.tokenUsed
	var byCertificate, byToken []authn.Authenticator
	if cfg.ClientCAFile != "" {
		if s.clients, err = newRoots(cfg.ClientCAFile); err != nil {
			return nil, fmt.Errorf("--client-ca-file: %w", err)
		}
		byCertificate = append(byCertificate, remembered{authn.Certificates{Roots: s.clients.get}, time.Now, certificateLives(s.web.Registry())})
	}
	if cfg.BootstrapTokens {
		byToken = append(byToken, authn.BootstrapTokens{Read: read, Now: time.Now})
	}
	who := authn.Chain{Anonymous: cfg.AnonymousAuth}
	if cfg.RequestHeaderCAFile != "" {
		front, err := newRoots(cfg.RequestHeaderCAFile)
		if err != nil {
			return nil, fmt.Errorf("--requestheader-client-ca-file: %w", err)
		}
		who.Authenticators = append(who.Authenticators, authn.RequestHeader{
			Roots: front.get, AllowedNames: cfg.RequestHeaderNames, UserHeaders: cfg.RequestHeaderUsers,
			UIDHeaders: cfg.RequestHeaderUIDs, GroupHeaders: cfg.RequestHeaderGroups, ExtraPrefixes: cfg.RequestHeaderExtra,
		})
	}
	who.Authenticators = append(append(append(who.Authenticators, byCertificate...), accounts), byToken...)

	// May they.
	authorizer, rbac, err := s.authorizer()
	if err != nil {
		return nil, err
	}

	// What they want.
	chosen, unknown := admission.Pick(admission.Table(admission.Config{
		Read: certain, Authorizer: authorizer, RBAC: rbac, Now: time.Now, UpdateQuota: s.updateQuota,
		Dynamic: s.dynamic(authorizer), Metrics: s.web.Registry(),
	}), cfg.DisableAdmissionPlugins)
	if len(unknown) > 0 {
		log.Debug("admission plugins to disable are not in use anyway", "plugins", unknown)
	}
	plugins := chosen.Timed(s.web.Registry())
	s.api = &api{reg: reg, read: read, now: time.Now}
	act := &actions.Actions{Config: actions.Config{
		Read: certain, Write: writer{s.api}, Accounts: accounts, Authorizer: authorizer, RBAC: rbac, Node: slices.Contains(cfg.AuthorizationMode, "Node"),
		Authenticate: reviewer(accounts, byToken), Audiences: cfg.audiences(),
		MaxTokenLife: cfg.ServiceAccountMaxExpiration.Duration, ExtendTokens: cfg.ServiceAccountExtend, Now: time.Now,
	}}
	types := make([]corev1.NodeAddressType, len(cfg.KubeletAddressTypes))
	for i, t := range cfg.KubeletAddressTypes {
		types[i] = corev1.NodeAddressType(t)
	}
	s.proxy, err = streams.New(streams.KubeletConfig{
		CertFile: cfg.KubeletClientCert, KeyFile: cfg.KubeletClientKey, CAFile: cfg.KubeletCAFile,
		AddressTypes: types, DialTimeout: cfg.KubeletTimeout.Duration,
	}, certain, rest.WriteError)
	if err != nil {
		return nil, err
	}
	if s.others, err = s.aggregation(); err != nil {
		return nil, err
	}
	s.rest = rest.New(rest.Config{
		Registry: reg, Others: s.others, Cache: s.cache, Store: st, Admission: plugins,
		Subs:    subresources(act, s.proxy, plugins),
		Virtual: virtual(act, func(rq *resources.Request) *authn.User { return authn.From(rq.Context) }),
		Observed: map[schema.GroupResource]rest.Observe{
			{Resource: "componentstatuses"}: actions.Components(cfg.components(st, log)),
		},
		Allocated: newServiceMetrics(s.web.Registry(), read, ports).allocated, Metrics: rest.NewMetrics(s.web.Registry()),
		Version: config.Version, Log: log.With("room", "rest"),
	})
	s.api.objects = s.rest.Objects()
	s.custom = crd.New(crd.Config{Registry: reg, Cache: s.cache, Writer: definitions{s.api}, Send: s.conversions(), Metrics: crd.NewMetrics(s.web.Registry()), Log: log.With("room", "crd")})

	// The port.
	s.fair = fairness.New(fairness.Config{
		Cache: s.cache, Writer: flowObjects{s.api}, Seats: cfg.MaxRequestsInFlight + cfg.MaxMutatingRequestsInFlight,
		Alone: !cfg.PriorityFairness, Wait: cfg.RequestTimeout.Duration / 4, Log: log.With("room", "fairness"),
	})
	c.authorizer, c.credentials, c.fair, c.others = authorizer, who.Authenticate, s.fair, s.others
	c.impersonator = &impersonation.Impersonator{Ask: c.mayImpersonate}
	c.timeout, c.log, c.handler, c.ready, c.ending = cfg.RequestTimeout.Duration, log, s.rest, s.cache.Ready(), s.ending
	s.web.Authorize(func(*http.Request) error { return nil }) // the chain has done it
	if s.audit, err = s.auditor(s.web.Registry()); err != nil {
		return nil, err
	}
	c.audit = s.audit
	c.metrics = newMetrics(s.web.Registry(), reg, s.cache, &c.reading, &c.writing)
	s.web.Registry().MustRegister(s.others, s.fair)
	s.endpoints(accounts)
	return s, nil
}

// resourceAt tells which resource's objects are stored at a key. Keys of kinds that are not
// served yet are those of custom resources; the rest are the server's own, in the core group.
func resourceAt(reg *resources.Registry) func(key string) schema.GroupResource {
	return func(key string) schema.GroupResource {
		first, rest, _ := strings.Cut(key, "/")
		second, _, _ := strings.Cut(rest, "/")
		if row := reg.ByPrefix(first + "/" + second); row != nil {
			return row.GR()
		}
		if row := reg.ByPrefix(first); row != nil {
			return row.GR()
		}
		if strings.Contains(first, ".") {
			return schema.GroupResource{Group: first, Resource: second}
		}
		return schema.GroupResource{Resource: first}
	}
}

// tune fits net/http to what clients do: many watches on few connections.
func tune(srv *http.Server) {
	srv.ConnContext = withIdentity
	srv.IdleTimeout = 3 * time.Minute
	srv.MaxHeaderBytes = 1 << 20
	srv.ReadHeaderTimeout = 32 * time.Second
	srv.HTTP2 = &http.HTTP2Config{
		// A client with a thousand watches opens four connections, which spreads them over cores.
		MaxConcurrentStreams: 250,
		SendPingTimeout:      30 * time.Second,
		PingTimeout:          15 * time.Second,
		WriteByteTimeout:     30 * time.Second,
	}
}

// authorizer is the chain of --authorization-mode, behind the administrators' own.
func (s *server) authorizer() (authz.Authorizer, *authz.RBAC, error) {
	read := s.cache.Reader()
	chain := authz.Chain{authz.Masters{}}
	var rbac *authz.RBAC
	decisions := series.Counter(s.web.Registry(), "apiserver_authorization_decisions_total", "Requests that an authorizer has decided on.", "type", "name", "decision")
	for _, mode := range s.cfg.AuthorizationMode {
		counted := func(z authz.Authorizer) authz.Authorizer {
			of := func(decision string) prometheus.Counter {
				return decisions.WithLabelValues(mode, strings.ToLower(mode), decision)
			}
			return authz.Counted{Authorizer: z, Allowed: of("allowed"), Denied: of("denied")}
		}
		switch mode {
		case "RBAC":
			var prefixes []string
			for _, gr := range authz.RBACResources {
				if row := s.reg.Storage(gr); row != nil {
					prefixes = append(prefixes, row.Prefix)
				}
			}
			rbac = &authz.RBAC{Read: read, Changed: s.cache.Changed(prefixes...)}
			chain = append(chain, counted(rbac))
		case "Node":
			policy, err := bootstrap.DefaultPolicy()
			if err != nil {
				return nil, nil, err
			}
			chain = append(chain, counted(&authz.Node{Read: read, Pods: s.podsOf, Rules: policy.NodeRules()}))
		case "AlwaysAllow":
			chain = append(chain, counted(authz.Fixed{Decision: authz.Allow}))
		case "AlwaysDeny":
			chain = append(chain, counted(authz.Fixed{Decision: authz.Deny, Reason: "everything is denied"}))
		}
	}
	return chain, rbac, nil
}

// podsOf yields the pods that are bound to a node, by the node index.
func (s *server) podsOf(node string, yield func(*corev1.Pod) bool) error {
	var failed error
	sel := watchcache.Selection{Prefix: "pods", Namespaced: true, Fields: fields.OneTermEqualSelector("spec.nodeName", node)}
	if err := s.cache.Snapshot().Scan(sel, "", func(it *watchcache.Item) bool {
		obj, err := it.Object()
		if err != nil {
			failed = err
			return false
		}
		return yield(obj.(*corev1.Pod))
	}); err != nil {
		return err
	}
	return failed
}

// updateQuota changes a quota's status on behalf of admission.
func (s *server) updateQuota(namespace, name string, change func(*corev1.ResourceQuota) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.api.Update(ctx, schema.GroupResource{Resource: "resourcequotas"}, "status", namespace, name,
		func(o resources.Object) (resources.Object, error) {
			q := o.DeepCopyObject().(*corev1.ResourceQuota)
			return q, change(q)
		})
}

// accounts reads the keys of service account tokens.
func (c Config) accounts(read resources.Reader) (*authn.ServiceAccounts, error) {
	a := &authn.ServiceAccounts{Issuer: c.ServiceAccountIssuer, Audiences: c.audiences(), Read: read, Now: time.Now}
	for _, f := range c.ServiceAccountKeyFiles {
		keys, err := authn.LoadPublicKeys(f)
		if err != nil {
			return nil, fmt.Errorf("--service-account-key-file: %w", err)
		}
		a.Keys = append(a.Keys, keys...)
	}
	if f := c.ServiceAccountSigningKey; f != "" {
		signer, err := authn.LoadPrivateKey(f)
		if err != nil {
			return nil, fmt.Errorf("--service-account-signing-key-file: %w", err)
		}
		a.Signer = signer
		if len(a.Keys) == 0 {
			if a.Keys, err = authn.LoadPublicKeys(f); err != nil {
				return nil, fmt.Errorf("--service-account-signing-key-file: %w", err)
			}
		}
	}
	return a, nil
}

func (c Config) audiences() []string {
	if len(c.APIAudiences) > 0 {
		return c.APIAudiences
	}
	return []string{c.ServiceAccountIssuer}
}

// endpoints adds what is neither a resource nor a debugging aid.
func (s *server) endpoints(accounts *authn.ServiceAccounts) {
	s.web.Configz("apiserver", s.cfg)
	s.web.Debug("watchcache", func() any { return s.cache.Stats() })
	s.web.Debug("crd", func() any { return s.custom.States() })
	s.web.Debug("aggregator", func() any { return s.others.States() })
	for _, c := range s.checks() {
		if c.live {
			s.web.LiveCheck(c.name, c.f)
		} else {
			s.web.Check(c.name, c.f)
		}
	}
	s.web.Handle("/debug/api_priority_and_fairness/{table}", http.HandlerFunc(s.dumpFairness))
	version := text("application/json", func() ([]byte, error) { return json.MarshalIndent(config.Build(), "", "  ") })
	s.web.HandleOpen("/{$}", index("application/json", s.paths))
	s.web.HandleOpen("/index.html", index("application/json", s.paths))
	s.web.Handle("/flagz", s.flagz())
	s.web.Handle("/statusz", s.statusz(time.Now()))
	base := "https://" + s.advertised().String()
	if s.advertised().Is6() {
		base = "https://[" + s.advertised().String() + "]"
	}
	base += fmt.Sprintf(":%d", s.cfg.Port)
	issuer := kept(text("application/json", func() ([]byte, error) {
		c, _, err := accounts.Discovery(base)
		if err == nil && s.cfg.ServiceAccountJWKSURI != "" {
			var doc map[string]any
			if err = json.Unmarshal(c, &doc); err == nil {
				doc["jwks_uri"] = s.cfg.ServiceAccountJWKSURI
				c, err = json.Marshal(doc)
			}
		}
		return c, err
	}))
	keys := kept(text("application/jwk-set+json", func() ([]byte, error) {
		_, k, err := accounts.Discovery(base)
		return k, err
	}))
	for path, h := range map[string]http.Handler{"/version": version, "/.well-known/openid-configuration": issuer, "/openid/v1/jwks": keys} {
		s.web.HandleOpen(path, h)
		s.web.HandleOpen(path+"/{$}", h)
	}
}

// kept lets clients keep the issuer's documents for an hour, as upstream: those who verify tokens ask for them.
func kept(f http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Cache-Control", "public, max-age=3600")
		}
		f.ServeHTTP(w, r)
	})
}

// text is a document that can only be read.
func text(contentType string, f func() ([]byte, error)) http.Handler {
	read := index(contentType, f)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			rest.WriteError(w, r, rest.NotAllowed())
			return
		}
		if !codec.Names(r.Header.Get("Accept"), contentType) {
			rest.WriteError(w, r, notAcceptable("406: Not Acceptable\n\nAvailable representations: "+contentType, &metav1.StatusDetails{}))
			return
		}
		read.ServeHTTP(w, r)
	})
}

// index answers whatever the method, as upstream.
func index(contentType string, f func() ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := f()
		if err != nil {
			w.Header().Set("Cache-Control", "no-cache, private")
			rest.WriteError(w, r, err)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(b) // the client has gone: nobody to tell
	})
}

// paths is the answer of "/": where there is something to read.
func (s *server) paths() ([]byte, error) {
	list := []string{"/.well-known/openid-configuration", "/api", "/api/v1", "/apis"}
	seen := map[string]bool{}
	for _, row := range s.reg.All() {
		if gv := row.GVR().GroupVersion(); row.Group != "" && !seen[gv.String()] {
			if !seen[row.Group] {
				seen[row.Group] = true
				list = append(list, "/apis/"+row.Group)
			}
			seen[gv.String()] = true
			list = append(list, "/apis/"+gv.String())
		}
	}
	for _, r := range s.others.Remotes() {
		list = append(list, "/apis/"+r.GroupVersion.String())
	}
	list = append(list, "/healthz/ping", "/livez/ping", "/readyz/ping", "/readyz/shutdown", "/metrics/slis")
	for _, c := range s.checks() {
		list = append(list, "/readyz/"+c.name)
		if c.live {
			list = append(list, "/healthz/"+c.name, "/livez/"+c.name)
		}
	}
	list = append(list, "/flagz", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/statusz", "/version")
	slices.Sort(list)
	return json.MarshalIndent(metav1.RootPaths{Paths: list}, "", "  ")
}

// serve answers until ctx ends; then readiness fails, after --shutdown-delay-duration
// watches end, and running requests are waited for.
func (s *server) serve(ctx context.Context) error {
	stop, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g := run.New(stop)
	g.Go("port", func(ctx context.Context) error {
		defer g.Stop()
		return s.web.Run(ctx)
	})
	g.Go("end", func(inner context.Context) error {
		select {
		case <-ctx.Done():
		case <-inner.Done():
			return nil
		}
		if d := s.cfg.ShutdownDelay.Duration; d > 0 {
			select {
			case <-time.After(d):
			case <-inner.Done():
			}
		}
		s.end(errStopping)
		cancel()
		return nil
	})
	err := g.Wait()
	s.proxy.Close()
	return err
}

// bootstrap makes the objects of a new cluster and then announces this server.
func (s *server) bootstrap(ctx context.Context) error {
	select {
	case <-s.cache.Ready():
	case <-ctx.Done():
		return nil
	}
	cidrs, err := s.cfg.serviceCIDRs()
	if err != nil {
		return err
	}
	bc := bootstrap.Config{
		ServiceCIDRs: cidrs, SecurePort: s.cfg.Port, ClusterDNS: s.cfg.clusterDNS(), FrontProxy: s.frontProxy(),
		Made: func(p bootstrap.Part) { s.steps.take(string(p)) },
	}
	for _, m := range s.cfg.AuthorizationMode {
		bc.Authorization = bc.Authorization || m == "RBAC"
	}
	pause := 100 * time.Millisecond
	for {
		if err := bootstrap.Ensure(ctx, s.api, bc, s.log.With("room", "bootstrap")); err == nil {
			break
		} else if ctx.Err() == nil {
			s.log.Warn("objects of a new cluster could not all be made; will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, 10*time.Second)
	}
	if s.cfg.EndpointReconcile == "none" {
		<-ctx.Done()
		return nil
	}
	m := &bootstrap.Masters{Store: s.st, API: s.api, Address: s.advertised(), Port: int32(s.cfg.Port), Log: s.log.With("room", "bootstrap")}
	if err := m.Run(ctx); err != nil { // its key will end by itself
		s.log.Warn("this server could not be taken out of the endpoints of default/kubernetes", "err", err)
	}
	return nil
}

// tendRanges keeps what is booked of addresses and node ports in step with the Services.
func (s *server) tendRanges(ctx context.Context) error {
	select {
	case <-s.cache.Ready():
	case <-ctx.Done():
		return nil
	}
	ports, err := s.cfg.nodePorts()
	if err != nil {
		return err
	}
	l := &ranges.Loop{
		Range: ports, Read: s.cache.Reader(), Commit: s.rest.Objects().Commit,
		Changed: s.cache.Changed("services/specs", "ipaddresses", "ranges"), Log: s.log.With("room", "ranges"),
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		err := l.Pass(ctx)
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			s.log.Warn("addresses and node ports could not all be checked; will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
	s.steps.take(rangesChecked)
	return l.Run(ctx)
}

// frontProxy is the content of kube-system/extension-apiserver-authentication.
func (s *server) frontProxy() map[string]string {
	data := map[string]string{}
	list := func(v []string) string {
		if v == nil {
			v = []string{}
		}
		b, err := json.Marshal(v)
		if err != nil {
			return "[]"
		}
		return string(b)
	}
	if s.clients != nil {
		s.clients.get()
		data["client-ca-file"] = string(s.clients.text)
	}
	if f := s.cfg.RequestHeaderCAFile; f != "" {
		if b, err := os.ReadFile(f); err == nil {
			data["requestheader-client-ca-file"] = string(b)
			data["requestheader-allowed-names"] = list(s.cfg.RequestHeaderNames)
			data["requestheader-username-headers"] = list(s.cfg.RequestHeaderUsers)
			data["requestheader-uid-headers"] = list(s.cfg.RequestHeaderUIDs)
			data["requestheader-group-headers"] = list(s.cfg.RequestHeaderGroups)
			data["requestheader-extra-headers-prefix"] = list(s.cfg.RequestHeaderExtra)
		}
	}
	return data
}

// advertised is the address that others reach this server at.
func (s *server) advertised() netip.Addr {
	if a, err := netip.ParseAddr(s.cfg.AdvertiseAddress); err == nil {
		return a
	}
	if a, err := netip.ParseAddr(s.cfg.BindAddress); err == nil && !a.IsUnspecified() {
		return a
	}
	// The address that a packet to the outside would leave from; nothing is sent.
	for _, to := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		c, err := net.Dial("udp", to)
		if err != nil {
			continue
		}
		a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		c.Close()
		return a
	}
	return netip.MustParseAddr("127.0.0.1")
}
