package supervisor

import (
	"net"
	"os"
	"path/filepath"
	"strings"
)

// A message is what a service says of itself (sd_notify(3)).
type message struct{ ready, ping bool }

// notifier receives a service's notifications. Its goroutine ends with close.
type notifier struct {
	path     string
	conn     *net.UnixConn
	messages chan message // bound 16: beyond that messages are dropped; pings repeat
	done     chan struct{}
}

func listen(dir, name string) (*notifier, error) {
	path := filepath.Join(dir, name+".notify")
	_ = os.Remove(path)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	n := &notifier{path: path, conn: conn, messages: make(chan message, 16), done: make(chan struct{})}
	go func() {
		defer close(n.done)
		buf := make([]byte, 4096)
		for {
			k, err := conn.Read(buf)
			if err != nil {
				return
			}
			m := parse(string(buf[:k]))
			if m.ready { // never dropped
				n.messages <- m
				continue
			}
			select {
			case n.messages <- m:
			default:
			}
		}
	}()
	return n, nil
}

func parse(text string) (m message) {
	for line := range strings.SplitSeq(text, "\n") {
		switch line {
		case "READY=1":
			m.ready = true
		case "WATCHDOG=1":
			m.ping = true
		}
	}
	return m
}

func (n *notifier) close() {
	_ = n.conn.Close()
	for {
		select {
		case <-n.messages: // lets a blocked reader see the end
		case <-n.done:
			_ = os.Remove(n.path)
			return
		}
	}
}
