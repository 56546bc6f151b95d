package resources

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

var leases = Resource[coordinationv1.Lease]{
	Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases", AnyFinalizer: true, Prefix: "leases",
	List: listOf[coordinationv1.LeaseList], NoGeneration: true, CreateOnUpdate: true, NeedsVersion: true,
	Main: Part[coordinationv1.Lease]{Prepare: dropElection, Validate: withoutRequest(func(l, _ *coordinationv1.Lease) field.ErrorList {
		var f check.Faults
		s, p := &l.Spec, field.NewPath("spec")
		if d := s.LeaseDurationSeconds; d != nil && *d <= 0 {
			f.Invalid(p.Child("leaseDurationSeconds"), *d, "must be greater than 0")
		}
		check.AtLeastZeroPtr(&f, p.Child("leaseTransitions"), s.LeaseTransitions)
		if s.Strategy != nil && *s.Strategy != coordinationv1.OldestEmulationVersion {
			f.QualifiedName(p.Child("strategy"), string(*s.Strategy))
		}
		if valueOr(s.PreferredHolder, "") != "" && valueOr(s.Strategy, "") == "" {
			f.Forbidden(p.Child("preferredHolder"), "may only be specified if `strategy` is defined")
		}
		return f.List()
	})},
	Docs: map[string]string{
		"Holder": coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"],
	},
	Columns: []Column[coordinationv1.Lease]{
		text("Holder", func(l *coordinationv1.Lease) string { return valueOr(l.Spec.HolderIdentity, "") }),
		ageColumn[coordinationv1.Lease](),
	},
}

// dropElection: the gate CoordinatedLeaderElection is closed in 1.36, so that its
// fields stay only where they are.
func dropElection(_ *Request, l, old *coordinationv1.Lease) {
	if old == nil || old.Spec.Strategy == nil && old.Spec.PreferredHolder == nil {
		l.Spec.Strategy, l.Spec.PreferredHolder = nil, nil
	}
}
