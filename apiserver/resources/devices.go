package resources

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	objectvalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// The kinds of dynamic resource allocation. The rules cover names, references,
// bounds, what may change, and that CEL selectors compile; what they may cost is not estimated.

// Bounds of one object. Source: resource.k8s.io/v1 API reference.
const (
	deviceRequestsMax  = 32
	deviceSelectorsMax = 32
	sliceDevicesMax    = 128
	reservedForMax     = 256
)

func validateSelectors(f *check.Faults, list []resourcev1.DeviceSelector, p *field.Path) {
	if n := len(list); n > deviceSelectorsMax {
		f.TooMany(p, n, deviceSelectorsMax)
	}
	for i, s := range list {
		at := p.Index(i)
		if s.CEL == nil {
			f.Required(at.Child("cel"), "")
		} else if len(s.CEL.Expression) > resourcev1.CELSelectorExpressionMaxLength {
			f.TooLong(at.Child("cel", "expression"), "", resourcev1.CELSelectorExpressionMaxLength)
		} else {
			validateSelector(f, s.CEL.Expression, at.Child("cel", "expression"))
		}
	}
}

var (
	taintEffects        = []resourcev1.DeviceTaintEffect{resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone}
	tolerationOperators = []resourcev1.DeviceTolerationOperator{resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists}
	// semver is what semver.org's specification 2.0.0 allows.
	semver = regexp.MustCompile(`^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}` +
		`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)
)

func validateTolerations(f *check.Faults, list []resourcev1.DeviceToleration, p *field.Path) {
	for i, t := range list {
		p := p.Index(i)
		if t.Key != "" {
			f.LabelName(p.Child("key"), t.Key)
		}
		switch t.Operator {
		case resourcev1.DeviceTolerationOpExists:
			if t.Value != "" {
				f.Invalid(p.Child("value"), t.Value, "must be empty for operator `Exists`")
			}
		case resourcev1.DeviceTolerationOpEqual:
			f.Each(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))
		default:
			check.OneOf(f, p.Child("operator"), t.Operator, tolerationOperators...)
		}
		check.AmongOrEmpty(f, p.Child("effect"), t.Effect, taintEffects...)
	}
}

func validateDeviceTaints(f *check.Faults, list []resourcev1.DeviceTaint, p *field.Path) {
	if n := len(list); n > resourcev1.DeviceTaintsMaxLength {
		f.TooMany(p, n, resourcev1.DeviceTaintsMaxLength)
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
	text := func(s string, p *field.Path) {
		if len(s) > resourcev1.DeviceAttributeMaxValueLength {
			f.TooLong(p, "", resourcev1.DeviceAttributeMaxValueLength)
		}
	}
	semantic := func(s string, p *field.Path) {
		if !semver.MatchString(s) {
			f.Invalid(p, s, "must be a string compatible with semver.org spec 2.0.0")
		}
		text(s, p)
	}
	values := 0
	for _, set := range []bool{a.BoolValue != nil, a.IntValue != nil, a.StringValue != nil, a.VersionValue != nil,
		a.BoolValues != nil, a.IntValues != nil, a.StringValues != nil, a.VersionValues != nil} {
		if set {
			values++
		}
	}
	if s := a.StringValue; s != nil {
		text(*s, p.Child("string"))
	}
	if s := a.VersionValue; s != nil {
		semantic(*s, p.Child("version"))
	}
	for i, s := range a.StringValues {
		text(s, p.Child("strings").Index(i))
	}
	for i, s := range a.VersionValues {
		semantic(s, p.Child("versions").Index(i))
	}
	switch {
	case values == 0:
		f.Invalid(p, "", "exactly one value must be specified")
	case values > 1:
		f.Invalid(p, a, "exactly one value must be specified")
	}
}

// validateDeviceConfig: the bound on parameters is younger than some objects that are stored, and holds for
// fresh ones.
func validateDeviceConfig(f *check.Faults, c resourcev1.DeviceConfiguration, p *field.Path, fresh bool) {
	if c.Opaque == nil {
		f.Required(p.Child("opaque"), "")
		return
	}
	f.Add(podrules.ValidateCSIDriverName(c.Opaque.Driver, p.Child("opaque", "driver")))
	bound := 0
	if fresh {
		bound = resourcev1.OpaqueParametersMaxLength
	}
	f.Object(p.Child("opaque", "parameters"), c.Opaque.Parameters.Raw, bound)
}

// attributeName: an identifier, behind a driver's domain and a slash unless it is the slice's own driver's.
func attributeName(f *check.Faults, name string, full bool, p *field.Path) {
	identifier := func(id string) {
		if len(id) > resourcev1.DeviceMaxIDLength {
			f.TooLong(p, "", resourcev1.DeviceMaxIDLength)
		}
		f.Each(p, id, content.IsCIdentifier(id))
	}
	parts := strings.Split(name, "/")
	if len(parts) != 2 {
		identifier(parts[0])
		if full && len(parts) == 1 {
			f.Invalid(p, name, "a fully qualified name must be a domain and a name separated by a slash")
		}
		return
	}
	if parts[0] == "" {
		f.Invalid(p, "", "the domain must not be empty")
	} else {
		f.Add(podrules.ValidateCSIDriverName(parts[0], p))
	}
	if parts[1] == "" {
		f.Invalid(p, "", "the name must not be empty")
	} else {
		identifier(parts[1])
	}
}

// bindingConditions: a device that must be prepared before a pod is bound says how that succeeds and how it fails.
func bindingConditions(f *check.Faults, done, failed []string, p *field.Path) {
	seen := check.Seen[string]{}
	list := func(names []string, at *field.Path) {
		own := check.Seen[string]{}
		for i, n := range names {
			f.LabelName(at.Index(i), n)
			switch {
			case own.Again(n):
				f.Duplicate(at.Index(i), n)
			case seen.Again(n):
				f.Invalid(at.Index(i), n, "bindingFailureConditions must not overlap with bindingConditions")
			}
		}
	}
	list(done, p.Child("bindingConditions"))
	list(failed, p.Child("bindingFailureConditions"))
	switch {
	case len(done) == 0 && len(failed) > 0:
		f.Invalid(p.Child("bindingConditions"), done, "bindingConditions are required to use bindingFailureConditions")
	case len(done) > 0 && len(failed) == 0:
		f.Invalid(p.Child("bindingFailureConditions"), failed, "bindingFailureConditions are required to use bindingConditions")
	}
}

var deviceClasses = Resource[resourcev1.DeviceClass]{
	Group: "resource.k8s.io", Version: "v1", Kind: "DeviceClass", Plural: "deviceclasses", Prefix: "deviceclasses", Scope: Cluster,
	List: listOf[resourcev1.DeviceClassList],
	Main: plainPart(func(c, old *resourcev1.DeviceClass) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec")
		validateSelectors(&f, c.Spec.Selectors, p.Child("selectors"))
		if n := len(c.Spec.Config); n > 32 {
			f.TooMany(p.Child("config"), n, 32)
		}
		for i, x := range c.Spec.Config {
			validateDeviceConfig(&f, x.DeviceConfiguration, p.Child("config").Index(i), old == nil)
		}
		if n := c.Spec.ExtendedResourceName; n != nil && !podrules.IsExtended(corev1.ResourceName(*n)) {
			f.Invalid(p.Child("extendedResourceName"), *n, "must be a valid extended resource name")
		}
		return f.List()
	}),
}

func defaultTolerations(list []resourcev1.DeviceToleration) {
	for i := range list {
		def(&list[i].Operator, resourcev1.DeviceTolerationOpEqual)
	}
}

func defaultClaimSpec(s *resourcev1.ResourceClaimSpec) {
	for i := range s.Devices.Requests {
		r := &s.Devices.Requests[i]
		if e := r.Exactly; e != nil {
			defaultTolerations(e.Tolerations)
			def(&e.AllocationMode, resourcev1.DeviceAllocationModeExactCount)
			if e.AllocationMode == resourcev1.DeviceAllocationModeExactCount {
				def(&e.Count, 1)
			}
		}
		for j := range r.FirstAvailable {
			e := &r.FirstAvailable[j]
			defaultTolerations(e.Tolerations)
			def(&e.AllocationMode, resourcev1.DeviceAllocationModeExactCount)
			if e.AllocationMode == resourcev1.DeviceAllocationModeExactCount {
				def(&e.Count, 1)
			}
		}
	}
}

func validateResourceClaimSpec(f *check.Faults, s *resourcev1.ResourceClaimSpec, p *field.Path, fresh bool) {
	p = p.Child("devices")
	if n := len(s.Devices.Requests); n > deviceRequestsMax {
		f.TooMany(p.Child("requests"), n, deviceRequestsMax)
	}
	names := check.Seen[string]{}
	exact := func(class string, mode resourcev1.DeviceAllocationMode, count int64, selectors []resourcev1.DeviceSelector, tolerated []resourcev1.DeviceToleration, at *field.Path) {
		f.NeedName(at.Child("deviceClassName"), class, validation.IsDNS1123Subdomain)
		validateSelectors(f, selectors, at.Child("selectors"))
		check.Among(f, at.Child("allocationMode"), mode, resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount)
		switch {
		case mode == resourcev1.DeviceAllocationModeAll && count != 0:
			f.Invalid(at.Child("count"), count, "must not be specified when allocationMode is 'All'")
		case mode == resourcev1.DeviceAllocationModeExactCount && count <= 0:
			f.Invalid(at.Child("count"), count, check.NotPositive)
		}
		validateTolerations(f, tolerated, at.Child("tolerations"))
	}
	for i, r := range s.Devices.Requests {
		at := p.Child("requests").Index(i)
		f.Label(at.Child("name"), r.Name)
		if names.Again(r.Name) {
			f.Duplicate(at, r.Name)
		}
		switch {
		case r.Exactly == nil && len(r.FirstAvailable) == 0:
			f.Required(at, "exactly one of `exactly` or `firstAvailable` is required")
		case r.Exactly != nil && len(r.FirstAvailable) > 0:
			f.Invalid(at, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set")
		case r.Exactly != nil:
			exact(r.Exactly.DeviceClassName, r.Exactly.AllocationMode, r.Exactly.Count, r.Exactly.Selectors, r.Exactly.Tolerations, at.Child("exactly"))
		}
		if n := len(r.FirstAvailable); n > 8 {
			f.TooMany(at.Child("firstAvailable"), n, 8)
		}
		subs := check.Seen[string]{}
		for j, sub := range r.FirstAvailable {
			at := at.Child("firstAvailable").Index(j)
			f.Label(at.Child("name"), sub.Name)
			if subs.Again(sub.Name) {
				f.Duplicate(at, sub.Name)
			}
			names[r.Name+"/"+sub.Name] = true
			exact(sub.DeviceClassName, sub.AllocationMode, sub.Count, sub.Selectors, sub.Tolerations, at)
		}
	}
	refers := func(list []string, p *field.Path) {
		again := check.Seen[string]{}
		for i, n := range list {
			parts := strings.Split(n, "/")
			if len(parts) <= 2 {
				for _, part := range parts {
					f.Label(p.Index(i), part)
				}
			}
			if again.Again(n) {
				f.Duplicate(p.Index(i), n)
			}
			if !names[n] {
				f.Invalid(p.Index(i), n, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")
			}
		}
	}
	for i, c := range s.Devices.Constraints {
		at := p.Child("constraints").Index(i)
		refers(c.Requests, at.Child("requests"))
		switch {
		case c.MatchAttribute != nil:
			attributeName(f, string(*c.MatchAttribute), true, at.Child("matchAttribute"))
		case c.DistinctAttribute != nil:
			attributeName(f, string(*c.DistinctAttribute), true, at.Child("distinctAttribute"))
		default:
			f.Required(at, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`)
		}
	}
	for i, c := range s.Devices.Config {
		at := p.Child("config").Index(i)
		refers(c.Requests, at.Child("requests"))
		validateDeviceConfig(f, c.DeviceConfiguration, at, fresh)
	}
}

