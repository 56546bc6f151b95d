package sources

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Mirrors keeps one mirror pod at the API server for each static pod, and removes mirrors
// that have none. A mirror is only for looking at: deleting it does not end the static pod,
// and a new one appears.
type Mirrors struct {
	client  kubernetes.Interface // nil: there is no API server
	node    func() *corev1.Node
	changed func(static types.UID) // a mirror has appeared: the status can be written
	log     *slog.Logger
	wake    chan struct{}

	mu     sync.Mutex
	static map[types.NamespacedName]*corev1.Pod // guarded by mu
	seen   map[types.NamespacedName]*corev1.Pod // guarded by mu
	ready  bool                                 // both sources have told what they have; guarded by mu

	refused map[types.UID]refusal // static pods whose mirror could not be made; owned by Run
}

// refusal is why a mirror is not there, and when it is tried again.
type refusal struct {
	why   string
	delay time.Duration
	until time.Time
}

// maxRefused bounds the time between tries to make a mirror: the API server does not change its
// mind about a pod that is invalid.
const maxRefused = time.Minute

// NewMirrors starts nothing. changed must not block.
func NewMirrors(client kubernetes.Interface, node func() *corev1.Node, changed func(types.UID), log *slog.Logger) *Mirrors {
	return &Mirrors{client: client, node: node, changed: changed, log: log, wake: make(chan struct{}, 1),
		static: map[types.NamespacedName]*corev1.Pod{}, seen: map[types.NamespacedName]*corev1.Pod{}, refused: map[types.UID]refusal{}}
}

// Of is the mirror of a static pod, nil when there is none that is up to date.
func (m *Mirrors) Of(static *corev1.Pod) *corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.seen[key(static)]
	if p == nil || p.DeletionTimestamp != nil || p.Annotations[corev1.MirrorPodAnnotationKey] != static.Annotations[AnnotationHash] {
		return nil
	}
	return p
}

// Static says which static pods there are.
func (m *Mirrors) Static(pods []*corev1.Pod) {
	m.mu.Lock()
	changed := len(pods) != len(m.static)
	next := make(map[types.NamespacedName]*corev1.Pod, len(pods))
	for _, p := range pods {
		next[key(p)] = p
		changed = changed || m.static[key(p)] != p
	}
	m.static = next
	m.mu.Unlock()
	if changed {
		m.poke()
	}
}

// Seen says what the API server has.
func (m *Mirrors) Seen(p *corev1.Pod, deleted bool) {
	m.mu.Lock()
	old := m.seen[key(p)]
	if !deleted {
		m.seen[key(p)] = p
	} else if old != nil && old.UID == p.UID {
		delete(m.seen, key(p))
	}
	static := m.static[key(p)]
	m.mu.Unlock()
	if static != nil && !deleted && (old == nil || old.UID != p.UID) {
		m.changed(static.UID)
	}
	m.poke()
}

// Ready says that both sources have told all they have.
func (m *Mirrors) Ready() {
	m.mu.Lock()
	m.ready = true
	m.mu.Unlock()
	m.poke()
}

func (m *Mirrors) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func key(p *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// Run creates and deletes mirrors until ctx ends.
func (m *Mirrors) Run(ctx context.Context) error {
	if m.client == nil {
		<-ctx.Done()
		return nil
	}
	for {
		again, err := m.once(ctx)
		if err != nil && ctx.Err() == nil {
			m.log.Warn("mirror pods", "err", err)
		}
		var later <-chan time.Time
		if again || err != nil {
			later = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-later:
		}
	}
}

// once brings the API server's mirrors in line; again: something is waited for that no
// event tells.
func (m *Mirrors) once(ctx context.Context) (again bool, err error) {
	m.mu.Lock()
	if !m.ready {
		m.mu.Unlock()
		return false, nil
	}
	var create, remove []*corev1.Pod
	for k, s := range m.static {
		p := m.seen[k]
		switch {
		case p == nil:
			create = append(create, s)
		case p.DeletionTimestamp != nil || p.Annotations[corev1.MirrorPodAnnotationKey] != s.Annotations[AnnotationHash]:
			remove = append(remove, p)
		}
	}
	for k, p := range m.seen {
		if m.static[k] == nil {
			remove = append(remove, p)
		}
	}
	m.mu.Unlock()
	zero := int64(0)
	for _, p := range remove {
		derr := m.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &p.UID}})
		if derr != nil && !apierrors.IsNotFound(derr) && !apierrors.IsConflict(derr) {
			err = fmt.Errorf("delete mirror %s: %w", key(p), derr)
		}
	}
	node := m.node()
	if node == nil {
		return len(create) > 0, err
	}
	refused := m.refused
	m.refused = map[types.UID]refusal{}
	for _, s := range create {
		old := refused[s.UID]
		if time.Now().Before(old.until) {
			m.refused[s.UID] = old
			again = true
			continue
		}
		_, cerr := m.client.CoreV1().Pods(s.Namespace).Create(ctx, mirror(s, node), metav1.CreateOptions{})
		if cerr == nil || apierrors.IsAlreadyExists(cerr) || ctx.Err() != nil {
			continue
		}
		again = true
		delay := min(max(2*old.delay, time.Second), maxRefused)
		m.refused[s.UID] = refusal{why: cerr.Error(), delay: delay, until: time.Now().Add(delay)}
		if cerr.Error() != old.why {
			m.log.Warn("a static pod has no mirror", "pod", key(s).String(), "err", cerr)
		}
	}
	return again, err
}

// mirror is the object that shows a static pod. The owner is the node, as the NodeRestriction
// admission asks of pods that a kubelet creates.
func mirror(s *corev1.Pod, node *corev1.Node) *corev1.Pod {
	p := s.DeepCopy()
	p.UID, p.ResourceVersion = "", ""
	p.Annotations[corev1.MirrorPodAnnotationKey] = s.Annotations[AnnotationHash]
	yes := true
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: &yes}}
	p.Status = corev1.PodStatus{}
	return p
}
