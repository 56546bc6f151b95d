// Command apiserver serves the Kubernetes API.
package main

import (
	"github.com/keelson/keelson/apiserver"
	"github.com/keelson/keelson/libs/config"
)

func main() {
	config.Main("apiserver", "serve the Kubernetes API", apiserver.Default(), apiserver.Run)
}
