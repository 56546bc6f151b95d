package bind

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/libs/informer"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/slim"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
)

// inputs are the kinds that the scheduler watches, one row each. Objects are stripped of what no decision
// reads before they are kept.
type inputs struct {
	rows   []input
	claims *informer.Cache[*corev1.PersistentVolumeClaim]
}

type input struct {
	name  string
	cache interface {
		Run(context.Context) error
		Synced() <-chan struct{}
	}
}

// Kinds that the scheduler reads, for RBAC: pods, nodes, namespaces, persistentvolumeclaims,
// persistentvolumes, services, replicationcontrollers (core); replicasets, statefulsets (apps);
// poddisruptionbudgets (policy); storageclasses (storage.k8s.io).
func newInputs(s *Scheduler) *inputs {
	in := &inputs{}
	core, apps := s.api.CoreV1(), s.api.AppsV1()

	nodes := informer.Of(informer.From(core.Nodes()), informer.Options[*corev1.Node]{Transform: slim.Object[*corev1.Node]})
	nodes.OnEvent(func(e informer.Event[*corev1.Node]) {
		n := e.Last()
		if e.Kind == informer.Deleted {
			s.post(func() { s.cache.RemoveNode(n.Name) })
			return
		}
		s.post(func() { s.wake(s.cache.SetNode(n)) })
	})
	in.add("nodes", nodes)

	pods := informer.Of(informer.From(core.Pods("")), informer.Options[*corev1.Pod]{
		FieldSelector: "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed),
		Transform:     slim.Object[*corev1.Pod],
	})
	parsed := map[types.UID]*framework.Pod{} // belongs to the informer's goroutine
	pods.OnEvent(func(e informer.Event[*corev1.Pod]) {
		p := e.Last()
		if e.Kind == informer.Deleted || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			delete(parsed, p.UID)
			s.post(func() { s.gone(p.UID) })
			return
		}
		known := parsed[p.UID]
		if known == nil {
			known = framework.NewPod(p)
		} else {
			known = known.Renew(p)
		}
		parsed[p.UID] = known
		if p.Spec.NodeName != "" {
			s.post(func() { s.setPlaced(known) })
		} else {
			s.post(func() { s.setPending(known) })
		}
	})
	in.add("pods", pods)

	namespaces := informer.Of(informer.From(core.Namespaces()), informer.Options[*corev1.Namespace]{Transform: slim.Object[*corev1.Namespace]})
	namespaces.OnEvent(func(e informer.Event[*corev1.Namespace]) {
		n := e.Last()
		if e.Kind == informer.Deleted {
			s.post(func() { s.cache.RemoveNamespace(n.Name) })
			return
		}
		s.post(func() { s.wake(s.cache.SetNamespace(n.Name, n.Labels)) })
	})
	in.add("namespaces", namespaces)

	in.claims = informer.Of(informer.From(core.PersistentVolumeClaims("")), informer.Options[*corev1.PersistentVolumeClaim]{Transform: slim.Object[*corev1.PersistentVolumeClaim]})
	in.claims.OnEvent(func(e informer.Event[*corev1.PersistentVolumeClaim]) {
		o := e.Last()
		s.storage(e.Kind, o, func() framework.Event { return s.cache.SetClaim(o) })
	})
	in.add("persistentvolumeclaims", in.claims)

	volumes := informer.Of(informer.From(core.PersistentVolumes()), informer.Options[*corev1.PersistentVolume]{Transform: slim.Object[*corev1.PersistentVolume]})
	volumes.OnEvent(func(e informer.Event[*corev1.PersistentVolume]) {
		o := e.Last()
		s.storage(e.Kind, o, func() framework.Event { return s.cache.SetVolume(o) })
	})
	in.add("persistentvolumes", volumes)

	classes := informer.Of(informer.From(s.api.StorageV1().StorageClasses()), informer.Options[*storagev1.StorageClass]{Transform: slim.Object[*storagev1.StorageClass]})
	classes.OnEvent(func(e informer.Event[*storagev1.StorageClass]) {
		o := e.Last()
		s.storage(e.Kind, o, func() framework.Event { return s.cache.SetClass(o) })
	})
	in.add("storageclasses", classes)

	pdbs := informer.Of(informer.From(s.api.PolicyV1().PodDisruptionBudgets("")), informer.Options[*policyv1.PodDisruptionBudget]{Transform: slim.Object[*policyv1.PodDisruptionBudget]})
	pdbs.OnEvent(func(e informer.Event[*policyv1.PodDisruptionBudget]) {
		o := e.Last()
		s.post(func() {
			if e.Kind == informer.Deleted {
				s.cache.RemovePDB(informer.Key(o))
			} else {
				s.cache.SetPDB(o)
			}
		})
	})
	in.add("poddisruptionbudgets", pdbs)

	services := informer.Of(informer.From(core.Services("")), informer.Options[*corev1.Service]{Transform: slim.Object[*corev1.Service]})
	services.OnEvent(func(e informer.Event[*corev1.Service]) {
		o := e.Last()
		sel := o.Spec.Selector
		if e.Kind == informer.Deleted {
			sel = nil
		}
		s.post(func() { s.cache.SetService(informer.Key(o), sel) })
	})
	in.add("services", services)

	// Of controllers only the selector is kept.
	owner := func(kind informer.Kind, uid types.UID, sel *metav1.LabelSelector) {
		var parsed labels.Selector
		if kind != informer.Deleted && sel != nil {
			if p, err := metav1.LabelSelectorAsSelector(sel); err == nil {
				parsed = p
			}
		}
		s.post(func() { s.cache.SetOwner(uid, parsed) })
	}
	replicaSets := informer.Of(informer.From(apps.ReplicaSets("")), informer.Options[*appsv1.ReplicaSet]{Transform: func(o *appsv1.ReplicaSet) *appsv1.ReplicaSet {
		return &appsv1.ReplicaSet{ObjectMeta: identity(&o.ObjectMeta), Spec: appsv1.ReplicaSetSpec{Selector: o.Spec.Selector}}
	}})
	replicaSets.OnEvent(func(e informer.Event[*appsv1.ReplicaSet]) {
		if e.Kind != informer.Updated { // the selector of apps/v1 cannot change
			owner(e.Kind, e.Last().UID, e.Last().Spec.Selector)
		}
	})
	in.add("replicasets", replicaSets)
	statefulSets := informer.Of(informer.From(apps.StatefulSets("")), informer.Options[*appsv1.StatefulSet]{Transform: func(o *appsv1.StatefulSet) *appsv1.StatefulSet {
		return &appsv1.StatefulSet{ObjectMeta: identity(&o.ObjectMeta), Spec: appsv1.StatefulSetSpec{Selector: o.Spec.Selector}}
	}})
	statefulSets.OnEvent(func(e informer.Event[*appsv1.StatefulSet]) {
		if e.Kind != informer.Updated {
			owner(e.Kind, e.Last().UID, e.Last().Spec.Selector)
		}
	})
	in.add("statefulsets", statefulSets)
	controllers := informer.Of(informer.From(core.ReplicationControllers("")), informer.Options[*corev1.ReplicationController]{Transform: func(o *corev1.ReplicationController) *corev1.ReplicationController {
		return &corev1.ReplicationController{ObjectMeta: identity(&o.ObjectMeta), Spec: corev1.ReplicationControllerSpec{Selector: o.Spec.Selector}}
	}})
	controllers.OnEvent(func(e informer.Event[*corev1.ReplicationController]) {
		owner(e.Kind, e.Last().UID, &metav1.LabelSelector{MatchLabels: e.Last().Spec.Selector})
	})
	in.add("replicationcontrollers", controllers)
	return in
}

