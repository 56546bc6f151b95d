package h2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// conn is one client's connection. Its goroutine reads frames and acts on them at once;
// it never writes to the network itself, so that a client which does not read cannot
// keep it from reading.
//
//	streams: those that one side may still send on
//	running ≥ |streams|: handlers that have not returned
type conn struct {
	s      *server
	net    *tls.Conn
	h      http.Handler
	base   context.Context
	tls    *tls.ConnectionState
	remote string

	// Of the reading goroutine.
	framer *http2.Framer
	lastID uint32

	mu      sync.Mutex // guards what follows; held for memory work only
	err     error      // the connection has ended
	streams map[uint32]*stream
	running int
	fewer   sync.Cond // running has shrunk, or the connection has ended
	away    bool      // GOAWAY is sent: no new streams
	closing bool      // close when all is written
	top     uint32    // highest stream that was accepted

	out     output
	enc     *hpack.Encoder
	block   bytes.Buffer // enc writes here
	frame   int          // largest frame that the client takes
	window  int64        // bytes of bodies that the client takes on this connection
	initial int64        // the same for a new stream
	blocked []*stream    // in turn: those that wait for window

	recv   int64 // bytes of bodies that the client may send
	unread int64 // read bytes that the client was not yet told of

	heard  time.Time // last frame
	pinged time.Time // zero: no ping is unanswered
	quiet  time.Time // since when there is no stream; zero: there is one
	timer  *time.Timer
	ended  sync.WaitGroup
}

func newConn(s *server, tc *tls.Conn, h http.Handler, base context.Context) *conn {
	state := tc.ConnectionState()
	now := time.Now()
	c := &conn{
		s: s, net: tc, h: h, base: base, tls: &state, remote: tc.RemoteAddr().String(),
		streams: map[uint32]*stream{}, frame: 16 << 10, window: 65535, initial: 65535, recv: ourConnWindow,
		heard: now, quiet: now,
	}
	c.fewer.L, c.out.room.L = &c.mu, &c.mu
	c.enc = hpack.NewEncoder(&c.block)
	c.framer = http2.NewFramer(nil, bufio.NewReaderSize(tc, readAhead))
	c.framer.SetReuseFrames()
	c.framer.SetMaxReadFrameSize(ourFrame)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.MaxHeaderListSize = uint32(c.maxHeader())
	return c
}

func (c *conn) maxHeader() int {
	if n := c.s.srv.MaxHeaderBytes; n > 0 {
		return n
	}
	return http.DefaultMaxHeaderBytes
}

// run serves the connection until it ends and all its handlers have returned.
func (c *conn) run() {
	defer c.ended.Wait()
	defer c.fail(errConnEnded)
	if c.greet() != nil {
		return
	}
	c.mu.Lock()
	c.timer = time.AfterFunc(c.lookEvery(), c.look)
	c.mu.Unlock()
	first := true
	for {
		f, err := c.framer.ReadFrame()
		if err == nil && first {
			if _, ok := f.(*http2.SettingsFrame); !ok {
				err = http2.ConnectionError(http2.ErrCodeProtocol)
			}
			first = false
			_ = c.net.SetReadDeadline(time.Time{})
		}
		if err == nil {
			err = c.take(f)
		}
		if err != nil && !c.survives(err) {
			return
		}
	}
}

// survives tells the client what it did wrong, and returns whether the connection goes on.
func (c *conn) survives(err error) bool {
	var stream http2.StreamError
	var code http2.ConnectionError
	switch {
	case errors.As(err, &stream):
		c.reset(stream.StreamID, stream.Code)
		return true
	case errors.As(err, &code):
	case errors.Is(err, http2.ErrFrameTooLarge):
		code = http2.ConnectionError(http2.ErrCodeFrameSize)
	default:
		return false // it has ended
	}
	c.s.logf("http2: connection from %s: %v", c.remote, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.goAway(c.top, http2.ErrCode(code))
	c.away, c.closing = true, true
	c.push(false)
	for c.out.writing && c.err == nil {
		c.out.room.Wait() // until it is written, or the client has taken too long
	}
	return false
}

// greet reads the client's preface and sends our settings.
func (c *conn) greet() error {
	_ = c.net.SetReadDeadline(time.Now().Add(prefaceTimeout))
	c.mu.Lock()
	c.out.settings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.s.maxStreams)},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: ourStreamWindow},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.maxHeader())},
	)
	c.out.windowUpdate(0, ourConnWindow-65535)
	c.leave()
	c.mu.Unlock()
	var got [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(c.net, got[:]); err != nil {
		return err
	}
	if string(got[:]) != http2.ClientPreface {
		return errConnEnded
	}
	return nil
}

