// Package volumes makes the volumes of a pod ready on the node, keeps their contents
// up to date while the pod lives, and removes them afterwards.
//
// The main call is Manager.Setup. What a volume type is, and which there are, stands in
// table.go; each type has one file.
//
//	<root>/pods/<uid>/volumes/<plugin>/<name>              one volume; plugin as in "kubernetes.io~secret"
//	<root>/pods/<uid>/volume-subpaths/<name>/<ctr>/<n>     one subPath, bind-mounted from an opened file
//
// It promises that
//   - Setup may be repeated at any time and does nothing for what is already there;
//   - files of configMap, secret, projected and downwardAPI volumes change all at once
//     (content.go), soon after their source has changed, tokens before they expire;
//   - a subPath never leaves its volume, whatever a container does to it meanwhile;
//   - Teardown and Prune work from the disk and the mount table alone, so that a restart
//     of the kubelet loses nothing, and never delete through a mount point.
//
// It does not promise that a hung file system comes back: a call for such a pod hangs
// until its context ends, other pods go on.
//
// Run owns all goroutines: at most four refreshes at a time. One mutex per pod orders
// the work on it; Manager.mu guards the maps and is never held during I/O. /debug/volumes
// shows Debug. Tests: voltest is the suite; types with mounts need root.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/kubelet/metrics"
	"github.com/keelson/keelson/kubelet/objects"
)

// Options are the fixed surroundings of a Manager.
type Options struct {
	// Root is the kubelet's directory, usually /var/lib/kubelet.
	Root string
	// Allocatable is what the node offers to pods: the answer of resourceFieldRef for
	// limits that a container does not have. It may return nil.
	Allocatable func() corev1.ResourceList
	// Metrics times mounts and unmounts. May be nil.
	Metrics *metrics.Metrics
}

// Manager owns the volumes of a node.
type Manager struct {
	root        string
	allocatable func() corev1.ResourceList
	client      kubernetes.Interface // nil: no API server (only static pods)
	objects     objects.Reader
	log         *slog.Logger
	metrics     *metrics.Metrics
	wake        chan struct{}

	mu    sync.Mutex
	pods  map[types.UID]*podState
	refs  map[ref]map[types.UID]bool // who reads which object
	dirty map[types.UID]bool         // contents to be looked at
}

// ref names an object that volumes are made of.
type ref struct {
	kind string
	key  types.NamespacedName
}

// podState is what is known of a pod between Setup and Teardown.
type podState struct {
	work   sync.Mutex // held during I/O for this pod
	pod    *corev1.Pod
	refs   []ref
	again  time.Time // when contents change without an event; zero: never
	tokens map[tokenKey]token
	ready  bool // Setup has succeeded once

	claims     map[string]Claim // by the name of the PersistentVolume
	have, want []string         // plugins of the volumes that are ready, and of all; since the last Setup
}

// New returns a Manager; Run keeps contents fresh. client may be nil.
func New(o Options, client kubernetes.Interface, reader objects.Reader, log *slog.Logger) *Manager {
	if o.Allocatable == nil {
		o.Allocatable = func() corev1.ResourceList { return nil }
	}
	m := &Manager{
		root: o.Root, allocatable: o.Allocatable, client: client, objects: reader, log: log, metrics: o.Metrics,
		wake:  make(chan struct{}, 1),
		pods:  map[types.UID]*podState{},
		refs:  map[ref]map[types.UID]bool{},
		dirty: map[types.UID]bool{},
	}
	if reader != nil {
		reader.OnChange(func(kind string, key types.NamespacedName) {
			m.mu.Lock()
			for uid := range m.refs[ref{kind, key}] {
				m.dirty[uid] = true
			}
			m.mu.Unlock()
			m.poke()
		})
	}
	return m
}

