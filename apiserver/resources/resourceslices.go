package resources

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// semver is what semver.org's specification 2.0.0 allows.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

// capacityOptionsMax bounds the amounts of a capacity that may be asked for. Source: resource.k8s.io/v1 API reference.
const capacityOptionsMax = 10

func validateDeviceTaints(f *check.Faults, list []resourcev1.DeviceTaint, p *field.Path) {
	if !atMost(f, p, len(list), resourcev1.DeviceTaintsMaxLength) {
		return
	}
	for i, t := range list {
		p := p.Index(i)
		f.LabelName(p.Child("key"), t.Key)
		f.Each(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))
		check.OneOf(f, p.Child("effect"), t.Effect, taintEffects...)
	}
}

// validateAttribute: an attribute has one value, of one type.
func validateAttribute(f *check.Faults, a resourcev1.DeviceAttribute, p *field.Path) {
	values := 0
	for _, set := range []bool{a.BoolValue != nil, a.IntValue != nil, a.StringValue != nil, a.VersionValue != nil} {
		if set {
			values++
		}
	}
	short := func(s *string, p *field.Path) {
		if s != nil && len(*s) > resourcev1.DeviceAttributeMaxValueLength {
			f.TooLong(p, "", resourcev1.DeviceAttributeMaxValueLength)
		}
	}
	short(a.StringValue, p.Child("string"))
	if v := a.VersionValue; v != nil && !semver.MatchString(*v) {
		f.Invalid(p.Child("version"), *v, "must be a string compatible with semver.org spec 2.0.0")
	}
	short(a.VersionValue, p.Child("version"))
	switch {
	case values == 0:
		f.Invalid(p, "", "exactly one value must be specified")
	case values > 1:
		f.Invalid(p, check.Shown(a), "exactly one value must be specified")
	}
}

// validateCapacity: amounts of a capacity can be asked for if the device may be allocated several times.
func validateCapacity(f *check.Faults, c resourcev1.DeviceCapacity, shared bool, p *field.Path) {
	r, p := c.RequestPolicy, p.Child("requestPolicy")
	switch {
	case r == nil:
	case !shared:
		f.Forbidden(p, "allowMultipleAllocations must be true")
	case len(r.ValidValues) > 0 && r.ValidRange != nil:
		f.Forbidden(p, `exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time`)
	case len(r.ValidValues) > 0:
		if r.Default == nil {
			f.Required(p.Child("default"), "required when validValues is defined")
			return
		}
		validateAmounts(f, *r.Default, c.Value, r.ValidValues, p.Child("validValues"))
	case r.ValidRange != nil:
		if r.Default == nil {
			f.Required(p.Child("default"), "required when validRange is defined")
			return
		}
		validateRange(f, *r.Default, c.Value, *r.ValidRange, p.Child("validRange"))
	}
}

func validateAmounts(f *check.Faults, preset, whole resource.Quantity, list []resource.Quantity, p *field.Path) {
	for i := 1; i < len(list); i++ {
		if list[i-1].Cmp(list[i]) > 0 {
			f.Invalid(p.Index(i), list[i].String(), "values must be sorted in ascending order")
		}
	}
	known := false
	if atMost(f, p, len(list), capacityOptionsMax) {
		seen := check.Seen[int64]{}
		for i, v := range list {
			if v.Cmp(whole) > 0 {
				f.Invalid(p.Index(i), v.String(), "option is larger than capacity value: "+whole.String())
			}
			known = known || v.Cmp(preset) == 0
			if seen.Again(v.Value()) {
				f.Duplicate(p.Index(i), fmt.Sprint(v.Value()))
			}
		}
	}
	if !known {
		f.Invalid(p, preset.String(), "default value is not valid according to the requestPolicy")
	}
}

