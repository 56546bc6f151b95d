package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keelson/keelson/deploy/config"
)

// Phase is where a service is in its life.
type Phase string

const (
	Waiting  Phase = "waiting"
	Starting Phase = "starting"
	Ready    Phase = "ready"
	Backing  Phase = "backoff"
	Stopping Phase = "stopping"
	Stopped  Phase = "stopped"
)

// Status is what is known of one service.
type Status struct {
	Name     string    `json:"name"`
	Phase    Phase     `json:"phase"`
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since"`          // of the phase
	Restarts int       `json:"restarts"`       // since it was applied
	Last     string    `json:"last,omitempty"` // how it last ended
	Waits    []string  `json:"waits,omitempty"`
	LogFile  string    `json:"logFile"`
}

// SocketName is the supervisor's socket within its directory.
const SocketName = "supervisor.sock"

// Supervisor runs the services. dir holds its socket, pid files and notify sockets.
type Supervisor struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	order   []string
	keepers map[string]*keeper
	status  map[string]Status
	changed chan struct{} // closed and replaced at every change of status

	shutdown chan struct{}
	once     sync.Once
	wg       sync.WaitGroup  // keepers
	life     context.Context // of the keepers
}

// errLeft is why keepers end with their supervisor: their services go on.
var errLeft = errors.New("the supervisor ends")

type keeper struct {
	service config.Service
	cancel  context.CancelFunc // stop for good
	want    chan bool          // true: run, false: stay stopped; newest wins
	done    chan struct{}
}

// Run serves the socket until Shutdown is called or ctx ends. At the end of ctx the
// services go on running: only Shutdown stops them. listening is called once clients
// can connect.
func Run(ctx context.Context, dir string, log *slog.Logger, listening func()) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	s := &Supervisor{dir: dir, log: log, keepers: map[string]*keeper{}, status: map[string]Status{},
		changed: make(chan struct{}), shutdown: make(chan struct{})}
	var leave context.CancelCauseFunc
	s.life, leave = context.WithCancelCause(context.Background())
	defer leave(errLeft)
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another supervisor runs already with %s: %w", dir, err)
	}
	socket := filepath.Join(dir, SocketName)
	_ = os.Remove(socket) // a dead supervisor's: the lock is ours
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	listening()
	if list, err := s.stored(); err != nil {
		log.Warn("the stored services cannot be read; waiting to be told", "err", err)
	} else {
		s.apply(list)
	}
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	trim := time.NewTicker(10 * time.Second)
	defer trim.Stop()
	for {
		select {
		case <-trim.C:
			s.trimLogs()
			continue
		case <-ctx.Done():
			log.Info("the supervisor ends; the services go on", "why", context.Cause(ctx))
		case err := <-served:
			log.Error("the supervisor's socket failed", "err", err)
		case <-s.shutdown:
			log.Info("stopped")
		}
		break
	}
	// Let the last answers out; watchers are cut off.
	last, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_ = server.Shutdown(last)
	_ = server.Close()
	// A keeper that stayed would start a service again that somebody else looks after by then.
	leave(errLeft)
	left := make(chan struct{})
	go func() { s.wg.Wait(); close(left) }()
	select {
	case <-left:
	case <-time.After(300 * time.Millisecond): // one is about to stop its service; whoever comes next finds it running
	}
	return nil
}

func (s *Supervisor) stored() (list []config.Service, err error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "services.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	return list, err
}

// apply makes the services those of list: new ones start, changed ones restart, others
// stop. It does not wait.
func (s *Supervisor) apply(list []config.Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []*keeper
	names := map[string]bool{}
	s.order = nil
	for _, sv := range list {
		names[sv.Name] = true
		s.order = append(s.order, sv.Name)
	}
	for name, k := range s.keepers {
		if !names[name] {
			gone = append(gone, k)
			delete(s.keepers, name)
			delete(s.status, name)
		}
	}
	for _, sv := range list {
		old := s.keepers[sv.Name]
		if old != nil && reflect.DeepEqual(old.service, sv) {
			old.tell(true)
			continue
		}
		ctx, cancel := context.WithCancel(s.life)
		k := &keeper{service: sv, cancel: cancel, want: make(chan bool, 1), done: make(chan struct{})}
		s.keepers[sv.Name] = k
		s.status[sv.Name] = Status{Name: sv.Name, Phase: Waiting, Since: time.Now(), LogFile: sv.LogFile}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer close(k.done)
			if old != nil { // its successor begins when it is gone
				old.cancel()
				<-old.done
			}
			s.keep(ctx, k)
		}()
	}
	for _, k := range gone {
		k.cancel()
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (k *keeper) tell(run bool) {
	for {
		select {
		case k.want <- run:
			return
		default:
		}
		select { // drop the older wish
		case <-k.want:
		default:
		}
	}
}

func (s *Supervisor) set(name string, f func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.status[name]
	if !ok {
		return
	}
	before := st.Phase
	f(&st)
	if st.Phase != before {
		st.Since = time.Now()
	}
	s.status[name] = st
	close(s.changed)
	s.changed = make(chan struct{})
}

// snapshot returns the services in starting order and a channel closed at the next change.
func (s *Supervisor) snapshot() ([]Status, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Status, 0, len(s.order))
	for _, name := range s.order {
		out = append(out, s.status[name])
	}
	return out, s.changed
}

