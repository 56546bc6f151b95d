// Package sources says which pods this node is to run: those that the API server has bound
// to it, and those of manifests on its disk (static pods), each of which has a mirror at the
// API server so that it can be seen.
//
// A source calls Sink.Update for every pod it wants and every change, and Sink.Remove for
// one it wants no longer. It promises to have told all of its pods before Synced is closed;
// only then may what is left over in the runtime be removed. Each source has a Run that owns
// its goroutines. Tests: a Sink that records, and a directory.
package sources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/libs/informer"
)

// API makes the cache of the pods bound to the node; its events go to the sink, mirrors to m.
func API(client kubernetes.Interface, node string, sink Sink, m *Mirrors) *informer.Cache[*corev1.Pod] {
	pods := informer.Of(informer.From(client.CoreV1().Pods(corev1.NamespaceAll)), informer.Options[*corev1.Pod]{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(),
		Transform: func(p *corev1.Pod) *corev1.Pod {
			p.ManagedFields = nil // the largest part, and of no use here
			return p
		},
	})
	pods.OnEvent(func(e informer.Event[*corev1.Pod]) {
		p := e.Last()
		if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
			m.Seen(p, e.Kind == informer.Deleted)
			return
		}
		if e.Kind == informer.Deleted {
			sink.Remove(p)
			return
		}
		sink.Update(p)
	})
	return pods
}
