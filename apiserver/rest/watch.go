package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/watchcache"
)

var eventNames = [...]string{watchcache.Added: "ADDED", watchcache.Modified: "MODIFIED", watchcache.Deleted: "DELETED"}

// bookmarkEvery is how often an idle watch that allows bookmarks hears where it is.
const bookmarkEvery = time.Minute

// gather is how long a busy watch waits for further events, so that they are written, sent and read
// together: each time costs both sides more than the event. Busy is one whose last events came within
// this time: an event after a pause goes out at once, and so does the one that follows.
const gather = 10 * time.Millisecond

// watch serves a stream of events.
//
// Source: Kubernetes API concepts, "Efficient detection of changes", and KEP-3157.
func (c *Call) watch() {
	began := time.Now()
	p, err := c.watchParams()
	if err != nil {
		c.fail(err)
		return
	}
	w, err := c.openWatch(p)
	if err != nil {
		c.fail(err)
		return
	}
	if w.cursor != nil {
		defer w.cursor.Close()
	}
	length := p.timeout
	if length == 0 {
		length = watchTime()
	}
	ctx, cancel := context.WithTimeout(c.R.Context(), length+time.Minute)
	defer cancel()
	var out sink
	if websocket.IsWebSocketUpgrade(c.R) {
		if out, err = c.openSocket(cancel); err != nil {
			return // the upgrader has answered
		}
	} else {
		out = c.openStream()
	}
	defer out.close()
	s := &stream{c: c, out: out, f: c.format, definitions: true, sent: c.Server.cfg.Metrics.events(c.Row), began: began}
	if w.refused != nil {
		s.fail(w.refused)
		return
	}
	s.run(ctx, p, w, length)
}

// watchParams reads what a watch is asked for, and negotiates its format.
func (c *Call) watchParams() (*listParams, error) {
	if c.Row.Custom == nil && !named(c.R) {
		return nil, c.unacceptable()
	}
	f, ok := codec.Negotiate(c.accept(), true, false)
	if !ok {
		list := accepted
		if _, whole := codec.Negotiate(c.accept(), false, false); whole { // a form, but none of a stream
			list = acceptedStream
		}
		return nil, notAcceptable(list)
	}
	c.format = f
	return c.listParams(true)
}

// opened is where a watch starts.
type opened struct {
	state   *watchcache.Snapshot // not nil: it is sent first
	cursor  *watchcache.Cursor
	refused error // told inside the stream: the revision has left the log, or a state was not reached in time
	after   int64 // a revision of the future: what happens up to it is not sent; 0: none was asked for
}

// openWatch finds the place to start. To wait for what follows a revision that is still to come is no fault.
func (c *Call) openWatch(p *listParams) (w opened, err error) {
	sel, err := c.selection(p)
	if err != nil {
		return w, err
	}
	if c.format.As == "Table" {
		if _, err := c.newTable(); err != nil {
			return w, err
		}
	}
	o := c.Objects
	begin := p.ResourceVersion == "" || p.ResourceVersion == "0"
	initial := begin
	if p.SendInitialEvents != nil {
		initial = *p.SendInitialEvents
	}
	if initial || begin {
		if err := c.settle(p.ResourceVersion); err != nil {
			w.refused = err
			return w, nil
		}
		state, cursor, err := o.cache.ListAndWatch(sel)
		w.cursor = cursor
		if initial {
			w.state = state
		}
		return w, err
	}
	rev, err := parseRev(p.ResourceVersion)
	if err != nil {
		return w, err
	}
	from := rev
	if now := o.cache.Rev(); rev > now {
		from, w.after = now, rev
	}
	w.cursor, err = o.cache.Watch(sel, from)
	if errors.Is(err, watchcache.ErrTooOld) {
		w.refused, err = apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", rev, o.cache.Rev())), nil
	}
	return w, err
}

// sink takes frames: HTTP chunks, or WebSocket messages.
type sink interface {
	// buffer is where the next frame is appended.
	buffer() []byte
	// frame takes back the buffer with one frame more.
	frame([]byte) error
	// shared takes a frame that others get too; it is not changed and not kept.
	shared([]byte) error
	// flush makes sure that the client gets what was written.
	flush() error
	close()
}

// stream writes one watch.
type stream struct {
	c           *Call
	out         sink
	f           codec.Format
	definitions bool // a Table's column definitions are still to be sent
	sent        func(bytes int)
	began       time.Time // of the request
}

