// Package log sets up slog for a daemon.
//
// The main call is [New]. It promises one handler for the whole process: klog, which client-go and
// other libraries write to, is pointed at it too. Times are RFC 3339 with microseconds in UTC;
// keys are those of the house style (pod, node, rev, step, took, err). The level cannot be changed
// after the start.
package log

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// New returns the logger of a daemon that writes to w.
//
// level is one of "debug", "info", "warn", "error", or a klog verbosity "0" to "10": up to 3 is
// info, 4 and more is debug, and libraries that use klog speak up to that verbosity. format is
// "text" or "json".
func New(level, format string, w io.Writer) (*slog.Logger, error) {
	lv, verbosity, err := parseLevel(level)
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: lv, ReplaceAttr: tidy}
	out := &output{Writer: w}
	w = out
	var h slog.Handler
	switch format {
	case "text", "":
		h = slog.NewTextHandler(w, opts)
	case "json":
		h = slog.NewJSONHandler(w, opts)
	default:
		return nil, fmt.Errorf("logging format %q: want \"text\" or \"json\"", format)
	}
	logger := slog.New(handler{h, out})
	klog.SetSlogLogger(logger)
	var v klog.Level
	if err := v.Set(strconv.Itoa(verbosity)); err != nil {
		return nil, fmt.Errorf("klog verbosity %d: %w", verbosity, err)
	}
	return logger, nil
}

// handler is slog's over an output that notes when it is held up.
type handler struct {
	slog.Handler
	out *output
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.out}
}
func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.out}
}

// output lets one line out after the other: slog sees to that.
type output struct {
	io.Writer
	since atomic.Int64 // when the line that is being written began, in Unix nanoseconds; 0: none is
}

func (o *output) Write(p []byte) (int, error) {
	o.since.Store(time.Now().UnixNano())
	defer o.since.Store(0)
	return o.Writer.Write(p)
}

// Blocked is an error while a line of l has not got out for longer than limit: the reader of a pipe has stopped,
// or a disk is full, and soon everything waits that has something to say. Of loggers that New has not
// made, or that are not derived from one, nothing is known.
func Blocked(l *slog.Logger, limit time.Duration) error {
	h, ok := l.Handler().(handler)
	if !ok {
		return nil
	}
	if since := h.out.since.Load(); since != 0 {
		if took := time.Since(time.Unix(0, since)); took > limit {
			return fmt.Errorf("logging is blocked for %s", took.Round(time.Second))
		}
	}
	return nil
}

func parseLevel(s string) (level slog.Level, verbosity int, err error) {
	switch s {
	case "debug":
		return slog.LevelDebug, 4, nil
	case "info", "":
		return slog.LevelInfo, 0, nil
	case "warn", "warning":
		return slog.LevelWarn, 0, nil
	case "error":
		return slog.LevelError, 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 10 {
		return 0, 0, fmt.Errorf("log level %q: want debug, info, warn, error, or a number from 0 to 10", s)
	}
	if n >= 4 {
		// logr counts upwards where slog counts downwards: V(n) arrives here as -n.
		return slog.Level(min(-n, int(slog.LevelDebug))), n, nil
	}
	return slog.LevelInfo - slog.Level(n), n, nil
}

func tidy(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		return slog.String(slog.TimeKey, a.Value.Time().UTC().Format("2006-01-02T15:04:05.000000Z"))
	}
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().Round(time.Microsecond).String())
	}
	return a
}

// Discard is a logger for tests and for rooms that nobody listens to.
func Discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
