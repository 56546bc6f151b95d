// Package serve is the port that every daemon has: health, metrics, configuration, profiles and what
// its rooms know about themselves.
//
// The main calls are [New], then Handle, Check, LiveCheck, Debug and Configz in any order, then
// [Server.Run].
//
//	/livez /readyz /healthz          and /livez/<check>, which says why; ?verbose prints every check, ?exclude=<check> leaves one out
//	/metrics /metrics/slis           Prometheus text: of the daemon; of its health checks
//	/configz                         the configuration in use
//	/debug/<room>                    what a room owns, as JSON; /debug/ lists the rooms
//	/debug/pprof/                    Go profiles
//
// It promises: TLS 1.2 or newer with HTTP/2 (unless Plain), with a certificate made in memory when no
// file is given; certificate, key and client CA files are read again when they change; health is
// open to all and everything else only to those whom the authorizer admits (see [Server.Authorize]);
// READY=1 is sent to systemd when every readiness check first passes, WATCHDOG=1 while the liveness
// checks pass, STOPPING=1 when the context ends; then /readyz fails, and running requests get
// DrainTimeout to finish. A port that is in use, or a bad certificate, is an error that names the
// address or file.
//
// Goroutines: Run owns all of them and returns when they have ended.
package serve

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/h2"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/trace"
)

// Config says where and how to listen.
type Config struct {
	BindAddress       string `yaml:"bindAddress" flag:"bind-address" help:"address to listen on"`
	Port              int    `yaml:"securePort" flag:"secure-port" help:"TLS port; 0 does not listen"`
	TLSCertFile       string `yaml:"tlsCertFile" flag:"tls-cert-file" help:"serving certificate (PEM, with intermediates); empty makes one in memory"`
	TLSPrivateKeyFile string `yaml:"tlsPrivateKeyFile" flag:"tls-private-key-file" help:"key of the serving certificate (PEM)"`
	ClientCAFile      string `yaml:"clientCAFile" flag:"client-ca-file" help:"CA certificates (PEM) that admit clients"`

	// Plain serves HTTP without TLS. Only clients on a loopback address may read more than health,
	// unless Authorize was called.
	Plain bool `yaml:"-"`
	// GuardHealth asks of callers of /livez, /readyz and /healthz what Handle asks of all others. Otherwise
	// anybody may call them.
	GuardHealth bool `yaml:"-"`
	// Listener, when set, is used in place of BindAddress and Port. Run closes it.
	Listener net.Listener `yaml:"-"`
	// Silent leaves systemd alone: a daemon with two servers tells it only once.
	Silent bool `yaml:"-"`
	// Tune, when set, may change the HTTP server before it serves.
	Tune func(*http.Server) `yaml:"-"`
	// Wrap, when set, stands before every handler, health included: a daemon with an authentication
	// of its own puts it here, and lets Authorize admit everybody.
	Wrap func(http.Handler) http.Handler `yaml:"-"`
	// DrainTimeout is how long running requests may take after the end of the context; 0 means 10 s.
	DrainTimeout time.Duration `yaml:"-"`
}

// Validate checks what can be checked without opening files.
func (c Config) Validate() field.ErrorList {
	var errs field.ErrorList
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, field.Invalid(field.NewPath("securePort"), c.Port, "must be between 0 and 65535"))
	}
	if c.BindAddress != "" && net.ParseIP(c.BindAddress) == nil {
		errs = append(errs, field.Invalid(field.NewPath("bindAddress"), c.BindAddress, "must be an IP address"))
	}
	if (c.TLSCertFile == "") != (c.TLSPrivateKeyFile == "") {
		errs = append(errs, field.Invalid(field.NewPath("tlsPrivateKeyFile"), c.TLSPrivateKeyFile, "certificate and key must both be set, or neither"))
	}
	return errs
}

