package persistentvolume

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	storage "k8s.io/component-helpers/storage/volume"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:  "persistentvolume-binder-controller",
	Reads: []string{"persistentvolumes", "persistentvolumeclaims", "storageclasses.storage.k8s.io", "pods"},
	Writes: []string{
		"update persistentvolumes", "update persistentvolumes/status", "update persistentvolumeclaims", "update persistentvolumeclaims/status",
	},
	New:  build,
	Plan: plan,
}

const (
	workers = 4
	// usedAgain is how long a volume that is to be recycled waits for the pods that still use it.
	usedAgain = 30 * time.Second
)

type controller struct {
	volumes *informer.Cache[*corev1.PersistentVolume]
	claims  *informer.Cache[*corev1.PersistentVolumeClaim]
	classes *informer.Cache[*storagev1.StorageClass]
	pods    *informer.Cache[*corev1.Pod]
	client  kubernetes.Interface

	claimQueue *runtime.Queue

	mu   sync.Mutex
	held map[string]hold // by volume; guarded by mu
}

// hold says that a volume was chosen for a claim, which the cache does not show yet.
// Without it all claims that wait would choose the same volume, again and again.
type hold struct {
	claim types.NamespacedName
	rev   uint64 // of the write that took the volume; 0 while it is under way
}

func build(e *runtime.Env) error {
	c := &controller{
		volumes: runtime.Read[*corev1.PersistentVolume](e), claims: runtime.Read[*corev1.PersistentVolumeClaim](e),
		classes: runtime.Read[*storagev1.StorageClass](e), pods: runtime.Read[*corev1.Pod](e), client: e.Client(),
		held: map[string]hold{},
	}
	volumes := e.Keyed("volumes", workers, c.volumePass)
	runtime.On(volumes, c.volumes, runtime.Self[*corev1.PersistentVolume])
	runtime.On(volumes, c.claims, c.volumesOf)

	c.claimQueue = e.Keyed("claims", workers, c.claimPass)
	runtime.On(c.claimQueue, c.claims, runtime.Self[*corev1.PersistentVolumeClaim])
	runtime.On(c.claimQueue, c.volumes, c.claimsOf)
	c.volumes.OnEvent(func(ev informer.Event[*corev1.PersistentVolume]) {
		rev := informer.Rev(ev.Last())
		if ev.Kind == informer.Deleted {
			rev = math.MaxUint64
		}
		c.settled(ev.Last().Name, rev)
	})
	runtime.On(c.claimQueue, c.classes, func(informer.Event[*storagev1.StorageClass]) []types.NamespacedName {
		return c.unbound(func(*corev1.PersistentVolumeClaim) bool { return true })
	})
	runtime.On(c.claimQueue, c.pods, func(ev informer.Event[*corev1.Pod]) []types.NamespacedName {
		if ev.Kind != informer.Added || ev.New.Spec.NodeName != "" {
			return nil
		}
		var keys []types.NamespacedName
		for _, name := range runtime.PodClaims(ev.New) {
			k := types.NamespacedName{Namespace: ev.New.Namespace, Name: name}
			if pvc, ok := c.claims.Get(k); ok && pvc.Spec.VolumeName == "" {
				keys = append(keys, k)
			}
		}
		return keys
	})
	return nil
}

// volumesOf are the volumes that a claim names or that name it.
func (c *controller) volumesOf(ev informer.Event[*corev1.PersistentVolumeClaim]) []types.NamespacedName {
	pvc := ev.Last()
	var keys []types.NamespacedName
	if pvc.Spec.VolumeName != "" {
		keys = append(keys, types.NamespacedName{Name: pvc.Spec.VolumeName})
	}
	for _, v := range c.volumes.By(runtime.ByClaim, runtime.KeyOf(pvc).String()) {
		if v.Name != pvc.Spec.VolumeName {
			keys = append(keys, runtime.KeyOf(v))
		}
	}
	return keys
}