func validateRange(f *check.Faults, preset, whole resource.Quantity, r resourcev1.CapacityRequestPolicyRange, p *field.Path) {
	if r.Min == nil {
		f.Required(p.Child("min"), "required when validRange is defined")
		return
	}
	if r.Min.Cmp(whole) > 0 {
		f.Invalid(p.Child("min"), r.Min.String(), "min is larger than capacity value: "+whole.String())
	}
	if preset.Cmp(*r.Min) < 0 {
		f.Invalid(p.Child("min"), preset.String(), "default is less than min: "+r.Min.String())
	}
	if r.Max != nil {
		if r.Min.Cmp(*r.Max) > 0 {
			f.Invalid(p.Child("max"), r.Min.String(), "min is larger than max: "+r.Max.String())
		}
		if r.Max.Cmp(whole) > 0 {
			f.Invalid(p.Child("max"), r.Max.String(), "max is larger than capacity value: "+whole.String())
		}
		if preset.Cmp(*r.Max) > 0 {
			f.Invalid(p.Child("max"), preset.String(), "default is more than max: "+r.Max.String())
		}
	}
	if r.Step == nil {
		return
	}
	one := r.Min.DeepCopy()
	one.Add(*r.Step)
	if one.Cmp(whole) > 0 {
		f.Invalid(p.Child("step"), r.Step.String(), fmt.Sprintf("one step %s is larger than capacity value: %s", one.String(), whole.String()))
	}
	onStep := func(v resource.Quantity) {
		if n := r.Step.Value(); n != 0 && (v.Value()-r.Min.Value())%n != 0 {
			f.Invalid(p.Child("step"), v.String(), fmt.Sprintf("value is not a multiple of a given step (%s) from (%s)", r.Step.String(), r.Min.String()))
		}
	}
	onStep(preset)
	if r.Max != nil {
		onStep(*r.Max)
	}
}

// validateCounters: the names of counters are labels; any amount will do.
func validateCounters(f *check.Faults, counters map[string]resourcev1.Counter, max int, p *field.Path) {
	if len(counters) == 0 {
		f.Required(p, "")
		return
	}
	if atMost(f, p, len(counters), max) {
		for _, name := range slices.Sorted(maps.Keys(counters)) {
			f.Label(p, name)
		}
	}
}

// keyOf is the path of a map's entry; long names are cut in their middle.
func keyOf(p *field.Path, name resourcev1.QualifiedName) *field.Path {
	const max = resourcev1.DeviceMaxDomainLength + 1 + resourcev1.DeviceMaxIDLength
	if len(name) > max {
		const gap = "..."
		rest := max - len(gap)
		name = name[:(rest+1)/2] + gap + name[len(name)-rest/2:]
	}
	return p.Key(string(name))
}

// places are the ways to say for which nodes a slice or a device is.
type places struct {
	nodeName *string
	selector *corev1.NodeSelector
	allNodes *bool
}

// validate names those that are set. A slice's selector has one term, so that it can be joined with others.
func (w places) validate(f *check.Faults, p *field.Path, empty string, oneTerm bool) (set []string) {
	if w.nodeName != nil {
		if *w.nodeName == "" {
			f.Invalid(p.Child("nodeName"), "", empty)
		} else {
			set = append(set, "`nodeName`")
			f.Subdomain(p.Child("nodeName"), *w.nodeName)
		}
	}
	if w.selector != nil {
		set = append(set, "`nodeSelector`")
		f.Add(podrules.ValidateNodeSelector(w.selector, p.Child("nodeSelector")))
		if oneTerm && len(w.selector.NodeSelectorTerms) != 1 {
			f.Invalid(p.Child("nodeSelector", "nodeSelectorTerms"), check.Shown(w.selector.NodeSelectorTerms), "must have exactly one node selector term")
		}
	}
	return append(set, trueOrUnset(f, w.allNodes, "allNodes", p)...)
}

func trueOrUnset(f *check.Faults, v *bool, name string, p *field.Path) []string {
	if v == nil {
		return nil
	}
	if !*v {
		f.Invalid(p.Child(name), false, "must be either unset or set to true")
		return nil
	}
	return []string{"`" + name + "`"}
}

func onePlace(f *check.Faults, set []string, p *field.Path, why, several string) {
	switch {
	case len(set) == 0:
		f.Required(p, why)
	case len(set) > 1:
		f.Invalid(p, "{"+strings.Join(set, ", ")+"}", why+several)
	}
}

