package dns

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// answer keeps what a server writes.
type answer struct {
	dns.ResponseWriter
	remote net.Addr
	msg    *dns.Msg
}

func (a *answer) RemoteAddr() net.Addr        { return a.remote }
func (a *answer) WriteMsg(m *dns.Msg) error   { a.msg = m; return nil }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }
func (a *answer) LocalAddr() net.Addr         { return a.remote }

// Any packet that is a question gets an answer to that question, of a size that the client can take.
func FuzzPacket(f *testing.F) {
	for _, name := range []string{"web.ns.svc.cluster.local.", "db-0.db.ns.svc.cluster.local.", "_sql._tcp.db.ns.svc.cluster.local.", "out.ns.svc.cluster.local.",
		"7.0.96.10.in-addr.arpa.", "10-1-2-3.ns.pod.cluster.local.", "dns-version.cluster.local.", "example.com.", "cluster.local.", "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeANY} {
			q := new(dns.Msg)
			q.SetQuestion(name, kind)
			if kind == dns.TypeSRV {
				q.SetEdns0(1232, true)
			}
			if raw, err := q.Pack(); err == nil {
				f.Add(raw, kind == dns.TypeA)
			}
		}
	}
	s := New(Config{Domain: "cluster.local", ResolvConf: "/dev/null"}, cluster, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		q := new(dns.Msg)
		if q.Unpack(raw) != nil || len(q.Question) != 1 {
			return // the library has answered
		}
		w := &answer{remote: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1)}}
		if tcp {
			w.remote = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}
		}
		s.serve(context.Background(), w, q)
		if w.msg == nil || w.msg.Id != q.Id || !w.msg.Response {
			t.Fatalf("asked %v, got %v", q, w.msg)
		}
		out, err := w.msg.Pack()
		if err != nil {
			t.Fatalf("asked %v: the answer cannot be sent: %v: %v", q, err, w.msg)
		}
		limit := dns.MaxMsgSize
		if !tcp {
			limit = dns.MinMsgSize
			if opt := q.IsEdns0(); opt != nil {
				limit = min(max(int(opt.UDPSize()), dns.MinMsgSize), 4096)
			}
		}
		if len(out) > limit {
			t.Fatalf("asked %v: %d bytes for a client that takes %d", q, len(out), limit)
		}
	})
}