// Server is made by New.
type Server struct {
	cfg      Config
	log      *slog.Logger
	registry *prometheus.Registry
	checked  checked
	certs    *certificate
	cas      *authorities

	mu      sync.RWMutex // guards the fields below
	mux     *http.ServeMux
	live    []check
	ready   []check
	debug   map[string]func() any
	forms   map[string]http.Handler // of health, by path
	configz map[string]any
	allow   func(r *http.Request) error

	ended atomic.Bool
	addr  atomic.Pointer[string]
}

type check struct {
	name string
	f    func() error
}

// ErrUnauthenticated is returned by an authorizer for a caller who is nobody: 401 instead of 403.
var ErrUnauthenticated = errors.New("Unauthorized")

// New reads the certificate files, so that a wrong one is known before anything runs.
func New(cfg Config, log *slog.Logger) (*Server, error) {
	s := &Server{
		cfg: cfg, log: log,
		registry: prometheus.NewRegistry(),
		checked:  newChecked(),
		mux:      http.NewServeMux(),
		debug:    map[string]func() any{},
		forms:    map[string]http.Handler{},
		configz:  map[string]any{},
	}
	common(s.registry)
	ping := check{"ping", func() error { return nil }}
	s.live, s.ready = []check{ping}, []check{ping, {"shutdown", func() error { // the last one always
		if s.ended.Load() {
			return errors.New("the process is shutting down")
		}
		return nil
	}}}
	if !cfg.Plain {
		var err error
		if s.certs, err = newCertificate(cfg.TLSCertFile, cfg.TLSPrivateKeyFile); err != nil {
			return nil, err
		}
		if s.cas, err = newAuthorities(cfg.ClientCAFile); err != nil {
			return nil, err
		}
	}
	s.allow = s.certified
	s.builtin()
	return s, nil
}

// Handle adds a handler. Requests reach it only when the authorizer admits them.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, s.guard(h)) }

// HandleOpen adds a handler that anybody may call.
func (s *Server) HandleOpen(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Health gives /livez, /readyz or /healthz (path without the slash) another form, for daemons of which
// load balancers expect one. The checks below the path stay.
func (s *Server) Health(path string, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forms[path] = h
}

// Check adds a readiness check. f must answer at once, from memory.
func (s *Server) Check(name string, f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addReady(check{name, f})
}

// addReady keeps the end of the process at the end, as upstream. Readers may have the old list.
func (s *Server) addReady(c check) { s.ready = slices.Insert(slices.Clone(s.ready), len(s.ready)-1, c) }

// LiveCheck adds a check to liveness and readiness. The watchdog of systemd hangs on it.
func (s *Server) LiveCheck(name string, f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = append(s.live, check{name, f})
	s.addReady(check{name, f})
}

// Debug adds /debug/<room>: the value of f as JSON. A query parameter is no argument of it.
func (s *Server) Debug(room string, f func() any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.debug[room] = f
}

// Configz shows cfg under name at /configz.
func (s *Server) Configz(name string, cfg any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configz[name] = config.Values(cfg)
}

// Registry is what /metrics shows.
func (s *Server) Registry() *prometheus.Registry { return s.registry }

// Authorize sets who may read anything but health. The error that f returns is shown to the caller.
//
// Without it: a client whose certificate the client CA signed; on a Plain server, a client on a
// loopback address.
func (s *Server) Authorize(f func(r *http.Request) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allow = f
}

// Addr is the address that Run listens on, "" before.
func (s *Server) Addr() string {
	if a := s.addr.Load(); a != nil {
		return *a
	}
	return ""
}

func (s *Server) certified(r *http.Request) error {
	if s.cfg.Plain {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return errors.New("only clients on this host may read this")
		}
		return nil
	}
	_, err := s.cas.verify(r)
	return err
}

