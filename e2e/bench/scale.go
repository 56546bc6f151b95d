package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/keelson/keelson/e2e/lab"
)

// ticker returns the apiserver's processor time so far, in hundredths of a second.
func ticker(c *lab.Cluster) (func() int64, error) {
	pid, err := c.Nodes[0].HostPID("apiserver")
	if err != nil {
		return nil, err
	}
	return func() int64 { return ticks(map[string]int{"a": pid})["a"] }, nil
}

// inParallel runs f for 0 … n-1 on 8 workers and stops at the first error.
func inParallel(n int, f func(i int) error) error {
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				errs[w] = f(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// lists measures the list of 10,000 pods that no scheduler looks at.
func lists(ctx context.Context, c *lab.Cluster, add adder) error {
	cpu, err := ticker(c)
	if err != nil {
		return err
	}
	const n = 10000
	pods := c.Client.CoreV1().Pods("default")
	began, before := time.Now(), cpu()
	if err := inParallel(n, func(i int) error {
		_, err := pods.Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%d", i), Labels: map[string]string{"app": "bench"}},
			Spec:       corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		}, metav1.CreateOptions{})
		return err
	}); err != nil {
		return fmt.Errorf("create pods: %w", err)
	}
	took := time.Since(began)
	add("Pod create, 8 clients", "", "%.0f per second, %.2f CPU s per 1,000", n/took.Seconds(), float64(cpu()-before)/100/n*1000)
	hc, err := rest.HTTPClientFor(c.Config)
	if err != nil {
		return err
	}
	for _, form := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		var times []time.Duration
		bytes, before := int64(0), cpu()
		const rounds = 10
		for range rounds {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Config.Host+"/api/v1/pods", nil)
			if err != nil {
				return err
			}
			req.Header.Set("Accept", form)
			began := time.Now()
			resp, err := hc.Do(req)
			if err != nil {
				return err
			}
			bytes, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil {
				return err
			}
			times = append(times, time.Since(began))
		}
		add(fmt.Sprintf("list of 10,000 pods, %s, median", filepath.Base(form)), "", "%s for %.1f MB, %.3f CPU s each",
			median(times), float64(bytes)/1e6, float64(cpu()-before)/100/rounds)
	}
	return nil
}

// watchers measures how changes of one object reach 1,000 watchers.
func watchers(ctx context.Context, c *lab.Cluster, add adder) error {
	cpu, err := ticker(c)
	if err != nil {
		return err
	}
	const watches, changes = 1000, 100
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cms := c.Client.CoreV1().ConfigMaps("default")
	cm, err := cms.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "bench-watched"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	var seen atomic.Int64
	var wg sync.WaitGroup
	began, before := time.Now(), cpu()
	for range watches {
		w, err := cms.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + cm.Name, ResourceVersion: cm.ResourceVersion})
		if err != nil {
			return fmt.Errorf("open a watch: %w", err)
		}
		wg.Go(func() {
			defer w.Stop()
			for range changes {
				select {
				case <-w.ResultChan():
					seen.Add(1)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	add("opening 1,000 watches", "", "%s, %.2f CPU s", time.Since(began).Round(time.Millisecond), float64(cpu()-before)/100)
	began, before = time.Now(), cpu()
	for i := range changes {
		patch := fmt.Appendf(nil, `{"data":{"n":"%d"}}`, i)
		if _, err := cms.Patch(ctx, cm.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("patch: %w", err)
		}
	}
	wg.Wait()
	if got := seen.Load(); got != watches*changes {
		return fmt.Errorf("1,000 watchers saw %d of %d changes", got, watches*changes)
	}
	took := time.Since(began)
	add("100 changes to 1,000 watchers", "", "%.0f deliveries per second, %.3f CPU s per 1,000",
		watches*changes/took.Seconds(), float64(cpu()-before)/100/(watches*changes)*1000)
	return nil
}
