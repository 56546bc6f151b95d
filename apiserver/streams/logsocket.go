package streams

import (
	"encoding/base64"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// logUpgrader speaks the protocols that one-way streams have had since browsers read
// them: raw bytes, or base64 in text messages.
var logUpgrader = websocket.Upgrader{
	Subprotocols: []string{"binary.k8s.io", "base64.binary.k8s.io"},
	CheckOrigin:  func(*http.Request) bool { return true }, // a credential is needed, no cookie will do
}

const socketTimeout = 30 * time.Second

// toSocket copies r into messages of a WebSocket and closes it in order. It ends early when the
// client closes.
func toSocket(w http.ResponseWriter, r *http.Request, from io.ReadCloser) {
	conn, err := logUpgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	go func() { // nothing is expected of the client, but its close must be seen
		for {
			if _, _, err := conn.NextReader(); err != nil {
				from.Close()
				return
			}
		}
	}()
	text := conn.Subprotocol() == "base64.binary.k8s.io"
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			kind, data := websocket.BinaryMessage, buf[:n]
			if text {
				kind, data = websocket.TextMessage, []byte(base64.StdEncoding.EncodeToString(buf[:n]))
			}
			_ = conn.SetWriteDeadline(time.Now().Add(socketTimeout))
			if conn.WriteMessage(kind, data) != nil {
				return
			}
		}
		if err != nil {
			break
		}
	}
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
}
