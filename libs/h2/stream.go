package h2

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// stream is one request and its answer.
type stream struct {
	c       *conn
	id      uint32
	cancel  context.CancelCauseFunc
	request *http.Request

	// Guarded by conn.mu.
	cond   sync.Cond // any of the following has changed
	err    error     // nothing more is read or sent
	window int64     // bytes that the client takes
	queued bool      // in conn.blocked

	body    []byte // body[read:] is unread
	read    int
	bodyEnd error // what follows the unread bytes: io.EOF, or why there is no more
	recv    int64 // bytes that the client may send
	credit  int64 // read bytes that the client was not yet told of
	need    int64 // bytes of the declared length that are to come; -1: it is not known
	goAhead bool  // the client waits for 100 Continue
	trailer http.Header
	reading *time.Timer
	writing *time.Timer
}

// takeHeaders begins a request, or ends one by its trailers.
func (c *conn) takeHeaders(f *http2.MetaHeadersFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	id := f.StreamID
	if st := c.streams[id]; st != nil {
		return st.takeTrailer(f)
	}
	switch {
	case id%2 == 0:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case id <= c.lastID: // trailers that crossed our answer
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeStreamClosed}
	}
	c.lastID = id
	if c.away {
		return nil // it may be sent again on another connection
	}
	if len(c.streams) >= c.s.maxStreams {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	// A client that resets streams as fast as it opens them waits for the handlers. Those
	// that it has reset end by themselves; the others leave room below the bound.
	for c.running >= c.s.maxStreams && c.err == nil {
		c.fewer.Wait()
	}
	if c.err != nil {
		return nil
	}
	st := &stream{c: c, id: id, window: c.initial, recv: ourStreamWindow, need: -1}
	st.cond.L = &c.mu
	if err := st.parse(f); err != nil {
		return err
	}
	c.top = id
	c.streams[id] = st
	c.quiet = time.Time{}
	c.running++
	c.ended.Add(1)
	c.s.workers.start(job{st, f.Truncated})
	return nil
}

// parse makes the request of a header block. RFC 9113, section 8.3.1.
func (st *stream) parse(f *http2.MetaHeadersFrame) error {
	bad := http2.StreamError{StreamID: st.id, Code: http2.ErrCodeProtocol}
	r := &http.Request{
		Method: f.PseudoValue("method"), RequestURI: f.PseudoValue("path"), Host: f.PseudoValue("authority"),
		Proto: "HTTP/2.0", ProtoMajor: 2, TLS: st.c.tls, RemoteAddr: st.c.remote, Body: http.NoBody,
	}
	scheme := f.PseudoValue("scheme")
	if r.Method == "" || r.RequestURI == "" || scheme != "https" && scheme != "http" {
		return bad
	}
	fields := f.RegularFields()
	values := make([]string, len(fields)) // one array for all
	r.Header = make(http.Header, len(fields))
	for i, h := range fields {
		switch h.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return bad
		case "te":
			if h.Value != "trailers" {
				return bad
			}
		}
		key := canonical(h.Name)
		if have := r.Header[key]; have != nil {
			if key == "Cookie" {
				have[0] += "; " + h.Value
				continue
			}
			r.Header[key] = append(have, h.Value)
			continue
		}
		values[i] = h.Value
		r.Header[key] = values[i : i+1 : i+1]
	}
	if r.Host == "" {
		r.Host = r.Header.Get("Host")
	}
	delete(r.Header, "Host")
	var err error
	if r.RequestURI == "*" && r.Method == http.MethodOptions {
		r.URL = &url.URL{Path: "*"}
	} else if r.URL, err = url.ParseRequestURI(r.RequestURI); err != nil {
		return bad
	}
	if v := r.Header["Content-Length"]; len(v) > 0 {
		if st.need, err = strconv.ParseInt(v[0], 10, 63); err != nil || len(v) > 1 && v[1] != v[0] {
			return bad
		}
	}
	if f.StreamEnded() {
		if st.need > 0 {
			return bad
		}
		st.bodyEnd = io.EOF
	} else {
		r.ContentLength = st.need
		r.Body = (*body)(st)
		st.declareTrailer(r)
		if v := r.Header["Expect"]; len(v) > 0 && strings.EqualFold(v[0], "100-continue") {
			st.goAhead = true
			delete(r.Header, "Expect")
		}
	}
	var ctx context.Context
	ctx, st.cancel = context.WithCancelCause(st.c.base)
	st.request = r.WithContext(ctx)
	return nil
}

