package resources

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

type claim = corev1.PersistentVolumeClaim

var persistentVolumeClaims = Resource[claim]{
	Group: "", Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", Short: []string{"pvc"},
	List: listOf[corev1.PersistentVolumeClaimList], NoGeneration: true,
	Default: defaultClaim,
	Main: Part[claim]{
		Prepare: func(rq *Request, obj, old *claim) {
			if old == nil {
				obj.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
			} else {
				obj.Status = old.Status
			}
			alignDataSource(&obj.Spec)
		},
		Validate: withoutRequest(validateClaim),
		Reset:    []string{"status"},
	},
	Status: statusPart(func(c *claim) *corev1.PersistentVolumeClaimSpec { return &c.Spec }, func(c, _ *claim) field.ErrorList {
		var f check.Faults
		p := field.NewPath("status")
		if len(c.Spec.AccessModes) == 0 {
			f.Required(field.NewPath("Spec", "accessModes"), "")
		}
		for name, q := range c.Status.Capacity {
			if q.Sign() < 0 {
				f.Invalid(p.Child("capacity").Key(string(name)), q.Value(), "must be a valid resource quantity")
			}
		}
		return f.List()
	}),
	Fields:     func(c *claim) fields.Set { return fields.Set{"name": c.Name} },
	FieldNames: []string{"name"},
	Columns: []Column[claim]{
		text("Status", func(c *claim) string {
			if c.DeletionTimestamp != nil {
				return "Terminating"
			}
			return string(c.Status.Phase)
		}),
		text("Volume", func(c *claim) string { return c.Spec.VolumeName }),
		text("Capacity", func(c *claim) string {
			if c.Spec.VolumeName == "" {
				return ""
			}
			return quantityText(c.Status.Capacity[corev1.ResourceStorage])
		}),
		text("Access Modes", func(c *claim) string {
			if c.Spec.VolumeName == "" {
				return ""
			}
			return accessModesText(c.Status.AccessModes)
		}),
		text("StorageClass", func(c *claim) string { return classOf(c.Annotations, c.Spec.StorageClassName) }),
		text("VolumeAttributesClass", func(c *claim) string { return valueOr(c.Spec.VolumeAttributesClassName, "<unset>") }),
		ageColumn[claim](),
		wide(text("VolumeMode", func(c *claim) string { return string(valueOr(c.Spec.VolumeMode, "<unset>")) })),
	},
}

func defaultClaim(c *claim) {
	def(&c.Status.Phase, corev1.ClaimPending)
	defPtr(&c.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
}

// alignDataSource keeps dataSource and dataSourceRef in step where both can say the same.
func alignDataSource(s *corev1.PersistentVolumeClaimSpec) {
	switch d, ref := s.DataSource, s.DataSourceRef; {
	case ref != nil && ref.Namespace != nil && *ref.Namespace != "":
	case d != nil && ref == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: d.APIGroup, Kind: d.Kind, Name: d.Name}
	case d == nil && ref != nil:
		if valueOr(ref.APIGroup, "") == "" && ref.Kind == "PersistentVolumeClaim" || ref.Kind == "VolumeSnapshot" {
			s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: ref.APIGroup, Kind: ref.Kind, Name: ref.Name}
		}
	}
}

// classOf prefers the old annotation to the field.
func classOf(annotations map[string]string, name *string) string {
	if c, ok := annotations[corev1.BetaStorageClassAnnotation]; ok {
		return c
	}
	return valueOr(name, "")
}

func validateClaim(c, old *claim) field.ErrorList {
	var f check.Faults
	p := field.NewPath("spec")
	f.Add(podrules.ValidateClaimSpec(&c.Spec, p))
	if old == nil {
		return f.List()
	}
	// A claim may be bound, a bound one may grow and change its attributes class; nothing else.
	rest := c.Spec.DeepCopy()
	if old.Spec.VolumeName == "" {
		rest.VolumeName = ""
	}
	if old.Spec.StorageClassName == nil {
		if _, annotated := old.Annotations[corev1.BetaStorageClassAnnotation]; !annotated || old.Annotations[corev1.BetaStorageClassAnnotation] == valueOr(rest.StorageClassName, "") {
			rest.StorageClassName = nil
		}
	}
	bound := old.Status.Phase == corev1.ClaimBound
	now, was := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if bound {
		rest.Resources.Requests = old.Spec.Resources.Requests
	}
	rest.VolumeAttributesClassName = old.Spec.VolumeAttributesClassName
	if !equality.Semantic.DeepEqual(*rest, old.Spec) {
		f.Forbidden(p, fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(old.Spec, *rest)))
	}
	storage := p.Child("resources", "requests", "storage")
	if bound && now.Cmp(was) < 0 {
		if capacity := old.Status.Capacity[corev1.ResourceStorage]; now.Cmp(capacity) < 0 {
			f.Forbidden(storage, "field can not be less than status.capacity")
		}
	}
	at := p.Child("volumeAttributesClassName")
	if old.Status.CurrentVolumeAttributesClassName != nil {
		switch n := c.Spec.VolumeAttributesClassName; {
		case n == nil:
			f.Forbidden(at, "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil")
		case *n == "":
			f.Forbidden(at, "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil")
		}
	}
	return f.List()
}
