// Package volumeprotection lets claims and volumes go when nobody uses them any
// more: it takes the finalizers kubernetes.io/pvc-protection and
// kubernetes.io/pv-protection off what is being deleted.
//
// Source: Kubernetes documentation, "Storage Object in Use Protection".
package volumeprotection

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
)

// Claims and Volumes are the table's lines for the two kinds.
var (
	Claims = runtime.Row{
		Name: "persistentvolumeclaim-protection-controller", Reads: []string{"persistentvolumeclaims", "pods"},
		Writes: []string{"persistentvolumeclaims"}, New: buildClaims,
	}
	Volumes = runtime.Row{
		Name: "persistentvolume-protection-controller", Reads: []string{"persistentvolumes"},
		Writes: []string{"persistentvolumes"}, New: buildVolumes,
	}
)

type claims struct {
	claims *informer.Cache[*corev1.PersistentVolumeClaim]
	pods   *informer.Cache[*corev1.Pod]
	client kubernetes.Interface
}

func buildClaims(e *runtime.Env) error {
	c := &claims{claims: runtime.Read[*corev1.PersistentVolumeClaim](e), pods: runtime.Read[*corev1.Pod](e), client: e.Client()}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.claims, runtime.Self[*corev1.PersistentVolumeClaim])
	runtime.On(q, c.pods, func(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
		p := ev.Last()
		if ev.Kind != informer.Deleted && !ended(p) {
			return nil
		}
		var keys []types.NamespacedName
		for _, name := range Used(p) {
			keys = append(keys, types.NamespacedName{Namespace: p.Namespace, Name: name})
		}
		return keys
	})
	return nil
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Used are the names of the claims that a pod uses.
func Used(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, p.Name+"-"+v.Name)
		}
	}
	return out
}

func (c *claims) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pvc, ok := c.claims.Get(p.Key)
	if !ok || pvc.DeletionTimestamp == nil || !slices.Contains(pvc.Finalizers, claimFinalizer) {
		return runtime.Result{}, nil
	}
	uses := func(pod *corev1.Pod) bool {
		return pod.Spec.NodeName != "" && !ended(pod) && slices.Contains(Used(pod), pvc.Name)
	}
	if slices.ContainsFunc(c.pods.By(runtime.ByNamespace, pvc.Namespace), uses) {
		return runtime.Result{}, nil
	}
	// What cannot be undone is decided on what the server says, not on a cache that may be behind.
	live, err := c.client.CoreV1().Pods(pvc.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return runtime.Result{}, err
	}
	for i := range live.Items {
		if uses(&live.Items[i]) {
			return runtime.Result{}, nil
		}
	}
	p.Note("nobody uses it")
	return runtime.Result{}, runtime.DropFinalizer(ctx, p, c.client.CoreV1().PersistentVolumeClaims(pvc.Namespace), pvc, claimFinalizer)
}

type volumes struct {
	volumes *informer.Cache[*corev1.PersistentVolume]
	client  kubernetes.Interface
}

func buildVolumes(e *runtime.Env) error {
	c := &volumes{volumes: runtime.Read[*corev1.PersistentVolume](e), client: e.Client()}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.volumes, runtime.Self[*corev1.PersistentVolume])
	return nil
}

func (c *volumes) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pv, ok := c.volumes.Get(p.Key)
	if !ok || pv.DeletionTimestamp == nil || !slices.Contains(pv.Finalizers, volumeFinalizer) || pv.Status.Phase == corev1.VolumeBound {
		return runtime.Result{}, nil
	}
	p.Note("it is not bound")
	return runtime.Result{}, runtime.DropFinalizer(ctx, p, c.client.CoreV1().PersistentVolumes(), pv, volumeFinalizer)
}