func validateDevice(f *check.Faults, d, old *resourcev1.Device, own bool, p *field.Path) {
	f.Label(p.Child("name"), d.Name)
	if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
		f.Invalid(p, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice))
	}
	if n := len(d.Attributes); n > resourcev1.ResourceSliceMaxAttributeValuesPerDevice {
		f.Invalid(p, n, fmt.Sprintf("the total number of attribute values must not exceed %d", resourcev1.ResourceSliceMaxAttributeValuesPerDevice))
	}
	at := p.Child("attributes")
	for _, name := range slices.Sorted(maps.Keys(d.Attributes)) {
		attributeName(f, string(name), false, at)
		validateAttribute(f, d.Attributes[name], keyOf(at, name))
	}
	at = p.Child("capacity")
	for _, name := range slices.Sorted(maps.Keys(d.Capacity)) {
		attributeName(f, string(name), false, at)
		validateCapacity(f, d.Capacity[name], valueOr(d.AllowMultipleAllocations, false), keyOf(at, name))
	}
	if old == nil || !equality.Semantic.DeepEqual(d.Taints, old.Taints) {
		validateDeviceTaints(f, d.Taints, p.Child("taints"))
	}
	at = p.Child("consumesCounters")
	if atMost(f, at, len(d.ConsumesCounters), resourcev1.ResourceSliceMaxDeviceCounterConsumptionsPerDevice) {
		sets := check.Seen[string]{}
		for i, c := range d.ConsumesCounters {
			f.NeedName(at.Index(i).Child("counterSet"), c.CounterSet, validation.IsDNS1123Label)
			validateCounters(f, c.Counters, resourcev1.ResourceSliceMaxCountersPerDeviceCounterConsumption, at.Index(i).Child("counters"))
			if sets.Again(c.CounterSet) {
				f.Duplicate(at.Index(i), c.CounterSet)
			}
		}
	}
	if own {
		const why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
		onePlace(f, places{d.NodeName, d.NodeSelector, d.AllNodes}.validate(f, p, "must not be empty", false), p, why, "")
	} else if d.NodeName != nil || d.NodeSelector != nil || d.AllNodes != nil {
		f.Invalid(p, nil, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec")
	}
	bindingConditions(f, d.BindingConditions, d.BindingFailureConditions, p)
}

func validateSlice(s, old *resourcev1.ResourceSlice) field.ErrorList {
	var f check.Faults
	spec, p := &s.Spec, field.NewPath("spec")
	f.Add(podrules.ValidateCSIDriverName(spec.Driver, p.Child("driver")))
	validatePoolName(&f, spec.Pool.Name, p.Child("pool", "name"))
	check.Positive(&f, p.Child("pool", "resourceSliceCount"), spec.Pool.ResourceSliceCount)
	if n := spec.Pool.Generation; n < 0 {
		f.Invalid(p.Child("pool", "generation"), n, "must be greater than or equal to zero")
	}
	was := map[string]*resourcev1.Device{}
	if old != nil {
		f.Same(p.Child("pool", "name"), spec.Pool.Name, old.Spec.Pool.Name)
		f.Same(p.Child("driver"), spec.Driver, old.Spec.Driver)
		f.Same(p.Child("nodeName"), spec.NodeName, old.Spec.NodeName)
		for i := range old.Spec.Devices {
			was[old.Spec.Devices[i].Name] = &old.Spec.Devices[i]
		}
	}
	set := places{spec.NodeName, spec.NodeSelector, spec.AllNodes}.validate(&f, p, "must be either unset or set to a non-empty string", true)
	set = append(set, trueOrUnset(&f, spec.PerDeviceNodeSelection, "perDeviceNodeSelection", p)...)
	onePlace(&f, set, p, "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required", ", but multiple fields are set")
	if spec.SharedCounters != nil && spec.Devices != nil {
		f.Invalid(p, "", "only one of `sharedCounters` or `devices` is allowed")
	}
	max := resourcev1.ResourceSliceMaxDevices
	if slices.ContainsFunc(spec.Devices, func(d resourcev1.Device) bool { return len(d.Taints)+len(d.ConsumesCounters) > 0 }) {
		max = resourcev1.ResourceSliceMaxDevicesWithAdvancedFeatures
	}
	if at := p.Child("devices"); atMost(&f, at, len(spec.Devices), max) {
		names := check.Seen[string]{}
		for i := range spec.Devices {
			d := &spec.Devices[i]
			validateDevice(&f, d, was[d.Name], valueOr(spec.PerDeviceNodeSelection, false), at.Index(i))
			if names.Again(d.Name) {
				f.Duplicate(at.Index(i), d.Name)
			}
		}
	}
	if at := p.Child("sharedCounters"); atMost(&f, at, len(spec.SharedCounters), resourcev1.ResourceSliceMaxCounterSets) {
		sets := check.Seen[string]{}
		for i, c := range spec.SharedCounters {
			f.NeedName(at.Index(i).Child("name"), c.Name, validation.IsDNS1123Label)
			validateCounters(&f, c.Counters, resourcev1.ResourceSliceMaxCountersPerCounterSet, at.Index(i).Child("counters"))
			if sets.Again(c.Name) {
				f.Duplicate(at.Index(i), c.Name)
			}
		}
	}
	return f.List()
}

