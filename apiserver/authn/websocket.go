package authn

import (
	"encoding/base64"
	"net/http"
	"strings"
)

const websocketTokenPrefix = "base64url.bearer.authorization.k8s.io."

// websocketToken finds a bearer token among the WebSocket subprotocols.
func websocketToken(r *http.Request) (string, bool) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return "", false
	}
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for _, p := range strings.Split(line, ",") {
			enc, ok := strings.CutPrefix(strings.TrimSpace(p), websocketTokenPrefix)
			if !ok {
				continue
			}
			token, err := base64.RawURLEncoding.DecodeString(enc)
			return string(token), err == nil && len(token) > 0
		}
	}
	return "", false
}
