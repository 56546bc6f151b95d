package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LogOptions are the options of a log request. Source: Kubernetes API reference,
// PodLogOptions.
type LogOptions struct {
	Follow, Previous, Timestamps bool
	Stream                       string // "All", "Stdout" or "Stderr"
	Since                        time.Time
	Tail                         int64 // lines; negative: all
	LimitBytes                   int64 // of the answer; negative: no limit
}

func logOptions(q url.Values) (LogOptions, error) {
	o := LogOptions{Stream: "All", Tail: -1, LimitBytes: -1}
	var faults []error
	flag := func(name string) bool {
		text := q.Get(name)
		v, err := strconv.ParseBool(text)
		if text != "" && err != nil {
			faults = append(faults, fmt.Errorf("%s: %q is not a boolean", name, text))
		}
		return v
	}
	number := func(name string, least int64) int64 {
		text := q.Get(name)
		if text == "" {
			return -1
		}
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil || v < least {
			faults = append(faults, fmt.Errorf("%s: must be a number not less than %d", name, least))
		}
		return v
	}
	o.Follow, o.Previous, o.Timestamps = flag("follow"), flag("previous"), flag("timestamps")
	o.Tail, o.LimitBytes = number("tailLines", 0), number("limitBytes", 1)
	if q.Get("tail") != "" && q.Get("tail") != "all" {
		o.Tail = number("tail", 0)
	}
	if seconds := number("sinceSeconds", 1); seconds > 0 {
		o.Since = time.Now().Add(-time.Duration(seconds) * time.Second)
	}
	if text := q.Get("sinceTime"); text != "" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			faults = append(faults, fmt.Errorf("sinceTime: %q is not a time of RFC 3339", text))
		}
		o.Since = t
	}
	switch s := q.Get("stream"); s {
	case "":
	case "All", "Stdout", "Stderr":
		o.Stream = s
	default:
		faults = append(faults, fmt.Errorf("invalid stream type %q", s))
	}
	if o.Stream != "All" && o.Tail >= 0 {
		faults = append(faults, errors.New("tailLines and a stream other than All exclude each other"))
	}
	return o, errors.Join(faults...)
}

// entry is one line of a log file as runtimes write it.
//
//	2016-10-06T00:17:09.669794202Z stdout F the text
//
// P in place of F says that the line goes on in the next entry. Source: Kubernetes
// design proposal "CRI: Log management for container stdout/stderr streams".
type entry struct {
	time    []byte
	stream  string // "stdout" or "stderr"
	partial bool
	text    []byte // with its newline, unless partial
}

// parse reads one line with its newline; ok is false for what is no log line.
func parse(line []byte) (e entry, ok bool) {
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tags, text, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || !ok3 {
		return entry{}, false
	}
	e = entry{time: stamp, stream: string(stream), text: text}
	if e.stream != "stdout" && e.stream != "stderr" {
		return entry{}, false
	}
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	e.partial = string(tag) == "P"
	if e.partial {
		e.text = bytes.TrimSuffix(e.text, []byte("\n"))
	}
	return e, true
}

// errLimit ends a log at its limitBytes.
var errLimit = errors.New("limit reached")

// printer writes entries as the options ask.
type printer struct {
	o       LogOptions
	out     io.Writer
	left    int64
	midLine map[string]bool // streams whose last entry was partial
}

func (p *printer) print(line []byte) error {
	e, ok := parse(line)
	if !ok {
		return nil // written while the machine went down
	}
	if p.o.Stream == "Stdout" && e.stream != "stdout" || p.o.Stream == "Stderr" && e.stream != "stderr" {
		return nil
	}
	if !p.o.Since.IsZero() {
		if t, err := time.Parse(time.RFC3339Nano, string(e.time)); err != nil || t.Before(p.o.Since) {
			return nil
		}
	}
	text := e.text
	if p.o.Timestamps && !p.midLine[e.stream] {
		text = append(append(append(make([]byte, 0, len(e.time)+1+len(text)), e.time...), ' '), text...)
	}
	p.midLine[e.stream] = e.partial
	if p.left >= 0 && int64(len(text)) >= p.left {
		if _, err := p.out.Write(text[:p.left]); err != nil {
			return err
		}
		return errLimit
	}
	if p.left >= 0 {
		p.left -= int64(len(text))
	}
	_, err := p.out.Write(text)
	return err
}

