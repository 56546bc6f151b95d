package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	gosync "sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/kube-proxy/conntrack"
	"github.com/keelson/keelson/kube-proxy/dns"
	"github.com/keelson/keelson/kube-proxy/health"
	"github.com/keelson/keelson/kube-proxy/iptables"
	"github.com/keelson/keelson/kube-proxy/model"
	"github.com/keelson/keelson/kube-proxy/network"
	"github.com/keelson/keelson/kube-proxy/rules"
	"github.com/keelson/keelson/kube-proxy/sync"
	"github.com/keelson/keelson/libs/client"
	"github.com/keelson/keelson/libs/informer"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/serve"
)

// Names of indexes.
const (
	byNamespace = "namespace"
	byService   = "service"
	byAddress   = "address"
)

// proxy is the daemon's state: caches that the rooms read.
type proxy struct {
	cfg      Config
	self     string
	log      *slog.Logger
	services *informer.Cache[*corev1.Service]
	slices   *informer.Cache[*discoveryv1.EndpointSlice]
	nodes    *informer.Cache[*corev1.Node]
}

// Run runs the daemon until ctx ends or something fails for good.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if cfg.Cleanup {
		return cleanup(ctx, cfg, log)
	}
	name, err := nodeName(cfg)
	if err != nil {
		return err
	}
	cfg.Client.Metrics = client.NewMetrics()
	api, _, err := client.New(cfg.Client, "kube-proxy")
	if err != nil {
		return err
	}
	p := &proxy{cfg: cfg, self: name, log: log}
	p.caches(api)
	metrics, healthz, err := p.servers()
	if err != nil {
		return err
	}
	metrics.Registry().MustRegister(cfg.Client.Metrics)
	g := run.New(ctx)
	var wake []func() // what looks again when a service or endpoint changed
	var synced []func() error
	counts := sync.NewMetrics()
	metrics.Registry().MustRegister(counts)
	syncers := map[model.Family]*sync.Syncer{}
	state := health.NewProxy(func() map[model.Family]health.Family {
		out := map[model.Family]health.Family{}
		for f, s := range syncers {
			out[f] = health.Family{Updated: s.LastSync(), Waiting: s.Waiting()}
		}
		return out
	}, p.eligible, metrics.Registry())
	healthz.Health("healthz", state.Health())
	healthz.Health("livez", state.Live())
	if cfg.Mode == "iptables" {
		checks := health.New(state.Healthy, log)
		g.Go("health check ports", checks.Run)
		for _, f := range cfg.families() {
			s, err := p.syncer(f, counts, metrics.Registry(), checks)
			if err != nil {
				return err
			}
			syncers[f] = s
			wake = append(wake, s.Changed)
			synced = append(synced, func() error {
				if s.LastSync().IsZero() {
					return errors.New("the rules have not been applied yet")
				}
				return nil
			})
			g.Go(fmt.Sprintf("rules of IPv%d", f), p.afterWarm(s.Run))
		}
	}
	if cfg.PodNetwork {
		n := network.New(network.Config{
			ClusterCIDRs: prefixes(cfg.ClusterCIDR), VNI: cfg.VNI, Port: cfg.VXLANPort, CNIDir: cfg.CNIDir, CNIFile: "10-keelson.conflist", CNIBin: cfg.CNIBin,
		}, name, p.nodes.List, log)
		p.nodes.OnEvent(func(informer.Event[*corev1.Node]) { n.Changed() })
		g.Go("pod network", func(ctx context.Context) error {
			if !wait(ctx, p.nodes.Synced()) {
				return nil
			}
			return n.Run(ctx)
		})
	}
	if len(cfg.ClusterDNS) > 0 {
		d := dns.New(dns.Config{Addresses: addrs(cfg.ClusterDNS), Domain: cfg.Domain, ResolvConf: cfg.ResolvConf}, names{p}, log, metrics.Registry())
		g.Go("cluster DNS", p.afterWarm(d.Run))
	}
	changed := func() {
		for _, f := range wake {
			f()
		}
	}
	p.services.OnEvent(func(informer.Event[*corev1.Service]) {
		counts.ServiceChanged()
		changed()
	})
	start := time.Now()
	p.slices.OnEvent(func(ev informer.Event[*discoveryv1.EndpointSlice]) {
		counts.EndpointsChanged()
		if at := cause(ev); at.After(start) {
			for _, s := range syncers {
				s.Caused(at)
			}
		}
		changed()
	})
	p.nodes.OnEvent(func(ev informer.Event[*corev1.Node]) {
		if n := ev.Last(); n.Name == name && (ev.Kind != informer.Updated || zone(ev.Old) != zone(ev.New)) || cfg.PodNetwork && podRangeChanged(ev) {
			changed()
		}
	})
	metrics.Check("caches", p.warm)
	for _, f := range synced {
		metrics.Check("rules", f)
		healthz.Check("rules", f)
	}
	metrics.Handle("/proxyMode", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, cfg.Mode) // the client has gone: nobody to tell
	}))
	metrics.Configz("kubeproxy.config.k8s.io", cfg)
	metrics.Debug("services", func() any {
		return model.Build(model.IPv4, p.node(), p.services.List(), p.slicesOf)
	})
	g.Go("services", p.services.Run)
	g.Go("endpoint slices", p.slices.Run)
	g.Go("nodes", p.nodes.Run)
	g.Go("metrics", metrics.Run)
	g.Go("healthz", healthz.Run)
	return g.Wait()
}

