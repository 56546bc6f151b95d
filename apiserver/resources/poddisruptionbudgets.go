package resources

import (
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var podDisruptionBudgets = Resource[policyv1.PodDisruptionBudget]{
	Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets",
	Short:  []string{"pdb"},
	Prefix: "poddisruptionbudgets",
	List:   func() runtime.Object { return &policyv1.PodDisruptionBudgetList{} },
	Status: &Part[policyv1.PodDisruptionBudget]{},
}
