package legacytokencleaner

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

const day = 24 * time.Hour

// start is where the tests' clock starts.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func date(t time.Time) string { return t.Format(time.DateOnly) }

// token is a secret of account "robot", made three years ago.
func token(name string, changes ...func(*corev1.Secret)) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: name, CreationTimestamp: metav1.NewTime(start.Add(-3 * 365 * day)), Labels: map[string]string{},
		Annotations: map[string]string{corev1.ServiceAccountNameKey: "robot", corev1.ServiceAccountUIDKey: "u1"},
	}, Type: corev1.SecretTypeServiceAccountToken}
	for _, f := range changes {
		f(s)
	}
	return s
}

func label(key, value string) func(*corev1.Secret) {
	return func(s *corev1.Secret) { s.Labels[key] = value }
}

func robot(secrets ...string) *corev1.ServiceAccount {
	a := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "robot", UID: "u1"}}
	for _, s := range secrets {
		a.Secrets = append(a.Secrets, corev1.ObjectReference{Name: s})
	}
	return a
}

func TestDecide(t *testing.T) {
	const period = 100 * day
	limit := start.Add(-period)
	for _, c := range []struct {
		name    string
		secret  *corev1.Secret
		tracked time.Time
		want    string
	}{
		{"never used", token("t"), limit.Add(-day), "mark secret ns/t: its token is not used"},
		{"uses are noted for a day too short", token("t"), limit, ""},
		{"used long ago", token("t", label(lastUsed, date(limit.Add(-day)))), limit.Add(-5 * day), "mark secret ns/t: its token is not used"},
		{"used on the last day that counts", token("t", label(lastUsed, date(limit))), limit.Add(-5 * day), ""},
		{"a note that cannot be read", token("t", label(lastUsed, "yesterday")), limit.Add(-5 * day), ""},
		{"an empty note", token("t", label(lastUsed, "")), limit.Add(-5 * day), ""},
		{"young", token("t", func(s *corev1.Secret) { s.CreationTimestamp.Time = limit }), limit.Add(-5 * day), ""},
		{"being deleted", token("t", func(s *corev1.Secret) { s.DeletionTimestamp = &metav1.Time{Time: start} }), limit.Add(-5 * day), ""},
		{"another type", token("t", func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }), limit.Add(-5 * day), ""},
		{"made by hand", token("by-hand"), limit.Add(-5 * day), ""},
		{"of an account that is gone", token("t", func(s *corev1.Secret) { s.Annotations[corev1.ServiceAccountNameKey] = "x" }), limit.Add(-5 * day), ""},
		{"of an earlier account of the name", token("t", func(s *corev1.Secret) { s.Annotations[corev1.ServiceAccountUIDKey] = "u0" }), limit.Add(-5 * day), ""},
		{"no UID", token("t", func(s *corev1.Secret) { delete(s.Annotations, corev1.ServiceAccountUIDKey) }), limit.Add(-5 * day), "mark secret ns/t: its token is not used"},
		{"marked", token("t", label(invalidSince, date(limit))), limit.Add(-5 * day), ""},
		{"marked long ago", token("t", label(invalidSince, date(limit.Add(-day)))), limit.Add(-5 * day), "delete secret ns/t: its token is out of use since 1999-09-22"},
		{"a mark that cannot be read", token("t", label(invalidSince, "true")), limit.Add(-5 * day), "mark secret ns/t: its token is not used"},
	} {
		t.Run(c.name, func(t *testing.T) {
			accounts := func(k types.NamespacedName) *corev1.ServiceAccount {
				if k == (types.NamespacedName{Namespace: "ns", Name: "robot"}) {
					return robot("t")
				}
				return nil
			}
			var got []string
			for _, s := range Decide([]*corev1.Secret{c.secret}, accounts, c.tracked.Truncate(day), period, start) {
				got = append(got, s.String())
			}
			if g := strings.Join(got, "\n"); g != c.want {
				t.Errorf("want %q, got %q\n%v", c.want, g, c.secret)
			}
		})
	}
}

