package resources

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

type hpa2 = autoscalingv2.HorizontalPodAutoscaler

var horizontalPodAutoscalers = Resource[hpa2]{
	Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers",
	Short: []string{"hpa"}, Categories: []string{"all"}, Prefix: "horizontalpodautoscalers", NoGeneration: true,
	List:    func() runtime.Object { return &autoscalingv2.HorizontalPodAutoscalerList{} },
	Default: defaultHPA,
	Main: Part[hpa2]{
		Prepare:  keepStatus(func(h *hpa2) *autoscalingv2.HorizontalPodAutoscalerStatus { return &h.Status }),
		Validate: func(_ *Request, obj, old *hpa2) field.ErrorList { return validateHPA(obj, old) },
	},
	Status: &Part[hpa2]{
		Prepare:  keepSpec(func(h *hpa2) *autoscalingv2.HorizontalPodAutoscalerSpec { return &h.Spec }),
		Validate: func(_ *Request, obj, old *hpa2) field.ErrorList { return validateHPAStatus(obj, old) },
	},
	Docs:    autoscalerDocs,
	Columns: hpaColumns,
}

func cpuUtilization(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{
		Type: autoscalingv2.ResourceMetricSourceType,
		Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
		},
	}
}

const defaultCPUPercent int32 = 80

// defaultHPA aims at 80 % CPU, scales up by 4 pods or 100 % and down by 100 % in 15 s.
func defaultHPA(h *hpa2) {
	defPtr(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []autoscalingv2.MetricSpec{cpuUtilization(defaultCPUPercent)}
	}
	b := h.Spec.Behavior
	if b == nil {
		return
	}
	rules := func(p **autoscalingv2.HPAScalingRules, policies ...autoscalingv2.HPAScalingPolicy) {
		defPtr(p, autoscalingv2.HPAScalingRules{})
		defPtr(&(*p).SelectPolicy, autoscalingv2.MaxChangePolicySelect)
		if (*p).Policies == nil {
			(*p).Policies = policies
		}
	}
	percent := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}
	rules(&b.ScaleUp, autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}, percent)
	defPtr(&b.ScaleUp.StabilizationWindowSeconds, 0)
	rules(&b.ScaleDown, percent)
}

