package resources

import (
	"encoding/json"
	"maps"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// What autoscaling/v1 has no field for travels in these annotations as JSON, so that a client of v1 changes nothing it
// cannot see: metrics in v1's own form, behavior with the names that its fields have in Go.
const (
	hpaMetricsAnnotation    = "autoscaling.alpha.kubernetes.io/metrics"
	hpaBehaviorAnnotation   = "autoscaling.alpha.kubernetes.io/behavior"
	hpaCurrentAnnotation    = "autoscaling.alpha.kubernetes.io/current-metrics"
	hpaConditionsAnnotation = "autoscaling.alpha.kubernetes.io/conditions"
)

// horizontalPodAutoscalersV1 is the view of autoscaling/v2 as v1: one CPU target.
func horizontalPodAutoscalersV1(v2 *Row) Resource[autoscalingv1.HorizontalPodAutoscaler] {
	type hpa = autoscalingv1.HorizontalPodAutoscaler
	both := func(f func(obj, old *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList) func(*Request, *hpa, *hpa) field.ErrorList {
		return func(_ *Request, obj, old *hpa) field.ErrorList {
			var was *autoscalingv2.HorizontalPodAutoscaler
			if old != nil {
				was = hpaFromV1(old)
			}
			now := hpaFromV1(obj)
			defaultHPA(now)
			return f(now, was)
		}
	}
	return Resource[hpa]{
		Group: "autoscaling", Version: "v1", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers",
		Short: []string{"hpa"}, Categories: []string{"all"}, Prefix: v2.Prefix, NoGeneration: true,
		List: func() runtime.Object { return &autoscalingv1.HorizontalPodAutoscalerList{} },
		Default: func(h *hpa) {
			defPtr(&h.Spec.MinReplicas, 1)
			if _, others := h.Annotations[hpaMetricsAnnotation]; !others {
				defPtr(&h.Spec.TargetCPUUtilizationPercentage, defaultCPUPercent)
			}
		},
		Main: Part[hpa]{
			Prepare: func(_ *Request, obj, old *hpa) {
				for _, a := range []string{hpaCurrentAnnotation, hpaConditionsAnnotation} {
					delete(obj.Annotations, a)
				}
				obj.Status = autoscalingv1.HorizontalPodAutoscalerStatus{}
				if old == nil {
					return
				}
				obj.Status = old.Status
				for _, a := range []string{hpaCurrentAnnotation, hpaConditionsAnnotation} {
					if v, ok := old.Annotations[a]; ok {
						if obj.Annotations == nil {
							obj.Annotations = map[string]string{}
						}
						obj.Annotations[a] = v
					}
				}
			},
			Validate: both(validateHPA),
		},
		Status: &Part[hpa]{
			Prepare:  keepSpec(func(h *hpa) *autoscalingv1.HorizontalPodAutoscalerSpec { return &h.Spec }),
			Validate: both(validateHPAStatus),
		},
		Stored:     v2,
		ToStored:   func(h *hpa) Object { return hpaFromV1(h) },
		FromStored: func(o Object) *hpa { return hpaToV1(o.(*autoscalingv2.HorizontalPodAutoscaler)) },
		Docs:       autoscalerDocs,
		Columns:    viewColumns(hpaColumns, hpaFromV1),
	}
}

func isCPUUtilization(m autoscalingv2.MetricSpec) bool {
	return m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil &&
		m.Resource.Name == corev1.ResourceCPU && m.Resource.Target.AverageUtilization != nil
}

func hpaFromV1(v1 *autoscalingv1.HorizontalPodAutoscaler) *autoscalingv2.HorizontalPodAutoscaler {
	v1 = v1.DeepCopy()
	h := &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta: v1.TypeMeta, ObjectMeta: v1.ObjectMeta,
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(v1.Spec.ScaleTargetRef),
			MinReplicas:    v1.Spec.MinReplicas, MaxReplicas: v1.Spec.MaxReplicas,
		},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{
			ObservedGeneration: v1.Status.ObservedGeneration, LastScaleTime: v1.Status.LastScaleTime,
			CurrentReplicas: v1.Status.CurrentReplicas, DesiredReplicas: v1.Status.DesiredReplicas,
		},
	}
	if h.Kind != "" {
		h.APIVersion = "autoscaling/v2"
	}
	take := func(key string, into any) {
		if s, ok := h.Annotations[key]; ok {
			// A value that does not parse is somebody's own annotation and says nothing.
			_ = json.Unmarshal([]byte(s), into)
			delete(h.Annotations, key)
		}
	}
	var metrics []autoscalingv1.MetricSpec
	take(hpaMetricsAnnotation, &metrics)
	h.Spec.Metrics = each(metrics, metricFromV1)
	take(hpaBehaviorAnnotation, &h.Spec.Behavior)
	take(hpaConditionsAnnotation, &h.Status.Conditions)
	var current []autoscalingv1.MetricStatus
	take(hpaCurrentAnnotation, &current)
	h.Status.CurrentMetrics = each(current, metricStatusFromV1)
	if len(h.Annotations) == 0 {
		h.Annotations = nil
	}
	if u := v1.Spec.TargetCPUUtilizationPercentage; u != nil {
		h.Spec.Metrics = append(h.Spec.Metrics, cpuUtilization(*u))
	}
	if u := v1.Status.CurrentCPUUtilizationPercentage; u != nil && len(h.Status.CurrentMetrics) == 0 {
		h.Status.CurrentMetrics = []autoscalingv2.MetricStatus{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricStatus{
				Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: u},
			},
		}}
	}
	return h
}

