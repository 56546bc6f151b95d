package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/testkit"
)

// serveAs makes the test's own binary the daemon: started again with this variable
// set, it is cmd/apiserver and nothing else, so that a test can kill it.
const serveAs = "KEELSON_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveAs) != "" {
		config.Main("apiserver", "serve the Kubernetes API", Default(), Run) // does not come back
	}
	os.Exit(m.Run())
}

// mortal is an API server in a process of its own that is killed and started again on
// the same data.
type mortal struct {
	t    *testing.T
	url  string
	args []string
	cmd  *exec.Cmd
	gone chan struct{} // closed when cmd has ended
	said *bytes.Buffer
	http *http.Client
}

func newMortal(t *testing.T) *mortal {
	t.Helper()
	p := newPKI(t)
	p.make(t, "server", &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	s := &mortal{t: t, url: fmt.Sprintf("https://127.0.0.1:%d", port), http: p.client(t, "admin", "system:masters"), args: []string{
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--tls-cert-file=" + p.file("server.crt"), "--tls-private-key-file=" + p.file("server.key"),
		"--client-ca-file=" + p.file("ca.crt"), "--service-account-signing-key-file=" + p.file("server.key"), "--endpoint-reconciler-type=none",
		"--etcd-data-dir=" + t.TempDir(),
	}}
	s.start()
	t.Cleanup(s.kill)
	return s
}

// start returns when the server is ready.
func (s *mortal) start() {
	s.t.Helper()
	s.said = &bytes.Buffer{}
	s.cmd = exec.Command(os.Args[0], s.args...)
	s.cmd.Env = append(os.Environ(), serveAs+"=1")
	s.cmd.Stderr, s.cmd.Stdout = s.said, s.said
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, gone := s.cmd, make(chan struct{})
	s.gone = gone
	go func() { _ = cmd.Wait(); close(gone) }()
	for end := time.Now().Add(4 * time.Minute); ; {
		resp, err := s.http.Get(s.url + "/readyz")
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return
			}
		}
		select {
		case <-gone:
			s.t.Fatalf("the server has ended:\n%s", s.said)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(end) {
			s.kill()
			s.t.Fatalf("not ready: %v\n%s", err, s.said)
		}
	}
}

// kill gives no time to say goodbye.
func (s *mortal) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		<-s.gone
		s.cmd = nil
		s.http.CloseIdleConnections()
	}
}

// lives kills and starts the server n times, each after a random part of most.
func (s *mortal) lives(n int, most time.Duration) {
	s.t.Helper()
	for range n {
		time.Sleep(most/4 + rand.N(most*3/4))
		s.kill()
		s.start()
	}
}

// reply is what the server has answered; code 0: nothing, nobody knows what has happened.
type reply struct {
	code int
	body []byte
}

func (s *mortal) ask(method, path string, body any) reply {
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		r = bytes.NewReader(raw)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, r)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return reply{}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 500 {
		return reply{}
	}
	return reply{resp.StatusCode, text}
}

// configMap is the part of a ConfigMap that these tests look at.
type configMap struct {
	Metadata struct {
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion,omitempty"`
	} `json:"metadata"`
	Data map[string]string `json:"data"`
}

func newMap(name, value, rev string) *configMap {
	m := &configMap{Data: map[string]string{"v": value}}
	m.Metadata.Name, m.Metadata.ResourceVersion = name, rev
	return m
}

func (m *configMap) rev() int64 {
	n, _ := strconv.ParseInt(m.Metadata.ResourceVersion, 10, 64)
	return n
}

const mapsPath = "/api/v1/namespaces/default/configmaps"

type mapList struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Items []configMap `json:"items"`
}

func (s *mortal) list(query string) (l mapList, ok bool) {
	r := s.ask("GET", mapsPath+query, nil)
	return l, r.code == 200 && json.Unmarshal(r.body, &l) == nil
}

// follower watches as an informer does: it goes on from the last revision that it knows of
// and lists only when the server tells it to.
type follower struct {
	s      *mortal
	name   string
	rev    int64
	state  map[string]int64   // name → revision
	seen   map[string][]int64 // every revision that was seen of a name, by event or list
	spans  [][2]int64         // from the revision of a list to the last one known before the next list
	faults []string
	again  int          // watches opened
	at     atomic.Int64 // rev, for others to read
}

