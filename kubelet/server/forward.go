package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// Port-forwarding speaks three languages: SPDY, handed through to the runtime; SPDY inside a WebSocket (tunnel,
// in streams.go), which kubectl uses; and plain WebSocket channels, this file, which programs without SPDY use.

// forwardProtocols have two channels for each port: 2n carries the data of the n-th, 2n+1 its failure, as text. The first
// message of each is the port's number, 16 bits, little-endian. "" is for clients that offer no protocol.
var forwardProtocols = []string{"v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""}

// mostPorts is how many a byte can number.
const mostPorts = 128

// longestFailure bounds what is read of a failure.
const longestFailure = 4 << 10

// channels forwards ports over the channels of a WebSocket. address is where the runtime expects a SPDY connection.
func (s *Server) channels(w http.ResponseWriter, r *http.Request, address string, ports []int32) error {
	if len(ports) == 0 || len(ports) > mostPorts {
		err := fmt.Errorf("query parameter \"port\" is required, at most %d times", mostPorts)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return err
	}
	out, err := http.NewRequestWithContext(r.Context(), http.MethodPost, address, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return err
	}
	out.Header.Set("X-Stream-Protocol-Version", forwardProtocol)
	l := &link{}
	defer l.close()
	var backend httpstream.Connection
	res, err := l.RoundTrip(out)
	if err == nil {
		backend, err = l.NewConnection(res)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return err
	}
	conn, err := upgrade(w, r, forwardProtocols...)
	if err != nil {
		return err
	}
	defer conn.Close()
	sock := newSocket(conn)
	var down sync.WaitGroup
	defer down.Wait()
	defer l.close() // ends what waits for the runtime
	stopPings := keepAlive(conn, s.pingEvery, &down, func(error) { l.close() })
	defer stopPings()

	data := make([]io.Writer, len(ports))
	var open sync.WaitGroup
	for i, port := range ports {
		stream, failure, err := streams(backend, i, port)
		if err != nil {
			return err
		}
		data[i] = stream
		number := byte(2 * i)
		first := binary.LittleEndian.AppendUint16(nil, uint16(port))
		if err := errors.Join(sock.send(number, first), sock.send(number+1, first)); err != nil {
			return err
		}
		open.Go(func() { _, _ = io.Copy(channel{sock, number}, stream) })
		open.Go(func() {
			if text, _ := io.ReadAll(io.LimitReader(failure, longestFailure)); len(text) > 0 {
				_ = sock.send(number+1, text)
			}
		})
	}
	down.Go(func() {
		open.Wait() // all ports are closed by the pod, or the client has gone
		_ = sock.bye()
		linger(conn)
	})
	for {
		number, message, err := sock.next()
		if err != nil {
			var closed *websocket.CloseError
			if errors.As(err, &closed) && closed.Code == websocket.CloseNormalClosure {
				return nil
			}
			return err
		}
		if i := int(number / 2); number%2 == 0 && i < len(data) && len(message) > 0 {
			_, _ = data[i].Write(message) // what a closed port does not take is dropped
		}
	}
}

// streams opens the two streams of a port.
func streams(backend httpstream.Connection, request int, port int32) (data, failure httpstream.Stream, err error) {
	h := http.Header{}
	h.Set(corev1.PortHeader, strconv.Itoa(int(port)))
	h.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(request))
	h.Set(corev1.StreamType, corev1.StreamTypeError)
	if failure, err = backend.CreateStream(h); err != nil {
		return nil, nil, fmt.Errorf("port %d: %w", port, err)
	}
	_ = failure.Close() // nothing is written to it
	h.Set(corev1.StreamType, corev1.StreamTypeData)
	if data, err = backend.CreateStream(h); err != nil {
		return nil, nil, fmt.Errorf("port %d: %w", port, err)
	}
	return data, failure, nil
}

// forwardsChannels reports whether a client wants channels rather than a tunnel.
func forwardsChannels(r *http.Request) bool {
	for _, p := range websocket.Subprotocols(r) {
		if p == tunnelProtocol {
			return false
		}
	}
	return true
}
