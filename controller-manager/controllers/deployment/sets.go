package deployment

import (
	"math"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/keelson/keelson/controller-manager/podset"
)

// Annotations by which kubectl and other implementations read a roll-out.
//
// Source: Kubernetes documentation, "Well-known labels, annotations and taints".
const (
	RevisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"

	mostHistory = 2000 // characters of historyAnnotation
)

// member is one set as this pass sees and changes it. set is replaced by a copy
// before its first change.
type member struct {
	set   *appsv1.ReplicaSet
	from  int32
	dirty bool
}

func (m *member) replicas() int32 {
	if m.set.Spec.Replicas == nil {
		return 1
	}
	return *m.set.Spec.Replicas
}

// view is the working state of one decision.
type view struct {
	d       *appsv1.Deployment // own copy; its status conditions change as the decision goes on
	now     time.Time
	want    int32
	current *member   // the set of the current template, nil if there is none
	old     []*member // the others, oldest first

	created  *appsv1.ReplicaSet
	gone     []*appsv1.ReplicaSet
	revision string
	again    time.Time
}

func newView(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, now time.Time) *view {
	v := &view{d: d.DeepCopy(), now: now, want: 1}
	if d.Spec.Replicas != nil {
		v.want = *d.Spec.Replicas
	}
	for _, s := range podset.ByAge(append([]*appsv1.ReplicaSet(nil), sets...)) {
		m := &member{set: s}
		m.from = m.replicas()
		// Where several sets have the template the oldest is the current one, in
		// every pass and in every implementation.
		if v.current == nil && sameTemplate(&s.Spec.Template, &d.Spec.Template) {
			v.current = m
			continue
		}
		v.old = append(v.old, m)
	}
	return v
}

// all are the old sets, oldest first, and then the current one.
func (v *view) all() []*member {
	all := append([]*member(nil), v.old...)
	if v.current != nil {
		all = append(all, v.current)
	}
	return all
}

// active are those of all that want replicas.
func active(list []*member) []*member {
	var some []*member
	for _, m := range list {
		if m.replicas() > 0 {
			some = append(some, m)
		}
	}
	return some
}

func sum(list []*member, f func(*member) int32) int32 {
	var n int32
	for _, m := range list {
		n += f(m)
	}
	return n
}

// available is what may be counted on. A set that was just scaled down has not told its new
// status yet: what it will delete must not be counted, or the old pods go faster than they may.
func available(m *member) int32 { return min(m.set.Status.AvailableReplicas, m.replicas()) }

// scale sets a member's replicas and says whether they changed.
func (v *view) scale(m *member, to int32) bool {
	if m == nil || m.replicas() == to {
		return false
	}
	return v.rescale(m, to)
}

// rescale is scale that also brings the annotations up to date when the number
// stays: they tell which size of the Deployment the set was scaled for.
func (v *view) rescale(m *member, to int32) bool {
	changed := m.replicas() != to
	c := m.set.DeepCopy()
	if !sizeAnnotations(c, v.want, v.want+v.maxSurge()) && !changed {
		return false
	}
	c.Spec.Replicas = &to
	if m.set == v.created {
		v.created = c
	}
	m.set, m.dirty = c, true
	return changed
}

// sameTemplate compares templates without the hash that sets add.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	ha, hb := a.Labels[appsv1.DefaultDeploymentUniqueLabelKey], b.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
	if ha != "" || hb != "" {
		a, b = withoutHash(a), withoutHash(b)
	}
	return equality.Semantic.DeepEqual(a, b)
}

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	c := *t
	c.Labels = make(map[string]string, len(t.Labels))
	for k, v := range t.Labels {
		if k != appsv1.DefaultDeploymentUniqueLabelKey {
			c.Labels[k] = v
		}
	}
	return &c
}

// revision is a set's revision; none is 0.
func revision(s *appsv1.ReplicaSet) (int64, error) {
	v, ok := s.Annotations[RevisionAnnotation]
	if !ok {
		return 0, nil
	}
	return strconv.ParseInt(v, 10, 64)
}

// nextRevision is one more than the highest of the old sets.
func (v *view) nextRevision() int64 {
	var most int64
	for _, m := range v.old {
		if r, err := revision(m.set); err == nil {
			most = max(most, r)
		}
	}
	return most + 1
}

// annotate gives a set the Deployment's annotations and, if it is higher than the
// set's own, the revision; the revision it had before goes to its history. exists
// is false for a set that is being made. It says whether anything changed.
func annotate(s *appsv1.ReplicaSet, d *appsv1.Deployment, rev int64, exists bool) bool {
	changed := false
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	for k, val := range d.Annotations {
		switch k {
		case corev1.LastAppliedConfigAnnotation, RevisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo:
			continue
		}
		if had, ok := s.Annotations[k]; !ok || had != val {
			s.Annotations[k] = val
			changed = true
		}
	}
	had := s.Annotations[RevisionAnnotation]
	n, err := strconv.ParseInt(had, 10, 64)
	if err != nil && had != "" {
		return changed // somebody wrote a word there; leave it
	}
	if n < rev {
		s.Annotations[RevisionAnnotation] = strconv.FormatInt(rev, 10)
		changed = true
		if had != "" {
			s.Annotations[historyAnnotation] = remember(s.Annotations[historyAnnotation], had)
		}
	}
	if !exists {
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		surge, _ := fences(d, want)
		changed = sizeAnnotations(s, want, want+surge) || changed
	}
	return changed
}

// remember appends a revision to a comma-separated history, dropping the oldest
// where it grows too long.
func remember(history, rev string) string {
	if history == "" {
		return rev
	}
	list := append(strings.Split(history, ","), rev)
	for len(list) > 1 && len(strings.Join(list, ",")) > mostHistory {
		list = list[1:]
	}
	return strings.Join(list, ",")
}

func sizeAnnotations(s *appsv1.ReplicaSet, desired, most int32) bool {
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	changed := false
	for k, n := range map[string]int32{desiredAnnotation: desired, maxAnnotation: most} {
		if text := strconv.Itoa(int(n)); s.Annotations[k] != text {
			s.Annotations[k] = text
			changed = true
		}
	}
	return changed
}

func number(s *appsv1.ReplicaSet, annotation string) (int32, bool) {
	v, ok := s.Annotations[annotation]
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n > math.MaxInt32 {
		return 0, false
	}
	return int32(n), true
}
