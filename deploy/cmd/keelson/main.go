// Command keelson is the administrator's command: it brings a machine's cluster up and
// down, looks at it, loads images, and is kubectl.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/keelson/keelson/deploy"
	"github.com/keelson/keelson/deploy/config"
	libconfig "github.com/keelson/keelson/libs/config"
)

func main() {
	if filepath.Base(os.Args[0]) == "kubectl" {
		os.Exit(kubectl(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "kubectl" {
		os.Exit(kubectl(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	if err := root.ExecuteContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted; what was started goes on: `keelson status` shows it, `keelson down` stops it")
		}
		if !errors.Is(err, errSilent) {
			fmt.Fprintln(os.Stderr, "Error:", err)
		}
		stop()
		os.Exit(1)
	}
}

// errSilent ends the command with exit code 1 after its output said why.
var errSilent = errors.New("")

func newRoot() *cobra.Command {
	var prefix string
	var supervise bool
	m := func() (*deploy.Machine, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return nil, err
		}
		return &deploy.Machine{Paths: config.At(prefix), Progress: deploy.NewProgress(os.Stdout), Self: self, Supervise: supervise}, nil
	}
	root := &cobra.Command{
		Use:           "keelson",
		Short:         "Runs a Kubernetes cluster on this machine",
		Long:          "keelson brings this machine's part of a Kubernetes cluster up and down, looks at it,\nand is kubectl (keelson kubectl ...).",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       libconfig.Version,
	}
	root.PersistentFlags().StringVar(&prefix, "root", "", "directory before all paths of this machine (/etc/keelson, /var/lib/keelson, ...)")
	root.PersistentFlags().BoolVar(&supervise, "supervise", false, "run the services under Keelson's own supervisor even where systemd is")
	root.AddCommand(upCommand(m), downCommand(m), resetCommand(m), statusCommand(m), bundleCommand(m), imagesCommand(m),
		serviceCommand(m), prepareCommand(), superviseCommand(), kubectlCommand())
	return root
}

type machine func() (*deploy.Machine, error)
