package shutdown

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// machine is a message bus with systemd and its login manager on it, as far as this room speaks to them. It
// speaks the real protocol over a socket, file descriptors included.
type machine struct {
	t       *testing.T
	address string
	confd   string
	maximum time.Duration // that a reload of the configuration does not exceed; 0: none

	mu       sync.Mutex
	delay    time.Duration // guarded by mu, as are the following
	clients  map[*net.UnixConn]bool
	watchers map[*net.UnixConn]bool // those that have asked for PrepareForShutdown
	locks    []int                  // the other ends of the inhibitors
	listener net.Listener
	wg       sync.WaitGroup
}

func newMachine(t *testing.T, delay time.Duration) *machine {
	dir := t.TempDir()
	m := &machine{t: t, address: "unix:path=" + filepath.Join(dir, "bus"), confd: filepath.Join(dir, "logind.conf.d"), delay: delay,
		clients: map[*net.UnixConn]bool{}, watchers: map[*net.UnixConn]bool{}}
	m.listen()
	t.Cleanup(m.stop)
	return m
}

func (m *machine) listen() {
	l, err := net.Listen("unix", strings.TrimPrefix(m.address, "unix:path="))
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	m.listener = l
	m.mu.Unlock()
	m.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conn := c.(*net.UnixConn)
			m.mu.Lock()
			m.clients[conn] = true
			m.mu.Unlock()
			m.wg.Go(func() { m.serve(conn) })
		}
	})
}

// stop closes the bus with all its connections.
func (m *machine) stop() {
	m.mu.Lock()
	m.listener.Close()
	for c := range m.clients {
		c.Close()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

func (m *machine) serve(c *net.UnixConn) {
	defer func() {
		m.mu.Lock()
		delete(m.clients, c)
		delete(m.watchers, c)
		m.mu.Unlock()
		c.Close()
	}()
	if !greet(c) {
		return
	}
	for {
		msg, err := dbus.DecodeMessage(c)
		if err != nil {
			return
		}
		if msg.Type != dbus.TypeMethodCall {
			continue
		}
		member := msg.Headers[dbus.FieldMember].Value().(string)
		body, err := m.answer(c, member, msg.Body)
		headers := map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(msg.Serial())}
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: headers, Body: body}
		if err != nil {
			reply.Type, reply.Body = dbus.TypeError, []any{err.Error()}
			headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.DBus.Error.Failed")
		}
		if err := send(c, reply); err != nil {
			return
		}
	}
}

// greet is the server's side of the authentication. Source: D-Bus specification, "Authentication Protocol".
func greet(c net.Conn) bool {
	line := func() string {
		var b []byte
		for one := make([]byte, 1); !bytes.HasSuffix(b, []byte("\r\n")); b = append(b, one...) {
			if _, err := io.ReadFull(c, one); err != nil {
				return ""
			}
		}
		return strings.TrimLeft(strings.TrimSpace(string(b)), "\x00")
	}
	for {
		answer := ""
		switch l := line(); {
		case l == "BEGIN":
			return true
		case l == "AUTH":
			answer = "REJECTED EXTERNAL"
		case strings.HasPrefix(l, "AUTH EXTERNAL"):
			answer = "OK 0123456789abcdef0123456789abcdef"
		case l == "NEGOTIATE_UNIX_FD":
			answer = "AGREE_UNIX_FD"
		default:
			return false
		}
		if _, err := fmt.Fprintf(c, "%s\r\n", answer); err != nil {
			return false
		}
	}
}

func send(c *net.UnixConn, msg *dbus.Message) error {
	if len(msg.Body) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(msg.Body...))
	}
	var rights []byte
	for _, part := range msg.Body {
		if fd, ok := part.(dbus.UnixFD); ok {
			defer unix.Close(int(fd))
			rights = unix.UnixRights(int(fd))
			msg.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(1))
		}
	}
	var b bytes.Buffer
	if _, err := msg.EncodeToWithFDs(&b, binary.LittleEndian); err != nil {
		return err
	}
	_, _, err := c.WriteMsgUnix(b.Bytes(), rights, nil)
	return err
}

func (m *machine) answer(c *net.UnixConn, member string, args []any) ([]any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch member {
	case "Hello":
		return []any{":1.7"}, nil
	case "AddMatch":
		if rule := args[0].(string); strings.Contains(rule, "member='PrepareForShutdown'") && strings.Contains(rule, "interface='org.freedesktop.login1.Manager'") {
			m.watchers[c] = true
		}
		return nil, nil
	case "Get":
		if args[0] != "org.freedesktop.login1.Manager" || args[1] != "InhibitDelayMaxUSec" {
			return nil, fmt.Errorf("no property %v of %v", args[1], args[0])
		}
		return []any{dbus.MakeVariant(uint64(m.delay / time.Microsecond))}, nil
	case "KillUnit":
		if args[0] != "systemd-logind.service" || args[2] != int32(1) {
			return nil, fmt.Errorf("signal %v to unit %v", args[2], args[0])
		}
		text, err := os.ReadFile(filepath.Join(m.confd, "99-kubelet.conf"))
		if err != nil {
			return nil, err
		}
		var seconds int
		_, after, _ := strings.Cut(string(text), "[Login]\n")
		if _, err := fmt.Sscanf(after, "InhibitDelayMaxSec=%d", &seconds); err != nil {
			return nil, err
		}
		if m.delay = time.Duration(seconds) * time.Second; m.maximum > 0 {
			m.delay = min(m.delay, m.maximum)
		}
		return nil, nil
	case "Inhibit":
		if what := fmt.Sprint(args[0], args[1], args[3]); what != "shutdownkubeletdelay" {
			return nil, fmt.Errorf("inhibitor %s", what)
		}
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		m.locks = append(m.locks, ends[0])
		m.t.Cleanup(func() { unix.Close(ends[0]) })
		return []any{dbus.UnixFD(ends[1])}, nil // send closes it: the client has a copy then
	}
	return nil, fmt.Errorf("no method %s", member)
}

// held is how many inhibitors are held.
func (m *machine) held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, fd := range m.locks {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, err := unix.Poll(poll, 0)
		for errors.Is(err, unix.EINTR) { // the scheduler's signals
			_, err = unix.Poll(poll, 0)
		}
		if err == nil && poll[0].Revents&unix.POLLHUP == 0 {
			n++
		}
	}
	return n
}

// prepare tells all that watch that a shutdown begins, or is called off.
func (m *machine) prepare(begins bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.watchers {
		if err := send(c, &dbus.Message{Type: dbus.TypeSignal, Body: []any{begins}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(loginPath), dbus.FieldInterface: dbus.MakeVariant(loginManager),
			dbus.FieldMember: dbus.MakeVariant("PrepareForShutdown"), dbus.FieldSender: dbus.MakeVariant(":1.2")}}); err != nil {
			m.t.Error(err)
		}
	}
}
