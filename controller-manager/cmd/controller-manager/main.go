// Command controller-manager runs the controllers. See package controllermanager.
package main

import (
	controllermanager "github.com/keelson/keelson/controller-manager"
	"github.com/keelson/keelson/libs/config"
)

func main() {
	config.Main("controller-manager", "runs the controllers of a Keelson cluster",
		controllermanager.Default(), controllermanager.Run, controllermanager.Commands...)
}