// claimsOf are the claims that a volume's change concerns: those bound to it, and,
// while it is free, those that it could serve.
func (c *controller) claimsOf(ev informer.Event[*corev1.PersistentVolume]) []types.NamespacedName {
	v := ev.Last()
	var keys []types.NamespacedName
	for _, pvc := range c.claims.By(runtime.ByVolume, v.Name) {
		keys = append(keys, runtime.KeyOf(pvc))
	}
	if ev.Kind == informer.Deleted {
		return keys
	}
	if r := v.Spec.ClaimRef; r != nil {
		k := types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
		if pvc, ok := c.claims.Get(k); ok && pvc.Spec.VolumeName == "" {
			keys = append(keys, k)
		}
		return keys
	}
	if v.Status.Phase != corev1.VolumeAvailable {
		return keys
	}
	class := storage.GetPersistentVolumeClass(v)
	return append(keys, c.unbound(func(pvc *corev1.PersistentVolumeClaim) bool {
		return storage.GetPersistentVolumeClaimClass(pvc) == class
	})...)
}

func (c *controller) unbound(which func(*corev1.PersistentVolumeClaim) bool) []types.NamespacedName {
	var keys []types.NamespacedName
	for _, pvc := range c.claims.By(runtime.ByVolume, "") {
		if which(pvc) {
			keys = append(keys, runtime.KeyOf(pvc))
		}
	}
	return keys
}

func (c *controller) claimPass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pvc, ok := c.claims.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	view := View{
		Volumes: func() []*corev1.PersistentVolume { return c.free(p.Key) }, Classes: c.classes.List,
		Volume: func(name string) *corev1.PersistentVolume {
			v, _ := c.volumes.Get(types.NamespacedName{Name: name})
			return v
		},
		Class: func(name string) *storagev1.StorageClass {
			s, _ := c.classes.Get(types.NamespacedName{Name: name})
			return s
		},
	}
	for _, pod := range c.pods.By(runtime.ByClaim, p.Key.String()) {
		if pod.Spec.NodeName == "" && !ended(pod) {
			view.Waiting = append(view.Waiting, pod.Name)
		}
	}
	slices.Sort(view.Waiting)
	c.mu.Lock()
	steps, err := Claim(pvc, view)
	for _, s := range steps {
		if s.Do == Bind && s.Volume.Spec.ClaimRef == nil {
			c.held[s.Volume.Name] = hold{claim: p.Key}
			defer c.letGo(s.Volume.Name)
		}
	}
	c.mu.Unlock()
	if err != nil {
		return runtime.Result{}, runtime.Permanent(err)
	}
	return runtime.Result{}, c.apply(ctx, p, steps)
}

// free are the volumes that no other claim is just taking. The caller holds mu.
func (c *controller) free(key types.NamespacedName) []*corev1.PersistentVolume {
	all := c.volumes.List()
	if len(c.held) == 0 {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(v *corev1.PersistentVolume) bool {
		h, ok := c.held[v.Name]
		return ok && h.claim != key && (h.rev == 0 || informer.Rev(v) < h.rev)
	})
}

// took records that the volume was written for its claim.
func (c *controller) took(v *corev1.PersistentVolume) {
	rev := informer.Rev(v)
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.held[v.Name]; ok {
		h.rev = rev
		c.held[v.Name] = h
	}
	if seen, ok := c.volumes.Get(runtime.KeyOf(v)); !ok || informer.Rev(seen) >= rev {
		delete(c.held, v.Name)
	}
}

// letGo ends a hold that has led to no write.
func (c *controller) letGo(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.held[name]; ok && h.rev == 0 {
		delete(c.held, name)
	}
}

// settled ends a hold that the cache shows.
func (c *controller) settled(name string, rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.held[name]; ok && h.rev != 0 && rev >= h.rev {
		delete(c.held, name)
	}
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (c *controller) volumePass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	pv, ok := c.volumes.Get(p.Key)
	if !ok {
		return runtime.Result{}, nil
	}
	var res runtime.Result
	var pvc *corev1.PersistentVolumeClaim
	var users []string
	if r := pv.Spec.ClaimRef; r != nil {
		k := types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
		pvc, _ = c.claims.Get(k)
		wrong := pvc == nil || r.UID != "" && pvc.UID != r.UID
		if wrong && r.UID != "" && pv.Status.Phase != corev1.VolumeReleased && pv.Status.Phase != corev1.VolumeFailed {
			// A release cannot be undone: it is decided on what the server says.
			live, err := c.client.CoreV1().PersistentVolumeClaims(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return res, err
			}
			if err == nil && live.UID == r.UID {
				pvc, wrong = live, false
			}
		}
		if wrong {
			pvc = nil
		}
		for _, pod := range c.pods.By(runtime.ByClaim, k.String()) {
			if !ended(pod) && pvc == nil {
				users = append(users, pod.Namespace+"/"+pod.Name)
			}
		}
		slices.Sort(users)
	}
	if pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle && len(users) > 0 {
		res.Again = p.Now.Add(usedAgain)
	}
	return res, c.apply(ctx, p, Volume(pv, pvc, users))
}