func (s *Server) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.RLock()
		allow := s.allow
		s.mu.RUnlock()
		if err := allow(r); err != nil {
			code := http.StatusForbidden
			if errors.Is(err, ErrUnauthenticated) {
				code = http.StatusUnauthorized
			}
			http.Error(w, err.Error(), code)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (s *Server) builtin() {
	for _, path := range []string{"livez", "readyz", "healthz"} {
		add, h := s.HandleOpen, http.Handler(s.health(path))
		if s.cfg.GuardHealth {
			add = s.Handle
		}
		add("/"+path, h) // whatever the method, as upstream: some load balancers POST
		add("/"+path+"/{check...}", h)
	}
	s.Handle("/metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	s.Handle("/metrics/slis", promhttp.HandlerFor(s.checked.registry, promhttp.HandlerOpts{}))
	s.Handle("GET /configz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		writeJSON(w, s.configz)
	}))
	s.Handle("GET /debug/{$}", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		rooms := []string{"pprof/"}
		for room := range s.debug {
			rooms = append(rooms, room)
		}
		slices.Sort(rooms)
		writeJSON(w, rooms)
	}))
	s.Handle("GET /debug/{room}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.RLock()
		f := s.debug[r.PathValue("room")]
		s.mu.RUnlock()
		if f == nil {
			http.NotFound(w, r)
			return
		}
		writeJSON(w, f())
	}))
	s.Handle("/debug/pprof/", http.HandlerFunc(pprof.Index))
	s.Handle("/debug/pprof/cmdline", http.HandlerFunc(pprof.Cmdline))
	s.Handle("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	s.Handle("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	s.Handle("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(data, '\n')) // the client has gone: nobody to tell
}

// health answers in the form that kubectl and load balancers know from upstream: "ok", or with
// ?verbose or a failure one line for each check.
func (s *Server) health(path string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.RLock()
		checks := s.live
		if path == "readyz" {
			checks = s.ready
		}
		form := s.forms[path]
		s.mu.RUnlock()
		if r.URL.Path == "/"+path+"/" { // no check has no name
			http.NotFound(w, r)
			return
		}
		if form != nil && r.PathValue("check") == "" {
			form.ServeHTTP(w, r)
			return
		}
		if only := r.PathValue("check"); only != "" {
			i := slices.IndexFunc(checks, func(c check) bool { return c.name == only })
			if i < 0 {
				http.NotFound(w, r)
				return
			}
			s.one(w, r, path, checks[i])
			return
		}
		var b strings.Builder
		var failed []string
		exclude := r.URL.Query()["exclude"]
		unknown := slices.DeleteFunc(slices.Clone(exclude), func(name string) bool {
			return slices.ContainsFunc(checks, func(c check) bool { return c.name == name })
		})
		for _, c := range checks {
			if slices.Contains(exclude, c.name) {
				fmt.Fprintf(&b, "[+]%s excluded: ok\n", c.name)
				continue
			}
			err := s.run(path, c)
			if err != nil {
				failed = append(failed, c.name)
				// The reason may tell of the inside of the cluster, and anybody may ask: it goes to the log.
				fmt.Fprintf(&b, "[-]%s failed: reason withheld\n", c.name)
				s.log.Debug("health check failed", "check", c.name, "path", path, "err", err)
			} else {
				fmt.Fprintf(&b, "[+]%s ok\n", c.name)
			}
		}
		if len(unknown) > 0 {
			slices.Sort(unknown)
			fmt.Fprintf(&b, "warn: some health checks cannot be excluded: no matches for %s\n", quoted(slices.Compact(unknown)))
		}
		plainText(w)
		_, verbose := r.URL.Query()["verbose"]
		switch {
		case len(failed) > 0:
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, "%s%s check failed\n", b.String(), path)
		case verbose:
			fmt.Fprintf(w, "%s%s check passed\n", b.String(), path)
		default:
			fmt.Fprint(w, "ok")
		}
	}
}

// one answers for a check by itself. Why it fails is told to those who may read more than health.
func (s *Server) one(w http.ResponseWriter, r *http.Request, path string, c check) {
	err := s.run(path, c)
	plainText(w)
	if err == nil {
		fmt.Fprint(w, "ok")
		return
	}
	s.mu.RLock()
	allow := s.allow
	s.mu.RUnlock()
	if allow(r) != nil {
		err = errors.New("reason withheld")
	}
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, "internal server error: %v\n", err)
}

