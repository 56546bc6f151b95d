package admission

import (
	"context"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/series"
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
	seen := newSecurityMetrics(cfg.Metrics)
	return Plugin{Name: "PodSecurity", Validate: func(ctx context.Context, a *Attributes) (func(), error) {
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
		want, faults := psapi.PolicyToEvaluate(ns.Labels, open) // a label that was not valid falls back to restricted
		if len(faults) > 0 {
			Annotate(ctx, "pod-security.kubernetes.io/error", fmt.Sprintf("Failed to parse policy: %v", faults.ToAggregate()))
		}
		if isPod {
			if old, ok := a.Old.(*corev1.Pod); ok && !securityChanged(old, a.Object.(*corev1.Pod)) {
				return nil, nil
			}
			if audit.From(ctx) != nil {
				Annotate(ctx, "pod-security.kubernetes.io/"+psapi.EnforcedPolicyAnnotationKey, want.Enforce.String())
			}
		}
		if want.FullyPrivileged() {
			if isPod {
				seen.evaluated(a, want.Enforce, "enforce", true)
			}
			return nil, nil
		}
		results := map[psapi.LevelVersion]policy.AggregateCheckResult{}
		check := func(lv psapi.LevelVersion) policy.AggregateCheckResult {
			r, known := results[lv]
			if !known {
				r = policy.AggregateCheckResults(evaluator.EvaluatePod(lv, meta, spec))
				results[lv] = r
			}
			return r
		}
		var refused error
		if isPod {
			r := check(want.Enforce)
			seen.evaluated(a, want.Enforce, "enforce", r.Allowed)
			if !r.Allowed {
				refused = forbid(a, fmt.Errorf("violates PodSecurity %q: %s", want.Enforce.String(), r.ForbiddenDetail()))
			}
		}
		if r := check(want.Audit); !r.Allowed {
			seen.evaluated(a, want.Audit, "audit", false)
			Annotate(ctx, "pod-security.kubernetes.io/"+psapi.AuditViolationsAnnotationKey, fmt.Sprintf("would violate PodSecurity %q: %s", want.Audit.String(), r.ForbiddenDetail()))
		}
		if refused != nil {
			return nil, refused
		}
		if r := check(want.Warn); !r.Allowed {
			seen.evaluated(a, want.Warn, "warn", false)
			if a.Request.Warn != nil {
				a.Request.Warn(fmt.Sprintf("would violate PodSecurity %q: %s", want.Warn.String(), r.ForbiddenDetail()))
			}
		}
		return nil, nil
	}}
}

// securityMetrics have upstream's names; nil counts nothing.
type securityMetrics struct {
	total *prometheus.CounterVec
	kept  series.Kept[evaluation, prometheus.Counter]
}

type evaluation struct {
	level         psapi.Level
	version, mode string
	allowed, pod  bool
	operation     Operation
	subresource   string
}

func newSecurityMetrics(reg prometheus.Registerer) *securityMetrics {
	if reg == nil {
		return nil
	}
	return &securityMetrics{total: series.Counter(reg, "pod_security_evaluations_total", "Pods and pod templates that were looked at, and what was found; of audit and warn only what would not be allowed.",
		"decision", "policy_level", "policy_version", "mode", "request_operation", "resource", "subresource")}
}

// newestPolicy is what newer versions of a policy are counted as: labels of namespaces must not become labels of series.
var newestPolicy = psapi.MajorMinorVersion(1, 36)

func (m *securityMetrics) evaluated(a *Attributes, p psapi.LevelVersion, mode string, allowed bool) {
	if m == nil {
		return
	}
	version := "latest"
	switch {
	case p.Version.Latest(), p.Level == psapi.LevelPrivileged:
	case newestPolicy.Older(p.Version):
		version = "future"
	default:
		version = p.Version.String()
	}
	k := evaluation{p.Level, version, mode, allowed, a.Row.GR() == grPods, a.Operation, a.Subresource}
	m.kept.Of(k, func(k evaluation) prometheus.Counter {
		decision, resource := "deny", "controller"
		if k.allowed {
			decision = "allow"
		}
		if k.pod {
			resource = "pod"
		}
		return m.total.WithLabelValues(decision, string(k.level), k.version, k.mode, strings.ToLower(string(k.operation)), resource, k.subresource)
	}).Inc()
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