func (st *stream) declareTrailer(r *http.Request) {
	for _, line := range r.Header["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			key := http.CanonicalHeaderKey(strings.TrimSpace(name))
			if !httpguts.ValidTrailerHeader(key) {
				continue
			}
			if r.Trailer == nil {
				r.Trailer = http.Header{}
			}
			r.Trailer[key] = nil
		}
	}
	delete(r.Header, "Trailer")
}

func (st *stream) takeTrailer(f *http2.MetaHeadersFrame) error {
	bad := http2.StreamError{StreamID: st.id, Code: http2.ErrCodeProtocol}
	if st.bodyEnd != nil {
		return http2.StreamError{StreamID: st.id, Code: http2.ErrCodeStreamClosed}
	}
	if !f.StreamEnded() || len(f.PseudoFields()) > 0 || st.need > 0 {
		return bad
	}
	for _, h := range f.RegularFields() {
		key := http.CanonicalHeaderKey(h.Name)
		if _, ok := st.request.Trailer[key]; ok {
			if st.trailer == nil {
				st.trailer = http.Header{}
			}
			st.trailer[key] = append(st.trailer[key], h.Value)
		}
	}
	st.bodyEnd = io.EOF
	st.cond.Broadcast()
	return nil
}

// takeData adds n bytes, p without padding, to the body. Called with mu held.
func (st *stream) takeData(p []byte, n int64, last bool) error {
	fault := func(code http2.ErrCode) error {
		st.c.consumed(n)
		return http2.StreamError{StreamID: st.id, Code: code}
	}
	if errors.Is(st.bodyEnd, io.EOF) {
		return fault(http2.ErrCodeStreamClosed)
	}
	if st.recv -= n; st.recv < 0 {
		return fault(http2.ErrCodeFlowControl)
	}
	if st.need >= 0 {
		if st.need -= int64(len(p)); st.need < 0 || last && st.need > 0 {
			return fault(http2.ErrCodeProtocol)
		}
	}
	kept := int64(0)
	if st.bodyEnd == nil && len(p) > 0 { // else nobody wants it
		kept = int64(len(p))
		if st.body == nil && st.need > 0 && st.need < ourStreamWindow {
			st.body = make([]byte, 0, kept+st.need)
		}
		st.body = append(st.body, p...)
	}
	if last && st.bodyEnd == nil {
		st.bodyEnd = io.EOF
	}
	if n > kept {
		st.consumed(n - kept)
	}
	st.cond.Broadcast()
	return nil
}

// consumed lets the client send n bytes more. Called with mu held.
func (st *stream) consumed(n int64) {
	if st.credit += n; st.credit >= ourStreamWindow/2 && st.bodyEnd == nil && st.err == nil {
		st.recv += st.credit
		st.c.out.windowUpdate(st.id, uint32(st.credit))
		st.credit = 0
		st.c.leave()
	}
	st.c.consumed(n)
}

// body is the stream as its handler reads it.
type body stream

func (b *body) Read(p []byte) (int, error) {
	st := (*stream)(b)
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for st.read == len(st.body) {
		switch {
		case st.bodyEnd != nil:
			if st.trailer != nil && errors.Is(st.bodyEnd, io.EOF) {
				for k, v := range st.trailer {
					st.request.Trailer[k] = v
				}
				st.trailer = nil
			}
			return 0, st.bodyEnd
		case st.err != nil:
			return 0, st.err
		case st.goAhead:
			st.goAhead = false
			c.headers(st.id, http.StatusContinue, nil, nil, false)
			c.push(false)
			continue
		}
		st.cond.Wait()
	}
	n := copy(p, st.body[st.read:])
	if st.read += n; st.read == len(st.body) {
		st.body, st.read = st.body[:0], 0
	}
	st.consumed(int64(n))
	return n, nil
}