// notReady returns which of names are not ready.
func (s *Supervisor) notReady(names []string) (waits []string, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if st, known := s.status[n]; known && st.Phase != Ready {
			waits = append(waits, n)
		}
	}
	return waits, s.changed
}

// keep runs one service until ctx ends, which stops it, unless the supervisor leaves.
func (s *Supervisor) keep(ctx context.Context, k *keeper) {
	sv := k.service
	log := s.log.With("service", sv.Name)
	n, err := listen(s.dir, sv.Name)
	if err != nil {
		s.set(sv.Name, func(st *Status) { st.Phase, st.Last = Stopped, err.Error() })
		log.Error("no socket for its notifications", "err", err)
		return
	}
	defer n.close()
	failures, running := 0, true
	p := adopt(s.dir, sv.Name)
	if p != nil {
		s.set(sv.Name, func(st *Status) { st.Phase, st.PID = Ready, p.pid })
		log.Info("found running", "pid", p.pid)
	}
	for ctx.Err() == nil {
		if !running {
			s.set(sv.Name, func(st *Status) { st.Phase, st.PID = Stopped, 0 })
			select {
			case <-ctx.Done():
				return
			case running = <-k.want:
				failures = 0
			}
			continue
		}
		if p == nil {
			if waits, changed := s.notReady(sv.After); len(waits) > 0 {
				s.set2(sv.Name, waits)
				select {
				case <-changed:
				case <-ctx.Done():
				case running = <-k.want:
				}
				continue
			}
			s.set(sv.Name, func(st *Status) { st.Phase, st.Waits = Starting, nil })
			if p, err = spawn(sv, s.dir, n.path); err != nil {
				failures++
				log.Error("cannot be started", "err", err)
				running = s.pause(ctx, k, &failures, 0, err.Error())
				p = nil
				continue
			}
			s.set(sv.Name, func(st *Status) { st.PID = p.pid })
			log.Info("started", "pid", p.pid)
		}
		why := s.attend(ctx, k, n, p)
		if context.Cause(ctx) == errLeft {
			return
		}
		if why != "" { // asked to stop
			s.set(sv.Name, func(st *Status) { st.Phase = Stopping })
			stop(p, sv.StopWithin)
			log.Info("stopped", "pid", p.pid, "why", why)
			_ = os.Remove(pidFile(s.dir, sv.Name))
			p, running = nil, false
			continue
		}
		ran := time.Since(p.began)
		how := p.how
		p = nil
		_ = os.Remove(pidFile(s.dir, sv.Name))
		failures++
		log.Warn("ended; it will be started again", "how", how, "ran", ran.Round(time.Millisecond))
		running = s.pause(ctx, k, &failures, ran, how)
	}
	if p != nil && context.Cause(ctx) != errLeft {
		stop(p, sv.StopWithin)
		_ = os.Remove(pidFile(s.dir, sv.Name))
	}
}

// set2 records what a service waits for, without waking anyone when nothing changed:
// waiters wake each other otherwise.
func (s *Supervisor) set2(name string, waits []string) {
	s.mu.Lock()
	st := s.status[name]
	same := st.Phase == Waiting && slices.Equal(st.Waits, waits)
	s.mu.Unlock()
	if !same {
		s.set(name, func(st *Status) { st.Phase, st.PID, st.Waits = Waiting, 0, waits })
	}
}

// pause waits out the back-off; it reports whether the service is still wanted.
func (s *Supervisor) pause(ctx context.Context, k *keeper, failures *int, ran time.Duration, how string) bool {
	d, f := Backoff(*failures, ran)
	*failures = f
	s.set(k.service.Name, func(st *Status) { st.Phase, st.PID, st.Last, st.Restarts = Backing, 0, how, st.Restarts+1 })
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case run := <-k.want:
		return run
	}
}