// reached notes that everything up to rev is known.
func (f *follower) reached(rev int64) {
	f.rev = rev
	f.spans[len(f.spans)-1][1] = rev
	f.at.Store(rev)
}

func (f *follower) fault(format string, args ...any) {
	f.faults = append(f.faults, f.name+": "+fmt.Sprintf(format, args...))
}

func (f *follower) note(name string, rev int64) {
	if old := f.state[name]; rev < old {
		f.fault("%s went from revision %d back to %d", name, old, rev)
	} else if rev == old {
		f.fault("%s was told twice at revision %d", name, rev)
	}
	f.state[name] = rev
	f.seen[name] = append(f.seen[name], rev)
}

// relist takes the state of now, which is no older than what was known.
func (f *follower) relist() bool {
	l, ok := f.s.list("")
	if !ok {
		return false
	}
	rev, _ := strconv.ParseInt(l.Metadata.ResourceVersion, 10, 64)
	if rev < f.rev {
		f.fault("a list is of revision %d, after %d was known", rev, f.rev)
	}
	there := map[string]bool{}
	for i := range l.Items {
		m := &l.Items[i]
		there[m.Metadata.Name] = true
		if m.rev() != f.state[m.Metadata.Name] {
			f.note(m.Metadata.Name, m.rev())
		}
	}
	for name := range f.state {
		if !there[name] {
			f.fault("%s is missing in a list at %d", name, rev)
		}
	}
	f.spans = append(f.spans, [2]int64{rev, rev})
	f.reached(rev)
	return true
}

// run follows until ctx ends, through any number of deaths.
func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		if f.rev == 0 && !f.relist() {
			pause(ctx)
			continue
		}
		req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("%s%s?watch=1&allowWatchBookmarks=true&resourceVersion=%d", f.s.url, mapsPath, f.rev), nil)
		if err != nil {
			panic(err)
		}
		client := &http.Client{Transport: f.s.http.Transport} // without a time limit
		resp, err := client.Do(req)
		if err != nil {
			pause(ctx)
			continue
		}
		f.again++
		gone := resp.StatusCode == http.StatusGone
		if resp.StatusCode == 200 {
			gone = f.read(resp.Body)
		}
		resp.Body.Close()
		if gone && !f.relist() {
			pause(ctx)
		} else if resp.StatusCode != 200 {
			pause(ctx)
		}
	}
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
}

// read takes events until the stream ends; gone tells that the server wants a new list.
func (f *follower) read(body io.Reader) (gone bool) {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Type   string
			Object struct {
				configMap
				Code int
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return false // cut off by the end of the server
		}
		rev := e.Object.rev()
		switch e.Type {
		case "ERROR":
			if e.Object.Code != http.StatusGone {
				f.fault("the stream says %s", lines.Bytes())
			}
			return true
		case "BOOKMARK":
		case "ADDED", "MODIFIED":
			if rev <= f.rev {
				f.fault("event of %d after %d", rev, f.rev)
			}
			f.note(e.Object.Metadata.Name, rev)
		default:
			f.fault("unexpected event %s", lines.Bytes())
		}
		f.reached(max(f.rev, rev))
	}
	return false
}

