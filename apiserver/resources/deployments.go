package resources

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

var deployments = Resource[appsv1.Deployment]{
	Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments", Prefix: "deployments",
	Short: []string{"deploy"}, Categories: []string{"all"},
	List: listOf[appsv1.DeploymentList], Disguised: []string{appsv1.DeprecatedRollbackTo},
	Default: func(d *appsv1.Deployment) {
		podrules.DefaultTemplate(&d.Spec.Template)
		defPtr(&d.Spec.Replicas, 1)
		s := &d.Spec.Strategy
		def(&s.Type, appsv1.RollingUpdateDeploymentStrategyType)
		if s.Type == appsv1.RollingUpdateDeploymentStrategyType {
			defPtr(&s.RollingUpdate, appsv1.RollingUpdateDeployment{})
			defPtr(&s.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
			defPtr(&s.RollingUpdate.MaxSurge, intstr.FromString("25%"))
		}
		defPtr(&d.Spec.RevisionHistoryLimit, 10)
		defPtr(&d.Spec.ProgressDeadlineSeconds, 600)
	},
	Main: templated(withNameWarning(deploymentMain),
		func(d *appsv1.Deployment) *corev1.PodTemplateSpec { return &d.Spec.Template }, "spec", "template"),
	Status: keepLabels(statusPart(func(d *appsv1.Deployment) *appsv1.DeploymentSpec { return &d.Spec }, func(d, old *appsv1.Deployment) field.ErrorList {
		var f check.Faults
		p, s := field.NewPath("status"), &d.Status
		check.AtLeastZero(&f, p.Child("observedGeneration"), s.ObservedGeneration)
		check.AtLeastZeroPtr(&f, p.Child("terminatingReplicas"), s.TerminatingReplicas)
		check.AtLeastZero(&f, p.Child("unavailableReplicas"), s.UnavailableReplicas)
		counters(&f, p, "readyReplicas", s.Replicas, map[string]int32{
			"updatedReplicas": s.UpdatedReplicas, "readyReplicas": s.ReadyReplicas, "availableReplicas": s.AvailableReplicas,
		})
		collisions(&f, s.CollisionCount, old.Status.CollisionCount, p)
		return f.List()
	})),
	Subs: []Sub{scaleSub},
	Docs: map[string]string{
		"Ready":      "How many of the pods are ready.",
		"Up-to-date": appsv1.DeploymentStatus{}.SwaggerDoc()["updatedReplicas"],
		"Available":  appsv1.DeploymentStatus{}.SwaggerDoc()["availableReplicas"],
		"Selector":   appsv1.DeploymentSpec{}.SwaggerDoc()["selector"],
	},
	Columns: append([]Column[appsv1.Deployment]{
		text("Ready", func(d *appsv1.Deployment) string {
			return fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, replicasOf(d.Spec.Replicas))
		}),
		counted("Up-to-date", func(d *appsv1.Deployment) int32 { return d.Status.UpdatedReplicas }),
		counted("Available", func(d *appsv1.Deployment) int32 { return d.Status.AvailableReplicas }),
		ageColumn[appsv1.Deployment](),
	}, workloadColumns(func(d *appsv1.Deployment) *corev1.PodSpec { return &d.Spec.Template.Spec },
		func(d *appsv1.Deployment) string { return selectorText(d.Spec.Selector) })...),
}

// deploymentMain: annotations count as desired state too.
var deploymentMain = Part[appsv1.Deployment]{
	Prepare: func(_ *Request, obj, old *appsv1.Deployment) {
		obj.Status = appsv1.DeploymentStatus{}
		if old == nil {
			return
		}
		obj.Status = old.Status
		if !equality.Semantic.DeepEqual(obj.Annotations, old.Annotations) {
			obj.Generation++
		}
	},
	Validate: withoutRequest(validateDeployment),
	Reset:    []string{"status"},
}

func validateDeployment(d, old *appsv1.Deployment) field.ErrorList {
	var f check.Faults
	s, p := &d.Spec, field.NewPath("spec")
	check.AtLeastZeroPtr(&f, p.Child("replicas"), s.Replicas)
	validateWorkload(&f, s.Selector, &s.Template, "ReplicaSet", "deployment", p)
	at := p.Child("strategy")
	switch r := s.Strategy.RollingUpdate; s.Strategy.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if r != nil {
			f.Forbidden(at.Child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'")
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		if r == nil {
			f.Required(at.Child("rollingUpdate"), "this should be defaulted and never be nil")
			break
		}
		at := at.Child("rollingUpdate")
		intOrPercent(&f, r.MaxUnavailable, true, at.Child("maxUnavailable"))
		intOrPercent(&f, r.MaxSurge, false, at.Child("maxSurge"))
		if amount(r.MaxUnavailable) == 0 && amount(r.MaxSurge) == 0 {
			f.Invalid(at.Child("maxUnavailable"), r.MaxUnavailable, "may not be 0 when `maxSurge` is 0")
		}
	default:
		f.Add(field.ErrorList{field.NotSupported(at, check.Shown(s.Strategy), []appsv1.DeploymentStrategyType{
			appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType,
		})})
	}
	check.AtLeastZero(&f, p.Child("minReadySeconds"), s.MinReadySeconds)
	check.AtLeastZeroPtr(&f, p.Child("revisionHistoryLimit"), s.RevisionHistoryLimit)
	if deadline := s.ProgressDeadlineSeconds; deadline != nil {
		check.AtLeastZero(&f, p.Child("progressDeadlineSeconds"), *deadline)
		if *deadline <= s.MinReadySeconds {
			f.Invalid(p.Child("progressDeadlineSeconds"), *deadline, "must be greater than minReadySeconds")
		}
	}
	if old != nil {
		f.Same(p.Child("selector"), s.Selector, old.Spec.Selector)
	}
	return f.List()
}
