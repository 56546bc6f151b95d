package resources

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// This file holds the few rules and cells that many kinds share. metadata itself
// (names, labels, annotations, owners, finalizers and what an update may change of
// them) is the same for every kind and is checked by rest; the rows check the rest.

type timeT = time.Time

func ptr[T any](v T) *T { return &v }

// def sets *p to v when it has the zero value.
func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// defPtr points *p at a copy of v when it is nil.
func defPtr[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// keepStatus is the Prepare of a main part: status starts empty and is then
// written only through the status subresource.
func keepStatus[T, S any](status func(*T) *S) func(rq *Request, obj, old *T) {
	return func(_ *Request, obj, old *T) {
		if old == nil {
			var zero S
			*status(obj) = zero
			return
		}
		*status(obj) = *status(old)
	}
}

// keepSpec is the Prepare of a status part: spec stays as it is stored.
func keepSpec[T, S any](spec func(*T) *S) func(rq *Request, obj, old *T) {
	return func(_ *Request, obj, old *T) {
		if old != nil {
			*spec(obj) = *spec(old)
		}
	}
}

// mainPart is the main part of a kind with a status: rules see the object, and the old one or nil.
func mainPart[T, S any](status func(*T) *S, rules func(obj, old *T) field.ErrorList) Part[T] {
	return Part[T]{Prepare: keepStatus(status), Validate: withoutRequest(rules), Reset: []string{"status"}}
}

// statusPart is the status subresource of the same kind. Labels and annotations may be written through it.
func statusPart[T, S any](spec func(*T) *S, rules func(obj, old *T) field.ErrorList) *Part[T] {
	return &Part[T]{Prepare: keepSpec(spec), Validate: withoutRequest(rules), Reset: []string{"spec"}}
}

// keepLabels makes a status part that does not write labels.
func keepLabels[T any](p *Part[T]) *Part[T] {
	prepare := p.Prepare
	p.Prepare = func(rq *Request, obj, old *T) {
		prepare(rq, obj, old)
		any(obj).(Object).SetLabels(any(old).(Object).GetLabels())
	}
	p.Reset = append(p.Reset, "metadata.labels")
	return p
}

// keepMeta makes a part that writes nothing of metadata. Kinds younger than the rule that
// status is all that goes through it have it so, and parts of pods that change containers.
func keepMeta[T any](p *Part[T]) *Part[T] {
	prepare := p.Prepare
	p.Prepare = func(rq *Request, obj, old *T) {
		prepare(rq, obj, old)
		now, was := any(obj).(Object), any(old).(Object)
		now.SetLabels(was.GetLabels())
		now.SetAnnotations(was.GetAnnotations())
		now.SetFinalizers(was.GetFinalizers())
		now.SetOwnerReferences(was.GetOwnerReferences())
		now.SetDeletionTimestamp(was.GetDeletionTimestamp())
		now.SetSelfLink(was.GetSelfLink())
	}
	p.Reset = append(p.Reset, "metadata")
	return p
}

// plainPart is the main part of a kind without status.
func plainPart[T any](rules func(obj, old *T) field.ErrorList) Part[T] {
	return Part[T]{Validate: withoutRequest(rules)}
}

func withoutRequest[T any](rules func(obj, old *T) field.ErrorList) func(*Request, *T, *T) field.ErrorList {
	if rules == nil {
		return nil
	}
	return func(_ *Request, obj, old *T) field.ErrorList { return rules(obj, old) }
}

// selectorFaults checks a label selector.
func selectorFaults(s *metav1.LabelSelector, p *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, p)
}

// Age is how kubectl writes the time since t: "5d", "2m10s"; "<unknown>" for no time.
func Age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

func nameColumn[T any]() Column[T] {
	return Column[T]{
		Name: "Name", Type: "string", Format: "name",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["name"],
		Cell:        func(obj *T, _ time.Time) any { return any(obj).(Object).GetName() },
	}
}

func ageColumn[T any]() Column[T] {
	return Column[T]{
		Name: "Age", Type: "string",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
		Cell: func(obj *T, now time.Time) any {
			return Age(any(obj).(Object).GetCreationTimestamp(), now)
		},
	}
}

