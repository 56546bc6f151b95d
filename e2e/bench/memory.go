package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/keelson/keelson/e2e/lab"
)

// settle is how long the apiserver needs to notice that nothing happens and to give back what is free.
const settle = 100 * time.Second

// memory measures what objects cost the apiserver: 10,000 pods with 100 watchers of them, 100,000 ConfigMaps
// of 1 KiB, and how long a restart with all of these takes.
func memory(ctx context.Context, c *lab.Cluster, add adder) error {
	pid, err := c.Nodes[0].HostPID("apiserver")
	if err != nil {
		return err
	}
	if err := pass(ctx, settle); err != nil {
		return err
	}
	empty := rssMiB(pid)
	size, err := manyPods(ctx, c)
	if err != nil {
		return err
	}
	stop, err := watchAll(ctx, c, 100)
	if err != nil {
		return err
	}
	defer stop()
	if err := pass(ctx, settle); err != nil {
		return err
	}
	grown := rssMiB(pid) - empty
	add("10,000 pods and 100 watchers of them: growth of the apiserver", "≤ 3 ×", "%.0f MiB, %.1f × the %.0f MiB they are as protobuf (of its own memory, without files: %.0f MiB)",
		grown, grown/size, size, anonMiB(pid))
	stop()

	const n = 100_000
	cms := c.Client.CoreV1().ConfigMaps("default")
	text := strings.Repeat("0123456789abcdef", 64)
	began := time.Now()
	if err := inParallel(n, func(i int) error {
		_, err := cms.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-memory-%d", i)}, Data: map[string]string{"text": text}}, metav1.CreateOptions{})
		return err
	}); err != nil {
		return err
	}
	rate, busy := n/time.Since(began).Seconds(), rssMiB(pid)
	if err := pass(ctx, settle); err != nil {
		return err
	}
	add("100,000 ConfigMaps of 1 KiB besides: the apiserver", "≤ 350 MB of its own", "%.0f MiB, of its own, without files, %.0f MiB (%.0f MiB after %.0f creations per second)",
		rssMiB(pid), anonMiB(pid), busy, rate)

	took, err := restarted(ctx, c, pid)
	if err != nil {
		return err
	}
	add("apiserver killed with 110,000 objects, to ready", "≤ 3 s", "%s", took.Round(10*time.Millisecond))
	return nil
}

// manyPods creates 10,000 pods that no scheduler looks at and returns their size as protobuf, in MiB.
func manyPods(ctx context.Context, c *lab.Cluster) (float64, error) {
	pods := c.Client.CoreV1().Pods("default")
	if err := inParallel(10_000, func(i int) error {
		small := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi")}
		_, err := pods.Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-memory-%d", i), Labels: map[string]string{"app": "memory", "number": strconv.Itoa(i)}},
			Spec: corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{Name: "c", Image: "none",
				Env: []corev1.EnvVar{{Name: "TEXT", Value: strings.Repeat("x", 512)}}, Resources: corev1.ResourceRequirements{Requests: small}}}},
		}, metav1.CreateOptions{})
		return err
	}); err != nil {
		return 0, err
	}
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app=memory"})
	if err != nil {
		return 0, err
	}
	return float64(list.Size()) / (1 << 20), nil
}

// watchAll opens n watches of all pods, each on a connection of its own, and reads them until stop is called.
func watchAll(ctx context.Context, c *lab.Cluster, n int) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop = func() { cancel(); wg.Wait() }
	for range n {
		cfg := rest.CopyConfig(c.Config)
		cfg.ContentType = "application/vnd.kubernetes.protobuf"
		cfg.Dial = (&net.Dialer{}).DialContext // or all would share one
		client, err := rest.HTTPClientFor(cfg)
		if err != nil {
			stop()
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/api/v1/pods?watch=true&resourceVersion=0&labelSelector=app%3Dmemory", nil)
		if err != nil {
			stop()
			return nil, err
		}
		req.Header.Set("Accept", cfg.ContentType)
		resp, err := client.Do(req)
		if err != nil {
			stop()
			return nil, err
		}
		wg.Go(func() {
			defer resp.Body.Close()
			buf := make([]byte, 64<<10)
			for {
				if _, err := resp.Body.Read(buf); err != nil {
					return
				}
			}
		})
	}
	return stop, nil
}

// restarted kills the apiserver and returns how long it takes until another is ready.
func restarted(ctx context.Context, c *lab.Cluster, pid int) (time.Duration, error) {
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return 0, err
	}
	for {
		if time.Since(began) > time.Minute {
			return 0, fmt.Errorf("the apiserver was not ready a minute after it had been killed")
		}
		body, err := c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Timeout(time.Second).DoRaw(ctx)
		if now, perr := c.Nodes[0].HostPID("apiserver"); err == nil && string(body) == "ok" && perr == nil && now != pid {
			return time.Since(began), nil
		}
		if err := pass(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// anonMiB is the resident memory of a process that is no file's (proc(5): RssAnon).
func anonMiB(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if kib, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			f, _ := strconv.ParseFloat(strings.Fields(kib)[0], 64)
			return f / 1024
		}
	}
	return 0
}