// Setup makes every volume of the pod ready and returns them by name; image volumes are
// missing, as the runtime mounts those. The error names every volume that is not ready.
func (m *Manager) Setup(ctx context.Context, pod *corev1.Pod) (Set, error) {
	s := m.adopt(pod)
	s.work.Lock()
	defer s.work.Unlock()
	if err := os.MkdirAll(m.podDir(pod.UID), 0o750); err != nil {
		return nil, err
	}
	set := make(Set, len(pod.Spec.Volumes))
	var faults []error
	var again time.Time
	var have, want []string
	claims := map[string]Claim{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Image != nil {
			continue
		}
		began := time.Now()
		q := &request{manager: m, state: s, pod: pod, volume: v, name: v.Name}
		mounted, next, err := m.update(ctx, q)
		m.metrics.Storage(q.plugin, "volume_mount", time.Since(began), err)
		want = append(want, q.plugin)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		have = append(have, q.plugin)
		if q.pv != nil {
			c := Claim{Volume: v.Name, Name: q.claim, plugin: q.plugin}
			if mounted.HostPath != q.dir && q.plugin == "kubernetes.io/local-volume" && !mounted.Block {
				c.elsewhere = mounted.HostPath
			}
			claims[q.name] = c
		}
		set[v.Name] = mounted
		again = earlier(again, next)
	}
	m.mu.Lock()
	s.again, s.have, s.want, s.claims = again, have, want, claims
	s.ready = s.ready || len(faults) == 0
	m.mu.Unlock()
	m.poke()
	return set, errors.Join(faults...)
}

// update makes one volume ready; the work lock of its pod is held.
func (m *Manager) update(ctx context.Context, q *request) (Mounted, time.Time, error) {
	q.plugin = "N/A"
	fail := func(err error) (Mounted, time.Time, error) {
		return Mounted{}, time.Time{}, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", q.name, err)
	}
	if err := q.resolveClaim(ctx); err != nil {
		return fail(err)
	}
	t, ok := typeOf(q)
	if !ok {
		return fail(errors.New("no volume plugin matched"))
	}
	q.plugin = strings.ReplaceAll(t.Plugin, "~", "/")
	q.dir = filepath.Join(m.podDir(q.pod.UID), "volumes", t.Plugin, q.name)
	if t.Content != nil {
		next, err := q.write(ctx, t)
		if err != nil {
			return fail(err)
		}
		return Mounted{HostPath: q.dir, ReadOnly: true}, next, nil
	}
	mounted, err := t.Update(ctx, q)
	if err != nil {
		return fail(err)
	}
	mounted.ReadOnly = mounted.ReadOnly || q.readOnly
	return mounted, time.Time{}, nil
}

// Changed tells that the pod object has changed; downward API files follow. It returns
// at once.
func (m *Manager) Changed(pod *corev1.Pod) {
	m.mu.Lock()
	s := m.pods[pod.UID]
	if s != nil {
		s.pod = pod
		m.dirty[pod.UID] = true
	}
	m.mu.Unlock()
	if s != nil {
		m.poke()
	}
}

// adopt registers the pod and the objects that it reads.
func (m *Manager) adopt(pod *corev1.Pod) *podState {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.pods[pod.UID]
	if s == nil {
		s = &podState{tokens: map[tokenKey]token{}}
		m.pods[pod.UID] = s
		s.refs = refsOf(pod)
		for _, r := range s.refs {
			if m.refs[r] == nil {
				m.refs[r] = map[types.UID]bool{}
			}
			m.refs[r][pod.UID] = true
		}
	}
	s.pod = pod
	return s
}

// forget is the opposite of adopt.
func (m *Manager) forget(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.pods[uid]; s != nil {
		for _, r := range s.refs {
			delete(m.refs[r], uid)
			if len(m.refs[r]) == 0 {
				delete(m.refs, r)
			}
		}
	}
	delete(m.pods, uid)
	delete(m.dirty, uid)
}

