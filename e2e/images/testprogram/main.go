// Command testprogram is what the end-to-end tests run in pods: a small server and
// client whose behaviour a test can choose. `testprogram VERB ARGUMENTS`; each verb is
// a row of the table below.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A verb gets its arguments and returns the exit code.
type verb struct {
	usage string
	run   func(args []string) int
}

var verbs map[string]verb

func init() {
	verbs = map[string]verb{
		"serve":  {"serve [PORT] [LINGER]: HTTP server, and UDP echo on the same port; after SIGTERM it serves for LINGER more", serve},
		"load":   {"load URL RATE SECONDS: requests at RATE per second; prints the answers by count, exits 1 on any failure", load},
		"get":    {"get URL: one request; prints the body, exits 1 unless 200", get},
		"lookup": {"lookup NAME: addresses of NAME, sorted, one per line", lookup},
		"srv":    {"srv NAME: SRV records of NAME as target:port, sorted", srv},
		"udp":    {"udp ADDRESS:PORT BYTES: sends one datagram to a server, which must come back whole", udp},
		"bulk":   {"bulk URL BYTES: reads a server's /bulk?bytes=BYTES and checks it", bulk},
		"sleep":  {"sleep SECONDS", sleep},
		"exit":   {"exit CODE [SECONDS]: exits with CODE, after SECONDS", exit},
		"oom":    {"oom: takes memory until it is killed", oom},
		"stay":   {"stay: ignores SIGTERM for ever", stay},
		"env":    {"env [NAME]: prints the environment, or one variable", env},
		"api":    {"api METHOD PATH: calls the API with the pod's own token; prints status code and body", callAPI},
		"tick":   {"tick: prints a numbered line every 100 ms", tick},
	}
}

func main() {
	if len(os.Args) > 1 {
		if v, ok := verbs[os.Args[1]]; ok {
			os.Exit(v.run(os.Args[2:]))
		}
	}
	names := make([]string, 0, len(verbs))
	for n := range verbs {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		fmt.Fprintln(os.Stderr, "testprogram", verbs[n].usage)
	}
	os.Exit(2)
}

// argument returns args[i], or what to take when there is none.
func argument(args []string, i int, otherwise string) string {
	if i < len(args) {
		return args[i]
	}
	return otherwise
}

func seconds(text string) time.Duration {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return time.Duration(f * float64(time.Second))
}

func sleep(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	select {
	case <-ctx.Done():
	case <-time.After(seconds(argument(args, 0, "1000000"))):
	}
	return 0
}

func exit(args []string) int {
	time.Sleep(seconds(argument(args, 1, "0")))
	code, err := strconv.Atoi(argument(args, 0, "0"))
	if err != nil {
		return 2
	}
	return code
}

func oom([]string) int {
	var keep [][]byte
	for {
		b := make([]byte, 8<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
		fmt.Println("holding", len(keep)*8, "MiB")
	}
}

func stay([]string) int {
	signal.Ignore(syscall.SIGTERM)
	for {
		time.Sleep(time.Hour)
	}
}

func env(args []string) int {
	if len(args) == 1 {
		fmt.Println(os.Getenv(args[0]))
		return 0
	}
	list := os.Environ()
	sort.Strings(list)
	fmt.Println(strings.Join(list, "\n"))
	return 0
}

func tick([]string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for i := 0; ; i++ {
		fmt.Println("tick", i)
		select {
		case <-t.C:
		case <-ctx.Done():
			return 0
		}
	}
}