var resourceClaims = Resource[resourcev1.ResourceClaim]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaim", Plural: "resourceclaims", Prefix: "resourceclaims", NoGeneration: true,
	List:    listOf[resourcev1.ResourceClaimList],
	Default: func(c *resourcev1.ResourceClaim) { defaultClaimSpec(&c.Spec) },
	Main: mainPart(func(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaimStatus { return &c.Status }, func(c, old *resourcev1.ResourceClaim) field.ErrorList {
		var f check.Faults
		validateResourceClaimSpec(&f, &c.Spec, field.NewPath("spec"), old == nil)
		if old != nil {
			f.Same(field.NewPath("spec"), c.Spec, old.Spec)
		}
		return f.List()
	}),
	Status: keepMeta(statusPart(func(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaimSpec { return &c.Spec }, func(c, old *resourcev1.ResourceClaim) field.ErrorList {
		var f check.Faults
		s, p := &c.Status, field.NewPath("status")
		if old.Status.Allocation != nil && s.Allocation != nil {
			f.Same(p.Child("allocation"), s.Allocation, old.Status.Allocation)
		}
		if n := len(s.ReservedFor); n > reservedForMax {
			f.TooMany(p.Child("reservedFor"), n, reservedForMax)
		}
		if len(s.ReservedFor) > 0 && s.Allocation == nil {
			f.Forbidden(p.Child("reservedFor"), "may not be specified when `allocated` is not set")
		}
		uids := check.Seen[string]{}
		for i, r := range s.ReservedFor {
			at := p.Child("reservedFor").Index(i)
			f.Need(at.Child("resource"), r.Resource)
			f.Need(at.Child("name"), r.Name)
			if f.Need(at.Child("uid"), string(r.UID)) && uids.Again(string(r.UID)) {
				f.Duplicate(at.Child("uid"), r.UID)
			}
		}
		if old.DeletionTimestamp != nil && len(s.ReservedFor) > len(old.Status.ReservedFor) {
			f.Forbidden(p.Child("reservedFor"), "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set")
		}
		return f.List()
	})),
	Docs: map[string]string{
		"State": "Whether it is pending, allocated, reserved, or being deleted.",
	},
	Columns: []Column[resourcev1.ResourceClaim]{
		text("State", func(c *resourcev1.ResourceClaim) string {
			var out []string
			if c.DeletionTimestamp != nil {
				out = append(out, "deleted")
			}
			switch {
			case c.Status.Allocation != nil:
				out = append(out, "allocated")
				if len(c.Status.ReservedFor) > 0 {
					out = append(out, "reserved")
				}
			case c.DeletionTimestamp == nil:
				out = append(out, "pending")
			}
			return strings.Join(out, ",")
		}),
		ageColumn[resourcev1.ResourceClaim](),
	},
}

var resourceClaimTemplates = Resource[resourcev1.ResourceClaimTemplate]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates", Prefix: "resourceclaimtemplates",
	NoGeneration: true, List: listOf[resourcev1.ResourceClaimTemplateList],
	Default: func(t *resourcev1.ResourceClaimTemplate) { defaultClaimSpec(&t.Spec.Spec) },
	Main: plainPart(func(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
		var f check.Faults
		f.Labels(field.NewPath("spec", "metadata", "labels"), t.Spec.Labels)
		f.Add(objectvalidation.ValidateAnnotations(t.Spec.Annotations, field.NewPath("spec", "metadata", "annotations")))
		validateResourceClaimSpec(&f, &t.Spec.Spec, field.NewPath("spec", "spec"), old == nil)
		if old != nil {
			f.Same(field.NewPath("spec"), t.Spec, old.Spec)
		}
		return f.List()
	}),
}

