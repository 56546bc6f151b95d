package podrules

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// counted are the resources that are numbers of objects.
var counted = []corev1.ResourceName{
	corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
	corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
}

// measured are the other resources without a domain that a quota can limit.
var measured = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
	corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsStorage, corev1.ResourceRequestsEphemeralStorage,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
}

// IsQuotaResource reports the names without a domain that a quota can limit.
func IsQuotaResource(n corev1.ResourceName) bool {
	return slices.Contains(counted, n) || slices.Contains(measured, n) || isHugePage(n) || strings.HasPrefix(string(n), corev1.ResourceRequestsHugePagesPrefix)
}

func isHugePage(n corev1.ResourceName) bool {
	return strings.HasPrefix(string(n), corev1.ResourceHugePagesPrefix)
}

// IsNative reports a name without a domain, or with one of kubernetes.io.
func IsNative(n corev1.ResourceName) bool {
	return !strings.Contains(string(n), "/") || strings.Contains(string(n), "kubernetes.io/")
}

// IsExtended reports a name that a device plugin may have, and that stays a name with "requests." in front.
func IsExtended(n corev1.ResourceName) bool {
	return !IsNative(n) && !strings.HasPrefix(string(n), corev1.DefaultResourceRequestsPrefix) &&
		len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(n))) == 0
}

// IsInteger reports resources that are counted in whole numbers: objects, and extended resources.
func IsInteger(n corev1.ResourceName) bool { return slices.Contains(counted, n) || IsExtended(n) }

// ValidateResourceName accepts the resources that are known, and any name with a domain.
func ValidateResourceName(n corev1.ResourceName, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Each(p, n, validation.IsQualifiedName(string(n)))
	if f.Empty() && !strings.Contains(string(n), "/") && n != corev1.ResourceStorage && !IsQuotaResource(n) {
		f.Invalid(p, n, "must be a standard resource type or fully qualified")
	}
	return f.List()
}

// ValidateContainerResourceName accepts cpu, memory, ephemeral-storage, huge pages and extended resources.
func ValidateContainerResourceName(n corev1.ResourceName, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Add(ValidateResourceName(n, p))
	switch {
	case !strings.Contains(string(n), "/"):
		if n != corev1.ResourceCPU && n != corev1.ResourceMemory && n != corev1.ResourceEphemeralStorage && !isHugePage(n) {
			f.Invalid(p, n, "must be a standard resource for containers")
		}
	case !IsNative(n) && !IsExtended(n):
		f.Invalid(p, n, "doesn't follow extended resource name standard")
	}
	return f.List()
}

// validatePodResourceName accepts what can be given to a pod as a whole (KEP-2837).
func validatePodResourceName(n corev1.ResourceName, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Add(ValidateResourceName(n, p))
	if f.Empty() && !resourcehelper.IsSupportedPodLevelResource(n) {
		check.Among(&f, p, n, resourcehelper.SupportedPodLevelResources().UnsortedList()...)
	}
	return f.List()
}

// ValidateQuantity refuses negative amounts, and fractions of what is counted.
func ValidateQuantity(n corev1.ResourceName, q quantity, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Quantity(p, q)
	if IsInteger(n) && q.MilliValue()%1000 != 0 {
		f.Invalid(p, q.String(), check.NotInteger)
	}
	return f.List()
}

// ValidateResources checks requests, limits and claims of a container. claims are the names in the pod's resourceClaims.
func ValidateResources(res *corev1.ResourceRequirements, claims map[string]bool, p *field.Path) field.ErrorList {
	return validateRequirements(res, claims, ValidateContainerResourceName, p)
}

