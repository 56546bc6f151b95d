package persistentvolume

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

var ctx = context.Background()

func volume(name, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "v-" + types.UID(name)},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/data"}},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func claim(name, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: "c-" + types.UID(name)},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: ptr.To(""),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode, change ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	s := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	for _, f := range change {
		f(s)
	}
	return s
}

func forClaim(name, uid string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: types.UID(uid)}
	}
}

func ofClass(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &name }
}

func annotated(pairs ...string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		for i := 0; i < len(pairs); i += 2 {
			metav1.SetMetaDataAnnotation(&c.ObjectMeta, pairs[i], pairs[i+1])
		}
	}
}

func TestClaim(t *testing.T) {
	modes := func(m ...corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Spec.AccessModes = m }
	}
	inClass := func(name string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = name }
	}
	named := func(name string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name }
	}
	done := annotated("pv.kubernetes.io/bind-completed", "yes")
	block := corev1.PersistentVolumeBlock
	isDefault := func(s *storagev1.StorageClass) {
		s.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
	}
	now, later := storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer
	for _, c := range []struct {
		name    string
		claim   *corev1.PersistentVolumeClaim
		volumes []*corev1.PersistentVolume
		classes []*storagev1.StorageClass
		waiting []string
		want    string
	}{
		{name: "nothing there", claim: claim("a", "1Gi"), want: "claim phase claim ns/a Pending (FailedBinding)"},
		{name: "the smallest that is large enough", claim: claim("a", "2Gi"), volumes: []*corev1.PersistentVolume{volume("s", "1Gi"), volume("l", "9Gi"), volume("m", "3Gi")}, want: "bind volume m claim ns/a"},
		{name: "the fewest modes before the smallest", claim: claim("a", "1Gi"),
			volumes: []*corev1.PersistentVolume{volume("many", "1Gi", modes("ReadWriteOnce", "ReadWriteMany")), volume("one", "5Gi"), volume("other", "1Gi", modes("ReadOnlyMany"))}, want: "bind volume one claim ns/a"},
		{name: "a volume for it, before a better one", claim: claim("a", "1Gi"), volumes: []*corev1.PersistentVolume{volume("free", "1Gi"), volume("kept", "5Gi", forClaim("a", ""))}, want: "bind volume kept claim ns/a"},
		{name: "a volume for another", claim: claim("a", "1Gi"), volumes: []*corev1.PersistentVolume{volume("v", "5Gi", forClaim("b", ""))}, want: "claim phase claim ns/a Pending (FailedBinding)"},
		{name: "a volume for its predecessor", claim: claim("a", "1Gi"), volumes: []*corev1.PersistentVolume{volume("v", "5Gi", forClaim("a", "c-old"))}, want: "claim phase claim ns/a Pending (FailedBinding)"},
		{name: "a released volume", claim: claim("a", "1Gi"), volumes: []*corev1.PersistentVolume{volume("v", "5Gi", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased })}, want: "claim phase claim ns/a Pending (FailedBinding)"},
		{name: "another class", claim: claim("a", "1Gi"), volumes: []*corev1.PersistentVolume{volume("v", "5Gi", inClass("fast"))}, want: "claim phase claim ns/a Pending (FailedBinding)"},
		{name: "block for a file system", claim: claim("a", "1Gi"), volumes: []*corev1.PersistentVolume{volume("v", "5Gi", func(v *corev1.PersistentVolume) { v.Spec.VolumeMode = &block })}, want: "claim phase claim ns/a Pending (FailedBinding)"},
		{name: "the selector", claim: claim("a", "1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"k": "v"}}
		}),
			volumes: []*corev1.PersistentVolume{volume("x", "1Gi"), volume("y", "5Gi", func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"k": "v"} })}, want: "bind volume y claim ns/a"},

		{name: "no class asked for, a default there", claim: claim("a", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }),
			classes: []*storagev1.StorageClass{class("x", "p", now), class("d", "p", now, isDefault)}, want: "set class claim ns/a d"},
		{name: "an unknown class", claim: claim("a", "1Gi", ofClass("x")), want: "tell claim ns/a (ProvisioningFailed)"},
		{name: "a class without a provisioner", claim: claim("a", "1Gi", ofClass("x")), classes: []*storagev1.StorageClass{class("x", "kubernetes.io/no-provisioner", now)}, want: "tell claim ns/a (ProvisioningFailed)"},
		{name: "a class with one", claim: claim("a", "1Gi", ofClass("x")), classes: []*storagev1.StorageClass{class("x", "csi.example.com", now)}, want: "ask provision claim ns/a csi.example.com (ExternalProvisioning)"},
		{name: "later, no pod", claim: claim("a", "1Gi", ofClass("x")), classes: []*storagev1.StorageClass{class("x", "p", later)}, volumes: []*corev1.PersistentVolume{volume("v", "1Gi", inClass("x"))},
			want: "claim phase claim ns/a Pending (WaitForFirstConsumer)"},
		{name: "later, a pod waits", claim: claim("a", "1Gi", ofClass("x")), classes: []*storagev1.StorageClass{class("x", "p", later)}, waiting: []string{"p"},
			want: "claim phase claim ns/a Pending (WaitForPodScheduled)"},
		{name: "later, a node is chosen", claim: claim("a", "1Gi", ofClass("x"), annotated("volume.kubernetes.io/selected-node", "n")), classes: []*storagev1.StorageClass{class("x", "p", later)},
			want: "ask provision claim ns/a p (ExternalProvisioning)"},
		{name: "later, the scheduler has chosen a volume", claim: claim("a", "1Gi", ofClass("x")), classes: []*storagev1.StorageClass{class("x", "p", later)},
			volumes: []*corev1.PersistentVolume{volume("v", "1Gi", inClass("x"), forClaim("a", "c-a"))}, want: "bind volume v claim ns/a"},

		{name: "named, not there", claim: claim("a", "1Gi", named("v")), want: "claim phase claim ns/a Pending"},
		{name: "named, free", claim: claim("a", "1Gi", named("v")), volumes: []*corev1.PersistentVolume{volume("v", "1Gi"), volume("w", "1Gi")}, want: "bind volume v claim ns/a"},
		{name: "named, too small", claim: claim("a", "2Gi", named("v")), volumes: []*corev1.PersistentVolume{volume("v", "1Gi")}, want: "claim phase claim ns/a Pending (VolumeMismatch)"},
		{name: "named, another's", claim: claim("a", "1Gi", named("v")), volumes: []*corev1.PersistentVolume{volume("v", "1Gi", forClaim("b", "c-b"))}, want: "claim phase claim ns/a Pending (FailedBinding)"},
		{name: "named, half bound", claim: claim("a", "1Gi", named("v")), volumes: []*corev1.PersistentVolume{volume("v", "1Gi", forClaim("a", ""))}, want: "bind volume v claim ns/a"},

		{name: "bound, its volume is gone", claim: claim("a", "1Gi", named("v"), done), want: "claim phase claim ns/a Lost (ClaimLost)"},
		{name: "bound, its volume has another", claim: claim("a", "1Gi", named("v"), done), volumes: []*corev1.PersistentVolume{volume("v", "1Gi", forClaim("b", "c-b"))}, want: "claim phase claim ns/a Lost (ClaimMisbound)"},
		{name: "bound, its volume forgot", claim: claim("a", "1Gi", named("v"), done), volumes: []*corev1.PersistentVolume{volume("v", "1Gi")}, want: "bind volume v claim ns/a"},
		{name: "lost before", claim: claim("a", "1Gi", named("v"), done, func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost }), want: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps, err := Claim(c.claim, View{
				Volumes: func() []*corev1.PersistentVolume { return c.volumes }, Classes: func() []*storagev1.StorageClass { return c.classes }, Waiting: c.waiting,
				Volume: func(name string) *corev1.PersistentVolume {
					for _, v := range c.volumes {
						if v.Name == name {
							return v
						}
					}
					return nil
				},
				Class: func(name string) *storagev1.StorageClass {
					for _, s := range c.classes {
						if s.Name == name {
							return s
						}
					}
					return nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := text(steps); got != c.want {
				t.Errorf("want %q, got %q", c.want, got)
			}
		})
	}
}

