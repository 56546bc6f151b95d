package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/remotecommand"
	spdytransport "k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Streams come as SPDY or as WebSockets. Runtimes speak SPDY, so SPDY is passed through
// untouched; a WebSocket is taken apart here and told to the runtime over SPDY.
//
//	client ──SPDY/3.1──> kubelet ───────bytes───────> runtime's streaming server
//	client ──WebSocket─> kubelet ──SPDY/3.1, v4─────> runtime's streaming server

// streamOptions are which streams a client asks for.
type streamOptions struct{ stdin, stdout, stderr, tty bool }

// parseStreams reads them in the kubelet's spelling (input, output, error) or the API's.
func parseStreams(q url.Values) (streamOptions, error) {
	on := func(names ...string) bool {
		for _, n := range names {
			if v, err := strconv.ParseBool(q.Get(n)); err == nil && v {
				return true
			}
		}
		return false
	}
	o := streamOptions{stdin: on("input", "stdin"), stdout: on("output", "stdout"), stderr: on("error", "stderr"), tty: on("tty")}
	if o.tty {
		o.stderr = false // a terminal has one output
	}
	if !o.stdin && !o.stdout && !o.stderr {
		return o, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

// running finds the container of a stream request; it has answered when ok is false.
func (s *Server) running(w http.ResponseWriter, r *http.Request) (o streamOptions, id string, ok bool) {
	o, err := parseStreams(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return o, "", false
	}
	pod, ok := s.target(w, r)
	if !ok {
		return o, "", false
	}
	name := r.PathValue("container")
	c, ok := s.s.Pods.Container(pod.UID, name, false)
	if !ok || !c.Running || !hasContainer(pod, name) {
		http.Error(w, fmt.Sprintf("container not found (%q)", name), http.StatusNotFound)
		return o, "", false
	}
	return o, c.ID, true
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	o, id, ok := s.running(w, r)
	if !ok {
		return
	}
	answer, err := s.s.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: r.URL.Query()["command"], Tty: o.tty, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr,
	})
	s.stream(w, r, answer.GetUrl(), err, o)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	o, id, ok := s.running(w, r)
	if !ok {
		return
	}
	answer, err := s.s.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: id, Tty: o.tty, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr,
	})
	s.stream(w, r, answer.GetUrl(), err, o)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod, ok := s.target(w, r)
	if !ok {
		return
	}
	sandbox, ok := s.s.Pods.Sandbox(pod.UID)
	if !ok {
		http.Error(w, fmt.Sprintf("pod not found (%q)", pod.Name), http.StatusNotFound)
		return
	}
	var ports []int32
	for _, list := range r.URL.Query()["port"] {
		for _, text := range strings.Split(list, ",") {
			port, err := strconv.ParseUint(text, 10, 16)
			if err != nil || port == 0 {
				http.Error(w, fmt.Sprintf("port %q: want a number from 1 to 65535", text), http.StatusBadRequest)
				return
			}
			ports = append(ports, int32(port))
		}
	}
	answer, err := s.s.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox, Port: ports})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if !websocket.IsWebSocketUpgrade(r) {
		s.pass(w, r, answer.Url)
		return
	}
	if forwardsChannels(r) {
		err = s.channels(w, r, answer.Url, ports)
	} else {
		err = s.tunnel(w, r, answer.Url)
	}
	if err != nil {
		s.log.Debug("port-forward ended", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "err", err)
	}
}

// stream connects a client of exec or attach to the runtime's streaming address.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, address string, err error, o streamOptions) {
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case websocket.IsWebSocketUpgrade(r):
		if err := s.bridge(w, r, address, o); err != nil {
			s.log.Debug("stream ended", "path", r.URL.Path, "err", err)
		}
	default:
		s.pass(w, r, address)
	}
}

// insecure: the runtime's streaming server is on this machine, its address carries a
// one-time token, and its certificate, if it has one, is its own.
var insecure = &tls.Config{InsecureSkipVerify: true}

