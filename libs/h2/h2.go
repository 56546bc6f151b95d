// Package h2 serves HTTP/2 for servers that send much on few connections: thousands
// of watches, lists of many megabytes, short answers by the thousand.
//
// The main call is [Configure]: it makes an http.Server hand its TLS connections that
// have chosen "h2" to this package. Handlers, contexts, shutdown, timeouts and the
// bounds of http.HTTP2Config stay those of net/http.
//
// Why not net/http's own: there every frame passes from the handler to a goroutine of
// the connection, from there to one that writes, and back, and each frame is a TLS
// record and a system call. A delivery to one of a thousand watchers costs four
// switches, which is more than everything else about it. Here whoever has something to
// send appends frames to the connection's pending bytes, under a lock held for memory
// work only, and the first who finds nobody writing writes all that is pending in one
// piece. Before it does so for a flush of a stream it lets other goroutines run once, so
// that what they have to say to the same client goes into the same record.
//
// It promises what RFC 9113 demands of a server, without push, priorities and extended
// CONNECT, and to bound what a client can make it hold: streams, running handlers,
// pending bytes, unread bodies, header lists, answers to control frames. A client that
// takes nothing for WriteByteTimeout loses its connection; one that shows no sign of
// life for SendPingTimeout is asked, and loses it too if it does not answer. A slow
// client holds up the handlers of its own connection and nobody else's.
//
// Goroutines: one for each connection (net/http's), one for each running handler, and at
// most one for each connection that writes what handlers have left behind. All have ended
// when the connection's goroutine returns.
package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net/http"
	"sync"
	"time"
)

// Bounds that are not for administrators to choose.
const (
	ourFrame        = 16 << 10      // largest frame accepted: the protocol's initial value
	ourStreamWindow = 256 << 10     // of a request's body, unread
	ourConnWindow   = 1 << 20       // of all bodies of a connection
	maxPending      = 128 << 10     // pending bytes from which senders wait
	sendFrom        = 16 << 10      // pending bytes from which a write without a flush is sent
	oneRecord       = 16 << 10      // of TLS, at most
	readAhead       = 512           // a frame's head with what follows; larger parts are read past it, and TLS keeps the record
	sendPiece       = 3 * oneRecord // what is handed to the kernel at once, and must be taken within the write timeout
	holdBody        = 4 << 10       // of an answer, before it is sent without a flush
	maxControl      = 1000          // pending answers to control frames
	prefaceTimeout  = 10 * time.Second
)

// server is the part of an http.Server that speaks HTTP/2.
type server struct {
	srv          *http.Server
	maxStreams   int
	pingAfter    time.Duration // 0: never
	pingTimeout  time.Duration
	writeTimeout time.Duration
	workers      workers

	mu     sync.Mutex // guards what follows
	conns  map[*conn]bool
	ending bool
}

// Configure makes srv serve HTTP/2 by this package. It is called before srv serves and
// after srv.HTTP2 was set; of that, MaxConcurrentStreams, SendPingTimeout, PingTimeout and
// WriteByteTimeout are used.
func Configure(srv *http.Server) {
	s := &server{srv: srv, maxStreams: 250, pingTimeout: 15 * time.Second, writeTimeout: 30 * time.Second, conns: map[*conn]bool{}}
	if o := srv.HTTP2; o != nil {
		if o.MaxConcurrentStreams > 0 {
			s.maxStreams = o.MaxConcurrentStreams
		}
		if o.PingTimeout > 0 {
			s.pingTimeout = o.PingTimeout
		}
		if o.WriteByteTimeout > 0 {
			s.writeTimeout = o.WriteByteTimeout
		}
		s.pingAfter = o.SendPingTimeout
	}
	if srv.TLSNextProto == nil {
		srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	srv.TLSNextProto["h2"] = s.serve
	srv.RegisterOnShutdown(s.shutdown)
}

// serve runs one connection to its end, on the goroutine that net/http has made for it. The stack of that
// holds little while the connection waits: what is needed at its beginning and its end are functions of their own.
func (s *server) serve(srv *http.Server, c *tls.Conn, h http.Handler) {
	cn := s.join(srv, c, h)
	defer s.leave(cn)
	cn.run()
}

// join makes a connection one of the server's.
func (s *server) join(srv *http.Server, c *tls.Conn, h http.Handler) *conn {
	base := context.Background()
	// net/http hands the connection's context down this way.
	if b, ok := h.(interface{ BaseContext() context.Context }); ok {
		base = b.BaseContext()
	}
	// What net/http has put around the handler completes requests that are complete here, and
	// would be on the stack of each that waits.
	if srv.Handler != nil {
		h = srv.Handler
	}
	s.workers.connected()
	cn := newConn(s, c, h, base)
	s.mu.Lock()
	ending := s.ending
	s.conns[cn] = true
	s.mu.Unlock()
	if ending {
		cn.goAway()
	}
	return cn
}

// leave is the end of join.
func (s *server) leave(cn *conn) {
	s.mu.Lock()
	delete(s.conns, cn)
	s.mu.Unlock()
	s.workers.disconnected()
}

// shutdown asks all clients to go elsewhere; running requests are served to their end.
func (s *server) shutdown() {
	s.mu.Lock()
	s.ending = true
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.goAway()
	}
}

func (s *server) logf(format string, args ...any) {
	if l := s.srv.ErrorLog; l != nil {
		l.Printf(format, args...)
		return
	}
	log.Printf(format, args...)
}

// Why a handler's context ended or its writes fail.
var (
	errConnEnded = errors.New("h2: the client's connection has ended")
	errReset     = errors.New("h2: the client has reset the stream")
	errFinished  = errors.New("h2: the handler has returned")
	errStream    = errors.New("h2: the client broke the rules of the stream")
)
