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
	var h slog.Handler
	switch format {
	case "text", "":
		h = slog.NewTextHandler(w, opts)
	case "json":
		h = slog.NewJSONHandler(w, opts)
	default:
		return nil, fmt.Errorf("logging format %q: want \"text\" or \"json\"", format)
	}
	logger := slog.New(h)
	klog.SetSlogLogger(logger)
	var v klog.Level
	if err := v.Set(strconv.Itoa(verbosity)); err != nil {
		return nil, fmt.Errorf("klog verbosity %d: %w", verbosity, err)
	}
	return logger, nil
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