var passing = &http.Transport{TLSClientConfig: insecure, DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext}

// pass hands the connection through to the runtime, upgrade included.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, address string) {
	to, err := url.Parse(address)
	if err != nil || to.Host == "" {
		http.Error(w, fmt.Sprintf("the runtime gave the streaming address %q", address), http.StatusInternalServerError)
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host = to, to.Host
			p.Out.Header.Del("Authorization") // the client's, for us
		},
		Transport:     passing,
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("error dialing the runtime's streaming server: %v", err), http.StatusBadGateway)
		},
	}
	proxy.ServeHTTP(w, r)
}

// Channels of the remote command protocol over WebSockets: the first byte of a message.
// Source: Kubernetes enhancement KEP-4006 and its predecessor "channel.k8s.io".
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelStatus = 3
	channelResize = 4
	channelClose  = 255 // v5: the next byte names the channel that ends
)

// defaultPingEvery keeps idle connections alive across load balancers, and finds out that a client is gone
// also while nothing is read from it, because the command does not take its input: a ping to a
// closed connection fails at the second try.
const defaultPingEvery = 10 * time.Second

// bridge speaks the remote command protocol over a WebSocket with the client, and SPDY
// with the runtime.
func (s *Server) bridge(w http.ResponseWriter, r *http.Request, address string, o streamOptions) error {
	to, err := url.Parse(address)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return err
	}
	conn, err := upgrade(w, r, commandProtocols...)
	if err != nil {
		return err
	}
	ws := newSocket(conn)
	defer conn.Close()
	// The context of a hijacked request ends only with its handler.
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)

	stdinR, stdinW := io.Pipe()
	sizes := make(sizeQueue, 1)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer conn.Close()
	received := make(chan struct{})
	helpers.Go(func() {
		defer close(received)
		defer close(sizes)
		err := ws.receive(stdinW, sizes)
		_ = stdinW.Close()
		cancel(err)
	})
	stopPings := keepAlive(conn, s.pingEvery, &helpers, func(err error) {
		_ = stdinW.Close() // receive may be waiting for the command to read
		cancel(err)
	})
	defer stopPings()

	streams := remotecommand.StreamOptions{Tty: o.tty}
	if o.stdin {
		streams.Stdin = stdinR
	}
	if o.stdout {
		streams.Stdout = channel{ws, channelStdout}
	}
	if o.stderr {
		streams.Stderr = channel{ws, channelStderr}
	}
	if o.tty {
		streams.TerminalSizeQueue = sizes
	}
	below := &link{}
	defer context.AfterFunc(ctx, below.close)()
	executor, err := remotecommand.NewSPDYExecutorForTransports(below, spdytransport.NewUpgraderForStreaming(below), http.MethodPost, to)
	if err == nil {
		err = executor.StreamWithContext(ctx, streams)
	}
	_ = stdinW.Close() // whoever still sends learns that nobody reads, and whoever still reads that nothing comes
	if err := ws.status(err); err != nil {
		return err
	}
	if err := ws.bye(); err != nil {
		return err
	}
	linger(conn)
	<-received
	return nil
}

// lingerLimit is how long a client may take to answer a close message.
const lingerLimit = 5 * time.Second

// linger lets the reader of a connection go on for a while after the last message was sent: to close it while the client's
// own bytes are unread would reset it, and the client could lose what it has not read yet.
func linger(conn *websocket.Conn) { _ = conn.SetReadDeadline(time.Now().Add(lingerLimit)) }

// commandProtocols are the remote command protocols, best first. Those with "base64" use text
// messages: a digit for the channel, then base64. The ones without a version tell only failures on
// the status channel, as text; they are also what a client gets that offers nothing.
var commandProtocols = []string{
	"v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", "",
}