// ReadLog writes a container's log to out. With Follow it stays until the container that
// running asks about has stopped and its log was read to the end, across rotations of the
// file: path then names a new file. The runtime opens that before it is done with the old
// one, so the old one is read until the runtime has closed it, or has written nothing to it
// for a second.
func ReadLog(ctx context.Context, path string, o LogOptions, running func() bool, out io.Writer) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("failed to open log file %q: %w", path, err)
	}
	var next *os.File // what path names now, while f is read to its end
	defer func() {
		f.Close()
		if next != nil {
			next.Close()
		}
	}()
	if o.Tail >= 0 {
		start, err := tailOffset(f, o.Tail)
		if err != nil {
			return fmt.Errorf("failed to tail %d lines of log file %q: %w", o.Tail, path, err)
		}
		if _, err := f.Seek(start, io.SeekStart); err != nil {
			return err
		}
	}
	var changes *changes
	if o.Follow {
		if changes, err = watchLog(ctx, path); err != nil {
			return fmt.Errorf("failed to watch directory %q: %w", filepath.Dir(path), err)
		}
		defer changes.close()
	}
	p := &printer{o: o, out: out, left: o.LimitBytes, midLine: map[string]bool{}}
	r := bufio.NewReaderSize(f, 32<<10)
	var half []byte // a line whose end is not written yet
	last := false   // nothing more will be written
	quiet := false  // nothing was written to f for a while, though it is not closed
	for {
		line, err := r.ReadBytes('\n')
		half = append(half, line...)
		if err == nil {
			if err := p.print(half); errors.Is(err, errLimit) {
				return nil
			} else if err != nil {
				return err
			}
			half = half[:0]
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			continue
		}
		if err != io.EOF {
			return fmt.Errorf("failed to read log file %q: %w", path, err)
		}
		if !o.Follow || last {
			if len(half) > 0 {
				if err := p.print(half); err != nil && !errors.Is(err, errLimit) {
					return err
				}
			}
			return nil
		}
		if fl, ok := out.(interface{ flush() }); ok {
			fl.flush()
		}
		if next == nil {
			next = rotated(path, f)
		}
		if next != nil && (changes.closed || quiet) {
			if len(half) > 0 {
				if err := p.print(half); errors.Is(err, errLimit) {
					return nil
				} else if err != nil {
					return err
				}
			}
			half, quiet, changes.closed = half[:0], false, false
			f.Close()
			f, next = next, nil
			r.Reset(f)
			continue
		}
		changed, err := changes.wait(time.Second)
		if err != nil {
			return err
		}
		// Both are asked before the last read, so that nothing is missed.
		if quiet = !changed && next != nil; !changed && !quiet {
			last = !running()
		}
	}
}

// rotated opens the file at path if it is another one than f; else it is nil.
func rotated(path string, f *os.File) *os.File {
	now, err := os.Stat(path)
	if err != nil {
		return nil // between the renaming and the new file
	}
	mine, err := f.Stat()
	if err != nil || os.SameFile(now, mine) {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil // it is tried again after the next change
	}
	return next
}

// tailOffset is where the last n lines begin. It reads backwards, in blocks.
func tailOffset(f io.ReadSeeker, n int64) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return size, err
	}
	const block = 8 << 10
	buf := make([]byte, block)
	seen := int64(0)
	for end := size; end > 0; {
		begin := max(0, end-block)
		if _, err := f.Seek(begin, io.SeekStart); err != nil {
			return 0, err
		}
		chunk := buf[:end-begin]
		if _, err := io.ReadFull(f, chunk); err != nil {
			return 0, err
		}
		for i := len(chunk) - 1; i >= 0; i-- {
			at := begin + int64(i)
			if chunk[i] != '\n' || at == size-1 {
				continue
			}
			if seen++; seen == n {
				return at + 1, nil
			}
		}
		end = begin
	}
	return 0, nil
}

// changes tells when something in the directory of a log changes, by inotify.
type changes struct {
	file   *os.File
	stop   func() bool
	ctx    context.Context
	aside  string // how names of rotated files begin
	closed bool   // a rotated file was closed by its writer; the reader of logs takes it back
}

func watchLog(ctx context.Context, path string) (*changes, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	const what = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), what); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &changes{file: os.NewFile(uintptr(fd), "inotify"), ctx: ctx, aside: filepath.Base(path) + "."}
	c.stop = context.AfterFunc(ctx, func() { _ = c.file.SetReadDeadline(time.Unix(1, 0)) })
	return c, nil
}

// wait returns true after a change and false after the limit.
func (c *changes) wait(limit time.Duration) (bool, error) {
	_ = c.file.SetReadDeadline(time.Now().Add(limit))
	if c.ctx.Err() != nil {
		return false, context.Cause(c.ctx)
	}
	var buf [4096]byte
	n, err := c.file.Read(buf[:])
	switch {
	case c.ctx.Err() != nil:
		return false, context.Cause(c.ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	}
	// struct inotify_event: watch, mask, cookie, length of the name, name filled up with NUL.
	for events := buf[:max(n, 0)]; len(events) >= unix.SizeofInotifyEvent; {
		mask := binary.NativeEndian.Uint32(events[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name := string(bytes.TrimRight(events[unix.SizeofInotifyEvent:end], "\x00"))
		// What is compressed is written under a name that ends so, and then renamed.
		if mask&unix.IN_CLOSE_WRITE != 0 && strings.HasPrefix(name, c.aside) && !strings.HasSuffix(name, ".tmp") {
			c.closed = true
		}
		events = events[end:]
	}
	return err == nil, err
}

func (c *changes) close() {
	c.stop()
	c.file.Close()
}

// flusher sends what was written when the reader has nothing more for now.
type flusher struct {
	w       io.Writer
	f       http.Flusher
	written bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.written = true
	return f.w.Write(p)
}

func (f *flusher) flush() {
	if f.f != nil {
		f.written = true
		f.f.Flush()
	}
}
