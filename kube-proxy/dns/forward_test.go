package dns

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// resolver answers on loopback over UDP and TCP as answer says, and counts the questions.
type resolver struct {
	addr  string
	asked atomic.Int32
}

func newResolver(t *testing.T, answer func(q, m *dns.Msg)) *resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := &resolver{addr: pc.LocalAddr().String()}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r.asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		answer(q, m)
		if opt := q.IsEdns0(); opt != nil {
			m.SetEdns0(opt.UDPSize(), opt.Do())
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m.Truncate(answerSize)
		}
		_ = w.WriteMsg(m)
	})
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started, ended := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			if err := srv.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		}()
		<-started
		t.Cleanup(func() {
			if err := srv.Shutdown(); err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
	return r
}

func rr(t *testing.T, text string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func question(name string, edit ...func(*dns.Msg)) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(name, dns.TypeA)
	for _, f := range edit {
		f(q)
	}
	return q
}

func forwarding(servers ...*resolver) *forwarder {
	return newForwarder(func() []string {
		var out []string
		for _, s := range servers {
			out = append(out, s.addr)
		}
		return out
	})
}

func ask(t *testing.T, f *forwarder, q *dns.Msg) *dns.Msg {
	t.Helper()
	m, err := f.ask(context.Background(), q)
	if err != nil {
		t.Fatalf("%s: %v", q.Question[0].Name, err)
	}
	if m.Id != q.Id || !m.Response || m.Question[0] != q.Question[0] {
		t.Fatalf("not an answer to\n%v\n%v", q, m)
	}
	return m
}

func TestAnswersAreRememberedWithTheirCode(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newResolver(t, func(q, m *dns.Msg) {
		if q.Question[0].Name == "no.example." {
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "example. 20 IN SOA a. b. 1 2 3 4 10")}
			return
		}
		m.Answer = []dns.RR{rr(t, "Yes.Example. 20 IN A 192.0.2.1")}
	})
	f := forwarding(r)
	f.now = func() time.Time { return now }
	for range 3 {
		if m := ask(t, f, question("no.example.")); m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 || len(m.Answer) != 0 {
			t.Errorf("a name that does not exist: %v", m)
		}
		if m := ask(t, f, question("yEs.example.")); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
			t.Errorf("a name that exists: %v", m)
		}
		now = now.Add(3 * time.Second)
	}
	if n := r.asked.Load(); n != 2 {
		t.Errorf("the resolver was asked %d times; want 2", n)
	}
	if m := ask(t, f, question("yes.example.")); m.Answer[0].Header().Ttl != 11 {
		t.Errorf("9 seconds later 20 seconds to live are %d; want 11", m.Answer[0].Header().Ttl)
	}
	now = now.Add(2 * time.Second) // 11 since: the negative answer's 10 are over
	ask(t, f, question("no.example."))
	if n := r.asked.Load(); n != 3 {
		t.Errorf("the resolver was asked %d times after the end of the negative answer; want 3", n)
	}
}

func TestANextResolverIsAsked(t *testing.T) {
	yes := newResolver(t, func(q, m *dns.Msg) { m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 20 IN A 192.0.2.1")} })
	for _, code := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented} {
		no := newResolver(t, func(_, m *dns.Msg) { m.Rcode = code })
		if m := ask(t, forwarding(no, yes), question("a.example.")); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
			t.Errorf("%s, then an answer: %v", dns.RcodeToString[code], m)
		}
		f := forwarding(no)
		for range 2 {
			if m := ask(t, f, question("a.example.")); m.Rcode != code {
				t.Errorf("only %s: %v", dns.RcodeToString[code], m)
			}
		}
		if n := no.asked.Load(); n != 3 {
			t.Errorf("%s was remembered: asked %d times; want 3", dns.RcodeToString[code], n)
		}
	}
	gone := newResolver(t, nil)
	gone.addr = "127.0.0.1:1" // nobody listens
	if m := ask(t, forwarding(gone, yes), question("b.example.")); len(m.Answer) != 1 {
		t.Errorf("one that is away, then an answer: %v", m)
	}
	if _, err := forwarding(gone).ask(context.Background(), question("b.example.")); err == nil {
		t.Error("nobody answered, and no error")
	}
	if _, err := forwarding().ask(context.Background(), question("b.example.")); err != errNoUpstream {
		t.Errorf("without a resolver: %v", err)
	}
}

