package pki

import (
	"net/netip"
	"os"
)

// Cluster names what the certificates of a control plane speak for.
type Cluster struct {
	Node         string
	Address      string
	FirstService netip.Addr
	Domain       string   // cluster.local
	Extra        []string // further names and addresses of the API
}

// ControlPlane is the table of a control-plane machine's certificates.
func ControlPlane(c Cluster) []Want {
	api := append([]string{
		"localhost", "127.0.0.1", "::1", c.Node, c.Address, c.FirstService.String(),
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.Domain,
	}, c.Extra...)
	local := []string{"localhost", "127.0.0.1", "::1", c.Node, c.Address}
	return []Want{
		{Name: "apiserver", CA: "ca", User: "kube-apiserver", Names: api},
		{Name: "apiserver-kubelet-client", CA: "ca", User: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}, Client: true},
		{Name: "front-proxy-client", CA: "front-proxy-ca", User: "front-proxy-client", Client: true},
		{Name: "etcd/server", CA: "etcd/ca", User: c.Node, Names: local, Client: true},
		{Name: "etcd/peer", CA: "etcd/ca", User: c.Node, Names: local, Client: true},
		{Name: "apiserver-etcd-client", CA: "etcd/ca", User: "kube-apiserver-etcd-client", Client: true},
		{Name: "scheduler-server", CA: "ca", User: "kube-scheduler", Names: local},
		{Name: "controller-manager-server", CA: "ca", User: "kube-controller-manager", Names: local},
		{Name: "admin", CA: "ca", User: "kubernetes-admin", Groups: []string{"system:masters"}, Client: true},
		{Name: "scheduler", CA: "ca", User: "system:kube-scheduler", Client: true},
		{Name: "controller-manager", CA: "ca", User: "system:kube-controller-manager", Client: true},
	}
}

// Worker is the table of a worker machine's certificates.
func Worker(node, address string) []Want {
	return []Want{
		{Name: "kubelet", CA: "ca", User: "system:node:" + node, Groups: []string{"system:nodes"}, Client: true},
		{Name: "kubelet-server", CA: "ca", User: "system:node:" + node, Groups: []string{"system:nodes"}, Names: []string{node, address, "localhost", "127.0.0.1"}},
		{Name: "kube-proxy", CA: "ca", User: "system:kube-proxy", Client: true},
	}
}

// WriteRaw writes a PEM file with the mode its kind needs.
func WriteRaw(file string, b []byte, private bool) error {
	mode := os.FileMode(0o644)
	if private {
		mode = 0o600
	}
	return writeBytes(file, b, mode)
}
