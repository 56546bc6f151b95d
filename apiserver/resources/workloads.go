package resources

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// What Deployments, ReplicaSets, DaemonSets, StatefulSets and
// ReplicationControllers have in common.

// scaleSub is the scale subresource of everything with replicas.
var scaleSub = Sub{
	Name: "scale", Verbs: []string{"get", "patch", "update"},
	Kind: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"},
}

// dnsLabelWanted is said of names that the names of pods are made from.
const dnsLabelWanted = "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v"

// templated adds to a main part what a pod template brings: fields behind closed
// gates are dropped, and a new or changed template is warned about. at is the template's place.
func templated[T any](p Part[T], template func(*T) *corev1.PodTemplateSpec, at ...string) Part[T] {
	prepare, warnings := p.Prepare, p.Warnings
	p.Prepare = func(rq *Request, obj, old *T) {
		if prepare != nil {
			prepare(rq, obj, old)
		}
		t, was := template(obj), (*corev1.PodSpec)(nil)
		if t == nil {
			return
		}
		if old != nil {
			if o := template(old); o != nil {
				was = &o.Spec
			}
		}
		podrules.DropClosed(&t.Spec, was)
	}
	p.Warnings = func(rq *Request, obj, old *T) []string {
		var out []string
		if warnings != nil {
			out = warnings(rq, obj, old)
		}
		t := template(obj)
		if t == nil || old != nil && any(obj).(Object).GetGeneration() == any(old).(Object).GetGeneration() {
			return out
		}
		return append(out, podrules.Warnings(&t.ObjectMeta, &t.Spec, field.NewPath(at[0], at[1:]...))...)
	}
	return p
}

// withNameWarning adds a warning about the name of a new workload whose pods are named after it.
func withNameWarning[T any](p Part[T]) Part[T] {
	p.Warnings = func(_ *Request, obj, old *T) []string {
		if msgs := validation.IsDNS1123Label(any(obj).(Object).GetName()); old == nil && len(msgs) > 0 {
			return []string{fmt.Sprintf(dnsLabelWanted, msgs)}
		}
		return nil
	}
	return p
}

