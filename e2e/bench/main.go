// Command bench measures a build of Keelson on a lab cluster of one machine and prints
// a table: starting, pods, idle memory and processor, and the API from outside.
//
// `make bench` runs it. KEELSON_BIN names the binaries; arguments select parts: idle, pods,
// readiness, takeover, api, resume, watchers, lists, memory. Figures move by tens of percent
// between runs and machines: compare ratios of interleaved runs on one machine only.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/e2e/images"
	"github.com/keelson/keelson/e2e/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		cancel()
		os.Exit(1)
	}
}

// program is the test program, for use on the machine itself.
var program string

var daemons = []string{"apiserver", "scheduler", "controller-manager", "kubelet", "kube-proxy"}

type row struct{ what, value, target string }

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("/var/tmp", "keelson-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	archive, err := images.Archive(ctx, dir)
	if err != nil {
		return err
	}
	program = filepath.Join(dir, "testprogram")
	bin := os.Getenv("KEELSON_BIN")
	c, err := lab.Start(ctx, lab.Options{Prefix: cmp.Or(os.Getenv("KEELSON_BENCH_PREFIX"), "kbench"), Subnet: cmp.Or(os.Getenv("KEELSON_BENCH_SUBNET"), "10.88.0"), Bin: bin}, 1, []string{archive})
	if c != nil {
		defer func() {
			if err := c.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
	if err != nil {
		return err
	}
	rows := []row{{"keelson up (new) to node Ready", c.UpTook.Round(10 * time.Millisecond).String(), "≤ 5 s"}}
	add := func(what, target, format string, args ...any) {
		rows = append(rows, row{what, fmt.Sprintf(format, args...), target})
		fmt.Fprintf(os.Stderr, "%s: %s\n", what, rows[len(rows)-1].value)
	}

	for _, part := range []struct {
		name string
		run  func(context.Context, *lab.Cluster, adder) error
	}{
		{"idle", idle}, {"pods", pods}, {"readiness", readiness}, {"takeover", takeover}, {"api", api}, {"resume", resume},
		{"watchers", watchers}, {"lists", lists}, {"memory", memory},
	} {
		if len(os.Args) > 1 && !slices.Contains(os.Args[1:], part.name) {
			continue
		}
		if err := part.run(ctx, c, add); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nMEASURED\tRESULT\tTARGET")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\n", r.what, r.value, r.target)
	}
	return t.Flush()
}

type adder func(what, target, format string, args ...any)

// resume measures how long a stopped machine takes to be Ready again.
func resume(ctx context.Context, c *lab.Cluster, add adder) error {
	m := c.Nodes[0]
	if _, err := m.Keelson(ctx, "down", "--grace", "1s"); err != nil {
		return err
	}
	began := time.Now()
	if _, err := m.Up(ctx); err != nil {
		return err
	}
	add("keelson up (resumed) to node Ready", "≤ 5 s", "%s", time.Since(began).Round(10*time.Millisecond))
	return nil
}

// idle measures memory and processor of the daemons on an empty cluster.
func idle(ctx context.Context, c *lab.Cluster, add adder) error {
	pids := map[string]int{}
	for _, d := range daemons {
		pid, err := c.Nodes[0].HostPID(d)
		if err != nil {
			return err
		}
		pids[d] = pid
	}
	// The starting work has to be over; this is the time that is measured, too.
	if err := pass(ctx, 15*time.Second); err != nil {
		return err
	}
	before := ticks(pids)
	const span = 30 * time.Second
	if err := pass(ctx, span); err != nil {
		return err
	}
	after := ticks(pids)
	control, total := 0.0, 0.0
	for _, d := range daemons {
		mib := rssMiB(pids[d])
		cpu := float64(after[d]-before[d]) / 100 / span.Seconds() * 100 // USER_HZ is 100
		total += cpu
		if d != "kubelet" && d != "kube-proxy" {
			control += mib
		}
		add("idle "+d, map[string]string{"kubelet": "≤ 50 MiB", "kube-proxy": "≤ 30 MiB"}[d], "%.0f MiB, %.2f %% of a core", mib, cpu)
	}
	add("idle control plane, memory", "≤ 150 MB", "%.0f MiB", control)
	add("idle, all daemons, processor", "≤ 3 %", "%.2f %% of a core", total)
	return nil
}

func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// ticks are the processor times used so far (proc(5): utime and stime).
func ticks(pids map[string]int) map[string]int64 {
	out := map[string]int64{}
	for d, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		var user, system int64
		if _, err := fmt.Sscan(f[11], &user); err == nil {
			if _, err := fmt.Sscan(f[12], &system); err == nil {
				out[d] = user + system
			}
		}
	}
	return out
}

