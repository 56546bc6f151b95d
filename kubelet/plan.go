package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/keelson/keelson/kubelet/pod"
	"github.com/keelson/keelson/libs/config"
)

// Plan is the subcommand that decides for a pod in a file and prints steps and status.
func Plan() config.Command {
	return config.Command{
		Name:  "plan",
		Short: "read a pod script and print what the kubelet would do (see kubelet/pod/testdata)",
		Run: func(_ context.Context, args []string, out io.Writer) error {
			if len(args) != 1 {
				return config.Usage(errors.New("usage: kubelet plan FILE"))
			}
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			answer, err := pod.Replay(string(text))
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(out, answer)
			return err
		},
	}
}
