package server

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const sample = `2024-01-01T00:00:01.000000001Z stdout F one
2024-01-01T00:00:02.000000001Z stderr F oops
2024-01-01T00:00:03.000000001Z stdout P two-
2024-01-01T00:00:03.000000002Z stdout F and-a-half
2024-01-01T00:00:04.000000001Z stdout F 
garbage
2024-01-01T00:00:05.000000001Z stdout F five
`

func TestReadLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"":                               "one\noops\ntwo-and-a-half\n\nfive\n",
		"stream=Stdout":                  "one\ntwo-and-a-half\n\nfive\n",
		"stream=Stderr":                  "oops\n",
		"tailLines=0":                    "",
		"tailLines=1":                    "five\n",
		"tailLines=3":                    "\nfive\n",
		"tailLines=100":                  "one\noops\ntwo-and-a-half\n\nfive\n",
		"tail=all":                       "one\noops\ntwo-and-a-half\n\nfive\n",
		"limitBytes=6":                   "one\noo",
		"limitBytes=4":                   "one\n",
		"sinceTime=2024-01-01T00:00:04Z": "\nfive\n",
		"timestamps=true&tailLines=5": "2024-01-01T00:00:03.000000001Z two-and-a-half\n" +
			"2024-01-01T00:00:04.000000001Z \n2024-01-01T00:00:05.000000001Z five\n",
	} {
		q, _ := url.ParseQuery(query)
		o, err := logOptions(q)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		var out bytes.Buffer
		if err := ReadLog(t.Context(), path, o, nil, &out); err != nil || out.String() != want {
			t.Errorf("%s: got %q (%v), want %q", query, out.String(), err, want)
		}
	}
	for _, bad := range []string{"tailLines=-1", "limitBytes=0", "stream=Both", "sinceTime=now", "follow=maybe", "sinceSeconds=0", "stream=Stdout&tailLines=1"} {
		q, _ := url.ParseQuery(bad)
		if _, err := logOptions(q); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestTailOffsetInLargeFiles(t *testing.T) {
	var b bytes.Buffer
	var starts []int64
	for i := range 3000 {
		starts = append(starts, int64(b.Len()))
		fmt.Fprintf(&b, "%d %s\n", i, strings.Repeat("x", i%37))
	}
	for _, n := range []int{1, 2, 100, 2999, 3000} {
		got, err := tailOffset(bytes.NewReader(b.Bytes()), int64(n))
		if err != nil || got != starts[len(starts)-n] {
			t.Errorf("last %d lines: offset %d (%v), want %d", n, got, err, starts[len(starts)-n])
		}
	}
}

// buffer is written by the reader and looked at by the test.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func (b *buffer) await(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); b.String() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: have %q, want %q", b.String(), want)
		}
	}
}

// A follower sees every line once, across rotations and in whatever pieces it is written,
// and ends when the container does.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := open()
	write := func(s string) {
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	const stamp = "2024-01-01T00:00:01Z stdout F "
	write(stamp + "a\n")
	var out buffer
	var running atomic.Bool
	running.Store(true)
	done := make(chan error)
	go func() {
		done <- ReadLog(t.Context(), path, LogOptions{Follow: true, Stream: "All", Tail: -1, LimitBytes: -1}, running.Load, &out)
	}()
	want := "a\n"
	out.await(t, want)
	for i := range 5 {
		write(stamp + "half")
		write(fmt.Sprintf("-%d\n", i))
		want += fmt.Sprintf("half-%d\n", i)
		out.await(t, want)
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		write(stamp + "late\n") // the runtime has not reopened the file yet
		old := f
		f = open()
		write(stamp + "new\n") // while what it was given before still goes to the old one
		want += "late\n"
		out.await(t, want)
		for range 3 {
			if _, err := old.WriteString(stamp + "later\n"); err != nil {
				t.Fatal(err)
			}
			want += "later\n"
			out.await(t, want)
		}
		if i < 4 {
			old.Close()
		} else {
			defer old.Close() // a writer that never ends holds nobody up
		}
		want += "new\n"
		out.await(t, want)
	}
	write(stamp + "last\n")
	running.Store(false)
	f.Close()
	select {
	case err := <-done:
		if err != nil || out.String() != want+"last\n" {
			t.Errorf("ended with %v, %q", err, out.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("does not end with the container")
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- ReadLog(ctx, path, LogOptions{Follow: true, Tail: 0, LimitBytes: -1}, func() bool { return true }, &out)
	}()
	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("does not end with its client")
	}
}