func (s *stream) run(ctx context.Context, p *listParams, w opened, length time.Duration) {
	end := s.began.Add(length)
	told, ok := s.begin(ctx, p, w.state)
	if !ok {
		return
	}
	told = max(told, w.after)
	if s.out.flush() != nil {
		return
	}
	mark := time.Now().Add(bookmarkEvery)
	var waits time.Time // since when it has waited for events
	for {
		now := time.Now()
		if now.Sub(waits) < gather {
			time.Sleep(gather)
			now = time.Now()
		}
		waits = now
		wait := end.Sub(now)
		if p.AllowWatchBookmarks {
			wait = min(wait, mark.Sub(now))
		}
		events, rev, err := w.cursor.Next(ctx, max(wait, 0))
		if err != nil {
			switch {
			case errors.Is(err, watchcache.ErrSlow), errors.Is(err, watchcache.ErrTooOld):
				s.fail(apierrors.NewResourceExpired("too old resource version: the watch was too slow for the rate of changes"))
			case !errors.Is(err, watchcache.ErrGone) && ctx.Err() == nil:
				s.fail(err)
			}
			return
		}
		for _, e := range events {
			if e.Rev <= w.after {
				continue
			}
			if err := s.change(e.Type, e.Item); err != nil {
				s.end(err)
				return
			}
			told = max(told, e.Rev)
		}
		now = time.Now()
		over := !now.Before(end)
		if p.AllowWatchBookmarks && (over || !now.Before(mark)) {
			mark = now.Add(bookmarkEvery)
			if rev > told && s.bookmark(rev, false) != nil {
				return
			}
			told = max(told, rev)
		}
		if s.out.flush() != nil || over || ctx.Err() != nil {
			return
		}
	}
}

// begin sends the state of now, if it is asked for. told is the revision that the client knows of then.
func (s *stream) begin(ctx context.Context, p *listParams, state *watchcache.Snapshot) (told int64, ok bool) {
	if state == nil {
		return 0, true
	}
	var failed error
	sent := 0
	if err := s.scan(state, p, func(it *watchcache.Item) bool {
		if failed = s.event(watchcache.Added, it); failed == nil {
			sent++
		}
		return failed == nil && ctx.Err() == nil
	}); err != nil {
		failed = &unreadable{err}
	}
	s.c.Server.cfg.Metrics.shown(s.c.Row, sent)
	if failed != nil || ctx.Err() != nil {
		s.end(failed)
		return 0, false
	}
	if p.SendInitialEvents != nil && p.AllowWatchBookmarks {
		if s.bookmark(state.Rev(), true) != nil {
			return 0, false
		}
		told = state.Rev()
		s.c.Server.cfg.Metrics.begun(s.c.Info, s.c.Row, time.Since(s.began))
	}
	return told, true
}

func (s *stream) scan(state *watchcache.Snapshot, p *listParams, yield func(*watchcache.Item) bool) error {
	sel, err := s.c.selection(p)
	if err != nil {
		return err
	}
	if err := ahead(s.c.Row, state, sel); err != nil {
		return err
	}
	return state.Scan(sel, "", yield)
}

// unreadable says that an object cannot be had in the version that is watched. The watch ends
// with it: to leave the event out would leave the watcher with a wrong picture for good.
type unreadable struct{ err error }

func (e *unreadable) Error() string { return e.err.Error() }
func (e *unreadable) Unwrap() error { return e.err }

// end tells the client why the watch cannot go on, if it is not the connection that failed.
func (s *stream) end(err error) {
	if bad := (*unreadable)(nil); errors.As(err, &bad) {
		s.fail(bad.err)
	}
}

// change sends an event that other watchers want at the same moment.
func (s *stream) change(t watchcache.Type, it *watchcache.Item) error {
	if s.f.As != "" {
		return s.event(t, it)
	}
	text, err := s.c.Server.frames.get(frameKey{it, t, s.c.Row, s.f.Kind})
	if err != nil {
		return &unreadable{err}
	}
	s.sent(len(text))
	return s.out.shared(text)
}

func (s *stream) event(t watchcache.Type, it *watchcache.Item) error {
	v, err := it.For(s.c.shown())
	if err != nil {
		return &unreadable{err}
	}
	dst := s.out.buffer()
	before := len(dst)
	switch s.f.As {
	case "":
		dst, err = codec.AppendEvent(dst, s.c.Row, eventNames[t], v, s.f)
	case "Table":
		dst, err = s.tableEvent(dst, eventNames[t], v)
	default:
		dst, err = codec.AppendEvent(dst, metadataRow(s.f.Version), eventNames[t], partial{v, s.c.Row.Custom != nil, ""}, s.f)
	}
	if err != nil {
		return err
	}
	s.sent(len(dst) - before)
	return s.out.frame(dst)
}

func (s *stream) tableEvent(dst []byte, typ string, it *watchcache.Item) ([]byte, error) {
	t, err := s.c.newTable()
	if err != nil {
		return dst, err
	}
	t.now = s.c.Objects.now()
	dst = append(dst, `{"type":"`...)
	dst = append(dst, typ...)
	dst = append(dst, `","object":`...)
	dst = t.head(dst, metav1.ListMeta{ResourceVersion: strconv.FormatInt(it.Rev, 10)}, s.definitions)
	s.definitions = false
	dst = append(dst, '[')
	if dst, err = t.row(dst, it); err != nil {
		return dst, err
	}
	return append(dst, "]}}\n"...), nil
}