func nodeName(cfg Config) (string, error) {
	name := cfg.Hostname
	if name == "" {
		h, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("host name: %w; set --hostname-override", err)
		}
		name = h
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}

func (p *proxy) caches(api kubernetes.Interface) {
	p.services = informer.Of(informer.From(api.CoreV1().Services("")), informer.Options[*corev1.Service]{
		Indexes: map[string]func(*corev1.Service) []string{
			byNamespace: func(s *corev1.Service) []string { return []string{s.Namespace} },
			byAddress: func(s *corev1.Service) []string {
				if s.Spec.ClusterIP == corev1.ClusterIPNone {
					return nil
				}
				return s.Spec.ClusterIPs
			},
		},
		Transform: func(s *corev1.Service) *corev1.Service { s.ManagedFields = nil; return s },
	})
	p.slices = informer.Of(informer.From(api.DiscoveryV1().EndpointSlices("")), informer.Options[*discoveryv1.EndpointSlice]{
		Indexes: map[string]func(*discoveryv1.EndpointSlice) []string{
			byService: func(s *discoveryv1.EndpointSlice) []string {
				return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}
			},
			byAddress: func(s *discoveryv1.EndpointSlice) []string {
				if len(p.cfg.ClusterDNS) == 0 {
					return nil
				}
				var out []string
				for i := range s.Endpoints {
					out = append(out, s.Endpoints[i].Addresses...)
				}
				return out
			},
		},
		Transform: func(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice { s.ManagedFields = nil; return s },
	})
	p.nodes = informer.Of(informer.From(api.CoreV1().Nodes()), informer.Options[*corev1.Node]{Transform: slimNode})
}

// cause is when the pod or service changed that changed the slice; zero when it is not known, or known
// already.
func cause(ev informer.Event[*discoveryv1.EndpointSlice]) time.Time {
	if ev.Kind == informer.Deleted {
		return time.Time{}
	}
	text := ev.New.Annotations[corev1.EndpointsLastChangeTriggerTime]
	if text == "" || ev.Kind == informer.Updated && ev.Old.Annotations[corev1.EndpointsLastChangeTriggerTime] == text {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return at
}

// goes is the taint by which the cluster autoscaler marks a node that it will delete.
const goes = "ToBeDeletedByClusterAutoscaler"

// eligible tells whether load balancers may send new traffic to this node.
func (p *proxy) eligible() bool {
	n, ok := p.nodes.Get(types.NamespacedName{Name: p.self})
	return ok && n.DeletionTimestamp == nil && !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == goes })
}

// slimNode keeps what the network needs: nodes report much, and often.
func slimNode(n *corev1.Node) *corev1.Node {
	out := &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs}, Status: corev1.NodeStatus{Addresses: n.Status.Addresses}}
	out.Name, out.UID, out.ResourceVersion = n.Name, n.UID, n.ResourceVersion
	out.DeletionTimestamp = n.DeletionTimestamp
	for _, t := range n.Spec.Taints {
		if t.Key == goes {
			out.Spec.Taints = append(out.Spec.Taints, t)
		}
	}
	if z := zone(n); z != "" {
		out.Labels = map[string]string{corev1.LabelTopologyZone: z}
	}
	return out
}

func zone(n *corev1.Node) string { return n.Labels[corev1.LabelTopologyZone] }

func podRangeChanged(ev informer.Event[*corev1.Node]) bool {
	return ev.Kind != informer.Updated || ev.Old.Spec.PodCIDR != ev.New.Spec.PodCIDR
}

func (p *proxy) node() model.Node {
	n := model.Node{Name: p.self}
	if o, ok := p.nodes.Get(types.NamespacedName{Name: p.self}); ok {
		n.Zone = zone(o)
	}
	return n
}

func (p *proxy) slicesOf(svc types.NamespacedName) []*discoveryv1.EndpointSlice {
	return p.slices.By(byService, svc.String())
}

func wait(ctx context.Context, ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	case <-ctx.Done():
		return false
	}
}

// afterWarm runs f when the caches show their first lists: before, services would seem to have no endpoints.
func (p *proxy) afterWarm(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if wait(ctx, p.services.Synced()) && wait(ctx, p.slices.Synced()) && wait(ctx, p.nodes.Synced()) {
			return f(ctx)
		}
		return nil
	}
}

