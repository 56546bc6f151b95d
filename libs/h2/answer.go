package h2

import (
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// answer is the ResponseWriter of one request. Without WriteHeader the header is sent
// with the first bytes: with the length when the whole body is short.
type answer struct {
	st       *stream
	header   http.Header
	code     int // 0: not decided
	sent     bool
	bodyless bool
	length   int64 // Content-Length as declared; -1: it is not
	wrote    int64
	held     []byte
	trailers []string // declared before the header was sent
}

func (w *answer) Header() http.Header { return w.header }

// WriteHeader sends a header of one of the codes below 200 at once, and the final one with
// what follows it.
func (w *answer) WriteHeader(code int) {
	if code < 100 || code > 999 {
		panic("h2: invalid WriteHeader code " + strconv.Itoa(code))
	}
	if w.code != 0 {
		return
	}
	c := w.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if code < 200 {
		if w.st.err == nil {
			c.headers(w.st.id, code, w.header, nil, false)
			c.push(false)
		}
		return
	}
	w.code = code
	w.sendHead(nil, false)
}

func bodyAllowed(code int) bool {
	return code >= 200 && code != http.StatusNoContent && code != http.StatusNotModified
}

// sendHead appends the header. first is the beginning of the body, or all of it if whole. Called with mu held.
func (w *answer) sendHead(first []byte, whole bool) {
	if w.sent {
		return
	}
	w.sent = true
	if w.code == 0 {
		w.code = http.StatusOK
	}
	h := w.header
	for _, line := range h["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			if key := http.CanonicalHeaderKey(strings.TrimSpace(name)); httpguts.ValidTrailerHeader(key) {
				w.trailers = append(w.trailers, key)
			}
		}
	}
	if v := h["Content-Length"]; len(v) > 0 {
		if n, err := strconv.ParseInt(v[0], 10, 63); err == nil {
			w.length = n
		} else {
			delete(h, "Content-Length")
		}
	}
	if bodyAllowed(w.code) {
		if whole && w.length < 0 && w.trailers == nil && (!w.bodyless || len(first) > 0) {
			h["Content-Length"] = []string{strconv.Itoa(len(first))}
		}
		if _, ok := h["Content-Type"]; !ok && len(first) > 0 && h.Get("Content-Encoding") == "" {
			h["Content-Type"] = []string{http.DetectContentType(first)}
		}
	} else {
		w.bodyless = true
	}
	if _, ok := h["Date"]; !ok {
		h["Date"] = date()
	}
	if w.st.err == nil {
		w.st.c.headers(w.st.id, w.code, h, w.trailers, false)
	}
}

// Write appends to the body. It waits while the client takes nothing.
func (w *answer) Write(p []byte) (int, error) {
	if w.bodyless {
		if w.code != 0 && !bodyAllowed(w.code) {
			return 0, http.ErrBodyNotAllowed
		}
		if w.code == 0 && len(w.held) < holdBody { // HEAD: for the type and length that GET would have
			w.held = append(w.held, p...)
		}
		w.wrote += int64(len(p))
		return len(p), nil
	}
	if w.wrote += int64(len(p)); w.length >= 0 && w.wrote > w.length {
		return 0, http.ErrContentLength
	}
	if !w.sent && len(w.held)+len(p) <= holdBody {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	c := w.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := w.release(p); err != nil {
		return 0, err
	}
	if err := w.st.send(p); err != nil {
		return 0, err
	}
	if len(c.out.pending) >= sendFrom {
		c.push(false)
	}
	return len(p), w.st.err
}

// release sends what was held back for the header. next is what will follow. Called with mu held.
func (w *answer) release(next []byte) error {
	if w.sent {
		return w.st.err
	}
	first := w.held
	if len(first) == 0 {
		first = next
	}
	w.sendHead(first, false)
	if w.bodyless {
		return w.st.err
	}
	held := w.held
	w.held = nil
	return w.st.send(held)
}

// Flush is FlushError without the error.
func (w *answer) Flush() { _ = w.FlushError() }

// FlushError sends what was written, together with what others have for the same client.
func (w *answer) FlushError() error {
	c := w.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := w.release(nil); err != nil {
		return err
	}
	c.push(true)
	return w.st.err
}

// SetReadDeadline is http.ResponseController's. A time in the past ends reads at once.
func (w *answer) SetReadDeadline(t time.Time) error {
	st := w.st
	return st.deadline(&st.reading, t, func() { st.drop(os.ErrDeadlineExceeded) })
}

// SetWriteDeadline is http.ResponseController's: at t the stream is reset.
func (w *answer) SetWriteDeadline(t time.Time) error {
	st := w.st
	return st.deadline(&st.writing, t, func() {
		if st.err == nil {
			st.c.out.reset(st.id, http2.ErrCodeInternal)
			st.end(os.ErrDeadlineExceeded)
			st.c.leave()
		}
	})
}

// EnableFullDuplex has nothing to do: HTTP/2 always is.
func (w *answer) EnableFullDuplex() error { return nil }

func (st *stream) deadline(at **time.Timer, t time.Time, f func()) error {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if *at != nil {
		(*at).Stop()
		*at = nil
	}
	if t.IsZero() || st.err != nil {
		return nil
	}
	var mine *time.Timer
	mine = time.AfterFunc(time.Until(t), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if *at == mine && c.err == nil {
			f()
		}
	})
	*at = mine
	return nil
}