func text(steps []Step) string {
	var out []string
	for _, s := range steps {
		out = append(out, s.String())
	}
	return strings.Join(out, "; ")
}

func TestVolume(t *testing.T) {
	phase := func(p corev1.PersistentVolumePhase) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Status.Phase = p }
	}
	policy := func(p corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = p }
	}
	by := func(driver string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) {
			metav1.SetMetaDataAnnotation(&v.ObjectMeta, "pv.kubernetes.io/provisioned-by", driver)
		}
	}
	on := func(name string) *corev1.PersistentVolumeClaim {
		return claim("a", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name })
	}
	released, del := phase(corev1.VolumeReleased), policy(corev1.PersistentVolumeReclaimDelete)
	for _, c := range []struct {
		name   string
		volume *corev1.PersistentVolume
		claim  *corev1.PersistentVolumeClaim
		users  []string
		want   string
	}{
		{name: "new", volume: volume("v", "1Gi", phase("")), want: "volume phase volume v Available"},
		{name: "kept for a claim to come", volume: volume("v", "1Gi", phase(""), forClaim("a", "")), want: "volume phase volume v Available"},
		{name: "half bound", volume: volume("v", "1Gi", forClaim("a", "c-a")), claim: claim("a", "1Gi"), want: "claim's turn claim ns/a"},
		{name: "bound", volume: volume("v", "1Gi", forClaim("a", "c-a")), claim: on("v"), want: "volume phase volume v Bound"},
		{name: "the claim took another", volume: volume("v", "1Gi", forClaim("a", "c-a")), claim: on("w"), want: "unbind volume v"},
		{name: "the claim took another, made for it", volume: volume("v", "1Gi", forClaim("a", "c-a"), by("d"), del), claim: on("w"), want: "volume phase volume v Released"},
		{name: "the claim is gone", volume: volume("v", "1Gi", forClaim("a", "c-a"), phase(corev1.VolumeBound)), want: "volume phase volume v Released"},
		{name: "released, retain", volume: volume("v", "1Gi", forClaim("a", "c-a"), released), want: ""},
		{name: "released, its driver deletes", volume: volume("v", "1Gi", forClaim("a", "c-a"), released, del, by("csi.example.com")), want: ""},
		{name: "released, nobody can delete", volume: volume("v", "1Gi", forClaim("a", "c-a"), released, del), want: "volume phase volume v Failed (VolumeFailedDelete)"},
		{name: "released, recycle", volume: volume("v", "1Gi", forClaim("a", "c-a"), released, policy(corev1.PersistentVolumeReclaimRecycle)), want: "volume phase volume v Failed (VolumeFailedRecycle)"},
		{name: "released, recycle, still used", volume: volume("v", "1Gi", forClaim("a", "c-a"), released, policy(corev1.PersistentVolumeReclaimRecycle)), users: []string{"ns/p"}, want: "tell volume v (VolumeFailedRecycle)"},
		{name: "failed stays failed", volume: volume("v", "1Gi", forClaim("a", "c-a"), phase(corev1.VolumeFailed), del), want: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := text(Volume(c.volume, c.claim, c.users)); got != c.want {
				t.Errorf("want %q, got %q", c.want, got)
			}
		})
	}
}

