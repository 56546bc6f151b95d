package actions

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// componentWait is how long a component may take to say how it is, as upstream.
const componentWait = 20 * time.Second

// A Component is a part of the control plane that can be asked how it is.
type Component struct {
	Name string
	// Ask says whether it is healthy. message is what it says of itself, err why it could not be asked.
	Ask func(ctx context.Context) (healthy corev1.ConditionStatus, message string, err error)
}

// Components observes them, all at once: it takes no longer than the slowest, and not more than 20 s.
func Components(all []Component) func(ctx context.Context, name string) []resources.Object {
	all = slices.SortedFunc(slices.Values(all), func(a, b Component) int { return strings.Compare(a.Name, b.Name) })
	return func(ctx context.Context, name string) []resources.Object {
		ctx, cancel := context.WithTimeout(ctx, componentWait)
		defer cancel()
		var out []resources.Object
		var wait sync.WaitGroup
		for _, c := range all {
			if name != "" && c.Name != name {
				continue
			}
			cs := &corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: c.Name}}
			out = append(out, cs)
			wait.Go(func() {
				cond := corev1.ComponentCondition{Type: corev1.ComponentHealthy}
				var err error
				if cond.Status, cond.Message, err = c.Ask(ctx); err != nil {
					cond.Error = err.Error()
				}
				cs.Conditions = []corev1.ComponentCondition{cond}
			})
		}
		wait.Wait()
		return out
	}
}

// AskHTTPS asks at a URL. Who answers is not verified: nothing is told to it, and what it says is only shown.
func AskHTTPS(url string) func(context.Context) (corev1.ConditionStatus, string, error) {
	const most = 10 << 10 // bytes of an answer
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true, // asked now and then
	}}
	return func(ctx context.Context) (corev1.ConditionStatus, string, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return corev1.ConditionUnknown, "", err
		}
		resp, err := client.Do(r)
		if err != nil {
			return corev1.ConditionFalse, err.Error(), nil
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, most))
		switch {
		case err != nil:
			return corev1.ConditionUnknown, "", err
		case resp.StatusCode < 200 || resp.StatusCode >= 400:
			return corev1.ConditionFalse, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
		}
		return corev1.ConditionTrue, string(body), nil
	}
}

// AskStore takes any answer of a store for its health.
func AskStore(rev func(context.Context) (int64, error)) func(context.Context) (corev1.ConditionStatus, string, error) {
	return func(ctx context.Context) (corev1.ConditionStatus, string, error) {
		if _, err := rev(ctx); err != nil {
			return corev1.ConditionFalse, "", err
		}
		return corev1.ConditionTrue, "ok", nil
	}
}
