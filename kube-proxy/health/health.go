// Package health tells load balancers outside whether this node has endpoints of a
// service whose traffic must stay local: one small HTTP server for each health
// check port, which answers 200 with a count, or 503. A port that another program
// holds is tried again until it is free.
//
// Beside it, [Proxy] answers how the proxy itself is.
//
// Source: Kubernetes documentation, "Create an External Load Balancer", preserving
// the client source IP.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/kube-proxy/model"
)

// Checks are the servers. The zero value is not usable; see New.
type Checks struct {
	log     *slog.Logger
	healthy func() bool // of the proxy itself
	every   time.Duration
	serving sync.WaitGroup

	mu      sync.Mutex
	servers map[uint16]*check // guarded by mu
	missing map[uint16]*check // wanted, but the port could not be opened; guarded by mu
}

// again is how often a port that is in use is tried.
const again = 5 * time.Second

type check struct {
	service types.NamespacedName
	local   int
	server  *http.Server
}

// New returns no servers.
func New(healthy func() bool, log *slog.Logger) *Checks {
	return &Checks{log: log, healthy: healthy, every: again, servers: map[uint16]*check{}, missing: map[uint16]*check{}}
}

// Update makes the servers those of ports, with their counts.
func (c *Checks) Update(ports []model.Port) {
	c.mu.Lock()
	defer c.mu.Unlock()
	want := map[uint16]*check{}
	for i := range ports {
		p := &ports[i]
		if p.HealthCheckPort == 0 {
			continue
		}
		w := want[p.HealthCheckPort]
		if w == nil {
			w = &check{service: p.Service}
			want[p.HealthCheckPort] = w
		}
		w.local = max(w.local, p.LocalReady)
	}
	for port, have := range c.servers {
		if want[port] == nil {
			_ = have.server.Close()
			delete(c.servers, port)
		}
	}
	clear(c.missing)
	for port, w := range want {
		if have := c.servers[port]; have != nil {
			have.service, have.local = w.service, w.local
			continue
		}
		if err := c.open(port, w); err != nil {
			c.log.Error("cannot answer health checks; will try again", "service", w.service.String(), "port", port, "err", err)
			c.missing[port] = w
		}
	}
}

// open starts the server of a port; c.mu is held.
func (c *Checks) open(port uint16, w *check) error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	w.server = &http.Server{Handler: c.handler(port), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}
	c.servers[port] = w
	c.serving.Go(func() {
		if err := w.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("health check server ended", "port", port, "err", err)
		}
	})
	return nil
}

// retry opens the ports that were in use.
func (c *Checks) retry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for port, w := range c.missing {
		if c.open(port, w) == nil {
			delete(c.missing, port)
			c.log.Info("health checks are answered", "service", w.service.String(), "port", port)
		}
	}
}

func (c *Checks) handler(port uint16) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		h := c.servers[port]
		var service types.NamespacedName
		local := 0
		if h != nil {
			service, local = h.service, h.local
		}
		c.mu.Unlock()
		healthy := c.healthy()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", fmt.Sprint(local))
		if local == 0 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"service":             map[string]string{"namespace": service.Namespace, "name": service.Name},
			"localEndpoints":      local,
			"serviceProxyHealthy": healthy,
		})
	})
}

// Run opens ports that were in use, and closes the servers when ctx ends.
func (c *Checks) Run(ctx context.Context) error {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.retry()
		case <-ctx.Done():
			c.Update(nil)
			c.serving.Wait()
			return nil
		}
	}
}