func (p *proxy) warm() error {
	for name, ch := range map[string]<-chan struct{}{"services": p.services.Synced(), "endpoint slices": p.slices.Synced(), "nodes": p.nodes.Synced()} {
		select {
		case <-ch:
		default:
			return fmt.Errorf("the list of %s has not come yet", name)
		}
	}
	return nil
}

func (p *proxy) servers() (metrics, healthz *serve.Server, err error) {
	open := func(address string, silent bool) (*serve.Server, error) {
		host, port, err := split(address)
		if err != nil {
			return nil, err
		}
		return serve.New(serve.Config{BindAddress: host, Port: port, Plain: true, Silent: silent}, p.log)
	}
	if metrics, err = open(p.cfg.MetricsAddress, false); err != nil {
		return nil, nil, err
	}
	healthz, err = open(p.cfg.HealthAddress, true)
	return metrics, healthz, err
}

func (p *proxy) syncer(f model.Family, counts *sync.Metrics, reg prometheus.Registerer, checks *health.Checks) (*sync.Syncer, error) {
	kernel, err := iptables.New(f)
	if err != nil {
		return nil, err
	}
	if err := set("/proc/sys", forwarding(f, p.cfg), p.log); err != nil {
		return nil, err
	}
	family := prometheus.Labels{"ip_family": fmt.Sprintf("IPv%d", f)}
	took := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "kubeproxy_conntrack_reconciler_sync_duration_seconds", Help: "Time to look for stale UDP flows.",
		ConstLabels: family, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
	})
	deleted := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "kubeproxy_conntrack_reconciler_deleted_entries_total", Help: "Stale UDP flows removed.", ConstLabels: family,
	})
	reg.MustRegister(took, deleted)
	random := kernel.RandomFully()
	cluster := of(f, prefixes(p.cfg.ClusterCIDR))
	var skip []netip.Addr
	for _, a := range addrs(p.cfg.ClusterDNS) {
		if f.Has(a) {
			skip = append(skip, a)
		}
	}
	var track gosync.Once
	var flows conntrack.Wanted // what the last look at the kernel's flows was for
	return sync.New(sync.Config{
		Metrics: counts, Family: f, Kernel: kernel, Node: p.node, Services: p.services.List, Slices: p.slicesOf, Log: p.log,
		Rules: func() rules.Config {
			c := rules.Config{
				Family: f, PodCIDRs: cluster, MasqueradeAll: p.cfg.MasqueradeAll, NodePortAddresses: of(f, prefixes(p.cfg.NodePortAddresses)),
				LocalhostNodePorts: p.cfg.LocalhostNodePorts, RandomFully: random, Skip: skip,
			}
			if n, ok := p.nodes.Get(types.NamespacedName{Name: p.self}); ok && p.cfg.PodNetwork {
				c.OwnPods = of(f, prefixes(n.Spec.PodCIDRs))
			}
			return c
		},
		Applied: func(now []model.Port) {
			// The kernel has these parameters once a rule of the tables needs tracking.
			track.Do(func() { _ = set("/proc/sys", tracking(p.cfg, runtime.NumCPU()), p.log) })
			if f == p.cfg.families()[0] {
				checks.Update(now)
			}
			want := conntrack.Of(now, func(a netip.Addr) bool { return slices.Contains(skip, a) })
			if want.Equal(flows) || want.Empty() {
				flows = want
				return
			}
			began := time.Now()
			n, err := conntrack.Clean(f, want)
			took.Observe(time.Since(began).Seconds())
			deleted.Add(float64(n))
			if err != nil {
				p.log.Warn("stale UDP flows may stay", "err", err)
				return // and are looked for after the next change
			}
			flows = want
			if n > 0 {
				p.log.Debug("removed stale UDP flows", "flows", n)
			}
		},
	}), nil
}

// names lets DNS read the caches.
type names struct{ p *proxy }

// Service returns a service, or nil.
func (n names) Service(key types.NamespacedName) *corev1.Service {
	s, _ := n.p.services.Get(key)
	return s
}

// Slices returns a service's endpoint slices.
func (n names) Slices(key types.NamespacedName) []*discoveryv1.EndpointSlice {
	return n.p.slicesOf(key)
}

// Namespace reports whether any service is in the namespace.
func (n names) Namespace(name string) bool { return len(n.p.services.By(byNamespace, name)) > 0 }

// ServiceAt returns the service with a cluster address, or nil.
func (n names) ServiceAt(a netip.Addr) *corev1.Service {
	if l := n.p.services.By(byAddress, a.String()); len(l) > 0 {
		return l[0]
	}
	return nil
}

// SlicesAt returns the slices that have an endpoint with an address.
func (n names) SlicesAt(a netip.Addr) []*discoveryv1.EndpointSlice {
	return n.p.slices.By(byAddress, a.String())
}
