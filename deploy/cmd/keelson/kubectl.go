package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	"github.com/keelson/keelson/deploy/config"
)

// kubectl runs kubectl's command line and returns its exit code. Without KUBECONFIG it
// talks to this machine's cluster, as its administrator.
func kubectl(args []string) int {
	if os.Getenv("KUBECONFIG") == "" {
		admin := config.At("").AdminKubeconfig()
		switch f, err := os.Open(admin); {
		case err == nil:
			f.Close()
			os.Setenv("KUBECONFIG", admin)
		case errors.Is(err, fs.ErrPermission):
			explain("only root may read " + admin + ": use sudo, or set KUBECONFIG")
		default:
			explain("there is no cluster on this machine (`keelson up` makes one), and KUBECONFIG names no other")
		}
	}
	// kubectl's own help and its look for plug-ins read the process's arguments.
	os.Args = append([]string{"kubectl"}, args...)
	c := cmd.NewDefaultKubectlCommand()
	if err := cli.RunNoErrOutput(c); err != nil {
		util.CheckErr(err) // prints and exits
		return 1
	}
	return 0
}

// explain adds why to the failure of a kubectl that was told of no server and therefore tried localhost:8080.
func explain(why string) {
	util.BehaviorOnFatal(func(text string, code int) {
		if text != "" {
			fmt.Fprintln(os.Stderr, strings.TrimSuffix(text, "\n"))
		}
		if strings.Contains(text, "localhost:8080") {
			fmt.Fprintln(os.Stderr, "keelson: "+why)
		}
		os.Exit(code)
	})
}

// kubectlCommand only shows up in the help: main hands the arguments over before.
func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ...",
		Short:              "Be kubectl, as this cluster's administrator unless KUBECONFIG is set",
		DisableFlagParsing: true,
		Run:                func(_ *cobra.Command, args []string) { os.Exit(kubectl(args)) },
	}
}
