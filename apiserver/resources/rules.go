package resources

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"
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

// podTemplateColumns are CONTAINERS, IMAGES of the wide form of every workload.
func podTemplateColumns[T any](spec func(*T) *corev1.PodSpec) []Column[T] {
	each := func(f func(corev1.Container) string) func(o *T) string {
		return func(o *T) string {
			var out []string
			for _, c := range spec(o).Containers {
				out = append(out, f(c))
			}
			return strings.Join(out, ",")
		}
	}
	return []Column[T]{
		wide(text("Containers", each(func(c corev1.Container) string { return c.Name }))),
		wide(text("Images", each(func(c corev1.Container) string { return c.Image }))),
	}
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
