// Package volumeprotection lets claims, volumes and their attributes classes go when
// nobody uses them any more: it takes the finalizers kubernetes.io/pvc-protection,
// kubernetes.io/pv-protection and kubernetes.io/vac-protection off what is being
// deleted. Admission has put them there; what came without them gets them here.
//
// A claim is in use while a pod that has a node names it, even when the pod has
// ended: its volume may still be mounted. [InUse] decides and is pure.
//
// Source: Kubernetes documentation, "Storage Object in Use Protection".
package volumeprotection

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
	classFinalizer  = "kubernetes.io/vac-protection"
)

// Claims, Volumes and Classes are the table's lines for the three kinds.
var (
	Claims = runtime.Row{
		Name: "persistentvolumeclaim-protection-controller", Reads: []string{"persistentvolumeclaims", "pods"},
		Writes: []string{"update,patch persistentvolumeclaims"}, New: buildClaims,
	}
	Volumes = runtime.Row{
		Name: "persistentvolume-protection-controller", Reads: []string{"persistentvolumes"},
		Writes: []string{"update,patch persistentvolumes"}, New: buildVolumes,
	}
	Classes = runtime.Row{
		Name:   "volumeattributesclass-protection-controller",
		Reads:  []string{"volumeattributesclasses.storage.k8s.io", "persistentvolumeclaims", "persistentvolumes"},
		Writes: []string{"update volumeattributesclasses.storage.k8s.io"}, New: buildClasses,
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
		if ev.Kind != informer.Deleted && !shutDown(p) {
			return nil
		}
		var keys []types.NamespacedName
		for _, name := range runtime.PodClaims(p) {
			keys = append(keys, types.NamespacedName{Namespace: p.Namespace, Name: name})
		}
		return keys
	})
	return nil
}

// shutDown: the kubelet has let go of everything that the pod had.
func shutDown(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0
}

// InUse reports whether the pod holds the claim.
func InUse(pvc *corev1.PersistentVolumeClaim, pod *corev1.Pod) bool {
	if pod.Spec.NodeName == "" {
		return false // a kubelet will look at the claim before it mounts it
	}
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			if v.PersistentVolumeClaim.ClaimName == pvc.Name {
				return true
			}
		case v.Ephemeral != nil:
			if pod.Name+"-"+v.Name == pvc.Name && metav1.IsControlledBy(pvc, pod) && !shutDown(pod) {
				return true
			}
		}
	}
	return false
}

func (c *claims) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pvc, ok := c.claims.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	api := c.client.CoreV1().PersistentVolumeClaims(pvc.Namespace)
	has := slices.Contains(pvc.Finalizers, claimFinalizer)
	if pvc.DeletionTimestamp == nil && !has {
		p.Note("protect")
		pvc = pvc.DeepCopy()
		pvc.Finalizers = append(pvc.Finalizers, claimFinalizer)
		_, err := runtime.Update(ctx, p, api, pvc)
		return runtime.Result{}, gone(err)
	}
	if pvc.DeletionTimestamp == nil || !has {
		return runtime.Result{}, nil
	}
	if slices.ContainsFunc(c.pods.By(runtime.ByClaim, p.Key.String()), func(pod *corev1.Pod) bool { return InUse(pvc, pod) }) {
		return runtime.Result{}, nil
	}
	// What cannot be undone is decided on what the server says, not on a cache that may be behind.
	live, err := c.client.CoreV1().Pods(pvc.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return runtime.Result{}, err
	}
	for i := range live.Items {
		if InUse(pvc, &live.Items[i]) {
			return runtime.Result{}, nil
		}
	}
	p.Note("nobody uses it")
	return runtime.Result{}, runtime.DropFinalizer(ctx, p, api, pvc, claimFinalizer)
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
	if !ok {
		return runtime.Result{}, nil
	}
	api := c.client.CoreV1().PersistentVolumes()
	has := slices.Contains(pv.Finalizers, volumeFinalizer)
	if pv.DeletionTimestamp == nil && !has {
		p.Note("protect")
		pv = pv.DeepCopy()
		pv.Finalizers = append(pv.Finalizers, volumeFinalizer)
		_, err := runtime.Update(ctx, p, api, pv)
		return runtime.Result{}, gone(err)
	}
	if pv.DeletionTimestamp == nil || !has || pv.Status.Phase == corev1.VolumeBound {
		return runtime.Result{}, nil
	}
	p.Note("it is not bound")
	return runtime.Result{}, runtime.DropFinalizer(ctx, p, api, pv, volumeFinalizer)
}

type classes struct {
	classes *informer.Cache[*storagev1.VolumeAttributesClass]
	claims  *informer.Cache[*corev1.PersistentVolumeClaim]
	volumes *informer.Cache[*corev1.PersistentVolume]
	client  kubernetes.Interface
}

func buildClasses(e *runtime.Env) error {
	c := &classes{
		classes: runtime.Read[*storagev1.VolumeAttributesClass](e), claims: runtime.Read[*corev1.PersistentVolumeClaim](e),
		volumes: runtime.Read[*corev1.PersistentVolume](e), client: e.Client(),
	}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.classes, runtime.Self[*storagev1.VolumeAttributesClass])
	runtime.On(q, c.claims, left(runtime.ClaimClasses))
	runtime.On(q, c.volumes, left(runtime.VolumeClasses))
	return nil
}

// left are the classes that an object had before the event.
func left[T informer.Object](of func(T) []string) func(informer.Event[T]) []types.NamespacedName {
	return func(ev informer.Event[T]) (keys []types.NamespacedName) {
		if ev.Kind == informer.Added {
			return nil
		}
		for _, name := range of(ev.Old) {
			keys = append(keys, types.NamespacedName{Name: name})
		}
		return keys
	}
}

func (c *classes) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	class, ok := c.classes.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	has, going := slices.Contains(class.Finalizers, classFinalizer), class.DeletionTimestamp != nil
	if has != going { // it is protected, or it waits for others
		return runtime.Result{}, nil
	}
	if going && len(c.claims.By(runtime.ByClass, class.Name))+len(c.volumes.By(runtime.ByClass, class.Name)) > 0 {
		return runtime.Result{}, nil
	}
	class = class.DeepCopy()
	if going {
		p.Note("nobody uses it")
		class.Finalizers = slices.DeleteFunc(class.Finalizers, func(f string) bool { return f == classFinalizer })
	} else {
		p.Note("protect")
		class.Finalizers = append(class.Finalizers, classFinalizer)
	}
	_, err := runtime.Update(ctx, p, c.client.StorageV1().VolumeAttributesClasses(), class)
	return runtime.Result{}, gone(err)
}

// gone: what is not there any more needs no protection.
func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