// Close drops what is unread and what is still to come.
func (b *body) Close() error {
	st := (*stream)(b)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	st.drop(http.ErrBodyReadAfterClose)
	return nil
}

// drop forgets the body. Called with mu held.
func (st *stream) drop(err error) {
	if st.bodyEnd == nil {
		st.bodyEnd = err
	}
	if n := len(st.body) - st.read; n > 0 {
		st.c.consumed(int64(n))
	}
	st.body, st.read = nil, 0
	st.cond.Broadcast()
}

// end takes the stream off the connection: its context ends, sends fail, nothing more is
// read. Called with mu held.
func (st *stream) end(err error) {
	if st.err != nil {
		return
	}
	st.err = err
	c := st.c
	if st.bodyEnd == nil {
		st.bodyEnd = err // behind what is here already
	}
	delete(c.streams, st.id)
	if len(c.streams) == 0 {
		c.quiet = time.Now()
	}
	c.unqueue(st)
	for _, t := range []*time.Timer{st.reading, st.writing} {
		if t != nil {
			t.Stop()
		}
	}
	st.cond.Broadcast()
	c.out.room.Broadcast()
	st.cancel(err)
}

// send appends p to the answer's body as the windows allow, and waits where they do not.
// Called with mu held, which it lets go of while it waits.
func (st *stream) send(p []byte) error {
	c := st.c
	for len(p) > 0 {
		switch {
		case st.err != nil:
			return st.err
		case len(c.out.pending) >= maxPending:
			if !c.out.writing {
				c.push(false)
			} else {
				c.out.room.Wait()
			}
			continue
		case st.window <= 0:
			c.unqueue(st) // others need not wait for this one
			c.await(st)
			continue
		case c.window <= 0, len(c.blocked) > 0 && c.blocked[0] != st:
			if !st.queued {
				st.queued = true
				c.blocked = append(c.blocked, st)
			}
			c.await(st)
			continue
		}
		n := min(int64(len(p)), st.window, c.window, int64(c.frame))
		st.window -= n
		c.window -= n
		c.out.data(st.id, p[:n], c.frame)
		p = p[n:]
		c.unqueue(st) // one frame for each in turn
	}
	return nil
}

// await waits for window, with everything sent that the client must see to give some.
func (c *conn) await(st *stream) {
	if len(c.out.pending) > 0 && !c.out.writing {
		c.push(false)
		return
	}
	st.cond.Wait()
}

func (c *conn) unqueue(st *stream) {
	if !st.queued {
		return
	}
	st.queued = false
	for i, b := range c.blocked {
		if b == st {
			c.blocked = append(c.blocked[:i], c.blocked[i+1:]...)
			break
		}
	}
	if c.window > 0 {
		c.nextBlocked()
	}
}

// serve runs the handler. tooLong: the client's header list was.
func (st *stream) serve(tooLong bool) {
	c := st.c
	defer c.ended.Done()
	w := &answer{st: st, header: make(http.Header, 6), length: -1, bodyless: st.request.Method == http.MethodHead}
	whole := false
	defer func() {
		if !whole { // Goexit, or a panic that was not recovered
			w.finish(false)
		}
	}()
	ok := st.handle(w, tooLong)
	whole = true
	w.finish(ok)
}

func (st *stream) handle(w *answer, tooLong bool) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				st.c.s.logf("http2: panic serving %s: %v\n%s", st.c.remote, p, debug.Stack())
			}
			ok = false
		}
	}()
	if tooLong {
		http.Error(w, "431 Request Header Fields Too Large", http.StatusRequestHeaderFieldsTooLarge)
		return true
	}
	st.c.h.ServeHTTP(w, st.request)
	return true
}