// prepareSlice says of taints that do not tell it since when they are there, and drops what belongs to gates that are
// closed in 1.36: DRAListTypeAttributes and DRANodeAllocatableResources.
func prepareSlice(rq *Request, s, old *resourcev1.ResourceSlice) {
	lists, mappings := false, false
	if old != nil {
		for _, d := range old.Spec.Devices {
			mappings = mappings || len(d.NodeAllocatableResourceMappings) > 0
			for _, a := range d.Attributes {
				lists = lists || a.BoolValues != nil || a.IntValues != nil || a.StringValues != nil || a.VersionValues != nil
			}
		}
	}
	for i := range s.Spec.Devices {
		d := &s.Spec.Devices[i]
		for j := range d.Taints {
			if t := &d.Taints[j]; t.TimeAdded == nil {
				now := metav1.NewTime(rq.Now.Truncate(time.Second))
				t.TimeAdded = &now
			}
		}
		if !mappings {
			d.NodeAllocatableResourceMappings = nil
		}
		for name, a := range d.Attributes {
			if !lists {
				a.BoolValues, a.IntValues, a.StringValues, a.VersionValues = nil, nil, nil, nil
				d.Attributes[name] = a
			}
		}
	}
}

func sliceWarnings(_ *Request, s, _ *resourcev1.ResourceSlice) []string {
	return driverNameWarning(s.Spec.Driver, field.NewPath("spec", "driver"))
}

// driverNameWarning: names of drivers are compared without regard to case, and written in lower case.
func driverNameWarning(name string, p *field.Path) []string {
	if name == strings.ToLower(name) {
		return nil
	}
	return []string{fmt.Sprintf("%s: driver names should be lowercase; %q contains uppercase characters", p, name)}
}

var resourceSlices = Resource[resourcev1.ResourceSlice]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceSlice", Plural: "resourceslices", Prefix: "resourceslices", Scope: Cluster,
	List: listOf[resourcev1.ResourceSliceList],
	Main: Part[resourcev1.ResourceSlice]{Prepare: prepareSlice, Validate: withoutRequest(validateSlice), Warnings: sliceWarnings},
	Fields: func(s *resourcev1.ResourceSlice) fields.Set {
		return fields.Set{"spec.nodeName": valueOr(s.Spec.NodeName, ""), "spec.driver": s.Spec.Driver}
	},
	FieldNames: []string{"spec.nodeName", "spec.driver"}, FieldRefusal: "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: %s",
	Docs: map[string]string{
		"Node":   resourcev1.ResourceSliceSpec{}.SwaggerDoc()["nodeName"],
		"Driver": resourcev1.ResourceSliceSpec{}.SwaggerDoc()["driver"],
		"Pool":   resourcev1.ResourcePool{}.SwaggerDoc()["name"],
	},
	Columns: []Column[resourcev1.ResourceSlice]{
		text("Node", func(s *resourcev1.ResourceSlice) string { return valueOr(s.Spec.NodeName, "") }),
		text("Driver", func(s *resourcev1.ResourceSlice) string { return s.Spec.Driver }),
		text("Pool", func(s *resourcev1.ResourceSlice) string { return s.Spec.Pool.Name }),
		ageColumn[resourcev1.ResourceSlice](),
	},
}
