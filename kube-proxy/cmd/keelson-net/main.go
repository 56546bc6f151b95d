// The keelson-net command is the CNI plugin of Keelson's pod network; the runtime starts it.
package main

import (
	"os"

	"github.com/keelson/keelson/kube-proxy/cni"
)

func main() {
	if cni.Run(os.Getenv, os.Stdin, os.Stdout) != nil {
		os.Exit(1)
	}
}