func get(h *ctrltest.Harness, c, v string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	return ctrltest.Must(h.Client.CoreV1().PersistentVolumeClaims("ns").Get(ctx, c, metav1.GetOptions{})),
		ctrltest.Must(h.Client.CoreV1().PersistentVolumes().Get(ctx, v, metav1.GetOptions{}))
}

func TestLifeOfABinding(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{claim("a", "1Gi")}, func(t *testing.T, h *ctrltest.Harness) {
		h.Add(volume("v", "2Gi", func(v *corev1.PersistentVolume) { v.Status.Phase = "" }))
		h.Rest()
		c, v := get(h, "a", "v")
		if c.Spec.VolumeName != "v" || c.Status.Phase != corev1.ClaimBound || c.Annotations["pv.kubernetes.io/bind-completed"] != "yes" || c.Annotations["pv.kubernetes.io/bound-by-controller"] != "yes" {
			t.Fatalf("the claim that waited is bound: %+v", c)
		}
		if q := c.Status.Capacity[corev1.ResourceStorage]; q.String() != "2Gi" || len(c.Status.AccessModes) != 1 {
			t.Errorf("the claim shows what it got: %+v", c.Status)
		}
		if r := v.Spec.ClaimRef; r == nil || r.UID != c.UID || r.Kind != "PersistentVolumeClaim" || v.Status.Phase != corev1.VolumeBound || v.Annotations["pv.kubernetes.io/bound-by-controller"] != "yes" {
			t.Errorf("the volume's end: %+v", v)
		}
		h.Writes(true)
		h.After(time.Minute)
		if w := h.Writes(true); w != "" {
			t.Errorf("a binding that is complete is left alone:\n%s", w)
		}
		if err := h.Client.CoreV1().PersistentVolumeClaims("ns").Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Add(claim("a", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.UID = "c-new" }))
		h.Rest()
		c, v = get(h, "a", "v")
		if v.Status.Phase != corev1.VolumeReleased || c.Status.Phase != corev1.ClaimPending {
			t.Errorf("a retained volume does not go to a namesake: %s, %s", v.Status.Phase, c.Status.Phase)
		}
		if !slices.Contains(h.Events("ns"), "FailedBinding: no persistent volumes available for this claim and no storage class is set") {
			t.Errorf("events: %q", h.Events("ns"))
		}
	})
}