// validateWorkload checks selector and template together: the template's pods
// run for ever and are selected. kind is how messages name the workload.
func validateWorkload(f *check.Faults, s *metav1.LabelSelector, t *corev1.PodTemplateSpec, kind, empty string, p *field.Path) {
	if s == nil {
		if kind != "DaemonSet" {
			f.Required(p.Child("selector"), "")
		}
	} else {
		f.Add(selectorFaults(s, p.Child("selector")))
		if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			f.Invalid(p.Child("selector"), s, "empty selector is invalid for "+empty)
		}
	}
	at := p.Child("template")
	switch sel, err := metav1.LabelSelectorAsSelector(s); {
	case err != nil && kind == "ReplicaSet":
		f.Invalid(p.Child("selector"), s, "invalid label selector")
	case err != nil && kind == "StatefulSet":
		f.Invalid(p.Child("selector"), s, "")
	case err == nil && !sel.Empty() && !sel.Matches(labels.Set(t.Labels)):
		f.Invalid(at.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`")
	}
	f.Add(podrules.ValidateTemplate(t, at))
	runsForever(f, t, kind, at)
}

func runsForever(f *check.Faults, t *corev1.PodTemplateSpec, kind string, at *field.Path) {
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		f.Add(field.ErrorList{field.NotSupported(at.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways})})
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		f.Forbidden(at.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported")
	}
}

// intOrPercent accepts a number from 0 or a percentage, up to 100% where capped.
func intOrPercent(f *check.Faults, v *intstr.IntOrString, capped bool, p *field.Path) {
	if v == nil {
		return
	}
	if v.Type == intstr.Int {
		if v.IntVal < 0 {
			f.Invalid(p, v.IntVal, check.Negative)
		}
		return
	}
	if msgs := validation.IsValidPercent(v.StrVal); len(msgs) > 0 {
		f.Each(p, *v, msgs)
		return
	}
	if n := amount(v); capped && n > 100 {
		f.Invalid(p, *v, "must not be greater than 100%")
	}
}

// amount is the number, or the number before the percent sign; 0 of what is neither.
func amount(v *intstr.IntOrString) int {
	if v == nil {
		return 0
	}
	if v.Type == intstr.Int {
		return int(v.IntVal)
	}
	if len(validation.IsValidPercent(v.StrVal)) > 0 {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	return n
}

// counters are the numbers of a status: none is negative, and none exceeds replicas.
func counters(f *check.Faults, p *field.Path, ready string, replicas int32, counts map[string]int32) {
	check.AtLeastZero(f, p.Child("replicas"), replicas)
	for name, n := range counts {
		check.AtLeastZero(f, p.Child(name), n)
		if n > replicas {
			f.Invalid(p.Child(name), n, "cannot be greater than status.replicas")
		}
	}
	if n, ok := counts["readyReplicas"]; ok && counts["availableReplicas"] > n {
		f.Invalid(p.Child("availableReplicas"), counts["availableReplicas"], "cannot be greater than "+ready)
	}
}

func collisions(f *check.Faults, now, was *int32, p *field.Path) {
	check.AtLeastZeroPtr(f, p.Child("collisionCount"), now)
	if was != nil && (now == nil || *now < *was) {
		f.Invalid(p.Child("collisionCount"), valueOr(now, 0), "cannot be decremented")
	}
}

func valueOr[T any](p *T, v T) T {
	if p == nil {
		return v
	}
	return *p
}

func replicasOf(n *int32) int32 { return valueOr(n, 0) }

var podTemplates = Resource[corev1.PodTemplate]{
	Group: "", Version: "v1", Kind: "PodTemplate", Plural: "podtemplates",
	List:    listOf[corev1.PodTemplateList],
	Default: func(t *corev1.PodTemplate) { podrules.DefaultTemplate(&t.Template) },
	Main: templated(plainPart(func(t, _ *corev1.PodTemplate) field.ErrorList {
		return podrules.ValidateTemplate(&t.Template, field.NewPath("template"))
	}), func(t *corev1.PodTemplate) *corev1.PodTemplateSpec { return &t.Template }, "template"),
	Docs: map[string]string{
		"Pod Labels": "Labels that pods get.",
	},
	Columns: []Column[corev1.PodTemplate]{
		containersColumn(func(t *corev1.PodTemplate) *corev1.PodSpec { return &t.Template.Spec }),
		imagesColumn(func(t *corev1.PodTemplate) *corev1.PodSpec { return &t.Template.Spec }),
		text("Pod Labels", func(t *corev1.PodTemplate) string { return labelsText(t.Template.Labels) }),
	},
}

var controllerRevisions = Resource[appsv1.ControllerRevision]{
	Group: "apps", Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions", WholeMeta: true, Prefix: "controllerrevisions",
	List: listOf[appsv1.ControllerRevisionList], NoGeneration: true,
	Main: plainPart(func(r, old *appsv1.ControllerRevision) field.ErrorList {
		var f check.Faults
		check.AtLeastZero(&f, field.NewPath("revision"), r.Revision)
		if old != nil {
			f.Same(field.NewPath("data"), r.Data, old.Data)
			return f.List()
		}
		p := field.NewPath("data")
		var v any
		err := json.Unmarshal(r.Data.Raw, &v)
		_, object := v.(map[string]any)
		switch {
		case len(r.Data.Raw) == 0 || err == nil && v == nil:
			f.Required(p, "data is mandatory")
		case err != nil:
			f.Invalid(p, "<value omitted>", fmt.Sprintf("error parsing data: %v", err))
		case !object:
			f.Required(p, "data must be a valid JSON object")
		}
		return f.List()
	}),
	Docs: map[string]string{
		"Controller": "Whose revision it is.",
		"Revision":   appsv1.ControllerRevision{}.SwaggerDoc()["revision"],
	},
	Columns: []Column[appsv1.ControllerRevision]{
		text("Controller", func(r *appsv1.ControllerRevision) string {
			c := metav1.GetControllerOf(r)
			if c == nil {
				return "<none>"
			}
			gv, err := schema.ParseGroupVersion(c.APIVersion)
			if err != nil {
				return "<none>"
			}
			return lower(schema.GroupKind{Group: gv.Group, Kind: c.Kind}.String()) + "/" + c.Name
		}),
		counted("Revision", func(r *appsv1.ControllerRevision) int64 { return r.Revision }),
		ageColumn[appsv1.ControllerRevision](),
	},
}
