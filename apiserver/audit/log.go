package audit

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"gopkg.in/natefinch/lumberjack.v2"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// LogConfig says where lines go. Path "-" is the standard output, without rotation.
type LogConfig struct {
	Path                string
	MaxAgeDays, Backups int // 0: old files stay
	MaxSizeMB           int // 0: 100
	Compress            bool
	// Wait makes a request wait until its line is written, for a moment at most; otherwise
	// lines are written behind it.
	Wait bool
	// Buffer bounds the lines that wait to be written.
	Buffer int
	Errors *prometheus.CounterVec
	Log    *slog.Logger
}

// waitAtMost is how long a line may hold up its request: a disk that hangs costs lines, not the API.
const waitAtMost = time.Second

// Log is the backend that writes a line for each event.
type Log struct {
	cfg   LogConfig
	queue chan line
}

type line struct {
	text []byte
	done chan error // nil: nobody waits
}

// NewLog opens nothing; the first line does.
func NewLog(cfg LogConfig) *Log {
	if cfg.Buffer <= 0 {
		cfg.Buffer = 10000
	}
	return &Log{cfg: cfg, queue: make(chan line, cfg.Buffer)}
}

func (l *Log) lost() bool {
	l.cfg.Errors.WithLabelValues("log").Inc()
	return false
}

// Send is Backend's.
func (l *Log) Send(ev *auditv1.Event) bool {
	text, err := json.Marshal(ev)
	if err != nil {
		return l.lost()
	}
	one := line{text: append(text, '\n')}
	if !l.cfg.Wait {
		select {
		case l.queue <- one:
			return true
		default:
			return l.lost()
		}
	}
	one.done = make(chan error, 1)
	timer := time.NewTimer(waitAtMost)
	defer timer.Stop()
	select {
	case l.queue <- one:
	case <-timer.C:
		return l.lost()
	}
	select {
	case err := <-one.done:
		if err != nil {
			return l.lost()
		}
		return true
	case <-timer.C:
		return l.lost() // it may still be written
	}
}

// Run is Backend's.
func (l *Log) Run(ctx context.Context) error {
	var w io.Writer = os.Stdout
	if l.cfg.Path != "-" {
		file := &lumberjack.Logger{
			Filename: l.cfg.Path, MaxAge: l.cfg.MaxAgeDays, MaxBackups: l.cfg.Backups, MaxSize: l.cfg.MaxSizeMB, Compress: l.cfg.Compress,
		}
		defer file.Close()
		w = file
	}
	broken := false
	write := func(one line) {
		_, err := w.Write(one.text)
		if one.done != nil {
			one.done <- err
		} else if err != nil {
			l.lost()
		}
		if err != nil && !broken {
			l.cfg.Log.Error("audit events cannot be written", "path", l.cfg.Path, "err", err)
		}
		broken = err != nil
	}
	for {
		select {
		case one := <-l.queue:
			write(one)
		case <-ctx.Done():
			for {
				select {
				case one := <-l.queue:
					write(one)
				default:
					return nil
				}
			}
		}
	}
}
