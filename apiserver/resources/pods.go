package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func pods(cfg Config) Resource[corev1.Pod] {
	return Resource[corev1.Pod]{
		Group: "", Version: "v1", Kind: "Pod", Plural: "pods",
		Short:      []string{"po"},
		Categories: []string{"all"},
		List:       func() runtime.Object { return &corev1.PodList{} },
		Status:     &Part[corev1.Pod]{},
		Parts:      map[string]Part[corev1.Pod]{"ephemeralcontainers": {}, "resize": {}},
		Subs: []Sub{
			{Name: "attach", Verbs: []string{"create", "get"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "PodAttachOptions"}},
			{Name: "binding", Verbs: []string{"create"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "Binding"}},
			{Name: "eviction", Verbs: []string{"create"}, Kind: schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"}},
			{Name: "exec", Verbs: []string{"create", "get"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "PodExecOptions"}},
			{Name: "log", Verbs: []string{"get"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "Pod"}},
			{Name: "portforward", Verbs: []string{"create", "get"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "PodPortForwardOptions"}},
			{Name: "proxy", Verbs: []string{"create", "delete", "get", "patch", "update"}, Kind: schema.GroupVersionKind{Group: "", Version: "v1", Kind: "PodProxyOptions"}},
		},
	}
}