func (s *stream) bookmark(rev int64, last bool) error {
	row := s.c.Row
	dst := s.out.buffer()
	var err error
	switch s.f.As {
	case "":
		dst, err = codec.AppendBookmark(dst, row, rev, last, s.f)
	case "Table":
		t, _ := s.c.newTable()
		obj := t.kind.New()
		obj.SetResourceVersion(strconv.FormatInt(rev, 10))
		meta := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ResourceVersion: obj.GetResourceVersion()}}
		if last {
			meta.Annotations = map[string]string{codec.InitialEventsEnd: "true"}
		}
		raw, merr := codec.AppendObject(nil, &meta, metadataRow(s.f.Version).GVK(), codec.Format{})
		if merr != nil {
			return merr
		}
		dst = append(dst, `{"type":"BOOKMARK","object":`...)
		dst = t.head(dst, metav1.ListMeta{ResourceVersion: obj.GetResourceVersion()}, s.definitions)
		s.definitions = false
		dst = append(dst, `[{"cells":[`...)
		dst = t.cellsOf(dst, obj)
		dst = append(dst, `],"object":`...)
		dst = append(dst, bytes.TrimRight(raw, "\n")...)
		dst = append(dst, "}]}}\n"...)
	default:
		dst, err = codec.AppendBookmark(dst, metadataRow(s.f.Version), rev, last, s.f)
	}
	if err != nil {
		return err
	}
	return s.out.frame(dst)
}

// fail ends the stream with an ERROR event.
func (s *stream) fail(err error) {
	dst, err := codec.AppendEventObject(s.out.buffer(), "ERROR", Status(err), statusKind, s.f)
	if err == nil && s.out.frame(dst) == nil {
		_ = s.out.flush()
	}
}

// chunks is the sink of plain HTTP.
type chunks struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	frames  *buffer // not written yet; nil: none
	written bool    // and not flushed
}

// flushFrom bounds what is gathered before it is written.
const flushFrom = 64 << 10

func (c *Call) openStream() sink {
	h := c.W.Header()
	h.Set("Content-Type", c.format.ContentType())
	h.Set("Cache-Control", "no-cache, private")
	c.W.WriteHeader(http.StatusOK)
	s := &chunks{w: c.W, rc: http.NewResponseController(c.W)}
	_ = s.rc.SetWriteDeadline(time.Time{})
	_ = s.rc.Flush()
	return s
}

func (s *chunks) buffer() []byte {
	if s.frames == nil {
		s.frames = borrow()
	}
	return s.frames.b
}

func (s *chunks) frame(b []byte) error {
	s.frames.b = b
	if len(b) < flushFrom {
		return nil
	}
	return s.write()
}

func (s *chunks) shared(b []byte) error {
	if err := s.write(); err != nil {
		return err
	}
	s.written = true
	_, err := s.w.Write(b)
	return err
}

func (s *chunks) write() error {
	if s.frames == nil || len(s.frames.b) == 0 {
		return nil
	}
	s.written = true
	_, err := s.w.Write(s.frames.b)
	s.close()
	return err
}

func (s *chunks) flush() error {
	if err := s.write(); err != nil {
		return err
	}
	if !s.written {
		return nil
	}
	s.written = false
	return s.rc.Flush()
}

func (s *chunks) close() {
	if s.frames != nil {
		s.frames.giveBack()
		s.frames = nil
	}
}

// socket is the sink of a WebSocket: one message a frame, text for JSON.
type socket struct {
	conn *websocket.Conn
	kind int
	done chan struct{}
}

// socketWrite bounds one message: a client that does not read is dropped.
const socketWrite = 30 * time.Second

var upgrader = websocket.Upgrader{
	ReadBufferSize: 1024, WriteBufferSize: 4096,
	CheckOrigin: func(*http.Request) bool { return true }, // callers carry credentials of their own, never cookies
}

func (c *Call) openSocket(cancel context.CancelFunc) (sink, error) {
	conn, err := upgrader.Upgrade(c.W, c.R, nil)
	if err != nil {
		return nil, err
	}
	s := &socket{conn: conn, kind: websocket.TextMessage, done: make(chan struct{})}
	if c.format.Kind == codec.Protobuf {
		s.kind = websocket.BinaryMessage
	}
	conn.SetReadLimit(4096)
	go func() { // ends when the connection does: close waits for it
		defer close(s.done)
		defer cancel()
		for {
			if _, _, err := conn.NextReader(); err != nil {
				return
			}
		}
	}()
	return s, nil
}

func (s *socket) buffer() []byte { return nil }

func (s *socket) frame(b []byte) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(socketWrite))
	return s.conn.WriteMessage(s.kind, b)
}

func (s *socket) shared(b []byte) error { return s.frame(b) }

func (s *socket) flush() error { return nil }

func (s *socket) close() {
	_ = s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	_ = s.conn.Close()
	<-s.done
}