// A server that is killed at any moment has every write that it has acknowledged; its
// revisions only grow; and who watches on from the last revision that it knows misses nothing.
func TestKilledServerForgetsNothing(t *testing.T) {
	s := newMortal(t)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	const writers, watchers, deaths = 6, 3, 5

	var group, watching sync.WaitGroup
	followers := make([]*follower, watchers)
	for i := range followers {
		f := &follower{s: s, name: fmt.Sprintf("watcher %d", i), state: map[string]int64{}, seen: map[string][]int64{}}
		followers[i] = f
		watching.Go(func() { f.run(ctx) })
	}
	var done atomic.Bool
	type write struct {
		name  string
		rev   int64
		value string
	}
	acknowledged := make([][]write, writers)
	faults := make([]string, writers)
	for w := range writers {
		group.Go(func() {
			var last int64
			for i := 0; !done.Load(); i++ {
				// A new object, which is then changed a few times.
				name := fmt.Sprintf("w%d-%d", w, i)
				rev := ""
				for j := range 4 {
					value := strconv.Itoa(j)
					var r reply
					if j == 0 {
						r = s.ask("POST", mapsPath, newMap(name, value, ""))
					} else {
						r = s.ask("PUT", mapsPath+"/"+name, newMap(name, value, rev))
					}
					if r.code == 0 {
						time.Sleep(5 * time.Millisecond)
						break // nobody knows; on to another object
					}
					var m configMap
					if r.code > 201 || json.Unmarshal(r.body, &m) != nil {
						faults[w] = fmt.Sprintf("%s=%s: %d %s", name, value, r.code, r.body)
						return
					}
					if m.rev() <= last {
						faults[w] = fmt.Sprintf("%s=%s has revision %d, an earlier write had %d", name, value, m.rev(), last)
						return
					}
					last, rev = m.rev(), m.Metadata.ResourceVersion
					acknowledged[w] = append(acknowledged[w], write{name, m.rev(), value})
				}
			}
		})
	}
	s.lives(deaths, 2*time.Second)
	time.Sleep(500 * time.Millisecond) // some writes after the last start
	done.Store(true)
	group.Wait()
	for _, f := range faults {
		if f != "" {
			t.Error(f)
		}
	}
	l, ok := s.list("")
	if !ok {
		t.Fatal("cannot list at the end")
	}
	end, _ := strconv.ParseInt(l.Metadata.ResourceVersion, 10, 64)
	now := map[string]*configMap{}
	for i := range l.Items {
		now[l.Items[i].Metadata.Name] = &l.Items[i]
	}
	// Every acknowledged write is there, or one that came after it.
	total := 0
	for _, list := range acknowledged {
		total += len(list)
		for _, a := range list {
			m := now[a.name]
			if m == nil || m.rev() < a.rev || m.rev() == a.rev && m.Data["v"] != a.value {
				t.Errorf("%s=%s was acknowledged at %d; at the end there is %+v", a.name, a.value, a.rev, m)
			}
			if a.rev > end {
				t.Errorf("%s was acknowledged at %d; the list at the end is of %d", a.name, a.rev, end)
			}
		}
	}
	// Every watcher comes to the end, and knows then what is there.
	last := s.ask("POST", mapsPath, newMap("last", "", ""))
	var m configMap
	if last.code != 201 || json.Unmarshal(last.body, &m) != nil {
		t.Fatalf("last write: %d %s", last.code, last.body)
	}
	now["last"] = &m
	testkit.Eventually(t, 20*time.Second, func() (bool, string) {
		for _, f := range followers {
			if at := f.at.Load(); at < m.rev() {
				return false, fmt.Sprintf("%s is at %d, the last write was %d", f.name, at, m.rev())
			}
		}
		return true, ""
	})
	stop()
	watching.Wait()
	for _, f := range followers {
		for _, fault := range f.faults {
			t.Error(fault)
		}
		if len(f.state) != len(now) {
			t.Errorf("%s knows of %d objects, there are %d", f.name, len(f.state), len(now))
		}
		for name, m := range now {
			if f.state[name] != m.rev() {
				t.Errorf("%s has seen %s at %d, it is at %d", f.name, name, f.state[name], m.rev())
			}
		}
		// From a list to the next nothing is left out: every acknowledged write was an event.
		for _, span := range f.spans {
			for _, list := range acknowledged {
				for _, a := range list {
					if span[0] < a.rev && a.rev <= span[1] && !slices.Contains(f.seen[a.name], a.rev) {
						t.Errorf("%s followed from %d to %d and has missed %s at %d", f.name, span[0], span[1], a.name, a.rev)
					}
				}
			}
		}
		t.Logf("%s: %d watches, %d lists, %d objects", f.name, f.again, len(f.spans), len(f.state))
	}
	t.Logf("%d writes were acknowledged in %d lives", total, deaths+1)
	if total == 0 {
		t.Error("nothing was written")
	}
}
