package config

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Threads that were there before and threads that come later have the slack.
func TestRelaxTimers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("other threads may be told so only with CAP_SYS_NICE")
	}
	relaxTimers()
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
		b, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || time.Duration(got) != timerSlack {
			t.Errorf("thread %s: %s ns", thread.Name(), strings.TrimSpace(string(b)))
		}
	}
}
