package log

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
)

func TestLevels(t *testing.T) {
	for _, row := range []struct {
		level       string
		debug, info bool
		bad         bool
	}{
		{level: "info", info: true},
		{level: "", info: true},
		{level: "debug", debug: true, info: true},
		{level: "warn"},
		{level: "0", info: true},
		{level: "2", info: true},
		{level: "4", debug: true, info: true},
		{level: "10", debug: true, info: true},
		{level: "11", bad: true},
		{level: "loud", bad: true},
	} {
		var b bytes.Buffer
		l, err := New(row.level, "text", &b)
		if (err != nil) != row.bad {
			t.Errorf("level %q: error %v", row.level, err)
		}
		if err != nil {
			continue
		}
		l.Debug("low", "took", 1500*time.Microsecond)
		l.Info("high")
		if got := strings.Contains(b.String(), "msg=low took=1.5ms"); got != row.debug {
			t.Errorf("level %q: debug line written: %v, want %v\n%s", row.level, got, row.debug, b.String())
		}
		if got := strings.Contains(b.String(), "msg=high"); got != row.info {
			t.Errorf("level %q: info line written: %v, want %v\n%s", row.level, got, row.info, b.String())
		}
	}
	if _, err := New("info", "xml", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), `"xml"`) {
		t.Errorf("format xml: got error %v", err)
	}
}

func TestKlogGoesToTheSameHandler(t *testing.T) {
	var b bytes.Buffer
	if _, err := New("info", "json", &b); err != nil {
		t.Fatal(err)
	}
	klog.InfoS("from a library", "pod", "a/b")
	klog.Flush()
	if !strings.Contains(b.String(), `"msg":"from a library"`) {
		t.Errorf("klog's line is missing: %s", b.String())
	}
}

// held is an output whose reader has stopped until somebody lets it go on.
type held struct{ began, goOn chan struct{} }

func (h held) Write(p []byte) (int, error) {
	h.began <- struct{}{}
	<-h.goOn
	return len(p), nil
}

func TestBlocked(t *testing.T) {
	out := held{make(chan struct{}), make(chan struct{})}
	l, err := New("info", "text", out)
	if err != nil {
		t.Fatal(err)
	}
	l = l.With("room", "a").WithGroup("b")
	if err := Blocked(l, 0); err != nil {
		t.Errorf("nothing was written yet: %v", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); l.Info("stuck") }()
	<-out.began
	if err := Blocked(l, time.Hour); err != nil {
		t.Errorf("before its time: %v", err)
	}
	if Blocked(l, 0) == nil {
		t.Error("a line that does not get out goes unnoticed")
	}
	close(out.goOn)
	<-done
	if err := Blocked(l, 0); err != nil {
		t.Errorf("the line is out: %v", err)
	}
	if err := Blocked(Discard(), 0); err != nil {
		t.Errorf("of another logger: %v", err)
	}
}