func TestNamed(t *testing.T) {
	local := func(n string) *corev1.LocalObjectReference { return &corev1.LocalObjectReference{Name: n} }
	env := []corev1.EnvVar{{Name: "x"}, {Name: "y", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: *local("key")}}}}
	from := []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: *local("from")}}}
	volumes := []corev1.VolumeSource{
		{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		{Secret: &corev1.SecretVolumeSource{SecretName: "secret"}},
		{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{}, {Secret: &corev1.SecretProjection{LocalObjectReference: *local("projected")}}}}},
		{AzureFile: &corev1.AzureFileVolumeSource{SecretName: "azure"}},
		{CephFS: &corev1.CephFSVolumeSource{SecretRef: local("ceph")}},
		{CSI: &corev1.CSIVolumeSource{NodePublishSecretRef: local("csi")}},
		{FlexVolume: &corev1.FlexVolumeSource{SecretRef: local("flex")}},
		{ISCSI: &corev1.ISCSIVolumeSource{SecretRef: local("iscsi")}},
		{ISCSI: &corev1.ISCSIVolumeSource{}},
		{RBD: &corev1.RBDVolumeSource{SecretRef: local("rbd")}},
		{ScaleIO: &corev1.ScaleIOVolumeSource{SecretRef: local("scale")}},
		{StorageOS: &corev1.StorageOSVolumeSource{SecretRef: local("storage")}},
	}
	spec := &corev1.PodSpec{
		ImagePullSecrets:    []corev1.LocalObjectReference{*local("pull")},
		InitContainers:      []corev1.Container{{Env: env}},
		Containers:          []corev1.Container{{EnvFrom: from}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Env: env}}},
	}
	for _, v := range volumes {
		spec.Volumes = append(spec.Volumes, corev1.Volume{VolumeSource: v})
	}
	var got []string
	named(spec, func(n string) { got = append(got, n) })
	slices.Sort(got)
	if g := strings.Join(slices.Compact(got), " "); g != "azure ceph csi flex from iscsi key projected pull rbd scale secret storage" {
		t.Errorf("secrets that a pod names: %s", g)
	}
}

func TestUnusedTokensAreMarkedAndGoLater(t *testing.T) {
	settings := runtime.DefaultSettings()
	settings.LegacyTokenCleanUp.Duration = 10 * day
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "mounted"}}},
	}}}
	notes := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: tracking}, Data: map[string]string{since: date(start.Add(-5 * day))}}
	ctrltest.TestWith(t, settings, []runtime.Row{Row}, []kruntime.Object{
		robot("idle", "mounted", "busy"), pod, notes, token("idle"), token("mounted"), token("busy"), token("by-hand"),
	}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().Secrets("ns")
		use := func(name string, when time.Time) {
			patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, lastUsed, date(when))
			if _, err := api.Patch(context.Background(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			h.Writes()
		}
		h.After(5 * day)
		if w := h.Writes(); w != "" {
			t.Errorf("uses are not noted for long enough yet:\n%s", w)
		}
		use("busy", start.Add(5*day))
		h.After(day)
		if w := h.Writes(); w != "patch secrets idle" {
			t.Errorf("what nobody has used is marked:\n%s", w)
		}
		if s := ctrltest.Must(api.Get(context.Background(), "idle", metav1.GetOptions{})); s.Labels[invalidSince] != date(start.Add(6*day)) {
			t.Errorf("the mark says since when: %v", s.Labels)
		}
		h.After(10 * day)
		if w := h.Writes(); w != "patch secrets busy" {
			t.Errorf("another comes out of use; the first is kept for the period:\n%s", w)
		}
		use("busy", start.Add(16*day))
		h.After(day)
		if w := h.Writes(); w != "delete secrets idle" {
			t.Errorf("after the period it goes:\n%s", w)
		}
		if err := h.Client.CoreV1().Pods("ns").Delete(context.Background(), "p", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Writes()
		h.After(day)
		if w := h.Writes(); w != "patch secrets mounted" {
			t.Errorf("no pod mounts it any more; the other has been used again:\n%s", w)
		}
	})
}

func TestNothingIsDoneWithoutNotes(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{robot("idle"), token("idle")}, func(t *testing.T, h *ctrltest.Harness) {
		h.After(day)
		if w := h.Writes(); w != "" {
			t.Errorf("nobody knows what is used:\n%s", w)
		}
		h.Add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: tracking}, Data: map[string]string{since: date(start.Add(-2 * 365 * day))}})
		h.Writes()
		h.After(day)
		if w := h.Writes(); w != "patch secrets idle" {
			t.Errorf("now it is known:\n%s", w)
		}
	})
}
