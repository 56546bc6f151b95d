// Command scheduler gives pods their nodes. "scheduler plan FILE" decides offline: see package scheduler.
package main

import (
	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/scheduler"
)

func main() {
	config.Main("scheduler", "gives pods their nodes", scheduler.Default(), scheduler.Run, scheduler.PlanCommand)
}