func plainText(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-cache, private")
}

func quoted(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strconv.Quote(n)
	}
	return strings.Join(out, ",")
}

// failing runs the checks of a path for the service manager, up to the first that fails.
func (s *Server) failing(path string, checks []check) error {
	for _, c := range checks {
		if err := s.run(path, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// run runs a check and counts its outcome.
func (s *Server) run(path string, c check) error {
	err := c.f()
	s.checked.observe(c.name, path, err)
	return err
}

// Run listens and serves until ctx ends, then drains.
func (s *Server) Run(ctx context.Context) error {
	g := run.New(ctx)
	l, err := s.listen(ctx)
	if err != nil {
		return err
	}
	if l != nil {
		addr := l.Addr().String()
		s.addr.Store(&addr)
		var handler http.Handler = s.mux
		if s.cfg.Wrap != nil {
			handler = s.cfg.Wrap(handler)
		}
		srv := &http.Server{
			Handler:           trace.Handler(handler),
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       90 * time.Second,
			MaxHeaderBytes:    64 << 10,
			ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
			TLSConfig:         s.tls(),
		}
		if s.cfg.Tune != nil {
			s.cfg.Tune(srv)
		}
		if !s.cfg.Plain {
			h2.Configure(srv)
		}
		g.Go("serve "+addr, func(context.Context) error {
			var err error
			if s.cfg.Plain {
				err = srv.Serve(l)
			} else {
				err = srv.ServeTLS(h2.Listener(l), "", "")
			}
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		})
		g.Go("drain", func(ctx context.Context) error {
			<-ctx.Done()
			s.ended.Store(true)
			limit := s.cfg.DrainTimeout
			if limit == 0 {
				limit = 10 * time.Second
			}
			dctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			if err := srv.Shutdown(dctx); err != nil {
				s.log.Warn("requests were cut off at the end of the drain time", "took", limit)
				return srv.Close()
			}
			return nil
		})
	}
	if !s.cfg.Silent {
		g.Go("systemd", s.systemd)
	}
	return g.Wait()
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	if s.cfg.Listener != nil || s.cfg.Port == 0 {
		return s.cfg.Listener, nil
	}
	addr := net.JoinHostPort(s.cfg.BindAddress, strconv.Itoa(s.cfg.Port))
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w (is another copy running? the port is set with --secure-port)", addr, err)
	}
	return l, nil
}

func (s *Server) tls() *tls.Config {
	if s.cfg.Plain {
		return nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Asked for, not required: health is open, and the authorizer verifies (verify, in certs.go).
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certs.get() },
		// Small records at the beginning would help slow links and cost everybody else.
		DynamicRecordSizingDisabled: true,
	}
}

// systemd tells the service manager how the daemon is, if one started it.
func (s *Server) systemd(ctx context.Context) error {
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		s.mu.RLock()
		ready := s.ready
		s.mu.RUnlock()
		if s.failing("readyz", ready) == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		}
	}
	s.notify(daemon.SdNotifyReady)
	s.log.Info("ready", "address", s.Addr())
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("watchdog of systemd is not usable", "err", err)
	}
	if err == nil && interval > 0 {
		poll.Reset(interval / 3)
	} else {
		poll.Stop()
	}
	for {
		select {
		case <-ctx.Done():
			s.notify(daemon.SdNotifyStopping)
			return nil
		case <-poll.C:
			s.mu.RLock()
			live := s.live
			s.mu.RUnlock()
			if err := s.failing("livez", live); err != nil {
				s.log.Error("liveness fails; the watchdog of systemd is not fed", "err", err)
				continue
			}
			s.notify(daemon.SdNotifyWatchdog)
		}
	}
}

func (s *Server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("systemd could not be told", "state", state, "err", err)
	}
}
