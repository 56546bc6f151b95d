package deploy

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Progress tells people what is going on: one line for each thing that is done, and on
// a terminal a last line with what is being waited for. It may be used by several
// goroutines.
type Progress struct {
	w     io.Writer
	tty   bool
	start time.Time

	mu      sync.Mutex // guards the line and w
	pending string
}

// NewProgress writes to f.
func NewProgress(f *os.File) *Progress {
	info, err := f.Stat()
	return &Progress{w: f, tty: err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb", start: time.Now()}
}

// Quiet says nothing.
func Quiet() *Progress { return &Progress{w: io.Discard, start: time.Now()} }

// Title starts the report.
func (p *Progress) Title(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.start = time.Now()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// Done reports one finished thing.
func (p *Progress) Done(what, format string, args ...any) {
	p.line("✓", what, fmt.Sprintf(format, args...))
}

// Note reports something that people should know but need not act on.
func (p *Progress) Note(what, format string, args ...any) {
	p.line("!", what, fmt.Sprintf(format, args...))
}

func (p *Progress) line(mark, what, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintf(p.w, "  %s %-19s %s\n", mark, what, text)
	p.draw()
}

// Wait says what is being waited for; "" for nothing. Only a terminal shows it.
func (p *Progress) Wait(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.pending = fmt.Sprintf(format, args...)
	p.draw()
}

func (p *Progress) erase() {
	if p.tty && p.pending != "" {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *Progress) draw() {
	if p.tty && p.pending != "" {
		text := p.pending
		if len(text) > 100 {
			text = text[:100] + "…"
		}
		fmt.Fprintf(p.w, "  … %s", strings.ReplaceAll(text, "\n", " "))
	}
}

// Print writes text as it is.
func (p *Progress) Print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.pending = ""
	fmt.Fprint(p.w, text)
}

// Since is the time since Title.
func (p *Progress) Since() time.Duration { return time.Since(p.start) }

// Seconds prints a duration for people: 1.3 s.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
