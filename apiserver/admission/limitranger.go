package admission

import (
	"context"
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/keelson/keelson/apiserver/resources"
)

// limitRanger fills in a namespace's default requests and limits, and refuses
// pods and claims outside its bounds.
//
// Source: Kubernetes documentation, "Limit Ranges".
func limitRanger(cfg Config) Plugin {
	ranges := func(a *Attributes, yield func(*corev1.LimitRangeItem, *corev1.LimitRange)) error {
		return cfg.Read.Each(grLimitRanges, a.Namespace, func(o resources.Object) bool {
			if lr, ok := o.(*corev1.LimitRange); ok {
				for i := range lr.Spec.Limits {
					yield(&lr.Spec.Limits[i], lr)
				}
			}
			return true
		})
	}
	return Plugin{
		Name: "LimitRanger",
		Mutate: func(_ context.Context, a *Attributes) error {
			pod := a.pod()
			if pod == nil || a.Operation != Create {
				return nil
			}
			var notes []string
			err := ranges(a, func(item *corev1.LimitRangeItem, _ *corev1.LimitRange) {
				if item.Type != corev1.LimitTypeContainer {
					return
				}
				for i := range pod.Spec.Containers {
					notes = append(notes, fillDefaults("container", &pod.Spec.Containers[i], item)...)
				}
				for i := range pod.Spec.InitContainers {
					notes = append(notes, fillDefaults("init container", &pod.Spec.InitContainers[i], item)...)
				}
			})
			if err == nil && len(notes) > 0 {
				if pod.Annotations == nil {
					pod.Annotations = map[string]string{}
				}
				pod.Annotations["kubernetes.io/limit-ranger"] = "LimitRanger plugin set: " + strings.Join(notes, "; ")
			}
			return err
		},
		Validate: func(_ context.Context, a *Attributes) (func(), error) {
			if a.Subresource != "" && a.Subresource != "resize" || a.Operation == Delete {
				return nil, nil
			}
			var errs []error
			switch o := a.Object.(type) {
			case *corev1.Pod:
				if a.Row.GR() != grPods || a.Operation == Update && a.Subresource != "resize" {
					return nil, nil // resources change only through resize
				}
				if err := ranges(a, func(item *corev1.LimitRangeItem, _ *corev1.LimitRange) { errs = append(errs, checkPod(o, item)...) }); err != nil {
					return nil, err
				}
			case *corev1.PersistentVolumeClaim:
				if !a.is(grClaims) {
					return nil, nil
				}
				err := ranges(a, func(item *corev1.LimitRangeItem, _ *corev1.LimitRange) {
					if item.Type == corev1.LimitTypePersistentVolumeClaim {
						errs = append(errs, checkBounds(string(item.Type), o.Spec.Resources.Requests, o.Spec.Resources.Requests, item, false)...)
					}
				})
				if err != nil {
					return nil, err
				}
			}
			if err := utilerrors.NewAggregate(errs); err != nil {
				return nil, apierrors.NewForbidden(a.Row.GR(), a.Name, err)
			}
			return nil, nil
		},
	}
}

// fillDefaults sets what the container leaves open and returns what it set.
func fillDefaults(what string, c *corev1.Container, item *corev1.LimitRangeItem) []string {
	fill := func(have *corev1.ResourceList, def corev1.ResourceList, kind string, skip corev1.ResourceList) string {
		var set []string
		for name, q := range def {
			if _, ok := (*have)[name]; ok {
				continue
			}
			if _, ok := skip[name]; ok {
				continue
			}
			if *have == nil {
				*have = corev1.ResourceList{}
			}
			(*have)[name] = q.DeepCopy()
			set = append(set, string(name))
		}
		if len(set) == 0 {
			return ""
		}
		sort.Strings(set)
		return fmt.Sprintf("%s %s for %s %s", strings.Join(set, ", "), kind, what, c.Name)
	}
	// A limit given without a request is the request too: the default request must not replace it.
	given := c.Resources.Limits.DeepCopy()
	var notes []string
	if s := fill(&c.Resources.Requests, item.DefaultRequest, "request", given); s != "" {
		notes = append(notes, s)
	}
	for name, q := range given {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = q
		}
	}
	if s := fill(&c.Resources.Limits, item.Default, "limit", nil); s != "" {
		notes = append(notes, s)
	}
	return notes
}