func (s *Scheduler) storage(kind informer.Kind, o any, set func() framework.Event) {
	s.post(func() {
		if kind == informer.Deleted {
			s.wake(s.cache.RemoveStorage(o))
			return
		}
		s.wake(set())
	})
}

func identity(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

func (in *inputs) add(name string, c interface {
	Run(context.Context) error
	Synced() <-chan struct{}
}) {
	in.rows = append(in.rows, input{name, c})
}

func (in *inputs) start(g *run.Group) {
	for _, r := range in.rows {
		g.Go("watch "+r.name, r.cache.Run)
	}
}

func (in *inputs) synced() error {
	for _, r := range in.rows {
		select {
		case <-r.cache.Synced():
		default:
			return fmt.Errorf("the first list of %s has not come yet", r.name)
		}
	}
	return nil
}

func (in *inputs) wait(ctx context.Context) error {
	for _, r := range in.rows {
		select {
		case <-r.cache.Synced():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// claimBound tells whether the claim is bound for good, or has lost the node that was chosen for it: asked
// is the revision at which the provisioner was told the node, 0 when it was not.
func (in *inputs) claimBound(key types.NamespacedName, asked uint64) (bound bool, err error) {
	o, ok := in.claims.Get(key)
	switch {
	case !ok:
		return false, fmt.Errorf("persistentvolumeclaim %q not found", key.Name)
	case o.Spec.VolumeName != "" && o.Annotations["pv.kubernetes.io/bind-completed"] != "":
		return true, nil
	case asked > 0 && informer.Rev(o) > asked && o.Annotations[plugins.AnnotationSelectedNode] == "":
		return false, fmt.Errorf("the provisioner refused the node for persistentvolumeclaim %q", key.Name)
	}
	return false, nil
}

// volumesWithin is how long a decided pod waits for its volumes (source: bindTimeoutSeconds of
// kube-scheduler), volumesEvery how often it looks when no event comes.
const (
	volumesWithin = 600 * time.Second
	volumesEvery  = time.Second
)
