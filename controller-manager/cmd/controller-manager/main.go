// Command controller-manager runs the controllers of a cluster, and prints what
// they would do ("plan"), touch ("graph") and need to be allowed ("rbac").
//
// It only parses flags; package controllermanager, the module's root, has
// everything else and promises the rest.
package main

import (
	controllermanager "github.com/keelson/keelson/controller-manager"
	"github.com/keelson/keelson/libs/config"
)

func main() {
	config.Main("controller-manager", "runs the controllers of a Keelson cluster",
		controllermanager.Default(), controllermanager.Run, controllermanager.Commands...)
}
