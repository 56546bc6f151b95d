// Command kubelet runs the pods of a node.
package main

import (
	"github.com/keelson/keelson/kubelet"
	"github.com/keelson/keelson/libs/config"
)

func main() {
	config.Main("kubelet", "runs the pods of a node", kubelet.Default(), kubelet.Run, kubelet.Plan())
}
