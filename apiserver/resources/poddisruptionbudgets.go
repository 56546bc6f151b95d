package resources

import (
	policyv1 "k8s.io/api/policy/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

type pdb = policyv1.PodDisruptionBudget

var podDisruptionBudgets = Resource[pdb]{
	Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", LooseMeta: true, Plural: "poddisruptionbudgets", AnyFinalizer: true, Prefix: "poddisruptionbudgets", NeedsVersion: true, Short: []string{"pdb"},
	Name: PathSegment,
	List: listOf[policyv1.PodDisruptionBudgetList],
	Main: mainPart(func(b *pdb) *policyv1.PodDisruptionBudgetStatus { return &b.Status }, func(b, _ *pdb) field.ErrorList {
		var f check.Faults
		s, p := &b.Spec, field.NewPath("spec")
		if s.MinAvailable != nil && s.MaxUnavailable != nil {
			f.Invalid(p, check.Shown(s), "minAvailable and maxUnavailable cannot be both set")
		}
		intOrPercent(&f, s.MinAvailable, true, p.Child("minAvailable"))
		intOrPercent(&f, s.MaxUnavailable, true, p.Child("maxUnavailable"))
		f.Add(selectorFaults(s.Selector, p.Child("selector")))
		check.AmongPtr(&f, p.Child("unhealthyPodEvictionPolicy"), s.UnhealthyPodEvictionPolicy, policyv1.AlwaysAllow, policyv1.IfHealthyBudget)
		return f.List()
	}),
	Status: statusPart(func(b *pdb) *policyv1.PodDisruptionBudgetSpec { return &b.Spec }, func(b, _ *pdb) field.ErrorList {
		var f check.Faults
		p, s := field.NewPath("status"), &b.Status
		f.Add(metavalidation.ValidateConditions(s.Conditions, p.Child("conditions")))
		check.AtLeastZero(&f, p.Child("disruptionsAllowed"), s.DisruptionsAllowed)
		check.AtLeastZero(&f, p.Child("currentHealthy"), s.CurrentHealthy)
		check.AtLeastZero(&f, p.Child("desiredHealthy"), s.DesiredHealthy)
		check.AtLeastZero(&f, p.Child("expectedPods"), s.ExpectedPods)
		return f.List()
	}),
	Docs: map[string]string{
		"Min Available":       "How many pods must stay available.",
		"Max Unavailable":     "How many pods may be unavailable.",
		"Allowed Disruptions": "How many pods may be evicted now.",
	},
	Columns: []Column[pdb]{
		text("Min Available", func(b *pdb) string {
			if b.Spec.MinAvailable == nil {
				return "N/A"
			}
			return b.Spec.MinAvailable.String()
		}),
		text("Max Unavailable", func(b *pdb) string {
			if b.Spec.MaxUnavailable == nil {
				return "N/A"
			}
			return b.Spec.MaxUnavailable.String()
		}),
		number("Allowed Disruptions", func(b *pdb) int32 { return b.Status.DisruptionsAllowed }),
		ageColumn[pdb](),
	},
}
