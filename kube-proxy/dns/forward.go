package dns

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"k8s.io/utils/lru"
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
	// maxCached answers are kept; what was used longest ago makes room.
	maxCached = 10000
	maxTTL    = 30 * time.Second
	// maxWaiting bounds questions on their way to upstreams; beyond it the answer is SERVFAIL.
	maxWaiting = 1000
	// answerSize is how large an answer over UDP may be.
	answerSize = 4096
)

// forwarder asks other resolvers and remembers what they said.
type forwarder struct {
	upstreams func() []string
	slots     chan struct{}
	now       func() time.Time
	cache     *lru.Cache // asked → *cached
}

// asked is what an answer depends on: the question, in lower case, and what of it DNSSEC is about.
type asked struct {
	dns.Question
	signed    bool // DO: with signatures
	unchecked bool // CD: even if the resolver finds them wrong
}

type cached struct {
	msg   *dns.Msg
	until time.Time
	at    time.Time
}

func newForwarder(upstreams func() []string) *forwarder {
	return &forwarder{upstreams: upstreams, slots: make(chan struct{}, maxWaiting), now: time.Now, cache: lru.New(maxCached)}
}

var (
	errBusy       = errors.New("too many questions are waiting for upstream resolvers")
	errNoUpstream = errors.New("no upstream resolver is configured")
)

// ask returns an answer to q with q's ID. The message is the caller's own. A resolver that cannot answer,
// or says that it will not, is passed over for the next; what the last one said stands.
func (f *forwarder) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	key := asked{Question: q.Question[0], unchecked: q.CheckingDisabled}
	key.Name = strings.ToLower(key.Name)
	if opt := q.IsEdns0(); opt != nil {
		key.signed = opt.Do()
	}
	if m := f.recall(key); m != nil {
		return reply(q, m, key.signed), nil
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
	out.RecursionDesired, out.CheckingDisabled, out.AuthenticatedData = true, q.CheckingDisabled, q.AuthenticatedData
	out.SetEdns0(answerSize, key.signed)
	var last error
	var answer *dns.Msg
	for _, server := range list {
		m, err := exchange(ctx, out, server)
		if err != nil {
			last = err
			continue
		}
		answer = m
		if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
			f.remember(key, m)
			break
		}
	}
	if answer == nil {
		return nil, last
	}
	return reply(q, answer, key.signed), nil
}

// reply makes the answer to q of what a resolver said, which is given away. Whether the resolver has
// checked the signatures is told to those who ask (RFC 6840, 5.7 and 5.8).
func reply(q, said *dns.Msg, signed bool) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Rcode, m.RecursionAvailable = said.Rcode, true
	m.AuthenticatedData = said.AuthenticatedData && (signed || q.AuthenticatedData)
	m.Answer, m.Ns, m.Extra = said.Answer, said.Ns, dropOPT(said.Extra)
	return m
}

// exchange uses UDP, and TCP for what does not fit.
func exchange(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	m, _, err := (&dns.Client{Net: "udp", UDPSize: answerSize}).ExchangeContext(ctx, q, server)
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

// recall returns a copy with the time to live that is left, or nil.
func (f *forwarder) recall(key asked) *dns.Msg {
	v, ok := f.cache.Get(key)
	if !ok {
		return nil
	}
	c, now := v.(*cached), f.now()
	if !now.Before(c.until) {
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

func (f *forwarder) remember(key asked, m *dns.Msg) {
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
	f.cache.Add(key, &cached{msg: c, until: now.Add(life), at: now})
}
