package sources

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// sink plays the worker pool: a pod that is removed is gone once finish is called.
type sink struct {
	told   []string
	living map[types.UID]bool
	ending []types.UID
	old    []*corev1.Pod // of an earlier kubelet
}

func (s *sink) Update(p *corev1.Pod) {
	s.told = append(s.told, "run "+p.Name)
	s.living[p.UID] = true
}

func (s *sink) Remove(p *corev1.Pod) {
	s.told = append(s.told, "end "+p.Name)
	s.ending = append(s.ending, p.UID)
}
func (s *sink) UIDs() map[types.UID]bool { return s.living }
func (s *sink) finish() {
	for _, uid := range s.ending {
		delete(s.living, uid)
	}
	s.ending = nil
}
func (s *sink) take() (told []string) { told, s.told = s.told, nil; slices.Sort(told); return told }
func (s *sink) Static(context.Context) ([]*corev1.Pod, error) {
	return s.old, nil
}

func quiet() *slog.Logger                { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
func none(types.UID)                     {}
func noNode() *corev1.Node               { return nil }
func manifest(name, image string) string { return fmt.Sprintf(minimal, name, image) }
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const minimal = `---
{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {containers: [{name: c, image: %q}]}}`

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: told %v, want %v", what, got, want)
	}
}

func TestADirectoryOfManifests(t *testing.T) {
	dir := t.TempDir()
	pool := &sink{living: map[types.UID]bool{}}
	s := NewStatic(dir, "Node-1", pool, NewMirrors(nil, noNode, none, quiet()), quiet())
	write(t, filepath.Join(dir, "a.yaml"), manifest("a", "i"))
	write(t, filepath.Join(dir, "without-ending"), manifest("b", "i"))
	write(t, filepath.Join(dir, ".hidden.yaml"), manifest("h", "i"))
	write(t, filepath.Join(dir, "broken.yaml"), "{apiVersion: v1, kind")
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.once(t.Context())
	want(t, "at first", pool.take(), "run a-node-1", "run b-node-1")
	s.once(t.Context())
	want(t, "with nothing changed", pool.take())

	write(t, filepath.Join(dir, "a.yaml"), manifest("a", "another"))
	s.once(t.Context())
	want(t, "when a file has changed", pool.take(), "end a-node-1")
	s.once(t.Context())
	want(t, "while the old one ends", pool.take())
	pool.finish()
	s.once(t.Context())
	want(t, "when the old one is gone", pool.take(), "run a-node-1")

	write(t, filepath.Join(dir, "a.yaml"), "being written: [")
	s.once(t.Context())
	want(t, "when a file has become wrong", pool.take())
	if err := os.Remove(filepath.Join(dir, "without-ending")); err != nil {
		t.Fatal(err)
	}
	s.once(t.Context())
	want(t, "when a file has gone", pool.take(), "end b-node-1")
	write(t, filepath.Join(dir, "without-ending"), manifest("b", "i"))
	s.once(t.Context())
	want(t, "when it is back while its pod ends", pool.take())
	pool.finish()
	s.once(t.Context())
	want(t, "when that pod is gone", pool.take(), "run b-node-1")
}

func TestASingleManifest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pod.json")
	write(t, file, manifest("only", "i"))
	pool := &sink{living: map[types.UID]bool{}}
	s := NewStatic(file, "n", pool, NewMirrors(nil, noNode, none, quiet()), quiet())
	s.once(t.Context())
	want(t, "a file as the path", pool.take(), "run only-n")
}

