package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	"github.com/keelson/keelson/deploy/config"
)

// kubectl runs kubectl's command line and returns its exit code. Without KUBECONFIG it
// talks to this machine's cluster, as its administrator.
func kubectl(args []string) int {
	if os.Getenv("KUBECONFIG") == "" {
		admin, home := config.At("").AdminKubeconfig(), clientcmd.RecommendedHomeFile
		switch f, err := os.Open(admin); {
		case err == nil:
			f.Close()
			os.Setenv("KUBECONFIG", admin)
		case exists(home):
		case errors.Is(err, fs.ErrPermission):
			fmt.Fprintf(os.Stderr, "keelson: only root may read %s: use sudo, or set KUBECONFIG\n", admin)
		default:
			fmt.Fprintf(os.Stderr, "keelson: there is no cluster on this machine (`keelson up` makes one), and neither KUBECONFIG nor %s names another\n", home)
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

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
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
