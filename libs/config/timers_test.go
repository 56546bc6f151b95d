package config

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Threads that were there before and threads that come later have the slack; without CAP_SYS_NICE the one that asks has.
func TestRelaxTimers(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	relaxTimers()
	wantSlack(t, strconv.Itoa(syscall.Gettid()))
	if os.Geteuid() != 0 {
		return // the others may not even be read
	}
	block := make(chan bool)
	defer close(block)
	for range runtime.GOMAXPROCS(0) + 4 { // more than there are
		ready := make(chan bool)
		go func() {
			runtime.LockOSThread()
			ready <- true
			<-block
		}()
		<-ready
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	if len(threads) < runtime.GOMAXPROCS(0)+4 {
		t.Fatalf("only %d threads", len(threads))
	}
	for _, thread := range threads {
		wantSlack(t, thread.Name())
	}
}

func wantSlack(t *testing.T, thread string) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + thread + "/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || time.Duration(got) != timerSlack {
		t.Errorf("thread %s: %s ns", thread, strings.TrimSpace(string(b)))
	}
}
