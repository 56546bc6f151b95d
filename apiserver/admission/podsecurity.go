package admission

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/keelson/keelson/apiserver/resources"
)

// podSecurity enforces the Pod Security Standard that a namespace's labels ask
// for. Workload templates are only warned about; their pods are what is refused.
//
// Source: Kubernetes documentation, "Pod Security Admission".
func podSecurity(cfg Config) Plugin {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		panic(fmt.Sprintf("admission: the library's own pod security checks are refused: %v", err))
	}
	open := psapi.Policy{
		Enforce: psapi.LevelVersion{Level: psapi.LevelPrivileged, Version: psapi.LatestVersion()},
		Audit:   psapi.LevelVersion{Level: psapi.LevelPrivileged, Version: psapi.LatestVersion()},
		Warn:    psapi.LevelVersion{Level: psapi.LevelPrivileged, Version: psapi.LatestVersion()},
	}
	check := func(lv psapi.LevelVersion, meta *metav1.ObjectMeta, spec *corev1.PodSpec) policy.AggregateCheckResult {
		return policy.AggregateCheckResults(evaluator.EvaluatePod(lv, meta, spec))
	}
	return Plugin{Name: "PodSecurity", Validate: func(_ context.Context, a *Attributes) (func(), error) {
		if a.Operation != Create && a.Operation != Update {
			return nil, nil
		}
		if ns, ok := a.Object.(*corev1.Namespace); ok && a.is(grNamespaces) {
			if _, errs := psapi.PolicyToEvaluate(ns.Labels, open); len(errs) > 0 {
				return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Namespace").GroupKind(), ns.Name, errs)
			}
			return nil, nil
		}
		meta, spec, isPod := template(a)
		if spec == nil {
			return nil, nil
		}
		ns, err := resources.Lookup[corev1.Namespace](cfg.Read, grNamespaces, "", a.Namespace)
		if err != nil || ns == nil {
			return nil, err
		}
		want, _ := psapi.PolicyToEvaluate(ns.Labels, open) // a label that was not valid falls back to restricted
		if want.FullyPrivileged() {
			return nil, nil
		}
		if isPod {
			if old, ok := a.Old.(*corev1.Pod); ok && !securityChanged(old, a.Object.(*corev1.Pod)) {
				return nil, nil
			}
			if r := check(want.Enforce, meta, spec); !r.Allowed {
				return nil, forbid(a, fmt.Errorf("violates PodSecurity %q: %s", want.Enforce.String(), r.ForbiddenDetail()))
			}
		}
		if r := check(want.Warn, meta, spec); !r.Allowed && a.Request.Warn != nil {
			a.Request.Warn(fmt.Sprintf("would violate PodSecurity %q: %s", want.Warn.String(), r.ForbiddenDetail()))
		}
		return nil, nil
	}}
}

// securityChanged leaves updates alone that cannot loosen anything: of a pod's
// spec only images, tolerations and the like can change.
func securityChanged(old, now *corev1.Pod) bool {
	return len(old.Spec.EphemeralContainers) != len(now.Spec.EphemeralContainers) || appArmor(old) != appArmor(now)
}

func appArmor(p *corev1.Pod) string {
	s := ""
	for _, c := range p.Spec.Containers {
		s += p.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name] + "\n"
	}
	return s
}

// template finds the pod, or pod template, in the object of the request.
func template(a *Attributes) (meta *metav1.ObjectMeta, spec *corev1.PodSpec, pod bool) {
	if a.Subresource != "" && a.Subresource != "ephemeralcontainers" {
		return nil, nil, false
	}
	switch o := a.Object.(type) {
	case *corev1.Pod:
		return &o.ObjectMeta, &o.Spec, true
	case *corev1.PodTemplate:
		return &o.Template.ObjectMeta, &o.Template.Spec, false
	case *corev1.ReplicationController:
		if o.Spec.Template == nil {
			return nil, nil, false
		}
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec, false
	case *appsv1.ReplicaSet:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec, false
	case *appsv1.Deployment:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec, false
	case *appsv1.DaemonSet:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec, false
	case *appsv1.StatefulSet:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec, false
	case *batchv1.Job:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec, false
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template.ObjectMeta, &o.Spec.JobTemplate.Spec.Template.Spec, false
	}
	return nil, nil, false
}
