package apiserver

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/admission/policy"
	"github.com/keelson/keelson/apiserver/admission/webhook"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
)

// dynamic are the admission plugins that the cluster's users configure.
func (s *server) dynamic(authorizer authz.Authorizer) []admission.Plugin {
	read := s.cache.Reader()
	changed := func(prefix string) func() int64 { return s.cache.Changed(prefix) }
	conditions := expr.NewMetrics(s.web.Registry())
	mutating, validating := webhook.New(webhook.Config{
		Read: read, Rows: s.reg.All, Changed: changed, Authorizer: authorizer,
		Reach:   func(namespace, name, port string) (string, error) { return s.proxy.Reach(namespace, name, port) },
		Metrics: webhook.NewMetrics(s.web.Registry(), conditions), Log: s.log.With("room", "webhooks"),
	})
	mutate, validate := mutating.Mutate, validating.Validate
	mutating.Mutate = func(ctx context.Context, a *admission.Attributes) error {
		defer waiting(ctx, time.Now())
		return mutate(ctx, a)
	}
	validating.Validate = func(ctx context.Context, a *admission.Attributes) (func(), error) {
		defer waiting(ctx, time.Now())
		return validate(ctx, a)
	}
	change, check := policy.New(policy.Config{
		Read: read, Rows: s.reg.All, Changed: s.cache.Changed, Authorizer: authorizer,
		Merge: func(row *resources.Row, live resources.Object, config *unstructured.Unstructured) (resources.Object, error) {
			return s.api.objects.Merge(row, live, config)
		},
		Metrics: policy.NewMetrics(s.web.Registry(), conditions),
	})
	return []admission.Plugin{change, mutating, check, validating}
}

// waiting notes what a request has waited for others since began; less than a call could take is nothing.
func waiting(ctx context.Context, began time.Time) {
	const least = 50 * time.Microsecond
	if took := time.Since(began); took > least {
		if in := rest.InfoFrom(ctx); in != nil {
			in.Waited += took
		}
	}
}

// connectOptions is the object that admission sees of a stream: what the client has asked for.
func connectOptions(r *http.Request, c *rest.Call) runtime.Object {
	q := r.URL.Query()
	// A parameter without a value means yes.
	yes := func(name string) bool {
		if !q.Has(name) {
			return false
		}
		b, err := strconv.ParseBool(q.Get(name))
		return q.Get(name) == "" || err == nil && b
	}
	path := c.Info.Rest
	if path != "" {
		path = "/" + path
	}
	kind := admission.KindIn(c.Row, c.Info.Subresource)
	var o runtime.Object
	switch kind.Kind {
	case "PodExecOptions":
		o = &corev1.PodExecOptions{
			Stdin: yes("stdin"), Stdout: yes("stdout"), Stderr: yes("stderr"), TTY: yes("tty"), Container: q.Get("container"), Command: q["command"],
		}
	case "PodAttachOptions":
		o = &corev1.PodAttachOptions{
			Stdin: yes("stdin"), Stdout: yes("stdout"), Stderr: yes("stderr"), TTY: yes("tty"), Container: q.Get("container"),
		}
	case "PodPortForwardOptions":
		o = &corev1.PodPortForwardOptions{Ports: ports(q)}
	case "PodProxyOptions":
		o = &corev1.PodProxyOptions{Path: path}
	case "ServiceProxyOptions":
		o = &corev1.ServiceProxyOptions{Path: path}
	case "NodeProxyOptions":
		o = &corev1.NodeProxyOptions{Path: path}
	default:
		return nil
	}
	o.GetObjectKind().SetGroupVersionKind(kind)
	return o
}

func ports(q url.Values) []int32 {
	var out []int32
	for _, p := range q["ports"] {
		if n, err := strconv.ParseInt(p, 10, 32); err == nil {
			out = append(out, int32(n))
		}
	}
	return out
}
