// Command lab keeps a cluster of several machines on this host until it is interrupted:
// for trying things by hand and for running suites that are not part of `make test`.
//
// `make lab` runs it. It prints the administrator's kubeconfig and how to look into a
// machine; Ctrl-C (or SIGTERM) removes everything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/keelson/keelson/e2e/lab"
)

func main() {
	var o lab.Options
	flag.StringVar(&o.Prefix, "prefix", "klab", "of cgroups and interfaces, at most 6 characters; two labs need two")
	flag.StringVar(&o.Subnet, "subnet", "10.89.0", "first three numbers of the machines' network; two labs need two")
	flag.StringVar(&o.Dir, "dir", "", "state of the machines; they share its disk (default /var/tmp/keelson-PREFIX)")
	flag.StringVar(&o.Bin, "bin", os.Getenv("KEELSON_BIN"), "directory with keelson, pause and the daemons")
	machines := flag.Int("machines", 2, "how many, 1 to 20; the first has the control plane")
	archives := flag.String("images", "", "image archives to load into each machine, separated by commas")
	up := flag.String("up", "", "further arguments of the first machine's `keelson up`, separated by spaces")
	limit := flag.Duration("for", 4*time.Hour, "end by itself after this time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	if err := run(ctx, o, *machines, *archives, *up); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o lab.Options, machines int, archives, up string) (err error) {
	if machines < 1 || machines > 20 {
		return fmt.Errorf("--machines %d: must be 1 to 20", machines)
	}
	var files []string
	for _, a := range strings.FieldsFunc(archives, func(r rune) bool { return r == ',' }) {
		if a, err = filepath.Abs(a); err != nil {
			return err
		}
		files = append(files, a)
	}
	o.Log = func(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) }
	c, err := lab.Start(ctx, o, machines, files, strings.Fields(up)...)
	if c != nil {
		defer func() { err = errors.Join(err, c.Close()) }()
	}
	if err != nil {
		return err
	}
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig)
	for _, m := range c.Nodes {
		fmt.Printf("# %s, %s: nsenter -t $(cat %s) -a\n", m.Name, m.Address, m.Path("pid"))
	}
	<-ctx.Done()
	return nil
}