func validateRequirements(res *corev1.ResourceRequirements, claims map[string]bool,
	named func(corev1.ResourceName, *field.Path) field.ErrorList, p *field.Path) field.ErrorList {
	var f check.Faults
	compute, huge := false, false
	whole := func(name corev1.ResourceName, q quantity, at *field.Path) {
		compute = compute || name == corev1.ResourceCPU || name == corev1.ResourceMemory
		if !isHugePage(name) {
			return
		}
		huge = true
		page, err := parseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
		if err != nil || page.Sign() <= 0 || q.Value()%page.Value() != 0 {
			f.Invalid(at, q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(res.Limits)) {
		q, at := res.Limits[name], p.Child("limits").Key(string(name))
		f.Add(named(name, at))
		f.Add(ValidateQuantity(name, q, at))
		whole(name, q, at)
	}
	for _, name := range slices.Sorted(maps.Keys(res.Requests)) {
		q, at := res.Requests[name], p.Child("requests").Key(string(name))
		f.Add(named(name, at))
		f.Add(ValidateQuantity(name, q, at))
		limit, limited := res.Limits[name]
		over := IsNative(name) && !isHugePage(name) // may be promised more than once
		switch {
		case !limited && !over:
			f.Required(p.Child("limits"), "Limit must be set for non overcommitable resources")
		case limited && !over && q.Cmp(limit) != 0:
			f.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))
		case limited && q.Cmp(limit) > 0:
			f.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))
		}
		whole(name, q, at)
	}
	if huge && !compute {
		f.Forbidden(p, "HugePages require cpu or memory")
	}
	validateClaimNames(&f, res.Claims, claims, p.Child("claims"))
	return f.List()
}

// validateClaimNames: a container names a claim, or some of its requests, once each.
func validateClaimNames(f *check.Faults, list []corev1.ResourceClaim, claims map[string]bool, p *field.Path) {
	known := slices.Sorted(maps.Keys(claims))
	seen := check.Seen[corev1.ResourceClaim]{}
	for i, c := range list {
		at := p.Index(i)
		if c.Name == "" {
			f.Required(at, "")
			continue
		}
		if seen[corev1.ResourceClaim{Name: c.Name}] {
			f.Duplicate(at, c.Name)
		} else {
			if c.Request != "" {
				f.Label(at.Child("request"), c.Request)
			} else {
				for was := range seen {
					if was.Name == c.Name {
						f.Duplicate(at, c.Name)
					}
				}
			}
			if seen.Again(c) {
				f.Duplicate(at, c.Name+"/"+c.Request)
			}
		}
		if !claims[c.Name] {
			e := field.NotFound(at, c.Name)
			e.Detail = "must be one of the names in pod.spec.resourceClaims"
			if len(known) == 0 {
				e.Detail += " which is empty"
			} else {
				e.Detail += ": " + strings.Join(known, ", ")
			}
			f.Add(field.ErrorList{e})
		}
	}
}

// validatePodResources: what the pod gets as a whole covers what its containers ask for.
func (r *specRules) validatePodResources(p *field.Path) {
	res, at := r.spec.Resources, p.Child("resources")
	if res == nil {
		return
	}
	if r.spec.OS != nil && r.spec.OS.Name == corev1.Windows {
		r.Forbidden(at, "may not be set for a windows pod")
		return
	}
	if res.Claims != nil {
		r.Forbidden(at.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	r.Add(validateRequirements(res, r.claims, validatePodResourceName, at))
	covers := func(kind string, has, want corev1.ResourceList, counts func(corev1.ResourceName) bool) {
		for _, name := range slices.Sorted(maps.Keys(want)) {
			sum := want[name]
			if q, ok := has[name]; ok && counts(name) && sum.Cmp(q) > 0 {
				r.Invalid(at.Child(kind).Key(string(name)), q.String(),
					fmt.Sprintf("must be greater than or equal to aggregate container %s of %s", kind, sum.String()))
			}
		}
	}
	pod := &corev1.Pod{Spec: *r.spec}
	covers("requests", res.Requests, resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{}),
		func(corev1.ResourceName) bool { return true })
	covers("limits", res.Limits, resourcehelper.AggregateContainerLimits(pod, resourcehelper.PodResourcesOptions{}), isHugePage)
	for i := range r.spec.Containers {
		limits := r.spec.Containers[i].Resources.Limits
		for _, name := range slices.Sorted(maps.Keys(limits)) {
			q := limits[name]
			if most, ok := res.Limits[name]; ok && q.Cmp(most) > 0 {
				r.Invalid(at.Child("containers").Index(i).Key(string(name)).Child("limits"), q.String(), "must be less than or equal to pod limits of "+most.String())
			}
		}
	}
}