// take acts on one frame.
func (c *conn) take(f http2.Frame) error {
	if f, ok := f.(*http2.MetaHeadersFrame); ok {
		return c.takeHeaders(f) // takes the lock by itself: it may have to wait
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.takeData(f)
	case *http2.SettingsFrame:
		return c.takeSettings(f)
	case *http2.WindowUpdateFrame:
		return c.takeWindow(f)
	case *http2.PingFrame:
		if f.IsAck() {
			c.pinged = time.Time{}
			return nil
		}
		c.out.ping(true, f.Data)
		return c.control()
	case *http2.RSTStreamFrame:
		if f.StreamID > c.lastID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if st := c.streams[f.StreamID]; st != nil {
			st.end(errReset)
		}
	case *http2.GoAwayFrame:
		c.away = true // it opens no more streams
		c.maybeClose()
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil // priorities and unknown frames have no meaning here
}

// control lets the answer to a control frame be written. A client that asks much and reads
// nothing loses its connection. Called with mu held.
func (c *conn) control() error {
	if c.out.control++; c.out.control > maxControl {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	c.leave()
	return nil
}

func (c *conn) takeSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.HasDuplicates() || f.NumSettings() > 100 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			c.enc.SetMaxDynamicTableSizeLimit(min(s.Val, 4096))
		case http2.SettingMaxFrameSize:
			c.frame = int(min(s.Val, 64<<10))
		case http2.SettingInitialWindowSize:
			grown := int64(s.Val) - c.initial
			c.initial = int64(s.Val)
			for _, st := range c.streams {
				if st.window += grown; st.window > maxWindow {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
				st.cond.Broadcast()
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.out.settingsAck()
	return c.control()
}

const maxWindow = 1<<31 - 1

func (c *conn) takeWindow(f *http2.WindowUpdateFrame) error {
	n := int64(f.Increment)
	if f.StreamID == 0 {
		if c.window += n; c.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		c.nextBlocked()
		return nil
	}
	if f.StreamID > c.lastID {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if st := c.streams[f.StreamID]; st != nil {
		if st.window += n; st.window > maxWindow {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
		}
		st.cond.Broadcast()
	}
	return nil
}

// nextBlocked wakes the stream whose turn it is.
func (c *conn) nextBlocked() {
	if len(c.blocked) > 0 {
		c.blocked[0].cond.Broadcast()
	}
}

func (c *conn) takeData(f *http2.DataFrame) error {
	n := int64(f.Length) // padding counts
	if c.recv -= n; c.recv < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if f.StreamID > c.lastID {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	st := c.streams[f.StreamID]
	if st == nil { // sent before the client knew that we are done with it
		c.consumed(n)
		return nil
	}
	return st.takeData(f.Data(), n, f.StreamEnded())
}

// consumed gives the client back what it may send on the connection. Called with mu held.
func (c *conn) consumed(n int64) {
	if c.unread += n; c.unread >= ourConnWindow/2 {
		c.recv += c.unread
		c.out.windowUpdate(0, uint32(c.unread))
		c.unread = 0
		c.leave()
	}
}

// reset ends a stream with an error of the client's, or ours.
func (c *conn) reset(id uint32, code http2.ErrCode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.streams[id]; st != nil {
		st.end(errStream)
	}
	c.out.reset(id, code)
	if c.control() != nil {
		c.failLocked(errConnEnded)
	}
}

// goAway tells the client to open no more streams here; the connection ends with its last one.
func (c *conn) goAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away || c.err != nil {
		return
	}
	c.away = true
	c.out.goAway(c.top, http2.ErrCodeNo)
	c.leave()
	c.maybeClose()
}

// maybeClose closes a connection that serves nothing more, as soon as all is written.
func (c *conn) maybeClose() {
	if !c.away || c.running > 0 || c.err != nil {
		return
	}
	if c.closing = true; !c.out.writing && len(c.out.pending) == 0 {
		c.failLocked(errConnEnded)
	}
}

func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

// failLocked ends the connection: handlers' contexts end, their reads and writes fail.
func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	for _, st := range c.streams {
		st.end(err)
	}
	c.blocked = nil
	c.fewer.Broadcast()
	if c.timer != nil {
		c.timer.Stop()
	}
	// Closing sends a last record, which may take time and needs nothing of ours.
	c.ended.Add(1)
	go func() {
		defer c.ended.Done()
		_ = c.net.Close() // the client has gone, or soon will
	}()
}

// look is the connection's clock: it asks clients that say nothing whether they are there,
// and ends connections that are not used.
func (c *conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now := time.Now()
	idle := c.s.srv.IdleTimeout
	switch {
	case !c.pinged.IsZero() && now.Sub(c.pinged) >= c.s.pingTimeout:
		c.s.logf("http2: connection from %s: no answer to a ping", c.remote)
		c.failLocked(errConnEnded)
		return
	case idle > 0 && !c.quiet.IsZero() && now.Sub(c.quiet) >= idle:
		if !c.away {
			c.away = true
			c.out.goAway(c.top, http2.ErrCodeNo)
			c.leave()
		}
		c.maybeClose()
	case c.pinged.IsZero() && c.s.pingAfter > 0 && now.Sub(c.heard) >= c.s.pingAfter:
		var data [8]byte
		binary.BigEndian.PutUint64(data[:], uint64(now.UnixNano()))
		c.pinged = now
		c.out.ping(false, data)
		c.leave()
	}
	if c.err == nil {
		c.timer.Reset(c.lookEvery())
	}
}

func (c *conn) lookEvery() time.Duration {
	every := c.s.pingTimeout
	if idle := c.s.srv.IdleTimeout; idle > 0 {
		every = min(every, max(idle/2, time.Second/10))
	}
	return every
}
