package main

import (
	"os"

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
		if admin := config.At("").AdminKubeconfig(); readable(admin) {
			os.Setenv("KUBECONFIG", admin)
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

func readable(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	f.Close()
	return true
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