// upgrade accepts a WebSocket that offers one of the protocols. Otherwise it has answered.
func upgrade(w http.ResponseWriter, r *http.Request, protocols ...string) (*websocket.Conn, error) {
	offered := websocket.Subprotocols(r)
	if len(offered) == 0 {
		offered = []string{""}
	}
	if !slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(protocols, p) }) {
		err := fmt.Errorf("WebSocket protocols %q are not known here: want one of %q", offered, protocols)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, err
	}
	u := websocket.Upgrader{Subprotocols: protocols, CheckOrigin: func(*http.Request) bool { return true }} // no browser holds our credentials
	return u.Upgrade(w, r, nil)
}

// exitStatus is how the end of a command is told, as upstream's protocol v4 does.
func exitStatus(err error) *metav1.Status {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return &metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &exit) && exit.Exited():
		return &metav1.Status{
			Status: metav1.StatusFailure, Reason: "NonZeroExitCode",
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: strconv.Itoa(exit.ExitStatus())}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", err),
		}
	}
	return &metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError, Message: err.Error()}
}

// socket is a WebSocket that several goroutines write to.
type socket struct {
	conn   *websocket.Conn
	text   bool       // base64 in text messages
	legacy bool       // the protocol has no structured status
	mu     sync.Mutex // held while writing
}

func newSocket(conn *websocket.Conn) *socket {
	p := conn.Subprotocol()
	return &socket{conn: conn, text: strings.Contains(p, "base64"), legacy: p == "" || p == "channel.k8s.io" || p == "base64.channel.k8s.io"}
}

// status tells how the command ended.
func (s *socket) status(end error) error {
	if s.legacy {
		if end == nil {
			return nil
		}
		return s.send(channelStatus, []byte(end.Error()))
	}
	data, err := json.Marshal(exitStatus(end))
	if err != nil {
		return err
	}
	return s.send(channelStatus, data)
}

func (s *socket) send(channel byte, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text {
		return s.conn.WriteMessage(websocket.TextMessage, append([]byte{'0' + channel}, base64.StdEncoding.EncodeToString(data)...))
	}
	w, err := s.conn.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte{channel}); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Close()
}

func (s *socket) bye() error {
	return s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(5*time.Second))
}

// keepAlive sends pings until the returned function is called, or until one cannot be sent: then
// it calls gone and ends.
func keepAlive(conn *websocket.Conn, every time.Duration, group *sync.WaitGroup, gone func(error)) (stop func()) {
	done := make(chan struct{})
	group.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if err := conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(5*time.Second)); err != nil {
					gone(err)
					return
				}
			}
		}
	})
	return func() { close(done) }
}

// next waits for a message and returns its channel and what it carries.
func (s *socket) next() (number byte, data []byte, err error) {
	var message []byte
	for len(message) == 0 {
		if _, message, err = s.conn.ReadMessage(); err != nil {
			return 0, nil, err
		}
	}
	number, data = message[0], message[1:]
	if s.text {
		if data, err = base64.StdEncoding.AppendDecode(nil, data); err != nil {
			return 0, nil, fmt.Errorf("channel %c: %w", number, err)
		}
		number -= '0'
	}
	return number, data, nil
}

// receive takes the client's messages until it goes away.
func (s *socket) receive(stdin *io.PipeWriter, sizes sizeQueue) error {
	for {
		number, data, err := s.next()
		if err != nil {
			return err
		}
		switch number {
		case channelStdin:
			if len(data) > 0 {
				_, _ = stdin.Write(data) // a command that no longer reads is not the end
			}
		case channelResize:
			var size remotecommand.TerminalSize
			if json.Unmarshal(data, &size) == nil {
				sizes.put(size)
			}
		case channelClose:
			if len(data) > 0 && data[0] == channelStdin {
				_ = stdin.Close()
			}
		}
	}
}

type channel struct {
	socket *socket
	number byte
}