func (c *controller) apply(ctx context.Context, p *runtime.Pass, steps []Step) error {
	for _, s := range steps {
		wrote, err := c.step(ctx, p, s)
		if apierrors.IsNotFound(err) {
			return nil // its end is an event of its own
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		if wrote {
			p.Note("%s", s)
		}
		switch e := s.Event; {
		case e == nil:
		case e.OnVolume:
			p.Event(s.Volume, e.Type, e.Reason, "%s", e.Message)
		default:
			p.Event(s.Claim, e.Type, e.Reason, "%s", e.Message)
		}
	}
	return nil
}

// step carries out one step; wrote is false when all was so already.
func (c *controller) step(ctx context.Context, p *runtime.Pass, s Step) (wrote bool, err error) {
	volumes := c.client.CoreV1().PersistentVolumes()
	claims := c.client.CoreV1().PersistentVolumeClaims(p.Key.Namespace)
	switch s.Do {
	case ClaimsTurn:
		c.claimQueue.Add(runtime.KeyOf(s.Claim))
	case Bind:
		return c.bind(ctx, p, s.Volume, s.Claim)
	case Unbind:
		_, err = runtime.Update(ctx, p, volumes, UnboundVolume(s.Volume))
		return true, err
	case VolumePhase:
		v := s.Volume.DeepCopy()
		v.Status.Phase, v.Status.Message = corev1.PersistentVolumePhase(s.Value), ""
		if s.Event != nil {
			v.Status.Message = s.Event.Message
		}
		_, err = runtime.UpdateStatus(ctx, p, volumes, v)
		return true, err
	case ClaimPhase:
		pvc, dirty := ClaimStatus(s.Claim, corev1.PersistentVolumeClaimPhase(s.Value), nil)
		if dirty {
			_, err = runtime.UpdateStatus(ctx, p, claims, pvc)
		}
		return dirty, err
	case SetClass:
		pvc := s.Claim.DeepCopy()
		pvc.Spec.StorageClassName = &s.Value
		_, err = runtime.Update(ctx, p, claims, pvc)
		return true, err
	case AskProvision:
		if s.Claim.Annotations[storage.AnnStorageProvisioner] == s.Value && s.Claim.Annotations[storage.AnnBetaStorageProvisioner] == s.Value {
			return false, nil
		}
		pvc := s.Claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&pvc.ObjectMeta, storage.AnnBetaStorageProvisioner, s.Value)
		metav1.SetMetaDataAnnotation(&pvc.ObjectMeta, storage.AnnStorageProvisioner, s.Value)
		_, err = runtime.Update(ctx, p, claims, pvc)
		return true, err
	}
	return false, nil
}

// bind writes both ends of a binding, the volume's first, as far as they are not right.
func (c *controller) bind(ctx context.Context, p *runtime.Pass, pv *corev1.PersistentVolume, pvc *corev1.PersistentVolumeClaim) (wrote bool, err error) {
	volumes := c.client.CoreV1().PersistentVolumes()
	claims := c.client.CoreV1().PersistentVolumeClaims(pvc.Namespace)
	v, dirty, err := BoundVolume(pv, pvc)
	if err != nil {
		return false, runtime.Permanent(err)
	}
	if dirty {
		if pv, err = runtime.Update(ctx, p, volumes, v); err != nil {
			return false, err
		}
		c.took(pv)
		wrote = true
	}
	if pv.Status.Phase != corev1.VolumeBound {
		v := pv.DeepCopy()
		v.Status.Phase, v.Status.Message = corev1.VolumeBound, ""
		if pv, err = runtime.UpdateStatus(ctx, p, volumes, v); err != nil {
			return wrote, err
		}
		wrote = true
	}
	if n, dirty := BoundClaim(pvc, pv); dirty {
		if pvc, err = runtime.Update(ctx, p, claims, n); err != nil {
			return wrote, err
		}
		wrote = true
	}
	if n, dirty := ClaimStatus(pvc, corev1.ClaimBound, pv); dirty {
		if _, err = runtime.UpdateStatus(ctx, p, claims, n); err != nil {
			return wrote, err
		}
		wrote = true
	}
	return wrote, nil
}
