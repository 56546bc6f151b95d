// Package voltest is the suite that every volume type passes: it says what Setup,
// Teardown and Prune of the volumes room promise, and checks it on the real disk and mount
// table. A new type adds a Case. Mounts need root; without it such cases are skipped.
package voltest

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/mountinfo"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/kubelet/volumes"
)

// Case is one volume type as a pod uses it.
type Case struct {
	Volume corev1.VolumeSource
	// Pod changes the pod before the first Setup. May be nil.
	Pod func(*corev1.Pod)
	// Root says that the case mounts something.
	Root bool
	// Files are what the volume shows after Setup: path → contents.
	Files map[string]string
	// Private says that the volume is the pod's own: it is gone after Teardown.
	Private bool
	// Kept is a path on the node that must survive Teardown. May be empty.
	Kept string
}

// Objects is an objects.Reader in memory.
type Objects struct {
	mu       sync.Mutex
	maps     map[types.NamespacedName]*corev1.ConfigMap
	secrets  map[types.NamespacedName]*corev1.Secret
	onChange []func(string, types.NamespacedName)
}

// NewObjects returns a reader that knows these objects.
func NewObjects(maps []*corev1.ConfigMap, secrets []*corev1.Secret) *Objects {
	o := &Objects{maps: map[types.NamespacedName]*corev1.ConfigMap{}, secrets: map[types.NamespacedName]*corev1.Secret{}}
	for _, m := range maps {
		o.maps[types.NamespacedName{Namespace: m.Namespace, Name: m.Name}] = m
	}
	for _, s := range secrets {
		o.secrets[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] = s
	}
	return o
}

func (o *Objects) ConfigMap(_ context.Context, key types.NamespacedName) (*corev1.ConfigMap, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := o.maps[key]; m != nil {
		return m, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmap"}, key.Name)
}

func (o *Objects) Secret(_ context.Context, key types.NamespacedName) (*corev1.Secret, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.secrets[key]; s != nil {
		return s, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secret"}, key.Name)
}

func (o *Objects) OnChange(f func(kind string, key types.NamespacedName)) {
	o.onChange = append(o.onChange, f)
}

// PutConfigMap replaces a ConfigMap and tells everybody.
func (o *Objects) PutConfigMap(m *corev1.ConfigMap) {
	key := types.NamespacedName{Namespace: m.Namespace, Name: m.Name}
	o.mu.Lock()
	o.maps[key] = m
	o.mu.Unlock()
	for _, f := range o.onChange {
		f("ConfigMap", key)
	}
}

// PutSecret replaces a Secret and tells everybody.
func (o *Objects) PutSecret(s *corev1.Secret) {
	key := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	o.mu.Lock()
	o.secrets[key] = s
	o.mu.Unlock()
	for _, f := range o.onChange {
		f("Secret", key)
	}
}

// Pod returns a pod with one container that mounts one volume, "v", at /v.
func Pod(source corev1.VolumeSource) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod", UID: "0a1b2c3d-0000-0000-0000-000000000001", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			ServiceAccountName: "default",
			Containers:         []corev1.Container{{Name: "c", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}}},
			Volumes:            []corev1.Volume{{Name: "v", VolumeSource: source}},
		},
	}
}

// Run checks one case against the promises of the room.
func Run(t *testing.T, c Case, client kubernetes.Interface, objects *Objects) {
	if c.Root && os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := t.TempDir()
	start := func() *volumes.Manager {
		return volumes.New(volumes.Options{Root: root}, client, objects, slog.New(slog.DiscardHandler))
	}
	m, pod, ctx := start(), Pod(c.Volume), t.Context()
	if c.Pod != nil {
		c.Pod(pod)
	}
	t.Cleanup(func() { _ = start().Prune(context.Background(), nil) })

	first, err := m.Setup(ctx, pod)
	if err != nil {
		t.Fatalf("Setup: %v", err)
	}
	path := first["v"].HostPath
	check := func(when string) {
		t.Helper()
		for name, want := range c.Files {
			if got, err := os.ReadFile(filepath.Join(path, name)); err != nil || string(got) != want {
				t.Errorf("%s: %s holds %q (%v), want %q", when, name, got, err, want)
			}
		}
	}
	check("after Setup")
	before := snapshot(t, path)
	mounts := below(t, root)

	if !first["v"].ReadOnly && !first["v"].Block && c.Private {
		if err := os.WriteFile(filepath.Join(path, "written"), []byte("x"), 0o644); err != nil {
			t.Error(err)
		}
		before = snapshot(t, path)
	}
	for _, who := range []struct {
		when string
		m    *volumes.Manager
	}{{"Setup again", m}, {"Setup after a restart", start()}} {
		again, err := who.m.Setup(ctx, pod)
		if err != nil || again["v"] != first["v"] {
			t.Errorf("%s: %+v (%v), want %+v", who.when, again["v"], err, first["v"])
		}
		if after := snapshot(t, path); after != before {
			t.Errorf("%s changed the volume:\n%s\nwas\n%s", who.when, after, before)
		}
		if n := below(t, root); n != mounts {
			t.Errorf("%s: %d mounts, were %d", who.when, n, mounts)
		}
	}
	if err := m.Prune(ctx, map[types.UID]bool{pod.UID: true}); err != nil {
		t.Errorf("Prune that keeps the pod: %v", err)
	}
	check("after Prune that keeps the pod")

	for _, when := range []string{"Teardown after a restart", "Teardown again"} {
		if err := start().Teardown(ctx, pod.UID); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if n := below(t, root); n != 0 {
			t.Errorf("%s: %d mounts left", when, n)
		}
		if _, err := os.Lstat(filepath.Join(root, "pods", string(pod.UID), "volumes")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: volumes are left: %v", when, err)
		}
	}
	if c.Private {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if c.Kept != "" {
		if _, err := os.Lstat(c.Kept); err != nil {
			t.Errorf("Teardown reached outside: %v", err)
		}
	}

	if _, err := m.Setup(ctx, pod); err != nil {
		t.Errorf("Setup after Teardown: %v", err)
	}
	if err := start().Prune(ctx, nil); err != nil {
		t.Errorf("Prune: %v", err)
	}
	if n := below(t, root); n != 0 {
		t.Errorf("Prune: %d mounts left", n)
	}
}

// snapshot is the names, modes, sizes and link targets below a directory.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target, _ := os.Readlink(path)
		b.WriteString(strings.TrimPrefix(path, dir) + " " + info.Mode().String() + " " + info.ModTime().String() + " " + target + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func below(t *testing.T, dir string) int {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	return len(mounts)
}
