// Package pause builds the sandbox image: the container that holds a pod's namespaces
// while its other containers come and go.
//
// The program itself is in cmd/pause; Archive wraps the built program into an image,
// without a registry.
package pause

import (
	"fmt"

	"github.com/keelson/keelson/deploy/images"
)

// Image is the reference of the sandbox image.
const Image = "keelson.local/pause:1"

// Archive writes an archive of the sandbox image to file. program is the built
// cmd/pause: static, and for this machine's architecture.
func Archive(file, program string) error {
	err := images.Build(file, images.Spec{
		Name:       Image,
		Files:      []images.File{{Path: "/pause", From: program}},
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
		// One scheduler thread and no collections: the program allocates nothing.
		Env: []string{"GOMAXPROCS=1", "GOGC=off"},
	})
	if err != nil {
		return fmt.Errorf("build the sandbox image: %w", err)
	}
	return nil
}
