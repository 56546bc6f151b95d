package apiserver

import (
	"bufio"
	"net"
	"net/http"

	"github.com/keelson/keelson/apiserver/audit"
)

// answer remembers what was written, for metrics, for the panic handler and for the audit record.
type answer struct {
	http.ResponseWriter
	code   int
	bytes  int64
	record *audit.Record // nil: none
	long   bool
}

// begin notes the code of the answer, once.
func (w *answer) begin(code int) {
	if w.code == 0 {
		w.code = code
		w.record.Answering(code, w.Header().Get("Content-Type"), w.long)
	}
}

func (w *answer) WriteHeader(code int) {
	if code >= 200 {
		w.begin(code)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *answer) Write(b []byte) (int, error) {
	w.begin(http.StatusOK)
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	w.record.Answered(b[:n])
	return n, err
}

func (w *answer) Flush() {
	w.begin(http.StatusOK)
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

func (w *answer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands the connection over, on HTTP/1 only: exec, attach and port-forward.
func (w *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.begin(http.StatusSwitchingProtocols)
	return http.NewResponseController(w.ResponseWriter).Hijack()
}