func validateHPA(h, old *hpa2) field.ErrorList {
	var f check.Faults
	s, p := &h.Spec, field.NewPath("spec")
	if s.MinReplicas != nil && *s.MinReplicas < 1 {
		f.Invalid(p.Child("minReplicas"), *s.MinReplicas, "must be greater than or equal to 1")
	}
	switch {
	case s.MaxReplicas == 0:
		f.Required(p.Child("maxReplicas"), "must be set and greater than 0")
	case s.MaxReplicas < 0:
		f.Invalid(p.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to 1")
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		f.Invalid(p.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`")
	}
	f.Add(validateScaleTarget(s.ScaleTargetRef, p.Child("scaleTargetRef")))
	// Only a replication controller has no group; references stored under older rules stay.
	if gv, err := schema.ParseGroupVersion(s.ScaleTargetRef.APIVersion); err == nil && gv.Group == "" &&
		s.ScaleTargetRef.Kind != "ReplicationController" && (old == nil || old.Spec.ScaleTargetRef != s.ScaleTargetRef) {
		f.Invalid(p.Child("scaleTargetRef", "apiVersion"), s.ScaleTargetRef.APIVersion, "apiVersion must specify API group")
	}
	scalable := false // to zero: something outside the pods says when to start again
	for i, m := range s.Metrics {
		scalable = scalable || m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
		f.Add(validateMetric(m, p.Child("metrics").Index(i)))
	}
	if s.MinReplicas != nil && *s.MinReplicas == 0 && !scalable {
		f.Forbidden(p.Child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas")
	}
	if b := s.Behavior; b != nil {
		f.Add(validateScalingRules(b.ScaleUp, p.Child("behavior", "scaleUp")))
		f.Add(validateScalingRules(b.ScaleDown, p.Child("behavior", "scaleDown")))
	}
	return f.List()
}

func validateHPAStatus(h, _ *hpa2) field.ErrorList {
	var f check.Faults
	p := field.NewPath("status")
	check.AtLeastZero(&f, p.Child("currentReplicas"), h.Status.CurrentReplicas)
	check.AtLeastZero(&f, p.Child("desiredReplicas"), h.Status.DesiredReplicas)
	return f.List()
}

func validateScaleTarget(ref autoscalingv2.CrossVersionObjectReference, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Segment(p.Child("kind"), ref.Kind)
	f.Segment(p.Child("name"), ref.Name)
	if _, err := schema.ParseGroupVersion(ref.APIVersion); err != nil {
		f.Invalid(p.Child("apiVersion"), ref.APIVersion, err.Error())
	}
	return f.List()
}

func validateScalingRules(r *autoscalingv2.HPAScalingRules, p *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var f check.Faults
	if w := r.StabilizationWindowSeconds; w != nil {
		at := p.Child("stabilizationWindowSeconds")
		if *w < 0 {
			f.Invalid(at, *w, "must be greater than or equal to zero")
		} else if *w > 3600 {
			f.Invalid(at, *w, "must be less than or equal to 3600")
		}
	}
	if r.SelectPolicy != nil {
		check.Among(&f, p.Child("selectPolicy"), *r.SelectPolicy,
			autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect)
	}
	if len(r.Policies) == 0 {
		f.Required(p.Child("policies"), "must specify at least one Policy")
	}
	for i, policy := range r.Policies {
		at := p.Child("policies").Index(i)
		check.Among(&f, at.Child("type"), policy.Type, autoscalingv2.PodsScalingPolicy, autoscalingv2.PercentScalingPolicy)
		if policy.Value <= 0 {
			f.Invalid(at.Child("value"), policy.Value, "must be greater than zero")
		}
		if policy.PeriodSeconds <= 0 {
			f.Invalid(at.Child("periodSeconds"), policy.PeriodSeconds, "must be greater than zero")
		} else if policy.PeriodSeconds > 1800 {
			f.Invalid(at.Child("periodSeconds"), policy.PeriodSeconds, "must be less than or equal to 1800")
		}
	}
	if r.Tolerance != nil && r.Tolerance.Sign() < 0 {
		f.Invalid(p.Child("tolerance"), r.Tolerance.String(), "must be greater than or equal to 0")
	}
	return f.List()
}

// validateMetric: type names exactly one of the sources, and that one is set.
func validateMetric(m autoscalingv2.MetricSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	want := map[autoscalingv2.MetricSourceType]string{
		autoscalingv2.ObjectMetricSourceType: "object", autoscalingv2.PodsMetricSourceType: "pods",
		autoscalingv2.ResourceMetricSourceType: "resource", autoscalingv2.ExternalMetricSourceType: "external",
		autoscalingv2.ContainerResourceMetricSourceType: "containerResource",
	}[m.Type]
	if m.Type == "" {
		f.Required(p.Child("type"), "must specify a metric source type")
	}
	unknown := func() { // upstream says so before and after what it says of the sources
		check.Among(&f, p.Child("type"), m.Type, autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType,
			autoscalingv2.ResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType, autoscalingv2.ContainerResourceMetricSourceType)
	}
	if want == "" {
		unknown()
	}
	// The first source that is set is looked into, expected or not; only among several are
	// the unexpected ones too many.
	found := false
	var names []string
	source := func(name string, set bool, rule func(*field.Path) field.ErrorList) {
		if !set {
			return
		}
		found = found || name == want
		names = append(names, name)
		if len(names) == 1 {
			f.Add(rule(p.Child(name)))
		}
	}
	source("object", m.Object != nil, func(p *field.Path) field.ErrorList {
		var f check.Faults
		f.Add(validateScaleTarget(m.Object.DescribedObject, p.Child("describedObject")))
		f.Add(validateMetricName(m.Object.Metric, p.Child("metric")))
		f.Add(validateTarget(m.Object.Target, p.Child("target"), "averageValue", "must set either a target value or averageValue",
			m.Object.Target.Value != nil || m.Object.Target.AverageValue != nil))
		return f.List()
	})
	source("external", m.External != nil, func(p *field.Path) field.ErrorList {
		t := m.External.Target
		var f check.Faults
		f.Add(validateMetricName(m.External.Metric, p.Child("metric")))
		f.Add(validateTarget(t, p.Child("target"),
			"averageValue", "must set either a target value for metric or a per-pod target", t.Value != nil || t.AverageValue != nil))
		if t.Value != nil && t.AverageValue != nil {
			f.Forbidden(p.Child("target", "value"), "may not set both a target value for metric and a per-pod target")
		}
		return f.List()
	})
	source("pods", m.Pods != nil, func(p *field.Path) field.ErrorList {
		return append(validateMetricName(m.Pods.Metric, p.Child("metric")), validateTarget(m.Pods.Target, p.Child("target"),
			"averageValue", "must specify a positive target averageValue", m.Pods.Target.AverageValue != nil)...)
	})
	named := func(name corev1.ResourceName, p *field.Path) field.ErrorList {
		if name == "" {
			return field.ErrorList{field.Required(p.Child("name"), "must specify a resource name")}
		}
		return nil
	}
	perPod := func(t autoscalingv2.MetricTarget, p *field.Path) field.ErrorList {
		var f check.Faults
		f.Add(validateTarget(t, p.Child("target"), "averageUtilization",
			"must set either a target raw value or a target utilization", t.AverageUtilization != nil || t.AverageValue != nil))
		if t.AverageUtilization != nil && t.AverageValue != nil {
			f.Forbidden(p.Child("target", "averageValue"), "may not set both a target raw value and a target utilization")
		}
		return f.List()
	}
	source("resource", m.Resource != nil, func(p *field.Path) field.ErrorList {
		return append(named(m.Resource.Name, p), perPod(m.Resource.Target, p)...)
	})
	source("containerResource", m.ContainerResource != nil, func(p *field.Path) field.ErrorList {
		var f check.Faults
		f.Add(named(m.ContainerResource.Name, p))
		if n := m.ContainerResource.Name; n != "" {
			f.Add(podrules.ValidateContainerResourceName(n, p.Child("name")))
		}
		if c := m.ContainerResource.Container; c == "" {
			f.Required(p.Child("container"), "must specify a container")
		} else {
			f.Label(p.Child("container"), c)
		}
		f.Add(perPod(m.ContainerResource.Target, p))
		return f.List()
	})
	switch {
	case want == "":
		unknown()
	case !found:
		f.Required(p.Child(want), "must populate information for the given metric source")
	}
	if len(names) > 1 {
		slices.Sort(names)
		for _, name := range names {
			if name != want {
				f.Forbidden(p.Child(name), "must populate the given metric source only")
			}
		}
	}
	return f.List()
}

func validateMetricName(id autoscalingv2.MetricIdentifier, p *field.Path) field.ErrorList {
	var f check.Faults
	if id.Name == "" {
		f.Required(p.Child("name"), "must specify a metric name")
	} else {
		f.Segment(p.Child("name"), id.Name)
	}
	return f.List()
}

func validateTarget(t autoscalingv2.MetricTarget, p *field.Path, missing, why string, set bool) field.ErrorList {
	var f check.Faults
	switch t.Type {
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	default:
		if t.Type == "" {
			f.Required(p.Child("type"), "must specify a metric target type")
		}
		f.Invalid(p.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue")
	}
	if t.Value != nil && t.Value.Sign() != 1 {
		f.Invalid(p.Child("value"), t.Value, "must be positive")
	}
	if t.AverageValue != nil && t.AverageValue.Sign() != 1 {
		f.Invalid(p.Child("averageValue"), t.AverageValue, "must be positive")
	}
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		f.Invalid(p.Child("averageUtilization"), *t.AverageUtilization, "must be greater than 0")
	}
	if !set {
		f.Required(p.Child(missing), why)
	}
	return f.List()
}

var hpaColumns = []Column[hpa2]{
	text("Reference", func(h *hpa2) string { return h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name }),
	text("Targets", hpaTargets),
	text("MinPods", func(h *hpa2) string {
		if h.Spec.MinReplicas == nil {
			return "<unset>"
		}
		return strconv.Itoa(int(*h.Spec.MinReplicas))
	}),
	counted("MaxPods", func(h *hpa2) int32 { return h.Spec.MaxReplicas }),
	counted("Replicas", func(h *hpa2) int32 { return h.Status.CurrentReplicas }),
	ageColumn[hpa2](),
}

// hpaTargets prints "cpu: 12%/80%" for up to two metrics, then "+ n more...".
func hpaTargets(h *hpa2) string {
	if len(h.Spec.Metrics) == 0 {
		return "<none>"
	}
	var out []string
	for i, m := range h.Spec.Metrics {
		now := func(pick func(autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus, average, utilization bool) string {
			if i < len(h.Status.CurrentMetrics) {
				if v := pick(h.Status.CurrentMetrics[i]); v != nil {
					switch {
					case utilization && v.AverageUtilization != nil:
						return fmt.Sprintf("%d%%", *v.AverageUtilization)
					case utilization:
					case average && v.AverageValue != nil:
						return v.AverageValue.String()
					case !average && v.Value != nil:
						return v.Value.String()
					}
				}
			}
			return "<unknown>"
		}
		line := func(prefix string, t autoscalingv2.MetricTarget, pick func(autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus) {
			switch {
			case t.AverageUtilization != nil:
				out = append(out, fmt.Sprintf("%s%s/%d%%", prefix, now(pick, false, true), *t.AverageUtilization))
			case t.AverageValue != nil:
				suffix := ""
				if m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType {
					suffix = " (avg)"
				}
				out = append(out, fmt.Sprintf("%s%s/%s%s", prefix, now(pick, true, false), t.AverageValue, suffix))
			case t.Value != nil:
				out = append(out, fmt.Sprintf("%s%s/%s", prefix, now(pick, false, false), t.Value))
			default:
				out = append(out, prefix+"<unknown>/<auto>")
			}
		}
		switch {
		case m.Object != nil:
			line("", m.Object.Target, func(s autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
				if s.Object == nil {
					return nil
				}
				return &s.Object.Current
			})
		case m.Pods != nil:
			line("", m.Pods.Target, func(s autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
				if s.Pods == nil {
					return nil
				}
				return &s.Pods.Current
			})
		case m.External != nil:
			line("", m.External.Target, func(s autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
				if s.External == nil {
					return nil
				}
				return &s.External.Current
			})
		case m.Resource != nil:
			line(string(m.Resource.Name)+": ", m.Resource.Target, func(s autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
				if s.Resource == nil {
					return nil
				}
				return &s.Resource.Current
			})
		case m.ContainerResource != nil:
			line(string(m.ContainerResource.Name)+": ", m.ContainerResource.Target, func(s autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
				if s.ContainerResource == nil {
					return nil
				}
				return &s.ContainerResource.Current
			})
		default:
			out = append(out, "<unknown type>")
		}
	}
	if len(out) > 2 {
		return fmt.Sprintf("%s + %d more...", strings.Join(out[:2], ", "), len(out)-2)
	}
	return strings.Join(out, ", ")
}

var autoscalerDocs = map[string]string{
	"Reference": autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc()["scaleTargetRef"],
	"Targets":   autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc()["metrics"],
	"MinPods":   autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc()["minReplicas"],
	"MaxPods":   autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc()["maxReplicas"],
	"Replicas":  autoscalingv2.HorizontalPodAutoscalerStatus{}.SwaggerDoc()["currentReplicas"],
}
