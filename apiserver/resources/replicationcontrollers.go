package resources

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

var replicationControllers = Resource[corev1.ReplicationController]{
	Group: "", Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers", Prefix: "controllers",
	Short: []string{"rc"}, Categories: []string{"all"}, OrphanByDefault: true,
	List: listOf[corev1.ReplicationControllerList],
	Default: func(r *corev1.ReplicationController) {
		// Selector and labels follow the template where they are not given.
		if t := r.Spec.Template; t != nil {
			podrules.DefaultTemplate(t)
			if len(r.Spec.Selector) == 0 && t.Labels != nil {
				r.Spec.Selector = maps.Clone(t.Labels)
			}
			if len(r.Labels) == 0 && t.Labels != nil {
				r.Labels = maps.Clone(t.Labels)
			}
		}
		defPtr(&r.Spec.Replicas, 1)
	},
	Main: templated(withNameWarning(mainPart(func(r *corev1.ReplicationController) *corev1.ReplicationControllerStatus { return &r.Status }, validateReplicationController)),
		func(r *corev1.ReplicationController) *corev1.PodTemplateSpec { return r.Spec.Template }, "spec", "template"),
	Status: statusPart(func(r *corev1.ReplicationController) *corev1.ReplicationControllerSpec { return &r.Spec }, func(r, _ *corev1.ReplicationController) field.ErrorList {
		var f check.Faults
		p, s := field.NewPath("status"), &r.Status
		check.AtLeastZero(&f, p.Child("observedGeneration"), s.ObservedGeneration)
		counters(&f, p, "readyReplicas", s.Replicas, map[string]int32{
			"fullyLabeledReplicas": s.FullyLabeledReplicas, "readyReplicas": s.ReadyReplicas, "availableReplicas": s.AvailableReplicas,
		})
		return f.List()
	}),
	Subs: []Sub{scaleSub},
	Fields: func(r *corev1.ReplicationController) fields.Set {
		return fields.Set{"status.replicas": decimal(r.Status.Replicas)}
	},
	FieldNames: []string{"status.replicas"},
	Docs: map[string]string{
		"Desired":  corev1.ReplicationControllerSpec{}.SwaggerDoc()["replicas"],
		"Current":  corev1.ReplicationControllerStatus{}.SwaggerDoc()["replicas"],
		"Ready":    corev1.ReplicationControllerStatus{}.SwaggerDoc()["readyReplicas"],
		"Selector": corev1.ReplicationControllerSpec{}.SwaggerDoc()["selector"],
	},
	Columns: append([]Column[corev1.ReplicationController]{
		number("Desired", func(r *corev1.ReplicationController) int32 { return replicasOf(r.Spec.Replicas) }),
		number("Current", func(r *corev1.ReplicationController) int32 { return r.Status.Replicas }),
		number("Ready", func(r *corev1.ReplicationController) int32 { return r.Status.ReadyReplicas }),
		ageColumn[corev1.ReplicationController](),
	}, workloadColumns(func(r *corev1.ReplicationController) *corev1.PodSpec {
		if r.Spec.Template == nil {
			return &corev1.PodSpec{}
		}
		return &r.Spec.Template.Spec
	}, func(r *corev1.ReplicationController) string { return labelsText(r.Spec.Selector) })...),
}

func validateReplicationController(r, _ *corev1.ReplicationController) field.ErrorList {
	var f check.Faults
	s, p := &r.Spec, field.NewPath("spec")
	check.AtLeastZero(&f, p.Child("minReadySeconds"), s.MinReadySeconds)
	if len(s.Selector) == 0 {
		f.Required(p.Child("selector"), "")
	}
	if s.Replicas == nil {
		f.Required(p.Child("replicas"), "")
	}
	check.AtLeastZeroPtr(&f, p.Child("replicas"), s.Replicas)
	at := p.Child("template")
	if s.Template == nil {
		f.Required(at, "")
		return f.List()
	}
	if len(s.Selector) > 0 && !labels.SelectorFromSet(s.Selector).Matches(labels.Set(s.Template.Labels)) {
		f.Invalid(at.Child("metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`")
	}
	f.Add(podrules.ValidateTemplate(s.Template, at))
	runsForever(&f, s.Template, "ReplicationController", at)
	return f.List()
}
