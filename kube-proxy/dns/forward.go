package dns

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Upstreams reads the resolvers of a resolv.conf, without ourselves.
func Upstreams(file string, self []netip.Addr) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
next:
	for s.Scan() {
		w := strings.Fields(s.Text())
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		for _, own := range self {
			if a, err := netip.ParseAddr(w[1]); err == nil && a == own {
				continue next
			}
		}
		out = append(out, net.JoinHostPort(w[1], "53"))
	}
	return out, s.Err()
}

const (
	upstreamTimeout = 2 * time.Second
	// maxCached answers are kept; when there are more, the map starts anew.
	maxCached = 10000
	maxTTL    = 30 * time.Second
	// maxWaiting bounds questions on their way to upstreams; beyond it the answer is SERVFAIL.
	maxWaiting = 1000
)

// forwarder asks other resolvers and remembers what they said.
type forwarder struct {
	upstreams func() []string
	slots     chan struct{}
	now       func() time.Time

	mu    sync.Mutex
	cache map[dns.Question]cached // guarded by mu
}

type cached struct {
	msg   *dns.Msg
	until time.Time
	at    time.Time
}

func newForwarder(upstreams func() []string) *forwarder {
	return &forwarder{upstreams: upstreams, slots: make(chan struct{}, maxWaiting), now: time.Now, cache: map[dns.Question]cached{}}
}

var (
	errBusy       = errors.New("too many questions are waiting for upstream resolvers")
	errNoUpstream = errors.New("no upstream resolver is configured")
)

// ask returns an answer to q with q's ID. The message is the caller's own.
func (f *forwarder) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	key := q.Question[0]
	key.Name = strings.ToLower(key.Name)
	if m := f.recall(key); m != nil {
		m.SetReply(q)
		return m, nil
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errBusy
	}
	list := f.upstreams()
	if len(list) == 0 {
		return nil, errNoUpstream
	}
	out := new(dns.Msg)
	out.SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
	out.RecursionDesired = true
	out.SetEdns0(4096, false)
	var last error
	for _, server := range list {
		m, err := exchange(ctx, out, server)
		if err != nil {
			last = err
			continue
		}
		f.remember(key, m)
		m = m.Copy()
		rcode, answer, ns, extra := m.Rcode, m.Answer, m.Ns, dropOPT(m.Extra)
		m = new(dns.Msg)
		m.SetReply(q)
		m.Rcode, m.Answer, m.Ns, m.Extra, m.RecursionAvailable = rcode, answer, ns, extra, true
		return m, nil
	}
	return nil, last
}

// exchange uses UDP, and TCP for what does not fit.
func exchange(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	m, _, err := (&dns.Client{Net: "udp", UDPSize: 4096}).ExchangeContext(ctx, q, server)
	if err == nil && m.Truncated {
		m, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, q, server)
	}
	return m, err
}

func dropOPT(rrs []dns.RR) []dns.RR {
	var out []dns.RR
	for _, r := range rrs {
		if r.Header().Rrtype != dns.TypeOPT {
			out = append(out, r)
		}
	}
	return out
}

// recall returns a copy with the time to live that is left.
func (f *forwarder) recall(key dns.Question) *dns.Msg {
	f.mu.Lock()
	c, ok := f.cache[key]
	f.mu.Unlock()
	now := f.now()
	if !ok || !now.Before(c.until) {
		return nil
	}
	m := c.msg.Copy()
	age := uint32(now.Sub(c.at) / time.Second)
	for _, list := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, r := range list {
			h := r.Header()
			h.Ttl -= min(age, h.Ttl)
		}
	}
	return m
}

func (f *forwarder) remember(key dns.Question, m *dns.Msg) {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return
	}
	life := maxTTL
	for _, list := range [][]dns.RR{m.Answer, m.Ns} {
		for _, r := range list {
			t := r.Header().Ttl
			if soa, ok := r.(*dns.SOA); ok {
				t = min(t, soa.Minttl)
			}
			life = min(life, time.Duration(t)*time.Second)
		}
	}
	if len(m.Answer)+len(m.Ns) == 0 || life <= 0 {
		return
	}
	c := m.Copy()
	c.Extra = dropOPT(c.Extra)
	now := f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.cache) >= maxCached {
		f.cache = map[dns.Question]cached{}
	}
	f.cache[key] = cached{msg: c, until: now.Add(life), at: now}
}
