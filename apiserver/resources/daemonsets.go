package resources

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// A DaemonSet counts the changes of its template in an annotation: what is left
// of a field that older clients knew.
var daemonSets = Resource[appsv1.DaemonSet]{
	Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets", Prefix: "daemonsets",
	Short: []string{"ds"}, Categories: []string{"all"},
	List: listOf[appsv1.DaemonSetList], Disguised: []string{appsv1.DeprecatedTemplateGeneration},
	Default: func(d *appsv1.DaemonSet) {
		podrules.DefaultTemplate(&d.Spec.Template)
		u := &d.Spec.UpdateStrategy
		def(&u.Type, appsv1.RollingUpdateDaemonSetStrategyType)
		if u.Type == appsv1.RollingUpdateDaemonSetStrategyType {
			defPtr(&u.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
			defPtr(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
			defPtr(&u.RollingUpdate.MaxSurge, intstr.FromInt32(0))
		}
		defPtr(&d.Spec.RevisionHistoryLimit, 10)
		// The number is a field of the kind's first version, which upstream still reads and writes as an
		// annotation: who writes the object owns it, though Prepare says what it is.
		if _, ok := d.Annotations[appsv1.DeprecatedTemplateGeneration]; !ok {
			if d.Annotations == nil {
				d.Annotations = map[string]string{}
			}
			d.Annotations[appsv1.DeprecatedTemplateGeneration] = "0"
		}
	},
	Main: numbered(templated(mainPart(func(d *appsv1.DaemonSet) *appsv1.DaemonSetStatus { return &d.Status }, validateDaemonSet),
		func(d *appsv1.DaemonSet) *corev1.PodTemplateSpec { return &d.Spec.Template }, "spec", "template")),
	Status: ptr(numbered(*statusPart(func(d *appsv1.DaemonSet) *appsv1.DaemonSetSpec { return &d.Spec }, func(d, old *appsv1.DaemonSet) field.ErrorList {
		var f check.Faults
		p, s := field.NewPath("status"), &d.Status
		for name, n := range map[string]int32{
			"currentNumberScheduled": s.CurrentNumberScheduled, "numberMisscheduled": s.NumberMisscheduled,
			"desiredNumberScheduled": s.DesiredNumberScheduled, "numberReady": s.NumberReady, "updatedNumberScheduled": s.UpdatedNumberScheduled,
			"numberAvailable": s.NumberAvailable, "numberUnavailable": s.NumberUnavailable,
		} {
			check.AtLeastZero(&f, p.Child(name), n)
		}
		check.AtLeastZero(&f, p.Child("observedGeneration"), s.ObservedGeneration)
		collisions(&f, s.CollisionCount, old.Status.CollisionCount, p)
		return f.List()
	}))),
	Docs: map[string]string{
		"Desired":       appsv1.DaemonSetStatus{}.SwaggerDoc()["desiredNumberScheduled"],
		"Current":       appsv1.DaemonSetStatus{}.SwaggerDoc()["currentNumberScheduled"],
		"Ready":         appsv1.DaemonSetStatus{}.SwaggerDoc()["numberReady"],
		"Up-to-date":    appsv1.DaemonSetStatus{}.SwaggerDoc()["updatedNumberScheduled"],
		"Available":     appsv1.DaemonSetStatus{}.SwaggerDoc()["numberAvailable"],
		"Node Selector": corev1.PodSpec{}.SwaggerDoc()["nodeSelector"],
		"Selector":      appsv1.DaemonSetSpec{}.SwaggerDoc()["selector"],
	},
	Columns: append([]Column[appsv1.DaemonSet]{
		number("Desired", func(d *appsv1.DaemonSet) int32 { return d.Status.DesiredNumberScheduled }),
		number("Current", func(d *appsv1.DaemonSet) int32 { return d.Status.CurrentNumberScheduled }),
		number("Ready", func(d *appsv1.DaemonSet) int32 { return d.Status.NumberReady }),
		number("Up-to-date", func(d *appsv1.DaemonSet) int32 { return d.Status.UpdatedNumberScheduled }),
		number("Available", func(d *appsv1.DaemonSet) int32 { return d.Status.NumberAvailable }),
		text("Node Selector", func(d *appsv1.DaemonSet) string { return labelsText(d.Spec.Template.Spec.NodeSelector) }),
		ageColumn[appsv1.DaemonSet](),
	}, workloadColumns(func(d *appsv1.DaemonSet) *corev1.PodSpec { return &d.Spec.Template.Spec },
		func(d *appsv1.DaemonSet) string { return selectorText(d.Spec.Selector) })...),
}

// numbered makes a part keep the number of the template, which grows with each change of it.
func numbered(p Part[appsv1.DaemonSet]) Part[appsv1.DaemonSet] {
	prepare := p.Prepare
	p.Prepare = func(rq *Request, obj, old *appsv1.DaemonSet) {
		prepare(rq, obj, old)
		from := obj
		if old != nil {
			from = old
		}
		n, _ := strconv.ParseInt(from.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
		switch {
		case old == nil:
			n = max(n, 1)
		case !equality.Semantic.DeepEqual(obj.Spec.Template, old.Spec.Template):
			n++
		}
		if obj.Annotations == nil {
			obj.Annotations = map[string]string{}
		}
		obj.Annotations[appsv1.DeprecatedTemplateGeneration] = strconv.FormatInt(n, 10)
	}
	return p
}

func validateDaemonSet(d, old *appsv1.DaemonSet) field.ErrorList {
	var f check.Faults
	s, p := &d.Spec, field.NewPath("spec")
	if old != nil {
		f.Same(p.Child("selector"), s.Selector, old.Spec.Selector)
	}
	validateWorkload(&f, s.Selector, &s.Template, "DaemonSet", "daemonset", p)
	check.AtLeastZero(&f, p.Child("minReadySeconds"), s.MinReadySeconds)
	check.AtLeastZeroPtr(&f, p.Child("revisionHistoryLimit"), s.RevisionHistoryLimit)
	at := p.Child("updateStrategy")
	switch r := s.UpdateStrategy.RollingUpdate; s.UpdateStrategy.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
	case appsv1.RollingUpdateDaemonSetStrategyType:
		if r == nil {
			f.Required(at.Child("rollingUpdate"), "")
			break
		}
		at := at.Child("rollingUpdate")
		intOrPercent(&f, r.MaxUnavailable, true, at.Child("maxUnavailable"))
		intOrPercent(&f, r.MaxSurge, true, at.Child("maxSurge"))
		switch unavailable, surge := amount(r.MaxUnavailable), amount(r.MaxSurge); {
		case unavailable != 0 && surge != 0:
			f.Invalid(at.Child("maxSurge"), r.MaxSurge, "may not be set when maxUnavailable is non-zero")
		case unavailable == 0 && surge == 0:
			f.Required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0")
		}
	default:
		f.Add(field.ErrorList{field.NotSupported(at, check.Shown(s.UpdateStrategy), []appsv1.DaemonSetUpdateStrategyType{
			appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType,
		})})
	}
	return f.List()
}
