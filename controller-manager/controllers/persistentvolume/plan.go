package persistentvolume

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/keelson/keelson/controller-manager/runtime"
)

// plan decides once on every claim and volume of a file, each on its own: two claims
// may be shown the same volume, of which only one would get it.
func plan(in runtime.Objects, _ time.Time) ([]string, error) {
	volumes, claims := runtime.Pick[*corev1.PersistentVolume](in), runtime.Pick[*corev1.PersistentVolumeClaim](in)
	classes, pods := runtime.Pick[*storagev1.StorageClass](in), runtime.Pick[*corev1.Pod](in)
	view := View{
		Volumes: func() []*corev1.PersistentVolume { return volumes },
		Classes: func() []*storagev1.StorageClass { return classes },
		Volume:  func(name string) *corev1.PersistentVolume { return named(volumes, "", name) },
		Class:   func(name string) *storagev1.StorageClass { return named(classes, "", name) },
	}
	var lines []string
	for _, c := range claims {
		v := view
		for _, p := range pods {
			if p.Namespace == c.Namespace && p.Spec.NodeName == "" && !ended(p) && uses(p, c.Name) {
				v.Waiting = append(v.Waiting, p.Name)
			}
		}
		steps, err := Claim(c, v)
		if err != nil {
			return nil, err
		}
		for _, s := range steps {
			lines = append(lines, s.String())
		}
	}
	for _, pv := range volumes {
		var c *corev1.PersistentVolumeClaim
		var users []string
		if r := pv.Spec.ClaimRef; r != nil {
			if c = named(claims, r.Namespace, r.Name); c != nil && r.UID != "" && c.UID != r.UID {
				c = nil
			}
			for _, p := range pods {
				if c == nil && p.Namespace == r.Namespace && !ended(p) && uses(p, r.Name) {
					users = append(users, p.Namespace+"/"+p.Name)
				}
			}
		}
		for _, s := range Volume(pv, c, users) {
			lines = append(lines, s.String())
		}
	}
	return lines, nil
}

func uses(p *corev1.Pod, claim string) bool {
	for _, n := range runtime.PodClaims(p) {
		if n == claim {
			return true
		}
	}
	return false
}

// named is the object of that name, or nil.
func named[T interface {
	comparable
	GetNamespace() string
	GetName() string
}](all []T, namespace, name string) T {
	var none T
	for _, o := range all {
		if o.GetNamespace() == namespace && o.GetName() == name {
			return o
		}
	}
	return none
}
