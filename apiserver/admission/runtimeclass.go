package admission

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/keelson/keelson/apiserver/resources"
)

// runtimeClass adds a class's overhead and placement to pods that name it.
func runtimeClass(cfg Config) Plugin {
	find := func(a *Attributes, pod *corev1.Pod) (*nodev1.RuntimeClass, error) {
		name := *pod.Spec.RuntimeClassName
		rc, err := resources.Lookup[nodev1.RuntimeClass](cfg.Read, grRuntimeClasses, "", name)
		if err == nil && rc == nil {
			err = forbid(a, fmt.Errorf("pod rejected: RuntimeClass %q not found", name))
		}
		return rc, err
	}
	return Plugin{
		Name: "RuntimeClass",
		Mutate: func(_ context.Context, a *Attributes) error {
			pod := a.pod()
			if pod == nil || a.Operation != Create || pod.Spec.RuntimeClassName == nil {
				return nil
			}
			rc, err := find(a, pod)
			if err != nil {
				return err
			}
			if rc.Overhead != nil {
				if len(pod.Spec.Overhead) > 0 && !apiequality.Semantic.DeepEqual(pod.Spec.Overhead, rc.Overhead.PodFixed) {
					return forbid(a, fmt.Errorf("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
				}
				pod.Spec.Overhead = rc.Overhead.PodFixed.DeepCopy()
			}
			if s := rc.Scheduling; s != nil {
				merged := maps.Clone(s.NodeSelector)
				for k, v := range pod.Spec.NodeSelector {
					if have, ok := merged[k]; ok && have != v {
						return forbid(a, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, have, k, v))
					}
					if merged == nil {
						merged = map[string]string{}
					}
					merged[k] = v
				}
				pod.Spec.NodeSelector = merged
				for _, t := range s.Tolerations {
					has := false
					for _, have := range pod.Spec.Tolerations {
						has = has || have.MatchToleration(&t)
					}
					if !has {
						pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
					}
				}
			}
			return nil
		},
		Validate: func(_ context.Context, a *Attributes) (func(), error) {
			pod := a.pod()
			if pod == nil || a.Operation != Create {
				return nil, nil
			}
			if pod.Spec.RuntimeClassName == nil {
				if pod.Spec.Overhead != nil {
					return nil, forbid(a, fmt.Errorf("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
				}
				return nil, nil
			}
			_, err := find(a, pod)
			return nil, err
		},
	}
}
