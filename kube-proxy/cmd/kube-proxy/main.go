// Command kube-proxy is a node's network: Services, pod network and cluster DNS.
package main

import (
	kubeproxy "github.com/keelson/keelson/kube-proxy"
	"github.com/keelson/keelson/libs/config"
)

func main() {
	config.Main("kube-proxy", "programs Services, the pod network and cluster DNS of one node", kubeproxy.Default(), kubeproxy.Run)
}
