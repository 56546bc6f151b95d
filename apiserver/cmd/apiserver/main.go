// Command apiserver serves the Kubernetes API and runs the etcd that holds its objects.
// Flags and file are described by apiserver.Config; --help lists them.
package main

import (
	"github.com/keelson/keelson/apiserver"
	"github.com/keelson/keelson/libs/config"
)

func main() {
	config.Main("apiserver", "serve the Kubernetes API", apiserver.Default(), apiserver.Run)
}