func checkPod(pod *corev1.Pod, item *corev1.LimitRangeItem) (errs []error) {
	switch item.Type {
	case corev1.LimitTypeContainer:
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				errs = append(errs, checkBounds(string(item.Type), list[i].Resources.Requests, list[i].Resources.Limits, item, true)...)
			}
		}
	case corev1.LimitTypePod:
		errs = checkBounds(string(item.Type), podTotal(pod, false), podTotal(pod, true), item, true)
	}
	return errs
}

// podTotal is the pod's sum: the larger of what runs together and of each init
// container beside the sidecars started before it.
func podTotal(pod *corev1.Pod, limits bool) corev1.ResourceList {
	of := func(r corev1.ResourceRequirements) corev1.ResourceList {
		if limits {
			return r.Limits
		}
		return r.Requests
	}
	if pr := pod.Spec.Resources; pr != nil && len(of(*pr)) > 0 {
		total := of(*pr).DeepCopy()
		for name, q := range podContainersTotal(pod, of) {
			if _, ok := total[name]; !ok {
				total[name] = q
			}
		}
		return total
	}
	return podContainersTotal(pod, of)
}

func podContainersTotal(pod *corev1.Pod, of func(corev1.ResourceRequirements) corev1.ResourceList) corev1.ResourceList {
	total, sidecars, peak := corev1.ResourceList{}, corev1.ResourceList{}, corev1.ResourceList{}
	add := func(to, what corev1.ResourceList) {
		for name, q := range what {
			sum := to[name]
			sum.Add(q)
			to[name] = sum
		}
	}
	for i := range pod.Spec.Containers {
		add(total, of(pod.Spec.Containers[i].Resources))
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		now := sidecars.DeepCopy()
		add(now, of(c.Resources))
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars = now.DeepCopy()
		}
		for name, q := range now {
			if have := peak[name]; q.Cmp(have) > 0 {
				peak[name] = q
			}
		}
	}
	add(total, sidecars)
	for name, q := range peak {
		if have := total[name]; q.Cmp(have) > 0 {
			total[name] = q
		}
	}
	return total
}

func checkBounds(what string, requests, limits corev1.ResourceList, item *corev1.LimitRangeItem, compute bool) (errs []error) {
	say := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, name := range sortedNames(item.Min) {
		min := item.Min[name]
		req, ok := requests[name]
		lim, okLim := limits[name]
		switch {
		case !ok:
			say("minimum %s usage per %s is %s.  No request is specified", name, what, min.String())
		case req.Cmp(min) < 0:
			say("minimum %s usage per %s is %s, but request is %s", name, what, min.String(), req.String())
		case compute && okLim && lim.Cmp(min) < 0:
			say("minimum %s usage per %s is %s, but limit is %s", name, what, min.String(), lim.String())
		}
	}
	for _, name := range sortedNames(item.Max) {
		max := item.Max[name]
		req, ok := requests[name]
		lim, okLim := limits[name]
		switch {
		case compute && !okLim:
			say("maximum %s usage per %s is %s.  No limit is specified", name, what, max.String())
		case compute && lim.Cmp(max) > 0:
			say("maximum %s usage per %s is %s, but limit is %s", name, what, max.String(), lim.String())
		case ok && req.Cmp(max) > 0:
			say("maximum %s usage per %s is %s, but request is %s", name, what, max.String(), req.String())
		}
	}
	for _, name := range sortedNames(item.MaxLimitRequestRatio) {
		ratio := item.MaxLimitRequestRatio[name]
		req, ok := requests[name]
		lim, okLim := limits[name]
		switch {
		case !ok || !okLim || req.IsZero():
			say("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, what, ratio.String())
		default:
			got := lim.AsApproximateFloat64() / req.AsApproximateFloat64()
			if got > ratio.AsApproximateFloat64() {
				say("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, what, ratio.String(), got)
			}
		}
	}
	return errs
}

func sortedNames(l corev1.ResourceList) []corev1.ResourceName {
	out := make([]corev1.ResourceName, 0, len(l))
	for n := range l {
		out = append(out, n)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}
