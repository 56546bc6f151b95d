package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// forwarding is a runtime's streaming server for ports: each answers a line with its own number and
// the line, and closes; port 9 is not open.
func forwarding(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, err := httpstream.Handshake(r, w, []string{forwardProtocol}); err != nil {
			t.Error(err)
			return
		}
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, replied <-chan struct{}) error {
			go func() {
				<-replied
				port := stream.Headers().Get(corev1.PortHeader)
				defer stream.Close()
				switch kind := stream.Headers().Get(corev1.StreamType); {
				case kind == corev1.StreamTypeData && port != "9":
					line, _ := bufio.NewReader(stream).ReadString('\n')
					fmt.Fprintf(stream, "%s:%s", port, line)
				case kind == corev1.StreamTypeError && port == "9":
					fmt.Fprint(stream, "connection refused")
				}
			}()
			return nil
		})
		if conn == nil {
			return
		}
		defer conn.Close()
		select {
		case <-conn.CloseChan():
		case <-t.Context().Done():
		}
	}
}

func (f fakeRuntime) PortForward(context.Context, *runtimeapi.PortForwardRequest, ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error) {
	return &runtimeapi.PortForwardResponse{Url: f.url + "/portforward/token"}, nil
}

// Programs without SPDY forward ports over the channels of a WebSocket.
func TestForwardOverChannels(t *testing.T) {
	address := strings.Replace(start(t), "https:", "wss:", 1) + "/portForward/ns/web"
	dialer := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, HandshakeTimeout: 10 * time.Second}
	for _, protocol := range []string{"v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""} {
		t.Run(protocol, func(t *testing.T) {
			d := dialer
			if protocol != "" {
				d.Subprotocols = []string{protocol}
			}
			conn, _, err := d.Dial(address+"?port=80&port=9,443", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			base64ed := strings.Contains(protocol, "base64")
			for channel, line := range map[byte]string{0: "hello\n", 4: "secret\n"} {
				kind, message := websocket.BinaryMessage, append([]byte{channel}, line...)
				if base64ed {
					kind, message = websocket.TextMessage, []byte(fmt.Sprintf("%d%s", channel, base64.StdEncoding.EncodeToString([]byte(line))))
				}
				if err := conn.WriteMessage(kind, message); err != nil {
					t.Fatal(err)
				}
			}
			got := map[byte]string{}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			for {
				_, message, err := conn.ReadMessage()
				if err != nil {
					if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
						t.Errorf("it ended with %v", err)
					}
					break
				}
				channel, data := message[0], message[1:]
				if base64ed {
					channel -= '0'
					data, _ = base64.StdEncoding.DecodeString(string(data))
				}
				got[channel] += string(data)
			}
			want := map[byte]string{0: "P\x0080:hello\n", 1: "P\x00", 2: "\x09\x00", 3: "\x09\x00connection refused", 4: "\xbb\x01443:secret\n", 5: "\xbb\x01"}
			for channel, text := range want {
				if got[channel] != text {
					t.Errorf("channel %d: %q, want %q", channel, got[channel], text)
				}
			}
		})
	}
	for _, query := range []string{"", "?port=0", "?port=80,"} {
		d := dialer
		d.Subprotocols = slices.Clone(forwardProtocols[:1])
		_, res, err := d.Dial(address+query, nil)
		if err == nil || res == nil || res.StatusCode != http.StatusBadRequest {
			t.Errorf("%q was not refused: %v", query, err)
		}
	}
}
