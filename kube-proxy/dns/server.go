package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
)

// Device is the interface that has the DNS addresses, so that the node itself answers on them.
// It is a bridge without ports: every kernel that runs pods has bridges, not every one has dummy devices.
const Device = "keelson-dns"

// Config is the part of the daemon's configuration that is about DNS.
type Config struct {
	Addresses []netip.Addr // what pods have in resolv.conf
	Domain    string       // cluster.local
	// ResolvConf names the resolvers for everything else.
	ResolvConf string
}

// Server answers on the node.
type Server struct {
	cfg     Config
	zone    Zone
	forward *forwarder
	log     *slog.Logger
	answers *prometheus.CounterVec
}

// New starts nothing.
func New(cfg Config, src Source, log *slog.Logger, reg prometheus.Registerer) *Server {
	s := &Server{
		cfg: cfg, zone: Zone{Domain: dns.Fqdn(strings.ToLower(cfg.Domain)), Source: src}, log: log,
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keelson_dns_responses_total", Help: "Answers given, by who answered and the code.",
		}, []string{"from", "rcode"}),
	}
	s.forward = newForwarder(func() []string {
		up, err := Upstreams(cfg.ResolvConf, cfg.Addresses)
		if err != nil {
			log.Debug("no upstream resolvers", "err", err)
		}
		return up
	})
	reg.MustRegister(s.answers)
	return s
}

// Run makes the device, and answers until ctx ends. The device stays: pods keep their resolver while
// the daemon restarts.
func (s *Server) Run(ctx context.Context) error {
	if err := s.device(); err != nil {
		return err
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.serve(ctx, w, q) })
	var servers []*dns.Server
	failed := make(chan error, 2*len(s.cfg.Addresses))
	for _, a := range s.cfg.Addresses {
		at := net.JoinHostPort(a.String(), "53")
		for _, network := range []string{"udp", "tcp"} {
			srv := &dns.Server{Addr: at, Net: network, Handler: h, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxTCPQueries: 1000}
			servers = append(servers, srv)
			go func() { failed <- srv.ListenAndServe() }()
		}
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		if err != nil {
			err = fmt.Errorf("cluster DNS on %v: %w", s.cfg.Addresses, err)
		}
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, srv := range servers {
		_ = srv.ShutdownContext(stop) // not started yet is as good as stopped
	}
	return err
}

// device makes the addresses local to the node.
func (s *Server) device() error {
	dev, err := netlink.LinkByName(Device)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		if err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Device}}); err == nil {
			dev, err = netlink.LinkByName(Device)
		}
	}
	if err != nil {
		return fmt.Errorf("make interface %s: %w", Device, err)
	}
	have, err := netlink.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", Device, err)
	}
	want := map[string]bool{}
	for _, a := range s.cfg.Addresses {
		n := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		want[n.String()] = true
		if err := netlink.AddrReplace(dev, &netlink.Addr{IPNet: n}); err != nil {
			return fmt.Errorf("address %s of %s: %w", a, Device, err)
		}
	}
	for i := range have {
		if ip := have[i].IP; !ip.IsLinkLocalUnicast() && !want[have[i].IPNet.String()] {
			_ = netlink.AddrDel(dev, &have[i]) // of an earlier configuration
		}
	}
	return netlink.LinkSetUp(dev)
}

func (s *Server) serve(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	from := "cluster"
	m, ours := s.cluster(ctx, q)
	if !ours {
		from = "upstream"
		var err error
		if m, err = s.forward.ask(ctx, q); err != nil {
			s.log.Debug("no answer from upstream", "name", q.Question[0].Name, "err", err)
			m = new(dns.Msg)
			m.SetRcode(q, dns.RcodeServerFailure)
		}
	}
	size := dns.MinMsgSize
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		size = dns.MaxMsgSize
	} else if opt := q.IsEdns0(); opt != nil {
		size = min(max(int(opt.UDPSize()), dns.MinMsgSize), answerSize)
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(answerSize, opt.Do())
	}
	m.Compress = true
	m.Truncate(size)
	s.answers.WithLabelValues(from, dns.RcodeToString[m.Rcode]).Inc()
	_ = w.WriteMsg(m) // the client asks again if it is still there
}

// cluster answers what is the cluster's business.
func (s *Server) cluster(ctx context.Context, q *dns.Msg) (*dns.Msg, bool) {
	m := new(dns.Msg)
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		m.SetRcode(q, dns.RcodeNotImplemented)
		return m, true
	}
	if q.Question[0].Qclass != dns.ClassINET {
		m.SetRcode(q, dns.RcodeRefused)
		return m, true
	}
	r := s.zone.Answer(q.Question[0])
	if !r.Ours {
		return nil, false
	}
	m.SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	m.Answer, m.Extra = r.Answer, r.Extra
	if r.Chase != "" {
		next := new(dns.Msg)
		next.SetQuestion(r.Chase, q.Question[0].Qtype)
		if inner := s.zone.Answer(next.Question[0]); inner.Ours {
			m.Answer = append(m.Answer, inner.Answer...)
		} else if up, err := s.forward.ask(ctx, next); err == nil {
			m.Answer = append(m.Answer, up.Answer...)
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{s.zone.SOA()}
		if !r.Exists {
			m.Rcode = dns.RcodeNameError
		}
	}
	return m, true
}