func rssMiB(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, resident float64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * float64(os.Getpagesize()) / (1 << 20)
}

// pods measures starting and stopping, as seen by a watch.
func pods(ctx context.Context, c *lab.Cluster, add adder) error {
	api := c.Client.CoreV1().Pods("default")
	pod := func(name string) *corev1.Pod {
		grace := int64(1)
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "c", Image: images.Test, Args: []string{"sleep"}}}}}
	}
	// until follows the pods until n of them run, or are gone, and returns when each did.
	until := func(n int, gone bool, start func() error) ([]time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		w, err := api.Watch(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		defer w.Stop()
		began := time.Now()
		if err := start(); err != nil {
			return nil, err
		}
		seen := map[string]bool{}
		var took []time.Duration
		for ev := range w.ResultChan() {
			p, ok := ev.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			if !seen[p.Name] && (gone && ev.Type == "DELETED" || !gone && p.Status.Phase == corev1.PodRunning) {
				seen[p.Name] = true
				took = append(took, time.Since(began))
			}
			if len(took) >= n {
				return took, nil
			}
		}
		return nil, fmt.Errorf("%d of %d pods after %s", len(took), n, time.Since(began))
	}
	if err := serviceAccount(ctx, c); err != nil {
		return err
	}
	now := metav1.DeleteOptions{}
	var starts, ends []time.Duration
	for i := range 11 {
		name := fmt.Sprintf("one-%d", i)
		d, err := until(1, false, func() error { _, err := api.Create(ctx, pod(name), metav1.CreateOptions{}); return err })
		if err != nil {
			return err
		}
		e, err := until(1, true, func() error { return api.Delete(ctx, name, now) })
		if err != nil {
			return err
		}
		if i > 0 { // the first warms up
			starts, ends = append(starts, d...), append(ends, e...)
		}
	}
	add("pod start, one at a time, median", "≤ 0.45 s", "%s", median(starts))
	add("pod deletion, one at a time, median", "", "%s", median(ends))
	d, err := until(30, false, func() error {
		for i := range 30 {
			if _, err := api.Create(ctx, pod(fmt.Sprintf("many-%d", i)), metav1.CreateOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	add("30 pods at once on one node, median · until all run", "", "%s · %s", median(d).Round(10*time.Millisecond), slices.Max(d).Round(10*time.Millisecond))
	d, err = until(30, true, func() error { return api.DeleteCollection(ctx, now, metav1.ListOptions{}) })
	if err != nil {
		return err
	}
	add("30 pods deleted at once, median · until all are gone", "", "%s · %s", median(d).Round(10*time.Millisecond), slices.Max(d).Round(10*time.Millisecond))
	return nil
}

func serviceAccount(ctx context.Context, c *lab.Cluster) error {
	for {
		_, err := c.Client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		if perr := pass(ctx, 50*time.Millisecond); perr != nil {
			return fmt.Errorf("%w: %w", perr, err)
		}
	}
}

// api measures the apiserver from outside: small writes and reads.
func api(ctx context.Context, c *lab.Cluster, add adder) error {
	cpu, err := ticker(c)
	if err != nil {
		return err
	}
	const n = 2000
	cms := c.Client.CoreV1().ConfigMaps("default")
	each := func(what string, f func(name string) error) error {
		began, before := time.Now(), cpu()
		if err := inParallel(n, func(i int) error { return f(fmt.Sprintf("bench-%d", i)) }); err != nil {
			return err
		}
		took := time.Since(began)
		add(what+", 8 clients", "", "%.0f per second, %.2f CPU s per 1,000", n/took.Seconds(), float64(cpu()-before)/100/n*1000)
		return nil
	}
	data := map[string]string{"a": strings.Repeat("x", 1000)}
	if err := each("ConfigMap create", func(name string) error {
		_, err := cms.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}, metav1.CreateOptions{})
		return err
	}); err != nil {
		return err
	}
	if err := each("ConfigMap get", func(name string) error { _, err := cms.Get(ctx, name, metav1.GetOptions{}); return err }); err != nil {
		return err
	}
	return cms.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2].Round(time.Millisecond)
}