// attend follows a running service until it ends ("") or must be stopped (the reason).
func (s *Supervisor) attend(ctx context.Context, k *keeper, n *notifier, p *process) string {
	sv := k.service
	var watchdog <-chan time.Time
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-p.ended:
			return ""
		case <-ctx.Done():
			return "no longer wanted"
		case run := <-k.want:
			if !run {
				return "asked to"
			}
		case m := <-n.messages:
			if m.ready {
				s.set(sv.Name, func(st *Status) { st.Phase = Ready })
			}
			if m.ping && sv.Watchdog > 0 { // it pings: from now on it must
				timer.Reset(sv.Watchdog)
				watchdog = timer.C
			}
		case <-watchdog:
			s.log.Error("no sign of life: killed", "service", sv.Name, "pid", p.pid, "limit", sv.Watchdog)
			p.signal(syscall.SIGABRT) // Go prints its goroutines
			select {
			case <-p.ended:
			case <-time.After(5 * time.Second):
				p.signal(syscall.SIGKILL)
			}
			watchdog = nil
		}
	}
}

// stop ends a process and returns when it is gone.
func stop(p *process, within time.Duration) {
	p.signal(syscall.SIGTERM)
	if within <= 0 {
		within = 10 * time.Second
	}
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-p.ended:
		return
	case <-t.C:
	}
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// StopOrder groups names so that each group may stop together once the earlier ones
// have: dependants first. It is pure.
func StopOrder(list []config.Service, names []string) [][]string {
	left := map[string]bool{}
	for _, n := range names {
		left[n] = true
	}
	var out [][]string
	for len(left) > 0 {
		var group []string
		for _, sv := range list {
			if !left[sv.Name] {
				continue
			}
			needed := slices.ContainsFunc(list, func(o config.Service) bool { return left[o.Name] && slices.Contains(o.After, sv.Name) })
			if !needed {
				group = append(group, sv.Name)
			}
		}
		if len(group) == 0 { // unknown names, or a circle: all at once
			for n := range left {
				group = append(group, n)
			}
			slices.Sort(group)
		}
		for _, n := range group {
			delete(left, n)
		}
		out = append(out, group)
	}
	return out
}

// stopServices stops the named services, dependants first, and waits for them.
func (s *Supervisor) stopServices(ctx context.Context, names []string) error {
	s.mu.Lock()
	var list []config.Service
	for _, n := range s.order {
		list = append(list, s.keepers[n].service)
	}
	s.mu.Unlock()
	for _, group := range StopOrder(list, names) {
		s.mu.Lock()
		for _, n := range group {
			if k := s.keepers[n]; k != nil {
				k.tell(false)
			}
		}
		s.mu.Unlock()
		for {
			waits := ""
			all, changed := s.snapshot()
			for _, st := range all {
				if slices.Contains(group, st.Name) && st.Phase != Stopped {
					waits = st.Name
				}
			}
			if waits == "" {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return fmt.Errorf("%s has not stopped: %w", waits, context.Cause(ctx))
			}
		}
	}
	return nil
}

func (s *Supervisor) trimLogs() {
	all, _ := s.snapshot()
	for _, st := range all {
		if err := trimLog(st.LogFile, LogLimitBytes); err != nil {
			s.log.Warn("a log cannot be trimmed", "file", st.LogFile, "err", err)
		}
	}
}

func (s *Supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		all, _ := s.snapshot()
		_ = json.NewEncoder(w).Encode(all)
	})
	mux.HandleFunc("GET /watch", func(w http.ResponseWriter, r *http.Request) {
		enc := json.NewEncoder(w)
		for {
			all, changed := s.snapshot()
			if enc.Encode(all) != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("POST /apply", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		var list []config.Service
		if err == nil {
			err = json.Unmarshal(b, &list)
		}
		if err == nil {
			_, err = config.WriteFile(filepath.Join(s.dir, "services.json"), b, 0o600)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.apply(list)
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		if err := s.stopServices(r.Context(), strings.Split(r.FormValue("names"), ",")); err != nil {
			http.Error(w, err.Error(), http.StatusGatewayTimeout)
		}
	})
	mux.HandleFunc("POST /start", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, n := range strings.Split(r.FormValue("names"), ",") {
			k := s.keepers[n]
			if k == nil {
				http.Error(w, "no such service: "+n, http.StatusNotFound)
				return
			}
			k.tell(true)
		}
	})
	mux.HandleFunc("POST /shutdown", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		names := slices.Clone(s.order)
		s.mu.Unlock()
		if err := s.stopServices(r.Context(), names); err != nil {
			http.Error(w, err.Error(), http.StatusGatewayTimeout)
			return
		}
		_ = os.Remove(filepath.Join(s.dir, "services.json"))
		s.once.Do(func() { close(s.shutdown) })
	})
	return mux
}