// sinceNow says of taints that do not tell it since when they are there.
func sinceNow(rq *Request, s, _ *resourcev1.ResourceSlice) {
	for i := range s.Spec.Devices {
		for j := range s.Spec.Devices[i].Taints {
			if t := &s.Spec.Devices[i].Taints[j]; t.TimeAdded == nil {
				now := metav1.NewTime(rq.Now.Truncate(time.Second))
				t.TimeAdded = &now
			}
		}
	}
}

var resourceSlices = Resource[resourcev1.ResourceSlice]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceSlice", Plural: "resourceslices", Prefix: "resourceslices", Scope: Cluster,
	List: listOf[resourcev1.ResourceSliceList],
	Main: Part[resourcev1.ResourceSlice]{Prepare: sinceNow, Validate: withoutRequest(func(s, old *resourcev1.ResourceSlice) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec")
		f.Add(podrules.ValidateCSIDriverName(s.Spec.Driver, p.Child("driver")))
		if at := p.Child("pool", "name"); f.Need(at, s.Spec.Pool.Name) {
			if len(s.Spec.Pool.Name) > resourcev1.PoolNameMaxLength {
				f.TooLong(at, "", resourcev1.PoolNameMaxLength)
			}
			for part := range strings.SplitSeq(s.Spec.Pool.Name, "/") {
				f.Subdomain(at, part)
			}
		}
		if s.Spec.Pool.ResourceSliceCount <= 0 {
			f.Invalid(p.Child("pool", "resourceSliceCount"), s.Spec.Pool.ResourceSliceCount, check.NotPositive)
		}
		if n := s.Spec.Pool.Generation; n < 0 {
			f.Invalid(p.Child("pool", "generation"), n, "must be greater than or equal to zero")
		}
		where := 0
		for _, set := range []bool{valueOr(s.Spec.NodeName, "") != "", s.Spec.NodeSelector != nil, valueOr(s.Spec.AllNodes, false), valueOr(s.Spec.PerDeviceNodeSelection, false)} {
			if set {
				where++
			}
		}
		switch {
		case s.Spec.NodeName == nil:
		case *s.Spec.NodeName == "":
			f.Invalid(p.Child("nodeName"), "", "must be either unset or set to a non-empty string")
		default:
			f.Subdomain(p.Child("nodeName"), *s.Spec.NodeName)
		}
		if s.Spec.NodeSelector != nil {
			f.Add(podrules.ValidateNodeSelector(s.Spec.NodeSelector, p.Child("nodeSelector")))
		}
		const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
		switch {
		case where == 0:
			f.Required(p, one)
		case where > 1:
			f.Invalid(p, nil, one+", but multiple fields are set")
		}
		if n := len(s.Spec.Devices); n > sliceDevicesMax {
			f.TooMany(p.Child("devices"), n, sliceDevicesMax)
		}
		names := check.Seen[string]{}
		for i, d := range s.Spec.Devices {
			p := p.Child("devices").Index(i)
			at := p.Child("name")
			f.Label(at, d.Name)
			if names.Again(d.Name) {
				f.Duplicate(p, d.Name)
			}
			for _, name := range slices.Sorted(maps.Keys(d.Attributes)) {
				validateAttribute(&f, d.Attributes[name], p.Child("attributes").Key(string(name)))
			}
			validateDeviceTaints(&f, d.Taints, p.Child("taints"))
			bindingConditions(&f, d.BindingConditions, d.BindingFailureConditions, p)
		}
		sets := check.Seen[string]{}
		for i, c := range s.Spec.SharedCounters {
			at := p.Child("sharedCounters").Index(i)
			f.NeedName(at.Child("name"), c.Name, validation.IsDNS1123Label)
			if sets.Again(c.Name) {
				f.Duplicate(at.Child("name"), c.Name)
			}
			if len(c.Counters) == 0 {
				f.Required(at.Child("counters"), "")
			}
			for name := range c.Counters {
				f.Label(at.Child("counters").Key(name), name)
			}
		}
		if old != nil {
			f.Same(p.Child("driver"), s.Spec.Driver, old.Spec.Driver)
			f.Same(p.Child("pool", "name"), s.Spec.Pool.Name, old.Spec.Pool.Name)
			f.Same(p.Child("nodeName"), valueOr(s.Spec.NodeName, ""), valueOr(old.Spec.NodeName, ""))
		}
		return f.List()
	})},
	Fields: func(s *resourcev1.ResourceSlice) fields.Set {
		return fields.Set{"spec.nodeName": valueOr(s.Spec.NodeName, ""), "spec.driver": s.Spec.Driver}
	},
	FieldNames: []string{"spec.nodeName", "spec.driver"},
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
