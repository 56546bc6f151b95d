package volumes_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/keelson/keelson/kubelet/volumes"
	"github.com/keelson/keelson/kubelet/volumes/voltest"
)

func configMapOf(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "cm"}, Data: data}
}

func things() *voltest.Objects {
	return voltest.NewObjects([]*corev1.ConfigMap{configMapOf(map[string]string{"a": "1", "b": "2"})},
		[]*corev1.Secret{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"key": []byte("hush")}}})
}

// client hands out tokens "token-1", "token-2", ... that live for the time given.
func client(life time.Duration, more ...runtime.Object) kubernetes.Interface {
	c := fake.NewSimpleClientset(more...)
	var n atomic.Int64
	c.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest).DeepCopy()
		r.Status.Token = fmt.Sprintf("token-%d", n.Add(1))
		if len(r.Spec.Audiences) > 0 {
			r.Status.Token += "-for-" + r.Spec.Audiences[0]
		}
		r.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(life))
		return true, r, nil
	})
	return c
}

func claim(source corev1.PersistentVolumeSource) []runtime.Object {
	return []runtime.Object{
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim", UID: "c1"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv1"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}},
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv1"},
			Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: source, ClaimRef: &corev1.ObjectReference{UID: "c1"}}},
	}
}

func ptr[T any](v T) *T { return &v }

func TestSuite(t *testing.T) {
	disk := t.TempDir()
	if err := os.WriteFile(filepath.Join(disk, "data"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	byClaim := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}
	group := func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000))} }
	for name, c := range map[string]voltest.Case{
		"emptyDir": {Volume: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, Private: true},
		"emptyDir in memory": {Root: true, Private: true, Pod: group,
			Volume: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "Memory", SizeLimit: ptr(resource.MustParse("1Mi"))}}},
		"hostPath": {Volume: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: disk}}, Files: map[string]string{"data": "old"}, Kept: disk + "/data"},
		"configMap": {Private: true, Files: map[string]string{"a": "1", "b": "2"},
			Volume: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
		"configMap items": {Private: true, Files: map[string]string{"deep/down/x": "1"},
			Volume: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"},
				Items: []corev1.KeyToPath{{Key: "a", Path: "deep/down/x", Mode: ptr(int32(0o400))}}}}},
		"configMap optional": {Private: true,
			Volume: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: ptr(true)}}},
		"secret": {Root: true, Private: true, Pod: group, Files: map[string]string{"key": "hush"},
			Volume: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr(int32(0o400))}}},
		"downwardAPI": {Private: true, Files: map[string]string{"name": "pod", "labels": `app="web"`, "cpu": "2"},
			Pod: func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse("1500m")}
			},
			Volume: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}},
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
				{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu"}},
			}}}},
		"projected": {Root: true, Private: true, Files: map[string]string{"cfg": "1", "key": "hush", "ns": "ns"},
			Volume: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Items: []corev1.KeyToPath{{Key: "a", Path: "cfg"}}}},
				{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "ns", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
			}}}},
		"claim of a directory": {Volume: byClaim, Pod: group, Files: map[string]string{"data": "old"}, Kept: disk + "/data"},
	} {
		t.Run(name, func(t *testing.T) {
			voltest.Run(t, c, client(time.Hour, claim(corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: disk}})...), things())
		})
	}
	info, err := os.Stat(disk + "/data")
	if err != nil || info.Mode().Perm() != 0o660 || info.Sys().(*syscall.Stat_t).Gid != 2000 {
		t.Errorf("a claim's file is not the group's: %v %v", info.Mode(), err)
	}
}

