package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is a running cluster: the control plane is on the first machine, which also
// runs pods; the others have joined it with a bundle, as a user's second machine would.
type Cluster struct {
	*Lab
	Nodes      []*Machine
	Kubeconfig string // the administrator's, for use from the host
	Config     *rest.Config
	Client     kubernetes.Interface
	UpTook     time.Duration // `keelson up` on the first machine
}

// Start makes a cluster of n machines called node-1, node-2, … and loads the image
// archives into each. up are further arguments of the first machine's `keelson up`.
// When it fails it leaves the machines for SaveLogs; Close removes them.
func Start(ctx context.Context, o Options, n int, archives []string, up ...string) (*Cluster, error) {
	l, err := New(o)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Lab: l}
	for i := range n {
		m, err := l.Machine(ctx, fmt.Sprintf("node-%d", i+1), 11+i)
		if err != nil {
			return c, err
		}
		c.Nodes = append(c.Nodes, m)
	}
	first := c.Nodes[0]
	began := time.Now()
	out, err := first.Up(ctx, append([]string{"--api-name", l.Subnet + ".1"}, up...)...)
	if err != nil {
		return c, err
	}
	c.UpTook = time.Since(began)
	l.Log("%s", strings.TrimSpace(out))
	if err := c.Connect(); err != nil {
		return c, err
	}
	for _, m := range c.Nodes[1:] {
		if err := c.Join(ctx, m); err != nil {
			return c, err
		}
	}
	for _, m := range c.Nodes {
		if err := m.Load(ctx, archives...); err != nil {
			return c, err
		}
	}
	return c, nil
}

// Connect makes the client from the first machine's administrator's kubeconfig.
func (c *Cluster) Connect() error {
	c.Kubeconfig = c.Nodes[0].Path("etc/keelson/admin.conf")
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	cfg.QPS, cfg.Burst = -1, -1
	c.Config = cfg
	c.Client, err = kubernetes.NewForConfig(cfg)
	return err
}

// Join makes m a worker of the cluster.
func (c *Cluster) Join(ctx context.Context, m *Machine) error {
	bundle := "/var/log/bundle.tar"
	if _, err := c.Nodes[0].Keelson(ctx, "node-bundle", m.Name, "--address", m.Address, "--output", bundle); err != nil {
		return err
	}
	b, err := os.ReadFile(c.Nodes[0].Path(bundle))
	if err != nil {
		return err
	}
	if err := os.WriteFile(m.Path(bundle), b, 0o600); err != nil {
		return err
	}
	_, err = m.Up(ctx, "--node", bundle)
	return errors.Join(err, os.Remove(m.Path(bundle)), os.Remove(c.Nodes[0].Path(bundle)))
}

// Load loads image archives into the machine's runtime.
func (m *Machine) Load(ctx context.Context, archives ...string) error {
	for _, a := range archives {
		if !filepath.IsAbs(a) {
			return fmt.Errorf("%s: not an absolute path", a)
		}
		if _, err := m.Keelson(ctx, "images", "load", a); err != nil {
			return err
		}
	}
	return nil
}