// text makes a column of strings.
func text[T any](name string, cell func(*T) string) Column[T] {
	return Column[T]{Name: name, Type: "string", Cell: func(o *T, _ time.Time) any { return cell(o) }}
}

// number makes a column of integers.
func number[T any, N ~int | ~int32 | ~int64](name string, cell func(*T) N) Column[T] {
	return Column[T]{Name: name, Type: "integer", Cell: func(o *T, _ time.Time) any { return int64(cell(o)) }}
}

// counted makes a column of integers that upstream declares as a string.
func counted[T any, N ~int | ~int32 | ~int64](name string, cell func(*T) N) Column[T] {
	return declaredText(number(name, cell))
}

// declaredText changes the declared type of a column and leaves its cells.
func declaredText[T any](c Column[T]) Column[T] {
	c.Type = "string"
	return c
}

// named declares that the cells of a column are names.
func named[T any](c Column[T]) Column[T] {
	c.Format = "name"
	return c
}

// wide moves a column to kubectl's -o wide.
func wide[T any](c Column[T]) Column[T] {
	c.Priority = 1
	return c
}

// joinOr joins with commas and writes alt for nothing.
func joinOr(parts []string, alt string) string {
	if len(parts) == 0 {
		return alt
	}
	return strings.Join(parts, ",")
}

func selectorText(s *metav1.LabelSelector) string { return metav1.FormatLabelSelector(s) }

// labelsText is "a=b,c=d" or "<none>".
func labelsText(l map[string]string) string { return labels.FormatLabels(l) }

func containerNames(s *corev1.PodSpec) string {
	var out []string
	for _, c := range s.Containers {
		out = append(out, c.Name)
	}
	return strings.Join(out, ",")
}

func containerImages(s *corev1.PodSpec) string {
	var out []string
	for _, c := range s.Containers {
		out = append(out, c.Image)
	}
	return strings.Join(out, ",")
}

func containersColumn[T any](spec func(*T) *corev1.PodSpec) Column[T] {
	c := text("Containers", func(o *T) string { return containerNames(spec(o)) })
	c.Description = "The names of the template's containers."
	return c
}

func imagesColumn[T any](spec func(*T) *corev1.PodSpec) Column[T] {
	c := text("Images", func(o *T) string { return containerImages(spec(o)) })
	c.Description = "The images of the template's containers."
	return c
}

// podTemplateColumns are CONTAINERS and IMAGES of the wide form of every workload.
func podTemplateColumns[T any](spec func(*T) *corev1.PodSpec) []Column[T] {
	return []Column[T]{
		wide(containersColumn(spec)), wide(imagesColumn(spec)),
	}
}

// workloadColumns add SELECTOR to them.
func workloadColumns[T any](spec func(*T) *corev1.PodSpec, selector func(*T) string) []Column[T] {
	return append(podTemplateColumns(spec), wide(text("Selector", selector)))
}

// listOf makes the constructor of a list kind.
func listOf[L any, P interface {
	*L
	runtime.Object
}]() runtime.Object {
	return P(new(L))
}

func decimal(n int32) string { return strconv.Itoa(int(n)) }

func quantityText(q resource.Quantity) string { return q.String() }

// accessModesText is "RWO,ROX,RWX,RWOP" in that order.
func accessModesText(modes []corev1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}} {
		if slices.Contains(modes, m.mode) {
			out = append(out, m.short)
		}
	}
	return strings.Join(out, ",")
}

// more cuts a long list the way kubectl get shows lists of addresses.
func more(list []string, max int) string {
	if len(list) > max {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:max], ","), len(list)-max)
	}
	return strings.Join(list, ",")
}

func lower(s string) string     { return strings.ToLower(s) }
func trimSpace(s string) string { return strings.TrimSpace(s) }

// createdAtColumn is the one column that kinds without columns of their own have upstream.
func createdAtColumn[T any]() Column[T] {
	return Column[T]{Name: "Created At", Type: "date", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"], Cell: createdAt[T]}
}

// createdAt is the cell of that column.
func createdAt[T any](o *T, _ time.Time) any {
	return any(o).(Object).GetCreationTimestamp().UTC().Format(time.RFC3339)
}