func TestLostVolume(t *testing.T) {
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{claim("a", "1Gi"), volume("v", "2Gi")}, func(t *testing.T, h *ctrltest.Harness) {
		if err := h.Client.CoreV1().PersistentVolumes().Delete(ctx, "v", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if c := ctrltest.Must(h.Client.CoreV1().PersistentVolumeClaims("ns").Get(ctx, "a", metav1.GetOptions{})); c.Status.Phase != corev1.ClaimLost || c.Status.Capacity != nil {
			t.Errorf("the claim is lost: %+v", c.Status)
		}
	})
}

func TestPlan(t *testing.T) {
	lines, err := plan(runtime.Objects{claim("a", "1Gi"), volume("free", "1Gi"), volume("gone", "1Gi", forClaim("b", "c-b"))}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(lines, "; "); got != "bind volume free claim ns/a; volume phase volume gone Released" {
		t.Errorf("got %q", got)
	}
}

func TestManyClaimsShareNoVolume(t *testing.T) {
	var objects []kruntime.Object
	const n = 20
	for i := range n {
		objects = append(objects, claim(fmt.Sprint("c", i), "1Gi"), volume(fmt.Sprint("v", i), "1Gi"))
	}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		for i := range n { // as many again, while the caches lag behind
			h.API.Lag(200 * time.Millisecond)
			h.Add(claim(fmt.Sprint("late", i), "1Gi"))
			h.Add(volume(fmt.Sprint("w", i), "1Gi"))
		}
		h.After(time.Minute)
		owner := map[string]string{}
		for _, v := range ctrltest.Must(h.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})).Items {
			if v.Spec.ClaimRef != nil && v.Status.Phase == corev1.VolumeBound {
				owner[v.Spec.ClaimRef.Name] = v.Name
			}
		}
		for _, c := range ctrltest.Must(h.Client.CoreV1().PersistentVolumeClaims("ns").List(ctx, metav1.ListOptions{})).Items {
			if c.Status.Phase != corev1.ClaimBound || owner[c.Name] != c.Spec.VolumeName {
				t.Errorf("%s: %s to %q, whose claim is served by %q", c.Name, c.Status.Phase, c.Spec.VolumeName, owner[c.Name])
			}
		}
		if len(owner) != 2*n {
			t.Errorf("want %d bound volumes, got %d", 2*n, len(owner))
		}
	})
}

func TestProvisioning(t *testing.T) {
	objects := []kruntime.Object{
		class("later", "csi.example.com", storagev1.VolumeBindingWaitForFirstConsumer), claim("a", "1Gi", ofClass("later")),
	}
	ctrltest.Test(t, []runtime.Row{Row}, objects, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().PersistentVolumeClaims("ns")
		c := ctrltest.Must(api.Get(ctx, "a", metav1.GetOptions{}))
		if len(c.Annotations) != 0 {
			t.Fatalf("nothing is asked for before a pod needs it: %v", c.Annotations)
		}
		annotated("volume.kubernetes.io/selected-node", "n1")(c)
		ctrltest.Must(api.Update(ctx, c, metav1.UpdateOptions{}))
		h.Rest()
		c = ctrltest.Must(api.Get(ctx, "a", metav1.GetOptions{}))
		if c.Annotations["volume.kubernetes.io/storage-provisioner"] != "csi.example.com" || c.Annotations["volume.beta.kubernetes.io/storage-provisioner"] != "csi.example.com" {
			t.Fatalf("the provisioner is told: %v", c.Annotations)
		}
		// What a provisioner does.
		h.Add(volume("pvc-1", "1Gi", forClaim("a", "c-a"), func(v *corev1.PersistentVolume) {
			v.Spec.StorageClassName, v.Spec.PersistentVolumeReclaimPolicy, v.Status.Phase = "later", corev1.PersistentVolumeReclaimDelete, ""
			v.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "csi.example.com"}
		}))
		h.Rest()
		c, v := get(h, "a", "pvc-1")
		if c.Status.Phase != corev1.ClaimBound || v.Status.Phase != corev1.VolumeBound {
			t.Errorf("bound: %s, %s", c.Status.Phase, v.Status.Phase)
		}
		if err := api.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if v := ctrltest.Must(h.Client.CoreV1().PersistentVolumes().Get(ctx, "pvc-1", metav1.GetOptions{})); v.Status.Phase != corev1.VolumeReleased {
			t.Errorf("its driver is to delete it: %s", v.Status.Phase)
		}
	})
}
