package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/libs/quota"
)

// resourceQuota books what an object uses before it is written: the quota's
// status is changed by compare-and-swap, so that two requests can never use the
// same room. A booking whose write fails is taken back; one that is lost in a
// crash is put right by the quota controller, which counts what is there.
//
// Source: Kubernetes documentation, "Resource Quotas".
func resourceQuota(cfg Config) Plugin {
	return Plugin{Name: "ResourceQuota", Validate: func(ctx context.Context, a *Attributes) (func(), error) {
		if a.Namespace == "" || !a.Row.Namespaced || a.Operation != Create && a.Operation != Update ||
			a.Subresource != "" && a.Subresource != "resize" || a.Row.GR() == grNamespaces {
			return nil, nil
		}
		var quotas []*corev1.ResourceQuota
		err := cfg.Read.Each(grQuotas, a.Namespace, func(o resources.Object) bool {
			if q, ok := o.(*corev1.ResourceQuota); ok {
				quotas = append(quotas, q)
			}
			return true
		})
		if err != nil || len(quotas) == 0 {
			return nil, err
		}
		around := &cluster{read: cfg.Read, now: cfg.Now()}
		grow := growth(around, a)
		if around.err != nil {
			return nil, around.err
		}
		var booked []booking
		undo := func() {
			for _, b := range booked {
				// Best effort: what stays booked is counted anew by the controller.
				_ = cfg.UpdateQuota(a.Namespace, b.quota, func(q *corev1.ResourceQuota) error {
					q.Status.Used = quota.Add(q.Status.Used, quota.Sub(corev1.ResourceList{}, b.use))
					return nil
				})
			}
		}
		for _, q := range quotas {
			if !quota.Matches(q, a.Object) {
				continue
			}
			if pod := a.pod(); pod != nil && a.Operation == Create {
				if missing := quota.Unspecified(q, pod); len(missing) > 0 {
					undo()
					return nil, forbid(a, fmt.Errorf("failed quota: %s: must specify %s", q.Name, strings.Join(missing, "; ")))
				}
			}
			use := grow
			if a.Operation == Update && !quota.Matches(q, a.Old) {
				use = quota.Usage(around, a.Row.GR(), a.Object) // it comes into the quota as a whole
			}
			// What is enforced is what the controller has taken up, not what has just been asked for.
			use = quota.Limited(q.Status.Hard, use)
			if !takes(use) {
				continue
			}
			if a.Request != nil && a.Request.DryRun {
				if err := room(a, q, use); err != nil {
					return nil, err
				}
				continue
			}
			err := cfg.UpdateQuota(a.Namespace, q.Name, func(q *corev1.ResourceQuota) error {
				use := quota.Limited(q.Status.Hard, use)
				if err := room(a, q, use); err != nil {
					return err
				}
				q.Status.Used = quota.Add(q.Status.Used, use)
				return nil
			})
			if apierrors.IsNotFound(err) {
				continue // the quota has just been deleted
			}
			if err != nil {
				undo()
				return nil, err
			}
			booked = append(booked, booking{q.Name, use})
		}
		return undo, nil
	}}
}

// cluster is what the count of a resource claim takes from other objects; err is the first fault of reading them.
type cluster struct {
	read resources.Reader
	now  time.Time
	err  error
}

func (c *cluster) Now() time.Time { return c.now }

func (c *cluster) DeviceClass(name string) *resourcev1.DeviceClass {
	return found[resourcev1.DeviceClass](c, grDeviceClasses, "", name)
}

func (c *cluster) Pod(namespace, name string) *corev1.Pod {
	return found[corev1.Pod](c, grPods, namespace, name)
}

func (c *cluster) Owned(pod *corev1.Pod) (list []*resourcev1.ResourceClaim) {
	c.note(c.read.Each(grResourceClaims, pod.Namespace, func(o resources.Object) bool {
		if claim, ok := o.(*resourcev1.ResourceClaim); ok && metav1.IsControlledBy(claim, pod) {
			list = append(list, claim)
		}
		return true
	}))
	return list
}

func (c *cluster) note(err error) {
	if c.err == nil {
		c.err = err
	}
}

func found[T any](c *cluster, gr schema.GroupResource, namespace, name string) *T {
	obj, err := resources.Lookup[T](c.read, gr, namespace, name)
	c.note(err)
	return obj
}

// room refuses a use that the quota has no room for, or whose counts are not known yet.
func room(a *Attributes, q *corev1.ResourceQuota, use corev1.ResourceList) error {
	unknown := corev1.ResourceList{}
	for name, n := range use {
		if _, counted := q.Status.Used[name]; !counted {
			unknown[name] = n
		}
	}
	if len(unknown) > 0 {
		return forbid(a, fmt.Errorf("status unknown for quota: %s, resources: %s", q.Name, names(unknown)))
	}
	if msg := quota.Exceeded(q.Name, q.Status.Hard, q.Status.Used, use); msg != "" {
		return forbid(a, errors.New(msg))
	}
	return nil
}

type booking struct {
	quota string
	use   corev1.ResourceList
}

// growth is what the write adds: everything of a new object, the difference of a changed one.
func growth(around *cluster, a *Attributes) corev1.ResourceList {
	use := quota.Usage(around, a.Row.GR(), a.Object)
	if a.Operation != Update || a.Old == nil {
		return use
	}
	if old, err := apimeta.Accessor(a.Old); err == nil && old.GetDeletionTimestamp() != nil {
		return nil // what is on its way out may finish
	}
	return quota.Sub(use, quota.Usage(around, a.Row.GR(), a.Old))
}

// takes reports whether anything grows; room that is given back is counted by the controller.
func takes(use corev1.ResourceList) bool {
	for name, q := range use {
		if q.Sign() > 0 {
			return true
		}
		delete(use, name)
	}
	return false
}

func names(l corev1.ResourceList) string {
	var s []string
	for _, n := range sortedNames(l) {
		s = append(s, string(n))
	}
	return strings.Join(s, ",")
}