// finish ends the answer when the handler has returned; ok is false if it has panicked.
func (w *answer) finish(ok bool) {
	st := w.st
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.err == nil && ok {
		w.rest()
	} else if st.err == nil {
		c.out.reset(st.id, http2.ErrCodeInternal)
	}
	if st.err == nil && ok && st.bodyEnd == nil {
		c.out.reset(st.id, http2.ErrCodeNo) // the client may stop sending
	}
	st.end(errFinished)
	st.drop(errFinished)
	c.running--
	c.fewer.Broadcast()
	c.push(false)
	c.maybeClose()
}

// rest sends what is left and the end of the stream. Called with mu held.
func (w *answer) rest() {
	st, c := w.st, w.st.c
	if w.length >= 0 && w.sent && !w.bodyless && w.wrote < w.length {
		c.out.reset(st.id, http2.ErrCodeInternal) // the client must not take it for whole
		st.end(errFinished)
		return
	}
	if !w.sent {
		w.sendHead(w.held, true)
		if !w.bodyless && st.send(w.held) != nil {
			return
		}
	}
	trailer := http.Header{}
	for _, key := range w.trailers {
		if v := w.header[key]; len(v) > 0 {
			trailer[key] = v
		}
	}
	for key, v := range w.header {
		if name, ok := strings.CutPrefix(key, http.TrailerPrefix); ok {
			if name = http.CanonicalHeaderKey(name); httpguts.ValidTrailerHeader(name) {
				trailer[name] = v
			}
		}
	}
	if len(trailer) > 0 {
		c.headers(st.id, 0, trailer, nil, true)
		return
	}
	c.out.finish(st.id)
}

// headers appends a header block; code 0 is that of trailers. The keys in without are left
// out. Called with mu held.
func (c *conn) headers(id uint32, code int, h http.Header, without []string, end bool) {
	c.block.Reset()
	if code != 0 {
		_ = c.enc.WriteField(hpack.HeaderField{Name: ":status", Value: status(code)}) // into memory
	}
	for key, values := range h {
		name := lower(key)
		if !httpguts.ValidHeaderFieldName(name) || strings.HasPrefix(key, http.TrailerPrefix) || slices.Contains(without, key) {
			continue
		}
		switch name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			continue
		}
		for _, v := range values {
			if httpguts.ValidHeaderFieldValue(v) {
				_ = c.enc.WriteField(hpack.HeaderField{Name: name, Value: v, Sensitive: unique[name]})
			}
		}
	}
	c.out.headers(id, c.block.Bytes(), c.frame, end)
}

// unique are fields whose values do not come again: they would only push others out of the
// table of the compression.
var unique = map[string]bool{"audit-id": true, "content-length": true, "etag": true, "location": true}

// names are the common fields in both spellings; converting costs an allocation.
var lowers, canonicals = func() (map[string]string, map[string]string) {
	l, c := map[string]string{}, map[string]string{}
	for _, name := range []string{
		"accept", "accept-encoding", "audit-id", "authorization", "cache-control", "content-encoding", "content-length",
		"content-type", "date", "etag", "if-none-match", "last-modified", "location", "retry-after", "traceparent",
		"user-agent", "vary", "warning", "x-content-type-options",
	} {
		key := http.CanonicalHeaderKey(name)
		l[key], c[name] = name, key
	}
	return l, c
}()

func lower(key string) string {
	if name, ok := lowers[key]; ok {
		return name
	}
	return strings.ToLower(key)
}

func canonical(name string) string {
	if key, ok := canonicals[name]; ok {
		return key
	}
	return http.CanonicalHeaderKey(name)
}

func status(code int) string {
	switch code {
	case http.StatusOK:
		return "200"
	case http.StatusCreated:
		return "201"
	}
	return strconv.Itoa(code)
}

// today is the Date field of the current second.
var today atomic.Pointer[struct {
	second int64
	text   []string
}]

func date() []string {
	now := time.Now()
	if d := today.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &struct {
		second int64
		text   []string
	}{now.Unix(), []string{now.UTC().Format(http.TimeFormat)}}
	today.Store(d)
	return d.text
}
