// Package ephemeralvolume makes the claims of pods' generic ephemeral volumes. Each
// belongs to its pod, and goes with it by garbage collection.
//
// A claim of that name that is somebody else's is never touched: the pod is told
// and has to wait.
//
// [Missing] decides and is pure. Source: Kubernetes documentation, "Ephemeral Volumes".
package ephemeralvolume

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "ephemeral-volume-controller",
	Reads:  []string{"pods", "persistentvolumeclaims"},
	Writes: []string{"create persistentvolumeclaims"},
	// The claims block their pods' deletion.
	Extra: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/finalizers"}, Verbs: []string{"update"}}},
	New:   build,
}

// Missing are the claims that a pod's volumes still need. The error is about claims
// that cannot be had: their names are taken.
func Missing(pod *corev1.Pod, have func(name string) *corev1.PersistentVolumeClaim) ([]*corev1.PersistentVolumeClaim, error) {
	if pod.DeletionTimestamp != nil {
		return nil, nil
	}
	var out []*corev1.PersistentVolumeClaim
	var faults []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil || v.Ephemeral.VolumeClaimTemplate == nil {
			continue
		}
		name := pod.Name + "-" + v.Name
		if pvc := have(name); pvc != nil {
			if !metav1.IsControlledBy(pvc, pod) {
				faults = append(faults, fmt.Errorf("ephemeral volume %s: PVC %s/%s was not created for pod %s/%s (pod is not owner)", v.Name, pvc.Namespace, name, pod.Namespace, pod.Name))
			}
			continue
		}
		t := v.Ephemeral.VolumeClaimTemplate.DeepCopy()
		out = append(out, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: pod.Namespace, Name: name, Labels: maps.Clone(t.Labels), Annotations: maps.Clone(t.Annotations),
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(pod, corev1.SchemeGroupVersion.WithKind("Pod"))},
			},
			Spec: t.Spec,
		})
	}
	return out, errors.Join(faults...)
}

type controller struct {
	pods   *informer.Cache[*corev1.Pod]
	claims *informer.Cache[*corev1.PersistentVolumeClaim]
	client kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{pods: runtime.Read[*corev1.Pod](e), claims: runtime.Read[*corev1.PersistentVolumeClaim](e), client: e.Client()}
	q := e.Keyed("", 4, c.pass)
	runtime.On(q, c.pods, func(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
		if ev.Kind != informer.Added { // a pod's volumes never change
			return nil
		}
		return wants(ev.New)
	})
	runtime.On(q, c.claims, func(ev informer.Event[*corev1.PersistentVolumeClaim]) []types.NamespacedName {
		if ev.Kind != informer.Deleted {
			return nil
		}
		var keys []types.NamespacedName
		for _, p := range c.pods.By(runtime.ByClaim, runtime.KeyOf(ev.Old).String()) {
			keys = append(keys, wants(p)...)
		}
		return keys
	})
	return nil
}

func wants(p *corev1.Pod) []types.NamespacedName {
	for i := range p.Spec.Volumes {
		if p.Spec.Volumes[i].Ephemeral != nil && p.DeletionTimestamp == nil {
			return []types.NamespacedName{runtime.KeyOf(p)}
		}
	}
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pod, ok := c.pods.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	missing, faults := Missing(pod, func(name string) *corev1.PersistentVolumeClaim {
		pvc, _ := c.claims.Get(types.NamespacedName{Namespace: pod.Namespace, Name: name})
		return pvc
	})
	for _, pvc := range missing {
		p.Note("create claim %s", pvc.Name)
		_, err := runtime.Create(ctx, p, c.client.CoreV1().PersistentVolumeClaims(pod.Namespace), pvc)
		if err != nil && !runtime.NamespaceEnding(err) && !apierrors.IsAlreadyExists(err) {
			p.Warning(pod, "FailedBinding", "ephemeral volume %s: create PVC %s: %v", pvc.Name[len(pod.Name)+1:], pvc.Name, err)
			return runtime.Result{}, fmt.Errorf("create claim %s: %w", pvc.Name, err)
		}
	}
	if faults != nil {
		p.Warning(pod, "FailedBinding", "%v", faults)
		return runtime.Result{}, faults
	}
	return runtime.Result{}, nil
}