// Run refreshes contents until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	var refreshes sync.WaitGroup
	defer refreshes.Wait()
	slots := make(chan struct{}, 4)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, next := m.due(time.Now())
		for _, uid := range due {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			refreshes.Go(func() {
				m.refresh(ctx, uid)
				<-slots
			})
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// due takes the pods whose contents are to be looked at now, and says when there will
// be more.
func (m *Manager) due(now time.Time) (uids []types.UID, next time.Time) {
	next = now.Add(time.Hour)
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, s := range m.pods {
		switch {
		case !s.ready: // Setup comes first; what is dirty stays so until then
		case m.dirty[uid], !s.again.IsZero() && !s.again.After(now):
			delete(m.dirty, uid)
			s.again = time.Time{}
			uids = append(uids, uid)
		case !s.again.IsZero() && s.again.Before(next):
			next = s.again
		}
	}
	return uids, next
}

// refresh brings the contents of one pod's volumes up to date. A failure leaves the old
// contents and is tried again.
func (m *Manager) refresh(ctx context.Context, uid types.UID) {
	m.mu.Lock()
	s := m.pods[uid]
	var pod *corev1.Pod
	if s != nil {
		pod = s.pod
	}
	m.mu.Unlock()
	if s == nil {
		return
	}
	again := time.Now().Add(time.Second)
	if s.work.TryLock() {
		again = m.refreshLocked(ctx, s, pod)
		s.work.Unlock()
	}
	m.mu.Lock()
	s.again = earlier(s.again, again)
	m.mu.Unlock()
	m.poke()
}

func (m *Manager) refreshLocked(ctx context.Context, s *podState, pod *corev1.Pod) (again time.Time) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		q := &request{manager: m, state: s, pod: pod, volume: v, name: v.Name}
		t, ok := typeOf(q)
		if !ok || t.Content == nil {
			continue
		}
		q.dir = filepath.Join(m.podDir(pod.UID), "volumes", t.Plugin, q.name)
		if _, err := os.Lstat(q.dir); err != nil {
			continue // torn down, or not set up yet
		}
		next, err := q.write(ctx, t)
		if err != nil {
			m.log.Warn("volume keeps its old contents", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "volume", v.Name, "err", err)
			next = time.Now().Add(30*time.Second + time.Duration(rand.Int64N(int64(10*time.Second))))
		}
		again = earlier(again, next)
	}
	return again
}

// Teardown removes all that Setup and SubPath made for the pod. Nothing there is no error.
func (m *Manager) Teardown(ctx context.Context, uid types.UID) error {
	m.mu.Lock()
	s := m.pods[uid]
	m.mu.Unlock()
	if s != nil {
		s.work.Lock()
		defer s.work.Unlock()
	}
	dir := m.podDir(uid)
	plugins, _ := os.ReadDir(filepath.Join(dir, "volumes"))
	for _, part := range []string{"volume-subpaths", "volumes"} { // subpaths are mounts of volumes: first
		began := time.Now()
		err := removeTree(ctx, filepath.Join(dir, part))
		if part == "volumes" {
			for _, plugin := range plugins { // those of one pod go together
				m.metrics.Storage(strings.ReplaceAll(plugin.Name(), "~", "/"), "volume_unmount", time.Since(began), err)
			}
		}
		if err != nil {
			return fmt.Errorf("remove %s of pod %s: %w", part, uid, err)
		}
	}
	m.forget(uid)
	return nil
}

// Prune tears down the pods on disk that are not in keep.
func (m *Manager) Prune(ctx context.Context, keep map[types.UID]bool) error {
	entries, err := os.ReadDir(filepath.Join(m.root, "pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var faults []error
	for _, e := range entries {
		if uid := types.UID(e.Name()); !keep[uid] {
			faults = append(faults, m.Teardown(ctx, uid))
		}
	}
	return errors.Join(faults...)
}

// PodDebug is one pod of /debug/volumes.
type PodDebug struct {
	Pod, UID string
	Ready    bool
	Reads    []string
	Again    time.Time
}

// Debug lists the pods whose volumes are kept.
func (m *Manager) Debug() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]PodDebug, 0, len(m.pods))
	for uid, s := range m.pods {
		d := PodDebug{Pod: s.pod.Namespace + "/" + s.pod.Name, UID: string(uid), Ready: s.ready, Again: s.again}
		for _, r := range s.refs {
			d.Reads = append(d.Reads, r.kind+" "+r.key.String())
		}
		out = append(out, d)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Pod < out[j].Pod })
	return out
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *Manager) podDir(uid types.UID) string {
	return filepath.Join(m.root, "pods", filepath.Base(string(uid)))
}

// earlier of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// refsOf lists the objects that the pod's volumes are made of.
func refsOf(pod *corev1.Pod) (refs []ref) {
	add := func(kind, name string) {
		refs = append(refs, ref{kind, types.NamespacedName{Namespace: pod.Namespace, Name: name}})
	}
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.ConfigMap != nil:
			add("ConfigMap", v.ConfigMap.Name)
		case v.Secret != nil:
			add("Secret", v.Secret.SecretName)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					add("ConfigMap", s.ConfigMap.Name)
				}
				if s.Secret != nil {
					add("Secret", s.Secret.Name)
				}
			}
		}
	}
	return refs
}