func (c channel) Write(p []byte) (int, error) {
	if err := c.socket.send(c.number, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// sizeQueue holds the newest size of the client's terminal.
type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) put(size remotecommand.TerminalSize) {
	for {
		select {
		case q <- size:
			return
		default:
		}
		select {
		case <-q: // an older one that nobody has seen
		default:
		}
	}
}

// Next implements remotecommand.TerminalSizeQueue.
func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

// tunnelProtocol is port-forwarding's SPDY connection inside WebSocket messages.
const tunnelProtocol = "SPDY/3.1+" + forwardProtocol
const forwardProtocol = "portforward.k8s.io"

// tunnel carries the bytes of a SPDY connection that comes inside a WebSocket.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request, address string) error {
	out, err := http.NewRequestWithContext(r.Context(), http.MethodPost, address, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return err
	}
	out.Header.Set("X-Stream-Protocol-Version", forwardProtocol)
	backend, buffered, _, err := dialSPDY(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return err
	}
	defer backend.Close()
	conn, err := upgrade(w, r, tunnelProtocol)
	if err != nil {
		return err
	}
	defer conn.Close()
	var down sync.WaitGroup
	defer down.Wait()
	defer backend.Close()
	stopPings := keepAlive(conn, s.pingEvery, &down, func(error) { _ = backend.Close() })
	defer stopPings()
	down.Go(func() {
		defer backend.Close() // a write to it may be waiting
		buf := make([]byte, 32<<10)
		for {
			n, err := buffered.Read(buf)
			if n > 0 && conn.WriteMessage(websocket.BinaryMessage, buf[:n]) != nil {
				conn.Close()
				return
			}
			if err != nil {
				_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
				linger(conn)
				return
			}
		}
	})
	for {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return err
		}
		_, _ = backend.Write(message) // once it is closed, what still comes is only read
	}
}

// dialSPDY sends the request to the runtime's streaming server as one that upgrades its connection,
// and returns the connection, with what was read beyond the answer, once it is upgraded.
func dialSPDY(r *http.Request) (net.Conn, *bufio.Reader, *http.Response, error) {
	ctx := r.Context()
	d := &net.Dialer{Timeout: 10 * time.Second}
	var conn net.Conn
	var err error
	if r.URL.Scheme == "https" {
		conn, err = (&tls.Dialer{NetDialer: d, Config: insecure}).DialContext(ctx, "tcp", r.URL.Host)
	} else {
		conn, err = d.DialContext(ctx, "tcp", r.URL.Host)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("dial the runtime's streaming server: %w", err)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })() // while the answer is awaited
	r = r.Clone(ctx)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "SPDY/3.1")
	buffered := bufio.NewReader(conn)
	var res *http.Response
	if err = r.Write(conn); err == nil {
		res, err = http.ReadResponse(buffered, r)
	}
	if err == nil && res.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		err = fmt.Errorf("the runtime's streaming server answered %s: %s", res.Status, body)
	}
	if err != nil {
		conn.Close()
		return nil, nil, nil, err
	}
	return conn, buffered, res, nil
}

// link is the connection to the runtime below one executor. The executor's own way to end, a reset of
// each stream, waits for its turn behind data that the runtime may never take; close does not.
type link struct {
	mu     sync.Mutex
	conn   net.Conn // guarded by mu
	closed bool     // guarded by mu
}

var _ httpstream.UpgradeRoundTripper = (*link)(nil)

// RoundTrip implements http.RoundTripper.
func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	conn, buffered, res, err := dialSPDY(r)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = readFirst{conn, buffered}
	if l.closed {
		conn.Close()
	}
	return res, nil
}

// NewConnection makes the streams' connection of what RoundTrip has upgraded.
func (l *link) NewConnection(*http.Response) (httpstream.Connection, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return spdy.NewClientConnection(l.conn)
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.conn != nil {
		l.conn.Close()
	}
}

// readFirst is a connection of which a part has been read already.
type readFirst struct {
	net.Conn
	buffered *bufio.Reader
}

func (c readFirst) Read(p []byte) (int, error) { return c.buffered.Read(p) }
