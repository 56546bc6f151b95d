package resources

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

var limitRanges = Resource[corev1.LimitRange]{
	Group: "", Version: "v1", Kind: "LimitRange", LooseMeta: true, Plural: "limitranges", WholeMeta: true, Short: []string{"limits"}, NoGeneration: true, CreateOnUpdate: true,
	List: listOf[corev1.LimitRangeList],
	Default: func(l *corev1.LimitRange) {
		for i := range l.Spec.Limits {
			item := &l.Spec.Limits[i]
			for _, list := range []corev1.ResourceList{item.Max, item.Min, item.Default, item.DefaultRequest, item.MaxLimitRequestRatio} {
				podrules.RoundUp(list)
			}
			if l.Spec.Limits[i].Type == corev1.LimitTypeContainer {
				defaultLimits(&l.Spec.Limits[i])
			}
		}
	},
	Main: Part[corev1.LimitRange]{
		Prepare: func(_ *Request, l, _ *corev1.LimitRange) {
			if l.Name == "" {
				l.Name = string(uuid.NewUUID())
			}
		},
		Validate: withoutRequest(func(l, _ *corev1.LimitRange) field.ErrorList { return validateLimitRange(l) }),
	},
	Columns: []Column[corev1.LimitRange]{createdAtColumn[corev1.LimitRange]()},
}

// defaultLimits: a missing default limit is the maximum; a missing default
// request is the default limit, else the minimum.
func defaultLimits(l *corev1.LimitRangeItem) {
	fill := func(into *corev1.ResourceList, from corev1.ResourceList) {
		if *into == nil {
			*into = corev1.ResourceList{}
		}
		for name, q := range from {
			if _, ok := (*into)[name]; !ok {
				(*into)[name] = q.DeepCopy()
			}
		}
	}
	fill(&l.Default, l.Max)
	fill(&l.DefaultRequest, l.Default)
	fill(&l.DefaultRequest, l.Min)
}

func validateLimitRange(l *corev1.LimitRange) field.ErrorList {
	var f check.Faults
	seen := check.Seen[corev1.LimitType]{}
	for i := range l.Spec.Limits {
		item, at := &l.Spec.Limits[i], field.NewPath("spec", "limits").Index(i)
		msgs := validation.IsQualifiedName(string(item.Type))
		f.Each(at.Child("type"), item.Type, msgs)
		switch item.Type {
		case corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim:
		default:
			if len(msgs) == 0 && !strings.Contains(string(item.Type), "/") {
				f.Invalid(at.Child("type"), item.Type, "must be a standard limit type or fully qualified")
			}
		}
		if seen.Again(item.Type) {
			f.Duplicate(at.Child("type"), item.Type)
		}
		validateLimits(&f, item, at)
	}
	return f.List()
}

func validateLimits(f *check.Faults, l *corev1.LimitRangeItem, p *field.Path) {
	names := map[corev1.ResourceName]bool{}
	lists := []struct {
		name string
		list corev1.ResourceList
	}{{"max", l.Max}, {"min", l.Min}, {"default", l.Default}, {"defaultRequest", l.DefaultRequest}, {"maxLimitRequestRatio", l.MaxLimitRequestRatio}}
	for _, x := range lists {
		if l.Type == corev1.LimitTypePod && strings.HasPrefix(x.name, "default") {
			if len(x.list) > 0 {
				f.Forbidden(p.Child(x.name), "may not be specified when `type` is 'Pod'")
			}
			continue
		}
		for name := range x.list {
			names[name] = true
			at := p.Child(x.name).Key(string(name))
			if l.Type == corev1.LimitTypePod || l.Type == corev1.LimitTypeContainer {
				f.Add(podrules.ValidateContainerResourceName(name, at))
			} else {
				f.Add(validateResourceName(name, at))
			}
		}
	}
	if l.Type == corev1.LimitTypePersistentVolumeClaim {
		_, min := l.Min[corev1.ResourceStorage]
		if _, max := l.Max[corev1.ResourceStorage]; !min && !max {
			f.Required(p.Child("limits"), "either minimum or maximum storage value is required, but neither was provided")
		}
	}
	if l.Type == corev1.LimitTypePod { // refused above
		l = &corev1.LimitRangeItem{Type: l.Type, Max: l.Max, Min: l.Min, MaxLimitRequestRatio: l.MaxLimitRequestRatio}
	}
	for name := range names {
		// ordered: whenever both are given, the first may not exceed the second.
		ordered := func(low, high corev1.ResourceList, at string, lowWord, highWord string, value corev1.ResourceList) {
			a, okA := low[name]
			b, okB := high[name]
			if okA && okB && a.Cmp(b) > 0 {
				v := value[name]
				f.Invalid(p.Child(at).Key(string(name)), v.String(), fmt.Sprintf("%s value %s is greater than %s value %s", lowWord, a.String(), highWord, b.String()))
			}
		}
		ordered(l.Min, l.Max, "min", "min", "max", l.Min)
		ordered(l.Min, l.DefaultRequest, "defaultRequest", "min", "default request", l.DefaultRequest)
		ordered(l.DefaultRequest, l.Max, "defaultRequest", "default request", "max", l.DefaultRequest)
		ordered(l.DefaultRequest, l.Default, "defaultRequest", "default request", "default limit", l.DefaultRequest)
		ordered(l.Min, l.Default, "default", "min", "default", l.Min)
		ordered(l.Default, l.Max, "default", "default", "max", l.Max)
		ratio, ok := l.MaxLimitRequestRatio[name]
		if !ok {
			continue
		}
		at := p.Child("maxLimitRequestRatio").Key(string(name))
		if ratio.Cmp(*resource.NewQuantity(1, resource.DecimalSI)) < 0 {
			f.Invalid(at, ratio.String(), fmt.Sprintf("ratio %s is less than 1", ratio.String()))
		}
		min, hasMin := l.Min[name]
		if max, hasMax := l.Max[name]; hasMin && hasMax && min.Sign() != 0 {
			if limit := max.AsApproximateFloat64() / min.AsApproximateFloat64(); ratio.AsApproximateFloat64() > limit {
				f.Invalid(at, ratio.String(), fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), limit))
			}
		}
	}
}