func TestErrors(t *testing.T) {
	disk := t.TempDir()
	plain := filepath.Join(disk, "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	named := corev1.LocalObjectReference{Name: "cm"}
	for name, row := range map[string]struct {
		volume corev1.VolumeSource
		want   string
	}{
		"no ConfigMap":   {corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "x"}}}, `MountVolume.SetUp failed for volume "v" : configmap "x" not found`},
		"no key":         {corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named, Items: []corev1.KeyToPath{{Key: "zz", Path: "z"}}}}, "configmap references non-existent config key: zz"},
		"path leads out": {corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named, Items: []corev1.KeyToPath{{Key: "a", Path: "../z"}}}}, "must not start with '..'"},
		"no Secret key":  {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", Items: []corev1.KeyToPath{{Key: "zz", Path: "z"}}}}, "references non-existent secret key: zz"},
		"not a dir":      {corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: plain, Type: ptr(corev1.HostPathDirectory)}}, "hostPath type check failed: " + plain + " is not a directory"},
		"not a file":     {corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: disk, Type: ptr(corev1.HostPathFile)}}, "hostPath type check failed: " + disk + " is not a file"},
		"not a socket":   {corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: plain, Type: ptr(corev1.HostPathSocket)}}, "is not a socket file"},
		"not a device":   {corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: plain, Type: ptr(corev1.HostPathCharDev)}}, "is not a character device"},
		"no claim":       {corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "x"}}, `persistentvolumeclaims "x" not found`},
		"driver":         {corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "d.example.org"}}, "driver name d.example.org not found in the list of registered CSI drivers"},
		"unknown":        {corev1.VolumeSource{Glusterfs: &corev1.GlusterfsVolumeSource{}}, "no volume plugin matched"},
		"no such medium": {corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "Stone"}}, `unknown storage medium "Stone"`},
	} {
		t.Run(name, func(t *testing.T) {
			m := volumes.New(volumes.Options{Root: t.TempDir()}, client(time.Hour), things(), slog.New(slog.DiscardHandler))
			_, err := m.Setup(t.Context(), voltest.Pod(row.volume))
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A change reaches the files all at once: a reader that goes through ..data never sees
// one file of the old and one of the new generation.
func TestChangesAreAtomic(t *testing.T) {
	objects := things()
	m := volumes.New(volumes.Options{Root: t.TempDir()}, nil, objects, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	objects.PutConfigMap(configMapOf(map[string]string{"a": "0", "b": "0"}))
	pod := voltest.Pod(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}})
	set, err := m.Setup(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	dir := set["v"].HostPath
	for i := 1; i <= 50; i++ {
		value := fmt.Sprint(i)
		objects.PutConfigMap(configMapOf(map[string]string{"a": value, "b": value, "only-" + value: ""}))
		eventually(t, "generation "+value, func() bool {
			generation, err := os.Readlink(dir + "/..data")
			if err != nil {
				t.Fatal(err)
			}
			a, errA := os.ReadFile(filepath.Join(dir, generation, "a"))
			b, errB := os.ReadFile(filepath.Join(dir, generation, "b"))
			if errA != nil || errB != nil {
				return false // this generation was removed meanwhile
			}
			if string(a) != string(b) {
				t.Fatalf("mixed: a=%s b=%s", a, b)
			}
			return string(a) == value
		})
	}
	eventually(t, "old names gone", func() bool {
		entries, err := os.ReadDir(dir)
		return err == nil && len(entries) == 5 // ..data, its target, a, b, only-50
	})
	pod = pod.DeepCopy()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

func TestTokens(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("mounting needs root: sudo make test")
	}
	m := volumes.New(volumes.Options{Root: t.TempDir()}, client(time.Second), things(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	pod := voltest.Pod(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault"}},
	}}})
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1234))}
	set, err := m.Setup(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(set["v"].HostPath, "token")
	read := func() string { data, _ := os.ReadFile(path); return string(data) }
	if got := read(); got != "token-1-for-vault" {
		t.Errorf("first token %q", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 1234 {
		t.Errorf("token file %v (%v), want 0600 of user 1234", info, err)
	}
	eventually(t, "a fresh token before the old one expires", func() bool { return read() == "token-2-for-vault" })
	cancel()
	<-done
	if err := m.Teardown(context.Background(), pod.UID); err != nil {
		t.Error(err)
	}
}

func TestSubPath(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("mounting needs root: sudo make test")
	}
	root, outside := t.TempDir(), t.TempDir()
	m := volumes.New(volumes.Options{Root: root}, nil, things(), slog.New(slog.DiscardHandler))
	pod := voltest.Pod(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	set, err := m.Setup(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	v := set["v"]
	defer m.Teardown(context.Background(), pod.UID)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(v.HostPath+"/file", []byte("inside"), 0o644))
	must(os.WriteFile(outside+"/secret", []byte("outside"), 0o644))
	must(os.Symlink("file", v.HostPath+"/link"))
	must(os.Symlink(outside, v.HostPath+"/out"))
	must(os.Symlink("../../../../../../../../etc", v.HostPath+"/up"))
	must(os.Symlink("nowhere", v.HostPath+"/dangling"))

	for _, path := range []string{"out", "out/secret", "up/passwd", "dangling", "dangling/x", "file/x"} {
		if got, err := m.SubPath(t.Context(), pod, "c", 0, v, path); err == nil {
			t.Errorf("%s: got %s, want an error", path, got)
		}
	}
	at, err := m.SubPath(t.Context(), pod, "c", 0, v, "link")
	must(err)
	if data, _ := os.ReadFile(at); string(data) != "inside" {
		t.Errorf("link: %q", data)
	}
	// The file stays mounted, whatever becomes of its name.
	must(os.Remove(v.HostPath + "/file"))
	must(os.Symlink(outside+"/secret", v.HostPath+"/file"))
	if data, _ := os.ReadFile(at); string(data) != "inside" {
		t.Errorf("after the switch: %q", data)
	}
	if _, err := m.SubPath(t.Context(), pod, "c", 0, v, "link"); err == nil {
		t.Error("after the switch: want an error")
	}
	const mode = fs.ModeDir | fs.ModeSticky | fs.ModeSetgid | 0o777
	must(os.Chmod(v.HostPath, mode))
	made, err := m.SubPath(t.Context(), pod, "c", 0, v, "new/dir")
	must(err)
	must(os.WriteFile(made+"/x", nil, 0o644))
	if _, err := os.Stat(v.HostPath + "/new/dir/x"); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"/new", "/new/dir"} {
		if info, _ := os.Stat(v.HostPath + dir); info.Mode() != mode {
			t.Errorf("%s: made with %v, want the volume's own mode %v", dir, info.Mode(), mode)
		}
	}
	must(m.Teardown(t.Context(), pod.UID))
	if _, err := os.Stat(filepath.Join(root, "pods", string(pod.UID), "volume-subpaths")); err == nil {
		t.Error("subpaths are left")
	}
}

func TestUsageNamesTheClaim(t *testing.T) {
	disk := t.TempDir()
	m := volumes.New(volumes.Options{Root: t.TempDir()}, client(time.Hour, claim(corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: disk}})...), things(), slog.New(slog.DiscardHandler))
	pod := voltest.Pod(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}})
	if _, err := m.Setup(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	all := m.Usage(pod.UID)
	if len(all) != 1 || all[0].Name != pod.Spec.Volumes[0].Name || all[0].Claim != "claim" || all[0].Plugin != "local-volume" || all[0].CapacityBytes == 0 {
		t.Errorf("%+v", all)
	}
	if n := testutil.CollectAndCount(m, "volume_manager_total_volumes"); n != 2 {
		t.Errorf("%d series of volumes, want one that is wanted and one that is ready", n)
	}
	if err := m.Teardown(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if all := m.Usage(pod.UID); len(all) != 0 {
		t.Errorf("after its end: %+v", all)
	}
}