func TestManifestsAreRefused(t *testing.T) {
	pod := func(spec string) string {
		return "---\n{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {" + spec + "}}"
	}
	c := "containers: [{name: c, image: i}]"
	for _, x := range []struct{ manifest, says string }{
		{"---\n{apiVersion: v1, kind: Service, metadata: {name: p}}", "want a v1 Pod"},
		{"---\n{apiVersion: v1, kind: Pod, spec: {" + c + "}}", "name is needed"},
		{manifest("Upper", "i"), `metadata.name: Invalid value: "Upper-n"`},
		{"---\n{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: ../etc}, spec: {" + c + "}}", "metadata.namespace"},
		{pod(""), "spec.containers: Required"},
		{pod("containers: [{name: c}]"), "spec.containers[0].image: Required"},
		{pod("containers: [{name: ../c, image: i}]"), "spec.containers[0].name"},
		{pod("initContainers: [{name: c, image: i}], " + c), `spec.containers[0].name: Duplicate value: "c"`},
		{pod("containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]"), "volumeMounts[0].name: Not found"},
		{pod("restartPolicy: Sometimes, " + c), "spec.restartPolicy: Unsupported value"},
		{pod("serviceAccountName: x, " + c), "static pods may not reference serviceaccounts"},
		{pod("imagePullSecrets: [{name: s}], " + c), "static pods may not reference secrets"},
		{pod("containers: [{name: c, image: i, envFrom: [{configMapRef: {name: m}}]}]"), "static pods may not reference configmaps"},
		{pod("containers: [{name: c, image: i, env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]"), "static pods may not reference secrets"},
		{pod("volumes: [{name: v, configMap: {name: m}}, {name: w, projected: {sources: [{secret: {name: s}}]}}], " + c), "static pods may not reference secrets"},
		{pod("volumes: [{name: v, persistentVolumeClaim: {claimName: x}}], " + c), "static pods may not reference persistentvolumeclaims"},
		{pod("volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}], " + c), "static pods may not reference serviceaccounts (via projected volumes)"},
	} {
		if _, err := Parse([]byte(x.manifest), "/f", "n"); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s\n  refused with %v, want %q", x.manifest, err, x.says)
		}
	}
	if _, err := Parse([]byte(pod("volumes: [{name: v, hostPath: {path: /}}, {name: w, downwardAPI: {}}], "+c)), "/f", "n"); err != nil {
		t.Errorf("a pod that needs no API server is refused: %v", err)
	}
}

func TestAMirrorThatIsRefusedIsNotTriedAtOnceAgain(t *testing.T) {
	api := fake.NewClientset()
	tries := 0
	api.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		tries++
		return true, nil, errors.New("is invalid")
	})
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u"}}
	m := NewMirrors(api, func() *corev1.Node { return node }, none, quiet())
	p, err := Parse([]byte(manifest("p", "i")), "/f", "n")
	if err != nil {
		t.Fatal(err)
	}
	m.Static([]*corev1.Pod{p})
	m.Ready()
	for range 5 {
		if again, err := m.once(t.Context()); err != nil || !again {
			t.Fatalf("once: again %t, %v; want again", again, err)
		}
	}
	if tries != 1 {
		t.Errorf("tried %d times within a second, want once", tries)
	}
	if got := m.refused[p.UID]; !strings.Contains(got.why, "is invalid") {
		t.Errorf("remembered %q", got.why)
	}
}

func TestAManifestThatChangedWhileNoKubeletRan(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), manifest("a", "new"))
	write(t, filepath.Join(dir, "same.yaml"), manifest("same", "i"))
	same, err := Parse([]byte(manifest("same", "i")), filepath.Join(dir, "same.yaml"), "n")
	if err != nil {
		t.Fatal(err)
	}
	left := func(name string, uid types.UID) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: uid}}
	}
	pool := &sink{living: map[types.UID]bool{}, old: []*corev1.Pod{left("a-n", "before"), left("same-n", same.UID)}}
	s := NewStatic(dir, "n", pool, NewMirrors(nil, noNode, none, quiet()), quiet())
	s.once(t.Context())
	want(t, "at first", pool.take(), "end a-n", "run a-n", "run same-n") // "run a-n" makes the old one known
	s.once(t.Context())
	want(t, "while the old one ends", pool.take())
	pool.finish()
	s.once(t.Context())
	want(t, "when the old one is gone", pool.take(), "run a-n")
}
