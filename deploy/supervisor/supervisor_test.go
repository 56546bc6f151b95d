package supervisor

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keelson/keelson/deploy/config"
	"github.com/keelson/keelson/libs/testkit"
)

// The test binary is also the services: it behaves as FAKE says.
func TestMain(m *testing.M) {
	if mode := os.Getenv("FAKE"); mode != "" {
		fake(mode)
		return
	}
	testkit.Main(m) // a keeper that stays would start its service again
}

func fake(mode string) {
	notify := func(text string) {
		l, err := notifySocket()
		if err == nil {
			_, _ = l.Write([]byte(text))
			_ = l.Close()
		}
	}
	switch mode {
	case "good":
		notify("READY=1")
	case "exits":
		os.Exit(3)
	case "hangs":
		notify("READY=1\nWATCHDOG=1")
	case "silent":
	}
	for { // not select {}: without cgo the runtime takes that for a deadlock
		time.Sleep(time.Hour)
	}
}

func rig(t *testing.T) (*Client, string, func()) {
	t.Helper()
	dir := t.TempDir()
	return NewClient(dir), dir, start(t, dir)
}

// start runs a supervisor until the function it returns is called.
func start(t *testing.T, dir string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	listening, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Run(ctx, dir, slog.New(slog.NewTextHandler(io.Discard, nil)), func() { close(listening) })
	}()
	select {
	case <-listening:
	case err := <-ended:
		t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func service(dir, name, mode string, after ...string) config.Service {
	return config.Service{Name: name, Command: []string{os.Args[0]}, Env: []string{"FAKE=" + mode, "GOCOVERDIR=" + dir}, After: after,
		StopWithin: 3 * time.Second, LogFile: filepath.Join(dir, name+".log")}
}

func await(t *testing.T, c *Client, what string, ok func(map[string]Status) bool) map[string]Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	last := map[string]Status{}
	err := c.Watch(ctx, func(list []Status) (bool, error) {
		last = map[string]Status{}
		for _, st := range list {
			last[st.Name] = st
		}
		return ok(last), nil
	})
	if err != nil {
		t.Fatalf("waiting until %s: %v; last seen %+v", what, err, last)
	}
	return last
}

func TestServicesLife(t *testing.T) {
	c, dir, stop := rig(t)
	ctx := t.Context()
	list := []config.Service{service(dir, "a", "good"), service(dir, "b", "good", "a"), service(dir, "bad", "exits"), service(dir, "late", "good", "bad")}
	if err := c.Apply(ctx, list); err != nil {
		t.Fatal(err)
	}
	seen := await(t, c, "a and b are ready and bad is tried again", func(s map[string]Status) bool {
		return s["a"].Phase == Ready && s["b"].Phase == Ready && s["bad"].Restarts >= 2
	})
	if st := seen["late"]; st.Phase != Waiting || !slices.Equal(st.Waits, []string{"bad"}) {
		t.Errorf("late should wait for bad: %+v", st)
	}
	if !strings.Contains(seen["bad"].Last, "exit status 3") {
		t.Errorf("bad ended with %q", seen["bad"].Last)
	}

	// A killed service comes back as another process.
	pid := seen["a"].PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, c, "a is back", func(s map[string]Status) bool { return s["a"].Phase == Ready && s["a"].PID != pid })

	// A new supervisor finds what the old one left running.
	before := await(t, c, "all", func(map[string]Status) bool { return true })
	stop()
	stop = start(t, dir)
	after := await(t, c, "a and b are found", func(s map[string]Status) bool { return s["a"].Phase == Ready && s["b"].Phase == Ready })
	if before["a"].PID != after["a"].PID || before["b"].PID != after["b"].PID {
		t.Errorf("restarted instead of adopted: %+v, %+v", before, after)
	}
	// It also notices when an adopted one ends.
	if err := syscall.Kill(after["b"].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, c, "b is back", func(s map[string]Status) bool { return s["b"].Phase == Ready && s["b"].PID != after["b"].PID })

	// Stopped stays stopped; applying a changed list restarts what changed, only.
	if err := c.Stop(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if s := await(t, c, "anything", func(map[string]Status) bool { return true }); s["b"].Phase != Stopped {
		t.Errorf("b is %s after Stop", s["b"].Phase)
	}
	if err := c.Start(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	await(t, c, "b runs", func(s map[string]Status) bool { return s["b"].Phase == Ready })
	list[1].Fingerprint = "other"
	b := await(t, c, "b", func(map[string]Status) bool { return true })
	if err := c.Apply(ctx, list[:2]); err != nil {
		t.Fatal(err)
	}
	now := await(t, c, "b is a new process, bad and late are gone", func(s map[string]Status) bool {
		return len(s) == 2 && s["b"].Phase == Ready && s["b"].PID != b["b"].PID
	})
	if now["a"].PID != b["a"].PID {
		t.Error("a was restarted though it had not changed")
	}
	if err := c.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, st := range now {
		if _, alive := StartTime(st.PID); alive {
			t.Errorf("%s outlived the shutdown", st.Name)
		}
	}
}

func TestWatchdog(t *testing.T) {
	c, dir, stop := rig(t)
	defer stop()
	sv := service(dir, "h", "hangs")
	sv.Watchdog = 200 * time.Millisecond
	if err := c.Apply(t.Context(), []config.Service{sv}); err != nil {
		t.Fatal(err)
	}
	await(t, c, "the silent service is killed and started again", func(s map[string]Status) bool { return s["h"].Restarts >= 1 })
	if err := c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestBackoff(t *testing.T) {
	failures, total := 0, time.Duration(0)
	for range 20 {
		var d time.Duration
		failures++
		d, failures = Backoff(failures, time.Second)
		if d < 100*time.Millisecond || d > 10*time.Second {
			t.Fatalf("pause of %s", d)
		}
		total += d
	}
	if total < time.Minute {
		t.Errorf("20 failures in a row are spread over %s only", total)
	}
	if d, n := Backoff(20, 2*time.Minute); d != 100*time.Millisecond || n != 1 {
		t.Errorf("after a good run: %s, %d", d, n)
	}
}

func TestBeganAt(t *testing.T) {
	if d := time.Since(BeganAt(os.Getpid())); d < 0 || d > time.Hour {
		t.Errorf("this process began %s ago", d)
	}
	if at := BeganAt(1 << 30); !at.IsZero() {
		t.Errorf("a process that is not there began at %s", at)
	}
}

func TestStopOrder(t *testing.T) {
	list := []config.Service{{Name: "containerd"}, {Name: "api"}, {Name: "sched", After: []string{"api"}}, {Name: "kubelet", After: []string{"containerd", "api"}}}
	got := StopOrder(list, []string{"containerd", "api", "sched", "kubelet"})
	want := [][]string{{"sched", "kubelet"}, {"containerd", "api"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := StopOrder(list, []string{"api"}); fmt.Sprint(got) != "[[api]]" {
		t.Errorf("one alone: %v", got)
	}
}

func TestTrimLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.log")
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 3 {
		fmt.Fprint(f, strings.Repeat("x", 1000))
		if err := trimLog(file, 1500); err != nil {
			t.Fatal(err)
		}
	}
	now, _ := os.ReadFile(file)
	old, _ := os.ReadFile(file + ".1")
	if len(now) != 1000 || len(old) != 2000 {
		t.Errorf("log has %d bytes, its predecessor %d", len(now), len(old))
	}
}