func TestSignaturesAreForThoseWhoAsk(t *testing.T) {
	r := newResolver(t, func(q, m *dns.Msg) {
		m.AuthenticatedData = true
		text := "plain"
		if q.CheckingDisabled {
			text = "unchecked"
		}
		if q.IsEdns0().Do() {
			text += " signed"
		}
		m.Answer = []dns.RR{rr(t, q.Question[0].Name+` 20 IN TXT "`+text+`"`)}
	})
	f := forwarding(r)
	signed := func(q *dns.Msg) { q.SetEdns0(1232, true) }
	unsigned := func(q *dns.Msg) { q.SetEdns0(1232, false) }
	unchecked := func(q *dns.Msg) { q.CheckingDisabled = true }
	wantAD := func(q *dns.Msg) { q.AuthenticatedData = true }
	for range 2 { // asked, then remembered
		for _, c := range []struct {
			name string
			edit []func(*dns.Msg)
			text string
			ad   bool
		}{
			{"plain", nil, "plain", false},
			{"EDNS without DO", []func(*dns.Msg){unsigned}, "plain", false},
			{"DO", []func(*dns.Msg){signed}, "plain signed", true},
			{"CD", []func(*dns.Msg){unchecked}, "unchecked", false},
			{"CD and DO", []func(*dns.Msg){unchecked, signed}, "unchecked signed", true},
			{"AD", []func(*dns.Msg){wantAD}, "plain", true},
		} {
			m := ask(t, f, question("a.example.", c.edit...))
			if got := m.Answer[0].(*dns.TXT).Txt[0]; got != c.text || m.AuthenticatedData != c.ad {
				t.Errorf("%s: %q, AD %v; want %q, %v", c.name, got, m.AuthenticatedData, c.text, c.ad)
			}
			if m.IsEdns0() != nil {
				t.Errorf("%s: the resolver's OPT was passed on", c.name)
			}
		}
	}
	if n := r.asked.Load(); n != 4 {
		t.Errorf("the resolver was asked %d times; want 4", n)
	}
}

func TestLongAnswersComeOverTCP(t *testing.T) {
	r := newResolver(t, func(q, m *dns.Msg) {
		for i := range 400 {
			m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 20 IN A 192.0.2.%d", q.Question[0].Name, i%250)))
		}
	})
	if m := ask(t, forwarding(r), question("long.example.")); len(m.Answer) != 400 || m.Truncated {
		t.Errorf("%d of 400 records, truncated %v", len(m.Answer), m.Truncated)
	}
}

func TestTheCacheMakesRoom(t *testing.T) {
	r := newResolver(t, func(q, m *dns.Msg) { m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 20 IN A 192.0.2.1")} })
	f := forwarding(r)
	ask(t, f, question("first.example."))
	answer := new(dns.Msg)
	answer.Answer = []dns.RR{rr(t, "x. 20 IN A 192.0.2.1")}
	for i := range maxCached {
		f.remember(asked{Question: dns.Question{Name: fmt.Sprintf("n%d.", i), Qtype: dns.TypeA, Qclass: dns.ClassINET}}, answer)
		if i%1000 == 0 {
			ask(t, f, question("first.example."))
		}
	}
	ask(t, f, question("first.example."))
	if n := r.asked.Load(); n != 1 || f.cache.Len() != maxCached {
		t.Errorf("what is used was asked for %d times, %d answers are kept; want 1, %d", n, f.cache.Len(), maxCached)
	}
}
