package resources

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// The kinds of dynamic resource allocation. The rules cover names, references,
// bounds, what may change, and that CEL selectors compile; what they may cost is not estimated.

func validateSelectors(f *check.Faults, list []resourcev1.DeviceSelector, p *field.Path) {
	if !atMost(f, p, len(list), resourcev1.DeviceSelectorsMaxSize) {
		return
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
	Group: "resource.k8s.io", Version: "v1", Kind: "DeviceClass", WholeMeta: true, Plural: "deviceclasses", Prefix: "deviceclasses", Scope: Cluster,
	List: listOf[resourcev1.DeviceClassList],
	Main: plainPart(func(c, old *resourcev1.DeviceClass) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec")
		validateSelectors(&f, c.Spec.Selectors, p.Child("selectors"))
		if atMost(&f, p.Child("config"), len(c.Spec.Config), resourcev1.DeviceConfigMaxSize) {
			fresh := old == nil || !equality.Semantic.DeepEqual(c.Spec.Config, old.Spec.Config)
			for i, x := range c.Spec.Config {
				validateDeviceConfig(&f, x.DeviceConfiguration, p.Child("config").Index(i), fresh)
			}
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

// atMost reports a list that is too long, of which nothing else is said then.
func atMost(f *check.Faults, p *field.Path, n, max int) bool {
	if n > max {
		f.TooMany(p, n, max)
	}
	return n <= max
}

// validateRequestRefs: a reference to a request of the claim is its name, and to one of its alternatives both names.
func validateRequestRefs(f *check.Faults, list []string, names check.Seen[string], p *field.Path) {
	if !atMost(f, p, len(list), resourcev1.DeviceRequestsMaxSize) {
		return
	}
	again := check.Seen[string]{}
	for i, n := range list {
		validateRequestRef(f, n, names, p.Index(i))
		if again.Again(n) {
			f.Duplicate(p.Index(i), n)
		}
	}
}

func validateRequestRef(f *check.Faults, name string, names check.Seen[string], p *field.Path) {
	if parts := strings.Split(name, "/"); len(parts) <= 2 {
		for _, part := range parts {
			f.Label(p, part)
		}
	}
	if !names[name] {
		f.Invalid(p, name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")
	}
}

// requestNames are those by which the parts of a claim may refer to its requests.
func requestNames(s *resourcev1.ResourceClaimSpec) check.Seen[string] {
	names := check.Seen[string]{}
	for _, r := range s.Devices.Requests {
		names[r.Name] = true
		for _, sub := range r.FirstAvailable {
			names[r.Name+"/"+sub.Name] = true
		}
	}
	return names
}

// adminAccess: devices that others use too are for administrators, whose namespaces carry a label.
func adminAccess(f *check.Faults, rq *Request, namespace string, asked []*field.Path) {
	if len(asked) == 0 {
		return
	}
	ns, err := Lookup[corev1.Namespace](rq.Read, schema.GroupResource{Resource: "namespaces"}, "", namespace)
	if err == nil && ns != nil && ns.Labels[resourcev1.DRAAdminNamespaceLabelKey] == "true" {
		return
	}
	for _, p := range asked {
		f.Forbidden(p, "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace")
	}
}

func adminRequests(f *check.Faults, rq *Request, namespace string, s *resourcev1.ResourceClaimSpec, p *field.Path) {
	var asked []*field.Path
	for i, r := range s.Devices.Requests {
		if r.Exactly != nil && valueOr(r.Exactly.AdminAccess, false) {
			asked = append(asked, p.Child("devices", "requests").Index(i).Child("adminAccess"))
		}
	}
	adminAccess(f, rq, namespace, asked)
}

func validateResourceClaimSpec(f *check.Faults, s *resourcev1.ResourceClaimSpec, p *field.Path) {
	p = p.Child("devices")
	names := requestNames(s)
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
	requests, own := s.Devices.Requests, check.Seen[string]{}
	if !atMost(f, p.Child("requests"), len(requests), resourcev1.DeviceRequestsMaxSize) {
		requests = nil
	}
	for i, r := range requests {
		at := p.Child("requests").Index(i)
		f.Label(at.Child("name"), r.Name)
		if own.Again(r.Name) {
			f.Duplicate(at, r.Name)
		}
		switch {
		case r.Exactly == nil && len(r.FirstAvailable) == 0:
			f.Required(at, "exactly one of `exactly` or `firstAvailable` is required")
		case r.Exactly != nil && len(r.FirstAvailable) > 0:
			f.Invalid(at, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set")
			continue
		case r.Exactly != nil:
			exact(r.Exactly.DeviceClassName, r.Exactly.AllocationMode, r.Exactly.Count, r.Exactly.Selectors, r.Exactly.Tolerations, at.Child("exactly"))
		}
		if !atMost(f, at.Child("firstAvailable"), len(r.FirstAvailable), resourcev1.FirstAvailableDeviceRequestMaxSize) {
			continue
		}
		subs := check.Seen[string]{}
		for j, sub := range r.FirstAvailable {
			at := at.Child("firstAvailable").Index(j)
			f.Label(at.Child("name"), sub.Name)
			if subs.Again(sub.Name) {
				f.Duplicate(at, sub.Name)
			}
			exact(sub.DeviceClassName, sub.AllocationMode, sub.Count, sub.Selectors, sub.Tolerations, at)
		}
	}
	constraints, configs := s.Devices.Constraints, s.Devices.Config
	if !atMost(f, p.Child("constraints"), len(constraints), resourcev1.DeviceConstraintsMaxSize) {
		constraints = nil
	}
	for i, c := range constraints {
		at := p.Child("constraints").Index(i)
		validateRequestRefs(f, c.Requests, names, at.Child("requests"))
		switch {
		case c.MatchAttribute != nil:
			attributeName(f, string(*c.MatchAttribute), true, at.Child("matchAttribute"))
		case c.DistinctAttribute != nil:
			attributeName(f, string(*c.DistinctAttribute), true, at.Child("distinctAttribute"))
		default:
			f.Required(at, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`)
		}
	}
	if !atMost(f, p.Child("config"), len(configs), resourcev1.DeviceConfigMaxSize) {
		configs = nil
	}
	for i, c := range configs {
		at := p.Child("config").Index(i)
		validateRequestRefs(f, c.Requests, names, at.Child("requests"))
		validateDeviceConfig(f, c.DeviceConfiguration, at, true)
	}
}

var resourceClaims = Resource[resourcev1.ResourceClaim]{
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaim", Plural: "resourceclaims", WholeMeta: true, Prefix: "resourceclaims", NoGeneration: true,
	List:    listOf[resourcev1.ResourceClaimList],
	Default: func(c *resourcev1.ResourceClaim) { defaultClaimSpec(&c.Spec) },
	Main: Part[resourcev1.ResourceClaim]{
		Prepare: keepStatus(func(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaimStatus { return &c.Status }),
		Validate: func(rq *Request, c, old *resourcev1.ResourceClaim) field.ErrorList {
			var f check.Faults
			if old != nil {
				f.Same(field.NewPath("spec"), c.Spec, old.Spec)
				return f.List()
			}
			validateResourceClaimSpec(&f, &c.Spec, field.NewPath("spec"))
			adminRequests(&f, rq, c.Namespace, &c.Spec, field.NewPath("spec"))
			return f.List()
		},
		Reset: []string{"status"},
	},
	Status: keepMeta(&Part[resourcev1.ResourceClaim]{Prepare: prepareDeviceClaimStatus, Validate: validateDeviceClaimStatus, Reset: []string{"spec"}}),
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
	Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates", WholeMeta: true, Prefix: "resourceclaimtemplates",
	NoGeneration: true, List: listOf[resourcev1.ResourceClaimTemplateList],
	Default: func(t *resourcev1.ResourceClaimTemplate) { defaultClaimSpec(&t.Spec.Spec) },
	Main: Part[resourcev1.ResourceClaimTemplate]{Validate: func(rq *Request, t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
		var f check.Faults
		f.Add(podrules.ValidateTemplateMeta(&t.Spec.ObjectMeta, field.NewPath("spec", "metadata")))
		validateResourceClaimSpec(&f, &t.Spec.Spec, field.NewPath("spec", "spec"))
		if old != nil {
			f.Same(field.NewPath("spec"), t.Spec, old.Spec)
			return f.List()
		}
		adminRequests(&f, rq, t.Namespace, &t.Spec.Spec, field.NewPath("spec", "spec"))
		return f.List()
	}},
}