func hpaToV1(h *autoscalingv2.HorizontalPodAutoscaler) *autoscalingv1.HorizontalPodAutoscaler {
	h = h.DeepCopy()
	v1 := &autoscalingv1.HorizontalPodAutoscaler{
		TypeMeta: h.TypeMeta, ObjectMeta: h.ObjectMeta,
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(h.Spec.ScaleTargetRef),
			MinReplicas:    h.Spec.MinReplicas, MaxReplicas: h.Spec.MaxReplicas,
		},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{
			ObservedGeneration: h.Status.ObservedGeneration, LastScaleTime: h.Status.LastScaleTime,
			CurrentReplicas: h.Status.CurrentReplicas, DesiredReplicas: h.Status.DesiredReplicas,
		},
	}
	if v1.Kind != "" {
		v1.APIVersion = "autoscaling/v1"
	}
	var others []autoscalingv2.MetricSpec
	for _, m := range h.Spec.Metrics {
		if isCPUUtilization(m) && v1.Spec.TargetCPUUtilizationPercentage == nil {
			v1.Spec.TargetCPUUtilizationPercentage = m.Resource.Target.AverageUtilization
		} else {
			others = append(others, m)
		}
	}
	for _, m := range h.Status.CurrentMetrics {
		if m.Resource != nil && m.Resource.Name == corev1.ResourceCPU && m.Resource.Current.AverageUtilization != nil {
			v1.Status.CurrentCPUUtilizationPercentage = m.Resource.Current.AverageUtilization
		}
	}
	put := func(key string, set bool, v any) {
		if !set {
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			return // API types always marshal
		}
		v1.Annotations = maps.Clone(v1.Annotations)
		if v1.Annotations == nil {
			v1.Annotations = map[string]string{}
		}
		v1.Annotations[key] = string(b)
	}
	put(hpaMetricsAnnotation, len(others) > 0, each(others, metricToV1))
	put(hpaBehaviorAnnotation, h.Spec.Behavior != nil, check.Shown(h.Spec.Behavior))
	put(hpaConditionsAnnotation, len(h.Status.Conditions) > 0, h.Status.Conditions)
	put(hpaCurrentAnnotation, len(h.Status.CurrentMetrics) > 0, each(h.Status.CurrentMetrics, metricStatusToV1))
	return v1
}
