package deployment

import (
	"math"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// fences are how many pods a rolling update may have above want, and how many of
// want may be missing. Both zero would block it: then one may be missing.
//
// Source: Kubernetes API reference, RollingUpdateDeployment.
func fences(d *appsv1.Deployment, want int32) (surge, unavailable int32) {
	r := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return 0, 0
	}
	zero := intstr.FromInt32(0)
	s, u := &zero, &zero
	if r != nil && r.MaxSurge != nil {
		s = r.MaxSurge
	}
	if r != nil && r.MaxUnavailable != nil {
		u = r.MaxUnavailable
	}
	// Validation has seen to it that both can be read.
	ns, _ := intstr.GetScaledValueFromIntOrPercent(s, int(want), true)
	nu, _ := intstr.GetScaledValueFromIntOrPercent(u, int(want), false)
	if ns == 0 && nu == 0 {
		nu = 1
	}
	return int32(ns), int32(nu)
}

func (v *view) maxSurge() int32 { s, _ := fences(v.d, v.want); return s }

func (v *view) maxUnavailable() int32 {
	if v.want == 0 {
		return 0
	}
	_, u := fences(v.d, v.want)
	return min(u, v.want)
}

// newReplicas is how many the current set should ask for next.
func (v *view) newReplicas() int32 {
	if v.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return v.want
	}
	have, total := v.current.replicas(), sum(v.all(), (*member).replicas)
	room := v.want + v.maxSurge() - total
	if room <= 0 {
		return have
	}
	return have + min(room, v.want-have)
}

func (v *view) growNew() bool {
	switch have := v.current.replicas(); {
	case have == v.want:
		return false
	case have > v.want:
		return v.scale(v.current, v.want)
	}
	return v.scale(v.current, v.newReplicas())
}

// shrinkOld takes replicas from old sets: first those that are not available,
// which costs nothing, then as many as the availability allows. New pods that are
// not yet available count as missing, so that a bad template never eats up the
// old pods.
func (v *view) shrinkOld() bool {
	old := active(v.old)
	if len(old) == 0 {
		return false
	}
	least := v.want - v.maxUnavailable()
	total := sum(v.all(), (*member).replicas)
	may := total - least - (v.current.replicas() - available(v.current))
	if may <= 0 {
		return false
	}
	changed := false
	left := may
	for _, m := range old {
		sick := m.replicas() - available(m)
		if n := min(left, sick); n > 0 {
			changed = v.scale(m, m.replicas()-n) || changed
			left -= n
		}
	}
	spare := sum(v.all(), available) - least
	for _, m := range old {
		if n := min(spare, m.replicas()); n > 0 {
			changed = v.scale(m, m.replicas()-n) || changed
			spare -= n
		}
	}
	return changed
}

// resized says that the Deployment's replicas changed since its sets were scaled.
func (v *view) resized() bool {
	for _, m := range active(v.all()) {
		if n, ok := number(m.set, desiredAnnotation); ok && n != v.want {
			return true
		}
	}
	return false
}

// resize fits the sets to a changed number of replicas outside a roll-out step:
// the only active set gets all; a finished roll-out keeps only the current set;
// in the middle of a rolling update each set gets its share.
func (v *view) resize() {
	if m := v.onlyOne(); m != nil {
		v.scale(m, v.want)
		return
	}
	if v.saturated() {
		for _, m := range active(v.old) {
			v.scale(m, 0)
		}
		return
	}
	if v.d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		v.share()
	}
}

// onlyOne is the set to scale when there is no choice: the only active one, or,
// with none active, the current or else the youngest.
func (v *view) onlyOne() *member {
	switch list := active(v.all()); len(list) {
	case 0:
		if v.current != nil {
			return v.current
		}
		if len(v.old) > 0 {
			return v.old[len(v.old)-1]
		}
	case 1:
		return list[0]
	}
	return nil
}

func (v *view) saturated() bool {
	if v.current == nil {
		return false
	}
	n, ok := number(v.current.set, desiredAnnotation)
	return ok && n == v.want && v.current.replicas() == v.want && available(v.current) == v.want
}

// share spreads what has to be added or removed over the active sets in proportion
// to their sizes; the remainder goes to the biggest, of equals to the youngest when
// growing and to the oldest when shrinking.
func (v *view) share() {
	list := active(v.all())
	var size int32
	if v.want > 0 {
		size = v.want + v.maxSurge()
	}
	add := size - sum(list, (*member).replicas)
	if add != 0 {
		slices.SortStableFunc(list, func(a, b *member) int {
			if a.replicas() != b.replicas() {
				return int(b.replicas()) - int(a.replicas())
			}
			c := a.set.CreationTimestamp.Compare(b.set.CreationTimestamp.Time)
			if add > 0 {
				return -c
			}
			return c
		})
	}
	sizes := make([]int32, len(list))
	var added int32
	for i, m := range list {
		sizes[i] = m.replicas()
		if add == 0 {
			continue
		}
		part := v.fraction(m)
		if add > 0 {
			part = min(part, add-added)
		} else {
			part = max(part, add-added)
		}
		if add == added {
			part = 0
		}
		sizes[i] += part
		added += part
	}
	for i, m := range list {
		if i == 0 && add != 0 {
			sizes[0] = max(0, sizes[0]+add-added)
		}
		v.rescale(m, sizes[i])
	}
}

// fraction is a set's share of the change: it keeps its proportion of the size
// that the whole had when the set was last scaled.
func (v *view) fraction(m *member) int32 {
	have := m.replicas()
	if v.want == 0 {
		return -have
	}
	before, ok := number(m.set, maxAnnotation)
	if !ok || before == 0 {
		before = v.d.Status.Replicas
		if before == 0 {
			return 0
		}
	}
	now := float64(have) * float64(v.want+v.maxSurge()) / float64(before)
	return int32(math.Round(now)) - have
}
