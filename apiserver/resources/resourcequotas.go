package resources

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

var resourceQuotas = Resource[corev1.ResourceQuota]{
	Group: "", Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas", Short: []string{"quota"}, NoGeneration: true,
	List: listOf[corev1.ResourceQuotaList],
	Default: func(q *corev1.ResourceQuota) {
		for _, l := range []corev1.ResourceList{q.Spec.Hard, q.Status.Hard, q.Status.Used} {
			podrules.RoundUp(l)
		}
	},
	Main: mainPart(func(q *corev1.ResourceQuota) *corev1.ResourceQuotaStatus { return &q.Status }, validateResourceQuota),
	Status: statusPart(func(q *corev1.ResourceQuota) *corev1.ResourceQuotaSpec { return &q.Spec }, func(q, _ *corev1.ResourceQuota) field.ErrorList {
		var f check.Faults
		quotaList(&f, q.Status.Hard, field.NewPath("status", "hard"))
		quotaList(&f, q.Status.Used, field.NewPath("status", "used"))
		return f.List()
	}),
	Docs: map[string]string{
		"Request": "What is used of each request and count, and its bound.",
		"Limit":   "What is used of each limit, and its bound.",
	},
	Columns: []Column[corev1.ResourceQuota]{
		text("Request", func(q *corev1.ResourceQuota) string { return quotaText(q, false) }),
		text("Limit", func(q *corev1.ResourceQuota) string { return quotaText(q, true) }),
		ageColumn[corev1.ResourceQuota](),
	},
}

// quotaText is "pods: 1/10, requests.cpu: 500m/2"; limits have a column of their own.
func quotaText(q *corev1.ResourceQuota, limits bool) string {
	var out []string
	for name, hard := range q.Status.Hard {
		if strings.HasPrefix(string(name), "limits.") == limits {
			used := q.Status.Used[name]
			out = append(out, fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String()))
		}
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}

// standardResources are all names without a domain that have a meaning somewhere.
var standardResources = map[corev1.ResourceName]bool{
	"cpu": true, "memory": true, "ephemeral-storage": true, "requests.cpu": true, "requests.memory": true,
	"requests.ephemeral-storage": true, "limits.cpu": true, "limits.memory": true, "limits.ephemeral-storage": true,
	"pods": true, "resourcequotas": true, "services": true, "replicationcontrollers": true, "secrets": true, "configmaps": true,
	"persistentvolumeclaims": true, "storage": true, "requests.storage": true, "services.nodeports": true, "services.loadbalancers": true,
}

func isStandard(n corev1.ResourceName) bool {
	return standardResources[n] || strings.HasPrefix(strings.TrimPrefix(string(n), "requests."), corev1.ResourceHugePagesPrefix)
}

func validateResourceName(n corev1.ResourceName, p *field.Path) field.ErrorList {
	var f check.Faults
	f.QualifiedName(p, string(n))
	if f.Empty() && !strings.Contains(string(n), "/") && !isStandard(n) {
		f.Invalid(p, n, "must be a standard resource type or fully qualified")
	}
	return f.List()
}

func quotaList(f *check.Faults, list corev1.ResourceList, p *field.Path) {
	for name, q := range list {
		f.Add(validateResourceName(name, p.Key(string(name))))
		if name == corev1.ResourceStorage || !strings.Contains(string(name), "/") && !isStandard(name) {
			f.Invalid(p.Key(string(name)), name, "must be a standard resource for quota")
		}
		f.Add(podrules.ValidateQuantity(name, q, p.Key(string(name))))
	}
}

func validateResourceQuota(q, old *corev1.ResourceQuota) field.ErrorList {
	var f check.Faults
	p := field.NewPath("spec")
	quotaList(&f, q.Spec.Hard, p.Child("hard"))
	if len(q.Spec.Scopes) > 0 {
		at := p.Child("scopes")
		for _, s := range q.Spec.Scopes {
			scopeFaults(&f, q, s, at, at, q.Spec.Scopes)
		}
		conflicts(&f, q.Spec.Scopes, at, q.Spec.Scopes)
	}
	if sel := q.Spec.ScopeSelector; sel != nil {
		at := p.Child("scopeSelector", "matchExpressions")
		var scopes []corev1.ResourceQuotaScope
		for _, e := range sel.MatchExpressions {
			scopes = append(scopes, e.ScopeName)
			scopeFaults(&f, q, e.ScopeName, at.Child("scopeName"), at, sel)
			if needsExists[e.ScopeName] && e.Operator != corev1.ScopeSelectorOpExists {
				f.Invalid(at.Child("operator"), e.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, "+
					"ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")
			}
			switch e.Operator {
			case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
				if len(e.Values) == 0 {
					f.Required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
				}
			case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
				if len(e.Values) > 0 {
					f.Invalid(at.Child("values"), e.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
				}
			default:
				f.Invalid(at.Child("operator"), e.Operator, "not a valid selector operator")
			}
		}
		conflicts(&f, scopes, at, q.Spec.Scopes)
	}
	if old != nil {
		now, was := slices.Sorted(slices.Values(q.Spec.Scopes)), slices.Sorted(slices.Values(old.Spec.Scopes))
		if !slices.Equal(slices.Compact(now), slices.Compact(was)) {
			f.Invalid(p.Child("scopes"), q.Spec.Scopes, check.Immutable)
		}
	}
	return f.List()
}

// needsExists are the scopes that a quota has or has not; the others take values.
var needsExists = map[corev1.ResourceQuotaScope]bool{
	corev1.ResourceQuotaScopeTerminating: true, corev1.ResourceQuotaScopeNotTerminating: true, corev1.ResourceQuotaScopeBestEffort: true,
	corev1.ResourceQuotaScopeNotBestEffort: true, corev1.ResourceQuotaScopeCrossNamespacePodAffinity: true,
}

// scopeFaults: the scope is known, and fits every standard resource of the quota.
func scopeFaults(f *check.Faults, q *corev1.ResourceQuota, s corev1.ResourceQuotaScope, unknown, p *field.Path, value any) {
	fits := func(corev1.ResourceName) bool { return true }
	switch s {
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		fits = func(n corev1.ResourceName) bool {
			switch n {
			case "pods", "cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory":
				return true
			}
			return false
		}
	case corev1.ResourceQuotaScopeBestEffort:
		fits = func(n corev1.ResourceName) bool { return n == corev1.ResourcePods }
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		fits = func(n corev1.ResourceName) bool {
			return n == corev1.ResourcePersistentVolumeClaims || n == corev1.ResourceRequestsStorage
		}
	default:
		if p == unknown {
			f.Invalid(unknown, value, "unsupported scope")
		} else {
			f.Invalid(unknown, s, "unsupported scope")
		}
	}
	for name := range q.Spec.Hard {
		if isStandard(name) && name != corev1.ResourceStorage && !fits(name) {
			f.Invalid(p, value, "unsupported scope applied to resource")
		}
	}
}

func conflicts(f *check.Faults, scopes []corev1.ResourceQuotaScope, p *field.Path, value any) {
	both := func(a, b corev1.ResourceQuotaScope) {
		if slices.Contains(scopes, a) && slices.Contains(scopes, b) {
			f.Invalid(p, value, "conflicting scopes")
		}
	}
	both(corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort)
	both(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating)
}
