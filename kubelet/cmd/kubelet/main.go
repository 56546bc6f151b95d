// Command kubelet runs the pods of a node on any CRI runtime. "kubelet plan FILE" shows what
// it would do with a pod, without doing it; --help lists the flags.
package main

import (
	"github.com/keelson/keelson/kubelet"
	"github.com/keelson/keelson/libs/config"
)

func main() {
	config.Main("kubelet", "runs the pods of a node", kubelet.Default(), kubelet.Run, kubelet.Plan())
}
