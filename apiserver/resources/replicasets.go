package resources

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

var replicaSets = Resource[appsv1.ReplicaSet]{
	Group: "apps", Version: "v1", Kind: "ReplicaSet", Plural: "replicasets", Prefix: "replicasets",
	Short: []string{"rs"}, Categories: []string{"all"},
	List: listOf[appsv1.ReplicaSetList],
	Default: func(r *appsv1.ReplicaSet) {
		podrules.DefaultTemplate(&r.Spec.Template)
		defPtr(&r.Spec.Replicas, 1)
	},
	Main: templated(withNameWarning(mainPart(func(r *appsv1.ReplicaSet) *appsv1.ReplicaSetStatus { return &r.Status }, func(r, old *appsv1.ReplicaSet) field.ErrorList {
		var f check.Faults
		s, p := &r.Spec, field.NewPath("spec")
		check.AtLeastZeroPtr(&f, p.Child("replicas"), s.Replicas)
		check.AtLeastZero(&f, p.Child("minReadySeconds"), s.MinReadySeconds)
		validateWorkload(&f, s.Selector, &s.Template, "ReplicaSet", "deployment", p)
		if old != nil {
			f.Same(p.Child("selector"), s.Selector, old.Spec.Selector)
		}
		return f.List()
	})), func(r *appsv1.ReplicaSet) *corev1.PodTemplateSpec { return &r.Spec.Template }, "spec", "template"),
	Status: statusPart(func(r *appsv1.ReplicaSet) *appsv1.ReplicaSetSpec { return &r.Spec }, func(r, _ *appsv1.ReplicaSet) field.ErrorList {
		var f check.Faults
		p, s := field.NewPath("status"), &r.Status
		check.AtLeastZero(&f, p.Child("observedGeneration"), s.ObservedGeneration)
		check.AtLeastZeroPtr(&f, p.Child("terminatingReplicas"), s.TerminatingReplicas)
		counters(&f, p, "readyReplicas", s.Replicas, map[string]int32{
			"fullyLabeledReplicas": s.FullyLabeledReplicas, "readyReplicas": s.ReadyReplicas, "availableReplicas": s.AvailableReplicas,
		})
		return f.List()
	}),
	Subs: []Sub{scaleSub},
	Docs: map[string]string{
		"Desired":  appsv1.ReplicaSetSpec{}.SwaggerDoc()["replicas"],
		"Current":  appsv1.ReplicaSetStatus{}.SwaggerDoc()["replicas"],
		"Ready":    appsv1.ReplicaSetStatus{}.SwaggerDoc()["readyReplicas"],
		"Selector": appsv1.ReplicaSetSpec{}.SwaggerDoc()["selector"],
	},
	Columns: append([]Column[appsv1.ReplicaSet]{
		number("Desired", func(r *appsv1.ReplicaSet) int32 { return replicasOf(r.Spec.Replicas) }),
		number("Current", func(r *appsv1.ReplicaSet) int32 { return r.Status.Replicas }),
		number("Ready", func(r *appsv1.ReplicaSet) int32 { return r.Status.ReadyReplicas }),
		ageColumn[appsv1.ReplicaSet](),
	}, workloadColumns(func(r *appsv1.ReplicaSet) *corev1.PodSpec { return &r.Spec.Template.Spec },
		func(r *appsv1.ReplicaSet) string { return selectorText(r.Spec.Selector) })...),
}
